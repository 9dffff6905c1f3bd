"""A server with tiny models, whose worker process is started once for all tests."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from sending import LONG
from starlette.testclient import TestClient

from pellucid import checkpoints
from pellucid.gan import GAN, GANConfig, Generator
from pellucid.serve.app import application
from pellucid.serve.configuration import Configuration
from pellucid.serve.engine import Engine


@pytest.fixture(scope="session")
def models(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two models, and a GAN."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copy(model_file, folder / "tiny.safetensors")
    (folder / "more").mkdir()
    shutil.copy(model_file, folder / "more" / "other.safetensors")
    config = GANConfig(latent=8, generator_width=4, classes=("frog", "rabbit"))
    checkpoints.save_gan(GAN(Generator(config).eval(), "a GAN"), folder / "gan.safetensors")
    return folder


@pytest.fixture(scope="session")
def configuration(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Configuration:
    """That of the server."""
    return Configuration(
        data=tmp_path_factory.mktemp("data"),
        models=(models,),
        loras=tmp_path_factory.mktemp("loras"),
        upscalers=tmp_path_factory.mktemp("upscalers"),
        model="tiny",
        devices=("cpu",),
        dtype="float32",  # as checkpoints.load, with which pictures are compared
        names=("testserver",),
        pixel_limit=64 * 64,
        queue_limit=50,
        body_limit=1_000_000,
        upload_pixels=1_000_000,
    )


@pytest.fixture(scope="session")
def engine(configuration: Configuration) -> Engine:
    """That of the server."""
    return Engine(configuration)


@pytest.fixture(scope="session")
def running(engine: Engine) -> Iterator[TestClient]:
    """The server."""
    with TestClient(application(engine), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="session")
def address(running: TestClient, engine: Engine) -> Iterator[str]:
    """The same server on a socket, for clients that need one; "http://127.0.0.1:PORT"."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(application(engine), lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(LONG)


@pytest.fixture
def client(running: TestClient, engine: Engine) -> Iterator[TestClient]:
    """A client; the queue goes on and is empty afterwards."""
    yield running
    engine.paused = False
    for job in [*engine.queue.next(1000), *engine.queue.running()]:
        engine.cancel(job.id)
        engine.wait(job.id, LONG)


@pytest.fixture
def drawn(client: TestClient, engine: Engine) -> Callable[..., dict[str, Any]]:
    """Draws a request by the native interface, and returns the job when it has ended."""

    def draw(request: dict[str, Any], **more: Any) -> dict[str, Any]:
        reply = client.post("/api/jobs", json={"request": request, **more})
        assert reply.status_code == 201, reply.text
        id = reply.json()["id"]
        assert engine.wait(id, LONG) is not None
        job: dict[str, Any] = client.get(f"/api/jobs/{id}").json()
        return job

    return draw

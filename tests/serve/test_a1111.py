"""A1111's interface, by its client `webuiapi` and by plain requests."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webuiapi
from PIL import Image
from sending import LONG, png
from starlette.testclient import TestClient

from pellucid.esrgan import RRDBConfig, RRDBNet
from pellucid.serve.engine import Engine


def encoded(image: Image.Image) -> str:
    return base64.b64encode(png(image)).decode()


def opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


@pytest.fixture
def api(client: TestClient, address: str) -> Iterator[webuiapi.WebUIApi]:
    api = webuiapi.WebUIApi(baseurl=f"{address}/sdapi/v1", sampler="Euler", steps=2)
    yield api
    api.session.close()


def test_webuiapi_draws(api: webuiapi.WebUIApi) -> None:
    made = api.txt2img(prompt="a rabbit", seed=4, width=16, height=16, cfg_scale=2, n_iter=2)
    assert [image.size for image in made.images] == [(16, 16)] * 2
    assert made.info["all_seeds"] == [4, 5] and made.info["sampler_name"] == "Euler"
    assert "Steps: 2, Sampler: Euler" in made.info["infotexts"][0]
    again = api.img2img(
        images=[made.images[0]], prompt="a rabbit", seed=4, width=16, height=16, cfg_scale=2
    )
    assert again.image.size == (16, 16) and again.info["denoising_strength"] == 0.75
    read = api.png_info(made.images[0])
    assert "Seed: 4" in read.info


def test_webuiapi_lists(api: webuiapi.WebUIApi, model_file: Path) -> None:
    assert {"tiny", "other"} <= {model["model_name"] for model in api.get_sd_models()}
    (tiny,) = [model for model in api.get_sd_models() if model["model_name"] == "tiny"]
    assert tiny["sha256"] == hashlib.sha256(model_file.read_bytes()).hexdigest()
    assert tiny["title"] == f"tiny.safetensors [{tiny['hash']}]"
    assert "Euler a" in [sampler["name"] for sampler in api.get_samplers()]
    assert "Karras" in [each["label"] for each in api.get_schedulers()]
    assert api.get_options()["sd_model_checkpoint"] == "tiny"
    api.set_options({"sd_model_checkpoint": "other.safetensors [abc]"})
    assert api.get_options()["sd_model_checkpoint"] == "other"
    made = api.txt2img(prompt="x", width=16, height=16)
    assert made.info["sd_model_name"] == "other"
    assert made.info["sd_model_hash"] == tiny["hash"]  # a copy
    api.set_options({"sd_model_checkpoint": "tiny"})
    assert api.get_progress()["progress"] == 0.0
    assert api.get_memory()["ram"]["total"] > 0
    assert {"Lanczos", "Nearest", "Diffusion"} <= {each["name"] for each in api.get_upscalers()}


def test_fields_do_what_they_say(client: TestClient) -> None:
    body = {
        "prompt": "a (rabbit:1.2)",
        "negative_prompt": "blue",
        "sampler_name": "DPM++ 2M",
        "scheduler": "karras",
        "steps": 3,
        "cfg_scale": 2.5,
        "seed": 1,
        "subseed": 9,
        "subseed_strength": 0.25,
        "batch_size": 2,
        "width": 16,
        "height": 16,
        "enable_hr": True,
        "hr_scale": 1.5,
        "hr_second_pass_steps": 2,
        "denoising_strength": 0.5,
        "hr_upscaler": "Latent (nearest)",
        "override_settings": {"sd_model_checkpoint": "other", "sd_vae": "x"},
        "restore_faces": True,
        "styles": [],
        "nonsense": 1,
    }
    reply = client.post("/sdapi/v1/txt2img", json=body)
    assert reply.status_code == 200, reply.text
    answer = reply.json()
    assert [opened(text).size for text in answer["images"]] == [(24, 24)] * 2
    (job,) = client.get("/api/jobs?limit=1").json()["jobs"]
    assert job["model"] == "other"
    expected = {
        "prompt": "a (rabbit:1.2)",
        "negative_prompt": "blue",
        "sampler": "dpmpp_2m",
        "spacing": "karras",
        "steps": 3,
        "guidance": 2.5,
        "seed": 1,
        "variation_seed": 9,
        "variation_strength": 0.25,
        "count": 2,
        "hires": 1.5,
        "hires_steps": 2,
        "hires_strength": 0.5,
        "hires_upscaler": "latent_nearest",
    }
    assert {name: job["resolved"][name] for name in expected} == expected
    said = "\n".join(answer["warnings"])
    for name in ("sd_vae", "restore_faces", "nonsense"):
        assert name in said
    assert "styles" not in said
    info = json.loads(answer["info"])
    assert info["all_subseeds"] == [9, 10] and len(info["infotexts"]) == 2


def test_a_subseed_can_be_zero(client: TestClient) -> None:
    asked = {"prompt": "x", "seed": 5, "subseed": 0, "subseed_strength": 0.5, "steps": 1}
    info = json.loads(client.post("/sdapi/v1/txt2img", json=asked).json()["info"])
    assert (info["seed"], info["subseed"], info["all_subseeds"]) == (5, 0, [0])


def test_a_mask_is_redrawn_where_it_is_white(client: TestClient) -> None:
    image = Image.effect_noise((16, 16), 90).convert("RGB")
    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, (8, 0, 16, 16))
    body = {
        "init_images": ["data:image/png;base64," + encoded(image)],
        "mask": encoded(mask),
        "mask_blur": 0,
        "inpaint_full_res": False,
        "inpainting_fill": 1,
        "width": 16,
        "height": 16,
        "prompt": "a rabbit",
    }
    drawn = np.asarray(opened(client.post("/sdapi/v1/img2img", json=body).json()["images"][0]))
    assert np.array_equal(drawn[:, :8], np.asarray(image)[:, :8])
    assert not np.array_equal(drawn[:, 8:], np.asarray(image)[:, 8:])
    body["inpainting_mask_invert"] = 1
    drawn = np.asarray(opened(client.post("/sdapi/v1/img2img", json=body).json()["images"][0]))
    assert np.array_equal(drawn[:, 8:], np.asarray(image)[:, 8:])


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_resize_modes(client: TestClient, mode: int) -> None:
    image = Image.new("RGB", (32, 8), "red")
    body = {"init_images": [encoded(image)], "width": 16, "height": 16, "resize_mode": mode}
    reply = client.post("/sdapi/v1/img2img", json=body)
    assert reply.status_code == 200, reply.text
    assert opened(reply.json()["images"][0]).size == (16, 16)


def test_interrupt_and_skip_keep_what_is_there(client: TestClient, engine: Engine) -> None:
    def at_the_first_step(path: str) -> Any:
        done = []

        def take(event: Any) -> None:
            if event.kind == "step" and not done:
                done.append(event.id)
                if path == "skip":
                    engine.cancel(event.id, keep=True)
                else:
                    assert client.get("/sdapi/v1/progress").json()["state"]["sampling_steps"] == 200
                    client.post("/sdapi/v1/interrupt")

        body = {"prompt": "a rabbit", "steps": 200, "n_iter": 2, "width": 16, "height": 16}
        if path == "skip":
            body["steps"] = 100
        with engine.watch(take):
            reply = client.post("/sdapi/v1/txt2img", json=body)
        assert reply.status_code == 200, reply.text
        return reply.json()

    skipped = at_the_first_step("skip")
    assert len(skipped["images"]) == 2 and "interrupted after step" in skipped["warnings"][0]
    interrupted = at_the_first_step("interrupt")
    assert len(interrupted["images"]) == 2  # they are drawn in one batch
    assert engine.wait(client.get("/api/jobs?limit=1").json()["jobs"][0]["id"], LONG)


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("txt2img", {"steps": 0}, "steps must be between"),
        ("txt2img", {"sampler_name": "Eular"}, "nearest first: euler"),
        ("txt2img", {"override_settings": {"sd_model_checkpoint": "/etc/passwd"}}, "unknown model"),
        ("txt2img", {"enable_hr": True, "hr_upscaler": "/etc/passwd.pth"}, "hires_upscaler"),
        ("img2img", {}, "init_images must have one picture"),
        ("img2img", {"init_images": ["http://localhost/x.png"]}, "not fetched"),
        ("img2img", {"init_images": ["AAAA"]}, "not a picture"),
        ("png-info", {"image": "AAAA"}, "not a picture"),
    ],
)
def test_bad_input_has_a1111s_shape(
    client: TestClient, path: str, body: dict[str, Any], said: str
) -> None:
    reply = client.post(f"/sdapi/v1/{path}", json=body)
    assert reply.status_code == 422, reply.text
    assert list(reply.json()) == ["detail"] and said in reply.json()["detail"]


def test_an_upscaler_of_the_folder(client: TestClient, engine: Engine) -> None:
    assert engine.configuration.upscalers is not None
    network = RRDBNet(RRDBConfig(width=8, blocks=2, growth=4))
    torch.save(network.state_dict(), engine.configuration.upscalers / "4x-Thin.pth")
    names = [each["name"] for each in client.get("/sdapi/v1/upscalers").json()]
    assert names[-1] == "4x-Thin"
    fields = client.get("/api/models/tiny/capabilities").json()["fields"]
    (field,) = [each for each in fields if each["name"] == "hires_upscaler"]
    assert field["choices"][-1] == "4x-Thin.pth"
    body = {"prompt": "a rabbit", "seed": 1, "steps": 2, "enable_hr": True, "hr_scale": 2}
    made = client.post("/sdapi/v1/txt2img", json=body | {"hr_upscaler": "4x-Thin"}).json()
    (image,) = made["images"]
    assert opened(image).size == (32, 32) and made["warnings"] == []
    record = json.loads(opened(image).info["pellucid"])
    assert record["hires_upscaler"] == "4x-Thin.pth"
    plain = client.post("/sdapi/v1/txt2img", json=body | {"hr_upscaler": "Lanczos"}).json()
    assert plain["images"] != made["images"]
    absent = client.post("/sdapi/v1/txt2img", json=body | {"hr_upscaler": "5x.pth"})
    assert absent.status_code == 422 and "4x-Thin.pth" in absent.json()["detail"]

"""What strangers cannot do, and what whoever runs the server sees."""

from __future__ import annotations

import base64
import io
import json
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from pellucid.serve.configuration import Configuration
from pellucid.serve.logs import Formatter
from pellucid.serve.pictures import PictureStore
from pellucid.serve.safety import Guard, is_loopback, token_of
from pellucid.serve.server import bound

TOKEN = "a-token-of-16-letters"


def guarded(configuration: Configuration, token: str | None = None) -> TestClient:
    """A server that says yes to all that the guard lets through, having read it."""

    async def yes(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await PlainTextResponse("yes")(scope, receive, send)

    def refuse(path: str, status: int, message: str) -> PlainTextResponse:
        return PlainTextResponse(message, status)

    return TestClient(Guard(yes, configuration, token, refuse), raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:7860"}, 200),
        ({"Host": "127.0.0.1"}, 200),
        ({"Host": "[::1]:7860"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "["}, 403),
        ({"Origin": "http://testserver"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://[bad"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
        ({"Content-Length": "-1"}, 400),
        ({"Content-Length": "99999999999"}, 413),
    ],
)
def test_hosts_origins_and_lengths(tmp_path: Path, headers: dict[str, str], status: int) -> None:
    client = guarded(Configuration(data=tmp_path, names=("testserver",)))
    assert client.get("/", headers=headers).status_code == status


def test_a_host_name_is_known_in_any_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Toms-MacBook")
    configuration = Configuration(data=tmp_path, host="0.0.0.0", names=("Studio.LAN",))
    client = guarded(configuration)
    for host in ("Toms-MacBook:7860", "toms-macbook", "Studio.LAN", "studio.lan", "LOCALHOST"):
        assert client.get("/", headers={"Host": host}).status_code == 200, host


def test_a_body_without_a_length_is_bounded(tmp_path: Path) -> None:
    client = guarded(Configuration(data=tmp_path, names=("testserver",), body_limit=2000))
    read = []

    def body() -> Any:
        for _ in range(100):
            read.append(1)
            yield bytes(100)

    assert client.post("/", content=body()).status_code in (413, 500)
    assert client.post("/", content=bytes(2001)).status_code == 413
    assert client.post("/", content=bytes(2000)).status_code == 200


def test_the_token(tmp_path: Path) -> None:
    client = guarded(Configuration(data=tmp_path, names=("testserver",)), TOKEN)
    refused = client.get("/api/jobs")
    assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
    basic = base64.b64encode(f"me:{TOKEN}".encode()).decode()
    for value in (f"Bearer {TOKEN}", f"bearer {TOKEN}", f"Basic {basic}"):
        assert client.get("/", headers={"Authorization": value}).status_code == 200
    for value in (f"Bearer {TOKEN}x", "Bearer", "Basic !", "Basic YQ==", f"Digest {TOKEN}", "é"):
        reply = client.get("/", headers={"Authorization": value.encode()})
        assert reply.status_code == 401
    assert client.get("/", headers={"Cookie": f"pellucid_token={TOKEN}"}).status_code == 200
    assert client.get("/healthz").status_code == 200


def test_a_token_is_made_beyond_loopback_and_kept(tmp_path: Path) -> None:
    assert token_of(Configuration(data=tmp_path)) is None
    made = token_of(Configuration(data=tmp_path, host="0.0.0.0"))
    assert made is not None and len(made) >= 32
    assert token_of(Configuration(data=tmp_path, host="::")) == made
    assert (tmp_path / "token").stat().st_mode & 0o077 == 0
    assert token_of(Configuration(data=tmp_path, token=TOKEN)) == TOKEN
    assert is_loopback("127.0.0.2") and is_loopback("::1") and not is_loopback("example.org")


def test_headers_of_every_reply(client: TestClient) -> None:
    for path in ("/api/jobs", "/v1/models", "/docs", "/nothing", "/sdapi/v1/options"):
        reply = client.get(path)
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "*" not in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in reply.headers


@pytest.mark.parametrize(
    ("path", "keys"), [("/api/x", {"error"}), ("/v1/x", {"error"}), ("/sdapi/v1/x", {"detail"})]
)
def test_the_guard_speaks_each_dialect(client: TestClient, path: str, keys: set[str]) -> None:
    reply = client.get(path, headers={"Host": "evil.example"})
    assert reply.status_code == 403 and set(reply.json()) == keys
    assert client.get(path).status_code == 404 and set(client.get(path).json()) == keys


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        saved(Image.new("1", (15_000, 15_000)), "PNG"),
        saved(Image.new("CMYK", (3000, 3000)), "JPEG"),
        saved(
            Image.new("P", (3000, 3000)),
            "GIF",
            save_all=True,
            append_images=[Image.new("P", (3000, 3000), 1)],
        ),
        saved(Image.new("L", (2000, 2000)), "TIFF", compression="tiff_deflate"),
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    ],
    ids=["bomb", "cmyk", "animated", "tiff", "eps", "svg"],
)
def test_decompression_bombs_are_refused_by_their_headers(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ValueError):
        PictureStore(tmp_path).add_upload(data, 1_000_000)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_no_text_is_a_path(tmp_path: Path) -> None:
    pictures = PictureStore(tmp_path / "pictures")
    (tmp_path / "secret").write_text("x")
    for name in ("../secret", "/etc/passwd", "", "a" * 63, "A" * 64, "a" * 64 + "\n", "a" * 65):
        assert pictures.path(name) is None


def test_health_metrics_and_docs(client: TestClient, drawn: Callable[..., Any]) -> None:
    assert client.get("/healthz").text == "ok\n"
    assert client.get("/readyz").text == "ready\n"
    drawn({"prompt": "a rabbit"})
    text = client.get("/metrics").text
    assert 'pellucid_jobs_ended_total{api="native",state="done"}' in text
    assert "pellucid_jobs_queued 0.0" in text and "pellucid_requests_total" in text
    page = client.get("/docs").text
    for path in ("POST /api/jobs", "POST /v1/images/generations", "POST /sdapi/v1/txt2img"):
        assert path in page


def test_a_line_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    record = logging.makeLogRecord({"msg": "a\nb", "levelname": "INFO", "path": "/x\ny", "_ray": 1})
    text = Formatter("text").format(record)
    assert "\n" not in text and 'path="/x\\ny"' in text and "_ray" not in text
    assert json.loads(Formatter("json").format(record))["event"] == "a\nb"


def test_config_has_one_precedence(
    call: Any, refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[serve]\nport = 1111\ncount_limit = 2\nqueue_limit = 7\n")
    monkeypatch.setenv("PELLUCID_CONFIG", str(file))
    monkeypatch.setenv("PELLUCID_SERVE_COUNT_LIMIT", "3")
    monkeypatch.setenv("PELLUCID_SERVE_NAMES", "a.example,b.example")
    status, out, _ = call("serve", "--port", "2222", "--print-config")
    shown = json.loads(out)
    assert status == 0
    assert (shown["port"], shown["count_limit"], shown["queue_limit"]) == (2222, 3, 7)
    assert shown["names"] == ["a.example", "b.example"]
    assert "port must be between 0 and 65535" in refused("serve", "--port", "99999")
    monkeypatch.setenv("PELLUCID_SERVE_PORTT", "1")
    assert "portt" in refused("serve", "--print-config")


def test_a_reply_does_not_wait_for_the_client(tmp_path: Path) -> None:
    """Without TCP_NODELAY the second part of a reply waits until the client has confirmed the first."""
    with (
        bound(Configuration(data=tmp_path, port=0)) as listening,
        socket.create_connection(listening.getsockname()),
        listening.accept()[0] as connection,
    ):
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

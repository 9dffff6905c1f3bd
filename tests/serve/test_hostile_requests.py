"""Requests that no honest client sends: each gets an answer below 500, in the shape of its interface."""

from __future__ import annotations

import base64
import io
import json
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image
from sending import LONG, png
from starlette.testclient import TestClient

from pellucid.serve.engine import Engine

JSON = {"Content-Type": "application/json"}
DRAW = {"/api": "/api/jobs", "/v1": "/v1/images/generations", "/sdapi/v1": "/sdapi/v1/txt2img"}
PICTURE = base64.b64encode(png(Image.new("RGB", (16, 16), "red"))).decode()
NESTED = "[" * 900 + "]" * 900


def shaped(path: str, reply: Any) -> str:
    """The message of an error, which has the shape of the interface of its path."""
    assert 400 <= reply.status_code < 500, (path, reply.status_code, reply.text[:500])
    body = json.loads(reply.text, parse_constant=pytest.fail)  # NaN is not JSON
    if path.startswith("/api"):
        assert set(body) == {"error"} and set(body["error"]) == {"message", "field"}
        return str(body["error"]["message"])
    if path.startswith("/v1"):
        assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
        return str(body["error"]["message"])
    assert list(body) == ["detail"] and isinstance(body["detail"], str)
    return body["detail"]


def body_of(path: str, **fields: Any) -> dict[str, Any]:
    """What asks an interface for a picture, with other fields."""
    whole = {"prompt": "a rabbit", "steps": 1, **fields}
    return {"request": whole} if path == "/api/jobs" else whole


@pytest.mark.parametrize("path", DRAW.values())
@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        "",
        "7\0",
        "٣",
        True,
        1.5,
        -(10**400),
        10**400,
        1e308,
        float("nan"),
        float("-inf"),
        {"$ref": "#"},
        [[1, 2], {"a": None}],
        "\ud800",
        "../../etc/passwd",
    ],
    ids=lambda value: repr(value)[:12],
)
def test_a_value_of_another_kind(client: TestClient, path: str, value: Any) -> None:
    """In a field that is a number, one that is a text, and one that is a name."""
    for name in ("seed", "steps", "guidance" if path != DRAW["/sdapi/v1"] else "cfg_scale"):
        content = json.dumps(body_of(path, **{name: value}))
        reply = client.post(path, content=content, headers=JSON)
        if reply.status_code not in (200, 201):
            assert shaped(path, reply)
    if not isinstance(value, str):
        names = {"prompt": value}, {"negative_prompt": value}
        for fields in names:
            content = json.dumps(body_of(path, **fields))
            assert shaped(path, client.post(path, content=content, headers=JSON))


@pytest.mark.parametrize("path", DRAW.values())
@pytest.mark.parametrize(
    "content",
    [
        b"null",
        b"[]",
        b'"a rabbit"',
        b"3",
        b"NaN",
        b"{'prompt': 'a rabbit'}",
        b'{"prompt": "a rabbit"',
        b'{"prompt": "a rabbit"}{}',
        b'\xef\xbb\xbf\xff{"prompt": "a rabbit"}',
        b'{"prompt": "\xff\xfe"}',
        '{"prompt": "a rabbit"}'.encode("utf-16")[1:],
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
        b'{"prompt": ' + b"9" * 5000 + b"}",
        NESTED.encode(),
        b'{"prompt": ' + NESTED.encode() + b"}",
        b'{"steps": {"' + b"x" * 100_000 + b'": 1}}',
    ],
    ids=lambda content: repr(content)[2:14],
)
def test_a_body_that_is_no_request(client: TestClient, path: str, content: bytes) -> None:
    assert shaped(path, client.post(path, content=content, headers=JSON))


@pytest.mark.parametrize(
    "value", [float("nan"), 1e999, json.loads(NESTED)], ids=["nan", "inf", "deep"]
)
def test_an_unknown_field_of_a1111_is_a_warning(client: TestClient, value: Any) -> None:
    content = json.dumps({"prompt": "a rabbit", "seed": 1, "steps": 1, "no_such_field": value})
    reply = client.post("/sdapi/v1/txt2img", content=content, headers=JSON)
    if reply.status_code != 200:
        assert shaped("/sdapi/v1/txt2img", reply)
        return
    answer = json.loads(reply.text, parse_constant=pytest.fail)
    assert "no_such_field is not known here" in answer["warnings"]


@pytest.mark.parametrize("path", ["/api/jobs", "/v1/images/generations"])
def test_an_unknown_field_is_refused(client: TestClient, path: str) -> None:
    for name in ("no_such_field", "__proto__", "Steps", "steps ", "a" * 10_000, "\ud800", ""):
        content = json.dumps(body_of(path, **{name: 1}))
        reply = client.post(path, content=content, headers=JSON)
        assert len(shaped(path, reply)) < 1000, name[:20]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/images/generations"),
        ("DELETE", "/v1/models"),
        ("PUT", "/api/jobs"),
        ("PATCH", "/api/jobs"),
        ("TRACE", "/api/about"),
        ("BREW", "/api/about"),
        ("POST", "/api/models"),
        ("GET", "/sdapi/v1/txt2img"),
        ("DELETE", "/sdapi/v1/options"),
        ("OPTIONS", "/sdapi/v1/options"),
        ("POST", "/sdapi/v1/progress"),
        ("GET", "/api/no/such/path"),
        ("GET", "/v1/no/such/path"),
        ("GET", "/sdapi/v1/no/such/path"),
        ("GET", "/api/jobs/" + "0" * 31 + "%0a"),
        ("GET", "/api/jobs/" + "0" * 32),
        ("GET", "/api/jobs/%00"),
        ("GET", "/api/pictures/..%2F..%2Fqueue.sqlite"),
        ("GET", "/api/pictures/" + "A" * 64),
        ("GET", "/api/pictures/" + "a" * 64 + "?side=-1"),
        ("GET", "/api/models/..%2f..%2fetc%2fpasswd/capabilities"),
        ("GET", "/api/models/%ff%fe/capabilities"),
        ("GET", "/api/gans/tiny/picture"),
        ("GET", "/api/gans/gan/picture?seed=1e999"),
        ("GET", "/api/gans/gan/picture?share=nan"),
        ("GET", "/api/jobs?limit=0"),
        ("GET", "/api/jobs?limit=NaN"),
        ("GET", "/api/jobs?before=" + "9" * 400),
        ("GET", "/api/jobs?state=Done"),
        ("GET", "/api/difference?first=1&second=2"),
        ("GET", "/v1/models/..%2f..%2fetc%2fpasswd"),
        ("GET", "/v1/models/%00"),
        ("GET", "/sdapi/v1/progress?skip_current_image=perhaps"),
    ],
)
def test_a_wrong_address_or_method(client: TestClient, method: str, path: str) -> None:
    assert shaped(path, client.request(method, path))


def test_a_search_of_very_many_words(client: TestClient) -> None:
    for text in ("a " * 500, "%" * 1000, "\\" * 999, "\ud7ff\x01'\"--;"):
        assert client.get("/api/jobs", params={"q": text}).status_code == 200


@pytest.mark.parametrize(
    ("path", "fields", "said"),
    [
        (
            "txt2img",
            {"enable_hr": True, "hr_resize_x": 10**400, "width": 16, "height": 16},
            "hr_resize_x must be at most 4096",
        ),
        (
            "txt2img",
            {"enable_hr": True, "hr_resize_y": -5, "width": 16, "height": 16},
            "must be at least 0",
        ),
        ("txt2img", {"enable_hr": True, "hr_resize_x": 32, "width": 10**400, "height": 16}, ""),
        ("txt2img", {"n_iter": 2, "seed": 2**64 - 1}, "seed"),
        ("txt2img", {"seed": -2}, "seed"),
        ("txt2img", {"subseed": 10**30, "subseed_strength": 0.5}, "variation_seed"),
        ("txt2img", {"scheduler": "no such", "sampler_name": "Euler"}, "spacing"),
        ("txt2img", {"override_settings": {"sd_model_checkpoint": {"a": [1]}}}, "unknown model"),
        ("txt2img", {"override_settings": {"sd_model_checkpoint": None}}, "unknown model"),
        ("txt2img", {"override_settings": {"CLIP_stop_at_last_layers": True}}, "between 1 and 12"),
        ("txt2img", {"override_settings": [1]}, "override_settings"),
        ("txt2img", {"refiner_checkpoint": "../tiny"}, "unknown model"),
        ("txt2img", {"batch_size": 0}, "batch_size"),
        ("img2img", {"init_images": [PICTURE] * 2}, "one picture, got 2"),
        ("img2img", {"init_images": "x"}, "init_images"),
        ("img2img", {"init_images": [PICTURE[:-7]]}, "init_images"),
        ("img2img", {"init_images": [PICTURE + "é"]}, "base64"),
        ("img2img", {"init_images": ["data:text/html;base64," + PICTURE]}, "data: URL"),
        ("img2img", {"init_images": [PICTURE], "resize_mode": 10**400}, "resize_mode"),
        ("img2img", {"init_images": [PICTURE], "width": 4096, "height": 4096}, "at most 4,096"),
        ("img2img", {"init_images": [PICTURE], "mask": "AAAA"}, "mask"),
        ("img2img", {"init_images": [PICTURE], "mask": PICTURE, "mask_blur": -1}, "mask_blur"),
        ("img2img", {"init_images": [PICTURE], "inpainting_fill": 4}, "inpainting_fill"),
        ("img2img", {"init_images": [PICTURE], "denoising_strength": 1e300}, "strength"),
        ("png-info", {}, "image"),
        ("png-info", {"image": None}, "image"),
        ("png-info", {"image": "data:image/png;base64,"}, "image"),
        ("options", {"CLIP_stop_at_last_layers": 10**400}, "between 1 and 12"),
        ("options", {"sd_model_checkpoint": ["tiny"]}, "unknown model"),
    ],
)
def test_a1111(client: TestClient, path: str, fields: dict[str, Any], said: str) -> None:
    path = f"/sdapi/v1/{path}"
    body = {"prompt": "a rabbit", "steps": 1} if path.endswith("2img") else {}
    content = json.dumps(body | fields)
    assert said in shaped(path, client.post(path, content=content, headers=JSON))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"size": "0x0"}, "size"),
        ({"size": "99999x99999"}, "width"),
        ({"size": "16x16x16"}, "size"),
        ({"size": 16}, "size"),
        ({"n": 0}, "n must be"),
        ({"n": 1e300}, "n must be"),
        ({"quality": "best"}, "quality"),
        ({"output_compression": 101}, "output_compression"),
        ({"partial_images": -1, "stream": True}, "partial_images"),
        ({"stream": "perhaps"}, "stream"),
        ({"model": "/etc/passwd"}, "unknown model"),
        ({"model": "a" * 301}, "model"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "a" * 32_001}, "prompt"),
        ({"seed": "[" * 5000}, "seed"),
        ({"interval": "[1e999, 2]"}, "interval"),
        ({"loras": [["x", 1, 1]]}, "unknown field"),
        ({"refiner": "tiny"}, "unknown field"),
        ({"width": 16}, "unknown field"),
        ({"count": 2}, "unknown field"),
    ],
)
def test_openai(client: TestClient, fields: dict[str, Any], said: str) -> None:
    path = DRAW["/v1"]
    content = json.dumps({"prompt": "a rabbit"} | fields)
    assert said in shaped(path, client.post(path, content=content, headers=JSON))


@pytest.mark.parametrize(
    ("headers", "content", "status"),
    [
        ({"Content-Type": "multipart/form-data"}, b"x", 400),
        ({"Content-Type": "multipart/form-data; boundary="}, b"x", 400),
        ({"Content-Type": "multipart/form-data; boundary=b"}, b"--b\r\nnothing", 400),
        ({"Content-Type": "multipart/form-data; boundary=b; charset=moon"}, b"--b--\r\n", 400),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b"prompt=a", 415),
        ({"Content-Type": "text/plain"}, b"{}", 415),
        ({}, b"", 415),
        ({"Content-Type": "application/json"}, b"[]", 400),
        ({"Content-Type": "application/json"}, b'{"prompt": "x", "images": []}', 400),
        ({"Content-Type": "application/json"}, b'{"prompt": "x", "images": [{}]}', 400),
        (JSON, b'{"prompt": "x", "images": [{"image_url": "file:///etc/passwd"}]}', 400),
        (JSON, b'{"prompt": "x", "images": [{"image_url": "http://127.0.0.1/"}]}', 400),
        (JSON, b'{"prompt": "x", "images": [{"file_id": "../../x"}]}', 404),
        (JSON, b'{"prompt": "x", "images": [{"image_url": "data:image/png;base64,%%"}]}', 400),
        (JSON, b'{"prompt": "x", "images": [{"image_url": "x", "path": "/"}]}', 400),
    ],
)
def test_edits_of_openai(
    client: TestClient, headers: dict[str, str], content: bytes, status: int
) -> None:
    reply = client.post("/v1/images/edits", content=content, headers=headers)
    assert shaped("/v1/images/edits", reply)
    assert reply.status_code == status, reply.text


def test_forms_of_openai(client: TestClient) -> None:
    picture = png(Image.new("RGB", (16, 16)))
    rest = {"prompt": "a rabbit"}
    for files, data, said in (
        ({"image": ("x", b"")}, rest, "image"),
        ({"image": ("../../x.png", b"GIF89a")}, rest, "image"),
        ({"image": ("x", picture), "mask": ("m", picture)}, rest, "mask"),
        ({"image": ("x", picture), "more": ("m", picture)}, rest, "unknown file 'more'"),
        ({"image": ("x", picture)}, rest | {"mask": "x"}, "mask must be a file"),
        ({"image": ("x", picture)}, rest | {"n": "NaN"}, "n must be"),
        ({"image": ("x", picture)}, rest | {"strength": "much"}, "strength"),
        ({"image": ("x", picture)}, {}, "prompt"),
    ):
        reply = client.post("/v1/images/edits", files=files, data=data)
        assert said in shaped("/v1/images/edits", reply)
    reply = client.post("/v1/images/variations", files={"image": ("x", picture)}, data=rest)
    assert "unknown field 'prompt'" in shaped("/v1/images/variations", reply)


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ({"x": {"field": "model", "values": [5]}}, None),
        ({"x": {"field": "model", "values": [["tiny"], {"a": 1}, "a" * 400, None, True]}}, None),
        ({"x": {"field": "steps", "values": [float("nan"), 10**400, [], {}, "1"]}}, None),
        ({"x": {"field": "prompt", "values": [json.loads(NESTED)]}}, None),
        ({"x": {"field": "image", "values": ["../x", 3, "a" * 64]}}, None),
        ({"x": {"field": "steps", "values": []}}, "x"),
        ({"x": {"field": "stepz", "values": [1]}}, "unknown field 'stepz'"),
        ({"x": {"field": "steps", "values": [1] * 101}}, "x"),
        (
            {
                "x": {"field": "steps", "values": [1] * 50},
                "y": {"field": "seed", "values": [1] * 3},
            },
            "100",
        ),
        (
            {"x": {"field": "steps", "values": [1]}, "y": {"field": "steps", "values": [2]}},
            "differ",
        ),
    ],
)
def test_grids(client: TestClient, grid: dict[str, Any], said: str | None) -> None:
    content = json.dumps({"request": {"prompt": "a rabbit", "steps": 1}} | grid)
    reply = client.post("/api/grids", content=content, headers=JSON)
    if said is not None or reply.status_code != 201:
        assert (said or "") in shaped("/api/grids", reply)
        return
    made = json.loads(reply.text, parse_constant=pytest.fail)
    assert all(cell["error"] or cell["job"] for row in made["rows"] for cell in row)


def test_ranges_of_a_picture(client: TestClient, drawn: Callable[..., Any]) -> None:
    """A part of a file is never needed here, so the whole one is the answer."""
    url = drawn({"prompt": "a rabbit", "seed": 1, "steps": 1})["pictures"][0]["url"]
    whole = client.get(url).content
    for asked in ("bytes=0-3", "bytes=9999999-", "bytes=x", "lines=1-2", "bytes=" + "0-1," * 3000):
        reply = client.get(url, headers={"Range": asked})
        assert (reply.status_code, reply.content) == (200, whole), asked[:20]
    for kind in ("png", "jpeg", "webp"):
        reply = client.get(url, params={"format": kind, "side": 16, "metadata": False})
        assert Image.open(io.BytesIO(reply.content)).format == kind.upper()


@pytest.mark.parametrize(
    "lines",
    [
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nCookie: \xff=\xff; ;;=; pellucid_token\r\n",
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Basic \xe9\r\n",
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept: " + "*/*," * 5000 + "\r\n",
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept-Language: \x80\r\nRange: bytes=-\r\n",
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nHost: {host}\r\n",
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\nContent-Length: 6\r\n",
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: \xb2\r\n",
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked, gzip\r\n",
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n",
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nExpect: 100-continue\r\n",
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n",
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nX: " + "y" * 100_000 + "\r\n",
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nbad header\r\n",
        "GET {path} HTTP/1.1\r\nHost: \xe9\r\n",
        "GET {path} HTTP/1.0\r\n",
        "GET {path} HTTP/9.9\r\nHost: {host}\r\n",
        "GET http://evil.example{path} HTTP/1.1\r\nHost: {host}\r\n",
        "GET //evil.example/{path} HTTP/1.1\r\nHost: {host}\r\n",
        "GET * HTTP/1.1\r\nHost: {host}\r\n",
        "GET {path}\x00 HTTP/1.1\r\nHost: {host}\r\n",
        "GET /" + "a" * 50_000 + " HTTP/1.1\r\nHost: {host}\r\n",
        "\r\n\r\nGET {path} HTTP/1.1\r\nHost: {host}\r\n",
    ],
    ids=lambda lines: repr(lines.partition("{host}")[2])[1:20],
)
@pytest.mark.parametrize("path", ["/api/about", "/v1/models", "/sdapi/v1/options"])
def test_absurd_headers(address: str, lines: str, path: str) -> None:
    host, port = urlsplit(address).hostname, urlsplit(address).port
    with socket.create_connection((host, port), LONG) as connection:
        text = lines.replace("{path}", path).replace("{host}", f"{host}:{port}")
        connection.sendall(text.encode("latin-1") + b"Connection: close\r\n\r\n")
        reply = connection.makefile("rb").readline()
    assert reply == b"" or 200 <= int(reply.split()[1]) < 500, reply


def test_the_server_still_draws(client: TestClient, engine: Engine, drawn: Any) -> None:
    assert engine.ready
    assert drawn({"prompt": "a rabbit", "seed": 1, "steps": 1})["state"] == "done"

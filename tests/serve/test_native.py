"""The native interface: jobs from their beginning to the bin, their events, pictures, models."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image
from sending import LONG, png
from starlette.testclient import TestClient

from pellucid import checkpoints, gan
from pellucid.images.pixels import to_pil
from pellucid.pipeline import generate
from pellucid.plan import prompt_warnings
from pellucid.request import Request, resolve
from pellucid.serve.apis.native import JobView
from pellucid.serve.engine import Engine
from pellucid.serve.queue import Kind

JSON = {"Content-Type": "application/json"}
Drawn = Callable[..., dict[str, Any]]


def pixels(client: TestClient, picture: dict[str, Any]) -> np.ndarray:
    reply = client.get(picture["url"])
    assert reply.headers["content-type"] == "image/png"
    return np.asarray(Image.open(io.BytesIO(reply.content)).convert("RGB"))


def events(text: str) -> list[tuple[str, Any]]:
    """The server-sent events of a stream."""
    found = []
    for block in text.strip().split("\n\n"):
        if not block.startswith(":"):
            kind, data = block.split("\n")
            found.append((kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def waiting(client: TestClient, engine: Engine, count: int) -> list[str]:
    """Jobs that wait in a paused queue."""
    client.patch("/api/queue", json={"paused": True})
    fields = ({"request": {"prompt": "a rabbit", "seed": seed}} for seed in range(count))
    return [client.post("/api/jobs", json=each).json()["id"] for each in fields]


def test_a_job_gives_the_picture_of_a_direct_call(
    client: TestClient, drawn: Drawn, model_file: Path
) -> None:
    job = drawn({"prompt": "a red apple", "seed": 3, "count": 2})
    assert (job["state"], job["error"], job["place"]) == ("done", None, None)
    request = Request(prompt="a red apple", seed=3, count=2)
    *_, last = generate(checkpoints.load(model_file), request)
    assert last.images is not None
    assert [each["seed"] for each in job["pictures"]] == [3, 4]
    for picture, image in zip(job["pictures"], last.images, strict=True):
        assert np.array_equal(pixels(client, picture), np.asarray(image))
    assert job["resolved"]["steps"] == 3 and "steps" not in job["request"]
    again = drawn(job["request"])  # "use these settings again"
    assert [p["id"] for p in again["pictures"]] == [p["id"] for p in job["pictures"]]


def test_a_seed_is_chosen_and_kept(drawn: Drawn) -> None:
    job = drawn({"prompt": "a rabbit"})
    assert job["request"]["seed"] == job["pictures"][0]["seed"]


def test_events_of_a_job(client: TestClient, engine: Engine) -> None:
    (id,) = waiting(client, engine, 1)
    client.patch("/api/queue", json={"paused": False})
    found = events(client.get(f"/api/jobs/{id}/events").text)
    assert found[0][0] == "job" and found[-1][0] == "job"
    assert found[-1][1]["state"] == "done"
    assert found[-1][1]["pictures"]
    assert client.get("/api/jobs/" + "0" * 32 + "/events").status_code == 404


def test_previews_of_each_step(client: TestClient, engine: Engine, drawn: Drawn) -> None:
    steps = []
    with engine.watch(lambda event: steps.append(event.step) if event.step else None):
        job = drawn({"prompt": "a rabbit", "seed": 1, "steps": 4}, previews=True)
    assert [(step.step, step.steps) for step in steps] == [(n, 4) for n in (1, 2, 3, 4)]
    kept = client.get(f"/api/jobs/{job['id']}/steps").json()["steps"]
    assert [step["step"] for step in kept] == [1, 2, 3, 4]
    assert all(url.startswith("data:image/") for step in kept for url in (*step["x"], *step["x0"]))
    assert len(kept[0]["x0"]) == 1
    plain = drawn({"prompt": "a rabbit", "seed": 1, "steps": 4})
    assert client.get(f"/api/jobs/{plain['id']}/steps").json() == {"steps": []}
    assert plain["pictures"] == job["pictures"]


def test_the_queue_is_moved_paused_and_cancelled(client: TestClient, engine: Engine) -> None:
    first, second, third = waiting(client, engine, 3)
    state = client.get("/api/queue").json()
    assert (state["paused"], state["waiting"]) == (True, [first, second, third])
    moved = client.patch(f"/api/jobs/{third}", json={"place": 1}).json()
    assert moved["place"] == 1
    assert client.get("/api/queue").json()["waiting"] == [third, first, second]
    client.patch(f"/api/jobs/{second}", json={"priority": 5})
    assert client.get("/api/queue").json()["waiting"] == [second, third, first]
    client.patch(f"/api/jobs/{first}", json={"place": 2})
    assert client.get("/api/queue").json()["waiting"] == [second, first, third]
    assert client.post(f"/api/jobs/{first}/cancel").json()["state"] == "cancelled"
    assert client.post(f"/api/jobs/{first}/cancel").status_code == 409
    assert client.patch(f"/api/jobs/{first}", json={"place": 1}).status_code == 409
    client.patch("/api/queue", json={"paused": False})
    for id in (second, third):
        ended = engine.wait(id, LONG)
        assert ended is not None and ended.state == "done"
    assert client.post(f"/api/jobs/{second}/retry").status_code == 409
    assert client.post(f"/api/jobs/{first}/retry").status_code == 200
    again = engine.wait(first, LONG)
    assert again is not None and (again.state, again.request["seed"]) == ("done", 0)


def test_a_running_job_is_cancelled_after_its_step(client: TestClient, engine: Engine) -> None:
    asked = {"request": {"prompt": "a rabbit", "steps": 200, "count": 20, "seed": 1}}
    id = client.post("/api/jobs", json=asked).json()["id"]

    def cancel(event: Any) -> None:
        if event.kind == "step" and event.id == id:
            engine.cancel(id)

    with engine.watch(cancel):
        ended = engine.wait(id, LONG)
    assert ended is not None and (ended.state, ended.pictures) == ("cancelled", [])


def test_history_pages_search_and_bin(client: TestClient, drawn: Drawn) -> None:
    jobs = [drawn({"prompt": f"ein Hügel & 50% rabbit_{n}", "seed": 90 + n}) for n in range(3)]
    found = client.get("/api/jobs", params={"q": "HÜGEL 50%"}).json()
    assert found["total"] in (0, 3)  # SQLite folds the case of ASCII only
    found = client.get("/api/jobs", params={"q": "hügel 50% RABBIT_", "limit": 2}).json()
    assert [job["id"] for job in found["jobs"]] == [jobs[2]["id"], jobs[1]["id"]]
    more = {"q": "hügel 50% RABBIT_", "limit": 2, "before": found["next"]}
    assert [j["id"] for j in client.get("/api/jobs", params=more).json()["jobs"]] == [jobs[0]["id"]]
    assert client.get("/api/jobs", params={"q": "rabbit%1"}).json()["total"] == 0
    id = jobs[1]["id"]
    assert client.patch(f"/api/jobs/{id}", json={"favourite": True}).json()["favourite"] is True
    favourites = client.get("/api/jobs", params={"favourite": True}).json()
    assert [job["id"] for job in favourites["jobs"]] == [id]
    assert client.delete(f"/api/jobs/{id}").status_code == 409
    assert client.patch(f"/api/jobs/{id}", json={"deleted": True}).json()["deleted"] is True
    assert id not in [job["id"] for job in client.get("/api/jobs").json()["jobs"]]
    assert [j["id"] for j in client.get("/api/jobs?deleted=true").json()["jobs"]] == [id]
    client.patch(f"/api/jobs/{id}", json={"deleted": False})
    assert id in [job["id"] for job in client.get("/api/jobs").json()["jobs"]]
    client.patch(f"/api/jobs/{id}", json={"deleted": True})
    assert client.delete(f"/api/jobs/{id}").status_code == 204
    assert client.get(f"/api/jobs/{id}").status_code == 404
    assert client.get(jobs[1]["pictures"][0]["url"]).status_code == 404
    assert client.get(jobs[0]["pictures"][0]["url"]).status_code == 200


def test_each_picture_of_a_job_can_be_a_favourite(client: TestClient, drawn: Drawn) -> None:
    job = drawn({"prompt": "ein Lieblingsbild", "count": 2})

    def marked(number: int, favourite: bool) -> tuple[list[bool], bool]:
        body = {"favourite": favourite}
        found = client.patch(f"/api/jobs/{job['id']}/pictures/{number}", json=body).json()
        return [picture["favourite"] for picture in found["pictures"]], found["favourite"]

    assert marked(1, True) == ([False, True], True)
    assert marked(0, True) == ([True, True], True)
    query = {"q": "Lieblingsbild", "favourite": True}
    assert client.get("/api/jobs", params=query).json()["total"] == 1
    assert marked(1, False) == ([True, False], True)
    assert marked(0, False) == ([False, False], False)
    assert client.get("/api/jobs", params=query).json()["total"] == 0
    whole = client.patch(f"/api/jobs/{job['id']}", json={"favourite": True}).json()
    assert [picture["favourite"] for picture in whole["pictures"]] == [True, True]
    absent = client.patch(f"/api/jobs/{job['id']}/pictures/2", json={"favourite": True})
    assert absent.status_code == 404


def test_a_picture_that_two_jobs_have_outlives_one_of_them(
    client: TestClient, drawn: Drawn
) -> None:
    one, two = (drawn({"prompt": "a rabbit", "seed": 123}) for _ in range(2))
    assert one["pictures"] == two["pictures"]
    client.patch(f"/api/jobs/{one['id']}", json={"deleted": True})
    assert client.delete(f"/api/jobs/{one['id']}").status_code == 204
    assert client.get(two["pictures"][0]["url"]).status_code == 200


def test_pictures_are_sent_and_used(client: TestClient, drawn: Drawn) -> None:
    data = png(Image.new("RGB", (16, 16), "red"))
    stored = client.post("/api/pictures", content=data).json()
    assert (stored["width"], stored["height"]) == (16, 16)
    assert client.post("/api/pictures", content=data).json() == stored
    job = drawn({"prompt": "a rabbit", "image": stored["id"], "strength": 0.5, "seed": 1})
    assert job["state"] == "done" and job["resolved"]["image"] == stored["id"]
    url = job["pictures"][0]["url"]
    settings = client.get(f"{url}/settings").json()
    assert settings["program"] == "Pellucid" and settings["names"] == {"model": "tiny"}
    assert settings["request"]["image"] == stored["id"]
    for kind, head in (("jpeg", b"\xff\xd8"), ("webp", b"RIFF")):
        reply = client.get(url, params={"format": kind})
        assert reply.headers["content-type"] == f"image/{kind}" and reply.content[:2] == head[:2]
    bare = client.get(url, params={"metadata": False}).content
    assert "pellucid" not in Image.open(io.BytesIO(bare)).info
    assert "pellucid" in Image.open(io.BytesIO(client.get(url).content)).info


def test_settings_of_another_program(client: TestClient) -> None:
    file = io.BytesIO()
    comment = b"a cat\nNegative prompt: dog\nSteps: 7, Sampler: Euler a, CFG scale: 3, Seed: 5"
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + comment
    Image.new("RGB", (8, 8)).save(file, "JPEG", exif=exif)
    id = client.post("/api/pictures", content=file.getvalue()).json()["id"]
    found = client.get(f"/api/pictures/{id}/settings").json()
    assert found["request"] | {"steps": 7, "seed": 5, "negative_prompt": "dog"} == found["request"]


def test_models_and_capabilities(client: TestClient) -> None:
    names = [model["name"] for model in client.get("/api/models").json()["models"]]
    assert {"tiny", "other", "emoji"} <= set(names)
    found = client.get("/api/models/tiny/capabilities").json()
    assert found["defaults"]["steps"] == 3 and found["size"]["unit"] == 2
    fields = {field["name"]: field for field in found["fields"]}
    assert fields["steps"]["default"] == 3 and fields["steps"]["maximum"] == 200
    assert "euler" in fields["sampler"]["choices"] and fields["mask_blur"]["needs"] == "mask"
    assert "clip_guidance" in fields and "decoder" not in fields
    assert all(field["help"] for field in found["fields"])
    own = {}
    for name in ("tiny", "emoji"):
        reply = client.get(f"/api/models/{name}/capabilities").json()
        own[name] = {field["name"]: field["default"] for field in reply["fields"]}
    assert [own[name]["style_guidance"] for name in ("tiny", "emoji")] == [0, 1]
    reply = client.get("/api/models/tinny/capabilities")
    assert reply.status_code == 404 and "nearest first: tiny" in reply.json()["error"]["message"]


def test_a_gan_draws_at_once(client: TestClient, models: Path) -> None:
    assert client.get("/api/gans").json() == {
        "gans": [{"name": "gan", "classes": ["frog", "rabbit"], "size": 32}]
    }
    generator = checkpoints.load_gan(models / "gan.safetensors").generator

    def drawn(**asked: Any) -> np.ndarray:
        reply = client.get("/api/gans/gan/picture", params={"prompt": "rabbit", **asked})
        assert reply.headers["content-type"] == "image/png"
        return np.asarray(Image.open(io.BytesIO(reply.content)))

    for seed, asked in ((3, {"seed": 3}), (4, {"seed": 3, "towards": 4, "share": 1})):
        (expected,) = gan.sample(generator, [seed], 1)
        assert np.array_equal(drawn(**asked), np.asarray(to_pil(expected)))
    half = drawn(seed=3, towards=4, share=0.5)
    assert all(not np.array_equal(half, drawn(seed=seed)) for seed in (3, 4))
    assert client.get("/api/gans/tiny/picture").status_code == 404
    reply = client.get("/api/gans/gan/picture", params={"prompt": "dog"})
    assert (
        reply.status_code == 422 and "there is no class 'dog'" in reply.json()["error"]["message"]
    )


def test_tokens(client: TestClient) -> None:
    read = client.post("/api/tokens", json={"prompt": "a (rabbit:1.5) [red", "steps": 5}).json()
    (prompt,) = read["prompts"]
    tokens = prompt["readings"][0]["chunks"][0]
    assert 1.5 in [token["weight"] for token in tokens]
    assert read["count"] == sum(map(len, prompt["readings"][0]["chunks"]))
    assert read["warnings"]


def test_tokens_warn_of_what_a_run_warns_of(client: TestClient) -> None:
    for prompt in (
        "a cat BREAK a dog",
        "a cat <lora:ink:1>",
        "a cat AND a qwzx",
        "[a cat:a dog:1]",
        "a (cat",
    ):
        body = {"prompt": prompt, "model": "emoji", "steps": 4}
        said = client.post("/api/tokens", json=body).json()["warnings"]
        model = checkpoints.load(checkpoints.embedded(), "meta")
        run = prompt_warnings(model, resolve(model, Request(prompt=prompt, steps=4, seed=0)), [4])
        assert said == run
        assert not any(word in " ".join(said) for word in ("'break'", "'lora'", "'ink'"))


def test_explanation(client: TestClient, drawn: Drawn) -> None:
    request = {"prompt": "a rabbit", "seed": 2}
    job = drawn(request, kind="explain", versus={"prompt": "a red apple"})
    assert job["state"] == "done", job["error"]
    assert [picture["seed"] for picture in job["pictures"]] == [2, 2]
    reply = client.get(job["explanation"])
    assert "Two names for one thing have" in reply.text
    assert reply.text.lower().startswith("<!doctype html>")
    assert reply.headers["content-security-policy"].startswith("sandbox")
    data = client.get(job["explanation"], params={"format": "json"})
    assert data.headers["content-type"] == "application/json"
    assert [run["prompt"] for run in data.json()["runs"]] == ["a rabbit", "a red apple"]
    plain = drawn(request)
    assert plain["explanation"] is None
    assert client.get(f"/api/jobs/{plain['id']}/explanation").status_code == 404


def test_a_grid_goes_on_where_a_cell_fails(client: TestClient, engine: Engine) -> None:
    asked = {
        "request": {"prompt": "a rabbit"},
        "x": {"field": "steps", "values": [1, 2, 0]},
        "y": {"field": "guidance", "values": [1, 3]},
    }
    made = client.post("/api/grids", json=asked).json()
    assert [[cell["x"] for cell in row] for row in made["rows"]] == [[1, 2, 0]] * 2
    for row in made["rows"]:
        assert row[2]["job"] is None and "steps must be between" in row[2]["error"]
        for cell in row[:2]:
            assert engine.wait(cell["job"]["id"], LONG) is not None
    done = client.get(f"/api/grids/{made['id']}").json()
    jobs = [cell["job"] for row in done["rows"] for cell in row[:2]]
    assert {job["state"] for job in jobs} == {"done"}
    assert len({job["request"]["seed"] for job in jobs}) == 1
    found = client.get("/api/jobs", params={"grid": made["id"]}).json()
    assert found["total"] == 4
    ids = {"first": jobs[0]["id"], "second": jobs[1]["id"]}
    assert client.get("/api/difference", params=ids).json()["difference"] == {"steps": [1, 2]}
    for job in jobs:
        assert client.get(f"/api/grids/{made['id']}").status_code == 200
        client.patch(f"/api/jobs/{job['id']}", json={"deleted": True})
        assert client.delete(f"/api/jobs/{job['id']}").status_code < 300
    assert client.get(f"/api/grids/{made['id']}").status_code == 404


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({}, 422, "request"),
        ({"request": {"steps": 0}}, 422, "steps must be between 1 and 1000, got 0"),
        ({"request": {"steps": 999}}, 422, "steps must be at most 200 on this server, got 999"),
        ({"request": {"count": 999}}, 422, "count must be at most 100"),
        ({"request": {"width": 1024, "height": 1024}}, 422, "at most 4,096 pixels"),
        ({"request": {"hires": 8}}, 422, "at most 4,096 pixels"),
        ({"request": {"width": 17}}, 422, "width must be a multiple of 2"),
        ({"request": {"prompt": "\ud800"}}, 422, ""),
        ({"request": {"promt": "x"}}, 422, "promt"),
        ({"request": {"sampler": "eular"}}, 422, "nearest first: euler"),
        ({"request": {"image": "../../etc/passwd"}}, 422, "there is no picture"),
        ({"request": {"image": "a" * 64}}, 422, "there is no picture"),
        ({"request": {"mask": "a" * 64}}, 422, "mask needs an image"),
        ({"request": {"loras": [["/etc/passwd", 1, 1]]}}, 422, "unknown LoRA"),
        ({"request": {"prompt": "<lora:../x:1>"}}, 422, "unknown LoRA"),
        ({"request": {"embeddings": ["x"]}}, 422, "unknown embedding"),
        ({"request": {"refiner": "/etc/passwd"}}, 422, "unknown model"),
        ({"request": {}, "model": "/etc/passwd"}, 422, "unknown model"),
        ({"request": {}, "kind": "explain"}, 201, ""),
        ({"request": {}, "versus": {}}, 422, 'versus needs kind "explain"'),
        ({"request": {"guidance": 1e999}}, 422, "guidance must be a finite number"),
    ],
)
def test_bad_jobs_are_refused(
    client: TestClient, body: dict[str, Any], status: int, said: str
) -> None:
    reply = client.post("/api/jobs", content=json.dumps(body), headers=JSON)
    assert reply.status_code == status, reply.text
    if status != 201:
        assert set(reply.json()["error"]) == {"message", "field"}
        assert said in reply.json()["error"]["message"]


def test_bad_bodies_and_pictures(client: TestClient) -> None:
    for body in (b"{", b"[" * 100_000, b"\xff", b""):
        assert client.post("/api/jobs", content=body, headers=JSON).status_code in (400, 422)
    assert client.post("/api/jobs", content=b"{}").status_code == 415
    assert client.post("/api/pictures", content=b"no picture").status_code == 422
    assert client.post("/api/pictures", content=b"").status_code == 422
    large = png(Image.new("1", (2000, 2000)))
    assert client.post("/api/pictures", content=large).status_code == 422
    cut = png(Image.effect_noise((64, 64), 50))[:-200]
    assert client.post("/api/pictures", content=cut).status_code == 422
    assert client.post("/api/pictures", content=bytes(1_000_001)).status_code == 413
    assert client.get("/api/pictures/..%2f..%2fqueue.sqlite").status_code in (404, 422)


def test_a_full_queue_says_when_to_come_back(client: TestClient, engine: Engine) -> None:
    waiting(client, engine, 50)
    reply = client.post("/api/jobs", json={"request": {"prompt": "a rabbit"}})
    assert reply.status_code == 429 and int(reply.headers["retry-after"]) >= 1
    assert "50 jobs wait" in reply.json()["error"]["message"]


def test_the_text_about_the_interface_is_complete(client: TestClient) -> None:
    text = (Path(__file__).parents[2] / "docs" / "native_api.md").read_text("utf-8")
    written = {
        (method, re.sub(r"\b(ID|NAME|NUMBER)\b", "*", path))
        for method, path in re.findall(r"`(GET|POST|PATCH|DELETE) (/[^`?]*)[^`]*`", text)
    }
    paths = client.get("/api/openapi.json").json()["paths"]
    served = {
        (method.upper(), re.sub(r"\{[^}]*\}", "*", path))
        for path, methods in paths.items()
        for method in methods
    }
    assert written == served
    (job,) = re.findall(r'```json\n(\{"id".*?)\n```', text, re.S)
    assert set(json.loads(job)) == set(JobView.model_fields)
    assert all(f"`{kind}`" in text for kind in get_args(Kind))
    able = client.get("/api/models/tiny/capabilities").json()
    (keys,) = re.findall(r"`\{(name, prediction[^}]*)\}`", text)
    assert keys.split(", ") == list(able)
    (field,) = re.findall(r'```json\n(\{"name": "steps".*?)\n```', text, re.S)
    assert set(json.loads(field)) == set(able["fields"][0])

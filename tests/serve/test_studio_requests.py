"""What the studio asks for, by its own functions in node: no page and no server."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

MODULE = Path(__file__).parents[2] / "src" / "pellucid" / "studio" / "requests.js"
NODE = shutil.which("node")

pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed")

BASE = {"prompt": "a frog", "steps": 4, "width": 64, "height": 64}
DRAWN = {
    "id": "d" * 64,
    "job": "1",
    "seed": 8,
    "model": "first",
    "request": {"prompt": "a rabbit", "steps": 9, "seed": 8, "count": 1},
}
PHOTO = {"id": "p" * 64, "request": {}}
MODELS = [{"name": "first"}, {"name": "second"}]


def called(name: str, *arguments: Any) -> Any:
    """What a function of the module returns. name: with dots, where it is in an object."""
    assert NODE is not None
    script = (
        f"import * as requests from {json.dumps(MODULE.as_uri())};"
        f"const found = requests.{name}(...{json.dumps(arguments)});"
        "console.log(JSON.stringify(found ?? null));"
    )
    done = subprocess.run(
        [NODE, "--input-type=module", "-e", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def asked(way: str, picture: Any, own: dict[str, Any], **more: Any) -> Any:
    form = {"base": BASE, "own": own, "picture": picture, "share": 0.5, "random": 100, **more}
    return called(f"requestOf.{way}", form)


def test_a_second_pass_draws_the_picture_again_with_the_typed_prompt() -> None:
    made = {"prompt": "a frog", "steps": 9, "seed": 8, "count": 1, "hires": 3}
    assert asked("enlarge", DRAWN, {"hires": 3}) == made
    assert asked("enlarge", None, {}) == {**BASE, "hires": 2, "count": 1}


def test_a_photo_without_a_record_is_where_a_second_pass_and_variations_start() -> None:
    start = {"prompt": "a frog", "steps": 4, "image": PHOTO["id"]}
    wish = {**start, "strength": 0, "hires": 2, "hires_strength": 0.5, "count": 1}
    assert asked("enlarge", PHOTO, {"hires_strength": 0.5}) == wish
    first, second = asked("variations", PHOTO, {"count": 2})
    varied = {**start, "seed": 0, "count": 1, "variation_strength": 0.2}
    assert first == {**varied, "variation_seed": 100}
    assert second == {**varied, "variation_seed": 101}


def test_variations_are_of_the_pictures_seed() -> None:
    made = asked("variations", DRAWN, {"count": 2, "variation_seed": 5})
    assert [each["variation_seed"] for each in made] == [5, 6]
    assert {(each["seed"], each["steps"], each["prompt"]) for each in made} == {(8, 9, "a frog")}


def test_what_is_redrawn_keeps_its_size() -> None:
    start = {"prompt": "a frog", "steps": 4, "image": DRAWN["id"]}
    own = {"strength": 0.3, "mask_blur": 2, "extend": [8, 0, 0, 0]}
    assert asked("redraw", DRAWN, own) == {**start, "strength": 0.3}
    masked = {**start, "strength": 0.3, "mask_blur": 2, "mask": "m"}
    assert asked("brush", DRAWN, own, mask="m") == masked
    assert asked("extend", DRAWN, own) == {**start, "strength": 0.3, "extend": [8, 0, 0, 0]}


@pytest.mark.parametrize(
    ("way", "picture", "model"),
    [
        ("enlarge", DRAWN, "first"),
        ("variations", DRAWN, "first"),
        ("redraw", DRAWN, "second"),
        ("enlarge", PHOTO, "second"),
        ("enlarge", None, "second"),
        ("variations", {**DRAWN, "model": "gone"}, "second"),
    ],
)
def test_what_is_drawn_again_has_the_pictures_model(way: str, picture: Any, model: str) -> None:
    assert called("modelOf", way, picture, "second", MODELS) == model


def test_the_typed_prompt_comes_first() -> None:
    assert called("promptOf", {}, DRAWN, {"prompt": "a dog"}) == "a rabbit"
    assert called("promptOf", {"prompt": ""}, DRAWN, {"prompt": "a dog"}) == ""
    assert called("promptOf", {}, PHOTO, {"prompt": "a dog"}) == "a dog"


def test_an_explanation_is_found_again() -> None:
    stored = {"prompt": "a rabbit", "seed": 8, "steps": 9}
    job = {"kind": "explain", "state": "done", "model": "first", "deleted": False}
    job |= {"request": stored, "versus": None}
    two = {**job, "versus": {**stored, "steps": 2}}
    request = {**DRAWN["request"], "refiner": "second", "refiner_at": 0.5}
    failed = {**job, "state": "failed"}
    find = "explanationOf"
    assert called(find, [failed, two, job], "first", request, None) == job
    assert called(find, [job, two], "first", request, {**request, "steps": 2}) == two
    assert called(find, [job], "second", request, None) is None
    assert called(find, [{**job, "kind": "generate"}], "first", request, None) is None
    assert called(find, [{**job, "deleted": True}], "first", request, None) is None
    assert called(find, [job], "first", {**request, "seed": 9}, None) is None


NAMES = {"loras": ["Ink", "oil paint"], "embeddings": ["inkling"], "words": ["ink", "rabbit"]}


@pytest.mark.parametrize(
    ("before", "texts"),
    [
        ("a rab", ["rabbit"]),
        ("an in", ["inkling", "<lora:Ink:1>", "ink"]),
        ("an ink", ["inkling", "<lora:Ink:1>"]),
        ("a cat <lora:", ["Ink:1>", "oil paint:1>"]),
        ("a cat <lora:oil p", ["oil paint:1>"]),
        ("<lora:Ink:1> a", []),
        ("a rabbit ", []),
    ],
)
def test_names_are_completed(before: str, texts: list[str]) -> None:
    found = called("completion", before, NAMES)
    assert [each["text"] for each in found["list"]] == texts
    if texts:
        assert before[: found["from"]] + texts[0] in (
            "a rabbit",
            "an inkling",
            "a cat <lora:Ink:1>",
            "a cat <lora:oil paint:1>",
        )


def test_settings_of_a_picture_are_used_without_its_files() -> None:
    kept = {"prompt": "an inkling", "seed": 8, "loras": [["Ink", 1, 1]], "embeddings": ["other"]}
    files = {
        "image": "i",
        "mask": "m",
        "only_masked": True,
        "strength": 0.5,
        "extend": [8, 0, 0, 0],
    }
    request = {
        **kept,
        **files,
        "refiner": "second",
        "embeddings": ["inkling", "other"],
        "eta": None,
    }
    assert called("settingsOf", request) == kept
    assert "embeddings" not in called("settingsOf", {**kept, "embeddings": ["inkling"]})

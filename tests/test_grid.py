"""``pellucid grid``: a picture for each pair of settings, and a table of all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pellucid.images.metadata import read_metadata
from pellucid.images.sheet import LARGEST, table


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_file: Path) -> tuple[Any, ...]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PELLUCID_MODEL", str(model_file))
    return ("grid", "a rabbit", "--steps", 1)


def test_each_cell_is_what_generate_draws(words: tuple[Any, ...], call: Any) -> None:
    axes = ("--x", "steps=1,2,0", "--y", "guidance=1,3", "--seed", 3)
    status, out, err = call(*words, *axes)
    assert status == 2 and err.count("--steps must be between 1 and 1000, got 0") == 2
    *paths, sheet = out.split()
    assert len(paths) == 4 and sheet.endswith("a-rabbit-3-grid.png")
    records = [read_metadata(path).request or {} for path in paths]
    assert [(r["steps"], r["guidance"]) for r in records] == [(1, 1), (2, 1), (1, 3), (2, 3)]
    alone = ("generate", "a rabbit", "--seed", 3, "--steps", 2, "--guidance", 3, "--out", "x.png")
    assert call(*alone)[0] == 0
    assert Image.open("x.png").tobytes() == Image.open(paths[3]).tobytes()
    Path(paths[1]).unlink()
    status, out, _ = call(*words, *axes, "--resume", "--json")
    found = json.loads(out)
    assert [row[:2] for row in found["rows"]] == [paths[:2], paths[2:]]
    assert "between 1 and 1000" in found["rows"][0][2]["error"]


@pytest.mark.parametrize(
    ("axis", "field", "values"),
    [
        ("negative=red;blue, green", "negative_prompt", ["red", "blue, green"]),
        ("size=16,32x16", "width", [16, 32]),
        ("seed=4,5", "seed", [4, 5]),
        ("sampler=euler,ddim", "sampler", ["euler", "ddim"]),
        ("interval=0,1;0.2,0.8", "interval", [[0, 1], [0.2, 0.8]]),
        ("mix=a frog:0.5,a cat", "mix", [[["a frog", 0.5]], [["a cat", 1]]]),
        ("prompt=a,b", "prompt", ["a", "b"]),
    ],
)
def test_any_option(
    axis: str, field: str, values: list[Any], words: tuple[Any, ...], call: Any
) -> None:
    status, out, _ = call(*words, "--x", axis)
    records = [read_metadata(path).request or {} for path in out.split()[:2]]
    assert status == 0 and [record[field] for record in records] == values
    assert len({record["seed"] for record in records}) == (2 if field == "seed" else 1)


WRONG = {
    "steps": "--x must be NAME=VALUES",
    "steps=": "--x must be NAME=VALUES",
    "step=1,2": "--x: unknown option 'step'; nearest: steps",
    "count=1,2": "--x: unknown option 'count'",
    "steps=1,x": "--x: steps must be a number, got 'x'",
    "only_masked=maybe": "--x: only_masked must be true or false, got 'maybe'",
    "size=big": "--x: --size must be WIDTHxHEIGHT",
    "steps=0,1001": "--steps must be between 1 and 1000, got 0",
    "lora=no,none": "no does not exist",
    "seed=" + ",".join(map(str, range(1001))): "at most 1000 pictures, got 1001",
}


@pytest.mark.parametrize("axis", WRONG, ids=lambda axis: axis[:12])
def test_a_wrong_axis(axis: str, words: tuple[Any, ...], refused: Any) -> None:
    assert WRONG[axis] in refused(*words, "--x", axis)
    assert not Path("outputs").exists()


def test_what_else_is_refused(words: tuple[Any, ...], refused: Any) -> None:
    assert "needs a prompt" in refused("grid", "--x", "steps=1")
    assert "--resume needs a --seed" in refused(*words, "--x", "steps=1", "--resume")
    assert "must be a folder for 2 pictures" in refused(
        *words, "--x", "steps=1,2", "--out", "a.png"
    )


def test_the_table() -> None:
    red, blue = (Image.new("RGB", (100, 80), colour) for colour in ("red", "blue"))
    made = table([[red, "it does not fit"], [blue, red]], ["a" * 50, "b"], ["one", "two"])
    colours = made.getcolors(10_000) or []
    counts = {colour: count for count, colour in colours}
    assert counts[255, 0, 0] == 8 * 8000 and counts[0, 0, 255] == 4 * 8000
    reds = sum(n for (r, g, b), n in counts.items() if r > g + 50 and (r, g, b) != (255, 0, 0))
    assert reds > 50 and (0, 0, 0) in counts  # the reason, and the labels
    many = table([[Image.new("RGB", (900, 900))] * 20], [""] * 20, [""])
    assert max(many.size) <= LARGEST + 200

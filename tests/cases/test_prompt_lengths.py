"""Harm 3: a prompt is limited before the work, and its cost grows no faster than its length."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from inputs import a1111_picture, exif, noisy, png_text

from pellucid.conditioning import encode_prompts
from pellucid.model import Model
from pellucid.runtime import Runtime

SHAPES = {
    "words": "red cat, ",
    "opened": "(",
    "nested": "[a:",
    "turns": "[a|b]",
    "ands": "a AND ",
    "loras": "<lora:",
    "backslashes": "\\",
    "weights": "(a:1.1)",
    "digits": "(a:1" + "1" * 50,
    "colons": "[:",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_cost_of_a_prompt_grows_as_its_length(
    shape: str, call: Any, model_file: Path, within: Any
) -> None:
    """Harm 3: four times the prompt takes about four times as long, whatever it is made of."""

    def seconds(length: int) -> float:
        prompt = (SHAPES[shape] * (length // len(SHAPES[shape]) + 1))[:length]
        begin = time.process_time()
        call("tokens", prompt, "--model", model_file, "--steps", 20)
        return time.process_time() - begin

    usual = seconds(100)
    with within(10):
        short = max(seconds(2_000) - usual, 0.02)
        # The garbage of a long test run may be collected within one measurement, not in three.
        assert any(seconds(8_000) - usual < 8 * short + 0.3 for _ in range(3))


class Work:
    """Counts what a block does: calls of functions, in Python and of C, and rows of tokens that are
    encoded. Unlike a time, it does not depend on what else the machine does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = self.rows = 0
        encode = Runtime.encode_text

        def counted(runtime: Runtime, tower: Any, ids: torch.Tensor, *rest: Any) -> Any:
            self.rows += len(ids)
            return encode(runtime, tower, ids, *rest)

        monkeypatch.setattr(Runtime, "encode_text", counted)

    def __enter__(self) -> Work:
        sys.setprofile(self.count)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def count(self, frame: object, event: str, _: object) -> None:
        self.calls += event in ("call", "c_call")


@pytest.mark.parametrize("shape", ["words", "nested", "turns", "mixed", "opened"])
def test_the_cost_of_drawing_grows_as_the_prompt(
    shape: str, call: Any, model_file: Path, tmp_path: Path
) -> None:
    """Harm 3: the same for all that `generate` does with a prompt in front of the first step."""
    many = SHAPES | {"mixed": "[red:blue:3], ", "words": "red cat{}, "}

    def work(length: int) -> tuple[int, int]:
        piece = many[shape]
        prompt = "".join(piece.replace("{}", str(i)) for i in range(length // len(piece)))
        words = ("--model", model_file, "--steps", 10, "--guidance", 1, "--seed", 1)
        with pytest.MonkeyPatch.context() as patch, Work(patch) as done:
            status, _, err = call(
                "generate", prompt, *words, "--out", tmp_path / f"{length}.png", "--overwrite"
            )
        assert status == 0 or "long" in err, err
        return done.calls, done.rows

    work(100)  # imports and caches
    usual, short, long = map(work, (100, 1_000, 4_000))
    for least, some, more in zip(usual, short, long, strict=True):
        # From 900 further characters to 3,900: 4.3 times as much; more would be 19 times.
        assert more - least <= 6 * max(some - least, 30), (usual, short, long)


@pytest.mark.parametrize("shape", ["words", "opened", "turns", "backslashes"])
def test_a_prompt_of_32000_letters_is_read(
    shape: str, call: Any, model_file: Path, within: Any
) -> None:
    """Harm 3: what OpenAI's API allows is not too long, and is read in a few seconds."""
    prompt = (SHAPES[shape] * 32_000)[:32_000]
    with within(10):
        words = ("tokens", prompt, "--model", model_file, "--steps", 4, "--json")
        status, _, err = call(*words)
    assert status == 0, err[:200]


FIELDS = ("prompt", "--negative", "--mix", "--walk", "tokens", "explain")


@pytest.mark.parametrize("field", FIELDS)
def test_a_prompt_that_is_too_long(
    field: str, refused: Any, tmp_path: Path, within: Any, no_drawing: None
) -> None:
    """Harm 3: 120 kB are refused before a model is loaded, with the length that is allowed."""
    long, out = "a red cat, " * 11_000, ("--out", tmp_path)
    words: tuple[object, ...] = ("generate", "a", field, long, *out)
    if field == "prompt":
        words = ("generate", long, *out)
    elif field in ("tokens", "explain"):
        words = (field, long)
    with within(3):
        said = refused(*words)
    assert "121000" in said.replace(",", "").replace(" ", "") or "long" in said


@pytest.mark.parametrize("way", ["A1111", "own", "EXIF"])
def test_a_prompt_of_a_megabyte_in_a_picture(
    way: str, refused: Any, tmp_path: Path, within: Any, no_drawing: None
) -> None:
    """Harm 3: `--like` and `info` of a picture from anywhere end at once."""
    long = "a red cat, " * 90_000
    settings = "Steps: 2, Seed: 1, Size: 64x64"
    path = tmp_path / "a.png"
    if way == "A1111":
        a1111_picture(path, f"{long}\n{settings}")
    elif way == "own":
        png_text(path, pellucid=json.dumps({"prompt": long, "seed": 1}))
    else:
        path = tmp_path / "a.webp"
        comment = b"UNICODE\0" + f"{long}\n{settings}".encode("utf-16-be")
        noisy().save(path, exif=exif(comment))
    with within(3):
        said = refused("generate", "--like", path, "--out", tmp_path)
    assert len(said) < 1_000


def test_a_long_prompt_is_read_a_few_rows_at_a_time(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Harm 3: the memory of the text encoder does not grow with the prompt."""
    texts = ["red cat, " * 300, "a rabbit"]
    whole = encode_prompts(Runtime(model), texts)
    rows: list[int] = []
    model.text.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    monkeypatch.setattr("pellucid.runtime.runtime.TEXT_ROWS", 7)
    parts = encode_prompts(Runtime(model), texts)
    assert max(rows) == 7 and sum(rows) == 2 * whole.tokens.shape[1] // 8
    torch.testing.assert_close(parts.tokens, whole.tokens)
    torch.testing.assert_close(parts.pooled, whole.pooled)

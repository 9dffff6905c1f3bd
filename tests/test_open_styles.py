"""A prompt that names no style: seeds take turns with the styles that the model has learned."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pellucid import checkpoints
from pellucid.conditioning import chunked
from pellucid.data.emoji import STYLES as STYLES_OF_ART
from pellucid.explain.run.words import word_schedule
from pellucid.lexicon import STYLES
from pellucid.model import Model
from pellucid.pipeline import Progress, generate
from pellucid.plan import batch_key
from pellucid.prompt import parse
from pellucid.request import Request
from pellucid.request.resolving import resolve

FAST: dict[str, Any] = {"steps": 2, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def shipped() -> Model:
    return checkpoints.load()


def drawn(model: Model, request: Request, **others: Any) -> Progress:
    *_, last = generate(model, request, **others)
    return last


def pixels(model: Model, request: Request, **others: Any) -> list[np.ndarray]:
    images = drawn(model, request, **others).images
    assert images is not None
    return [np.asarray(image.convert("RGB")).astype(int) for image in images]


def test_the_styles_are_those_of_the_art(shipped: Model) -> None:
    assert tuple(STYLES_OF_ART) == STYLES
    assert shipped.lexicon is not None and shipped.lexicon.styles == STYLES


def test_seeds_take_turns(shipped: Model) -> None:
    whole = resolve(shipped, Request(prompt="a frog", seed=6, count=4))
    texts = [
        "a frog, noto style",
        "a frog, twemoji style",
        "a frog, flat style",
        "a frog, 3d style",
    ]
    assert whole.styled("a frog") == texts
    assert whole.part(1, 2).styled("a frog") == texts[1:3]
    assert whole.alone(3).styled("a frog. ") == texts[3:]


@pytest.mark.parametrize("prompt", ["a frog", "a cat and a dog"])
def test_a_picture_is_that_of_its_style_in_every_batch(shipped: Model, prompt: str) -> None:
    batch = pixels(shipped, Request(prompt=prompt, seed=5, count=3, **FAST))
    named = Request(prompt=f"{prompt}, noto style", seed=6, style_guidance=0, **FAST)
    (alone,), (said,) = (
        pixels(shipped, each) for each in (Request(prompt=prompt, seed=6, **FAST), named)
    )
    np.testing.assert_allclose(batch[1], alone, atol=1)
    np.testing.assert_allclose(batch[1], said, atol=1)
    assert np.abs(batch[0] - batch[1]).max() > 50


def test_requests_that_share_a_batch_keep_their_styles(shipped: Model) -> None:
    one, two = (
        Request(prompt="a frog", seed=1, count=2, **FAST),
        Request(prompt="a cat", seed=7, **FAST),
    )
    first, second = (resolve(shipped, each) for each in (one, two))
    assert batch_key(shipped, first) == batch_key(shipped, second) is not None
    together = pixels(shipped, one, others=[two])
    for picture, expected in zip(
        together, [*pixels(shipped, one), *pixels(shipped, two)], strict=True
    ):
        np.testing.assert_allclose(picture, expected, atol=1)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "a frog, 3d style"},
        {"prompt": "a frog in a pixel art style"},
        {"prompt": "(a frog:1.2), flat style"},
        {"prompt": "(a frog:1.2) in a pixel art style"},
        {"prompt": "[a frog:a cat:0.5], 3D style"},
        {"prompt": "a noto frog"},
        {"prompt": "a red frog and a cat"},
        {"prompt": "a 3d frog"},
        {"prompt": "a frog, 3d"},
        {"prompt": "a frog AND a cat"},
        {"prompt": "a frog", "mix": (("a cat", 0.5),)},
        {"prompt": "a frog", "walk": "a cat", "count": 2},
        {"prompt": "a frog <lora:ink:1>"},
        {"prompt": "a frog", "image": "docs/examples/cat.png"},
    ],
)
def test_what_has_a_style_keeps_it(shipped: Model, fields: dict[str, Any]) -> None:
    request = resolve(shipped, Request(seed=1, **fields))
    assert request.open_styles == () and request.styled("x") == ["x"]


def test_without_words_there_is_no_style(shipped: Model) -> None:
    assert resolve(shipped, Request(prompt="...", seed=1)).styled("...") == ["..."]


def test_a_style_that_is_not_wanted_has_no_turn(shipped: Model) -> None:
    request = resolve(shipped, Request(prompt="a frog", negative_prompt="3d style", seed=1))
    assert request.open_styles == ("flat", "noto", "twemoji")


def test_a_picture_at_the_end_of_a_chunk_does_not_depend_on_its_batch(shipped: Model) -> None:
    def chunks(prompt: str) -> list[int]:
        texts = (f"{prompt}, {style} style" for style in ("flat", "3d"))
        return [len(chunked(shipped.tokenizer, text)) for text in texts]

    longer = ("a frog" + " red" * count for count in range(30))
    prompt = next(each for each in longer if chunks(each) == [1, 2])
    fields: dict[str, Any] = {"prompt": prompt, "arrange": False, **FAST}
    together = pixels(shipped, Request(seed=4, count=2, **fields))
    (alone,) = pixels(shipped, Request(seed=4, **fields))
    np.testing.assert_allclose(together[0], alone, atol=1)


def test_the_colour_of_a_ground_is_none_of_a_thing(shipped: Model) -> None:
    request = resolve(shipped, Request(prompt="a frog on a blue background", seed=1))
    assert len(request.open_styles) == 4


def test_another_model_has_none(model: Model) -> None:
    assert resolve(model, Request(prompt="a frog", seed=1)).open_styles == ()


def test_explain_shows_the_words_of_the_style(shipped: Model) -> None:
    schedule = word_schedule(shipped, resolve(shipped, Request(prompt="a frog", seed=1, **FAST)))
    words = list(dict.fromkeys(each.whole for each in schedule.texts[0]))
    assert words[-2:] == ["3d", "style"]


@pytest.mark.parametrize(
    "prompt",
    [
        "(a frog:1.5",
        "((a frog",
        "[a frog",
        "[a frog:a cat:0.5",
        "[a (frog|cat",
        "a frog)",
        "(a] frog",
    ],
)
def test_a_style_is_outside_of_a_bracket_that_is_not_closed(shipped: Model, prompt: str) -> None:
    request = resolve(shipped, Request(prompt=prompt, seed=6))
    (styled,) = request.styled(prompt)
    assert parse(styled)[0][-1].text.endswith(", noto style")
    words = [
        tokens[0] for tokens in (chunked(shipped.tokenizer, text) for text in (styled, prompt))
    ]
    assert words[0][: len(words[1])] == words[1]
    assert [token.weight for token in words[0][len(words[1]) :]] == [1.0] * 3


def test_tokens_shows_the_style_of_a_seed(call: Any) -> None:
    status, said, _ = call("tokens", "((a frog", "--seed", 6)
    assert status == 0 and said.split()[-8:] == ["1", "283", "1", "noto", "1", "261", "1", "style"]
    status, said, _ = call("tokens", "a frog")
    assert "each seed adds one of the styles flat, 3d, noto, twemoji to it" in said
    assert "noto\n" not in said

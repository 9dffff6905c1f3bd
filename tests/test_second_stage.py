"""A model with an upscaler, and the words it has learned: sizes, seeds, tasks, warnings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pellucid.cascade import SuperResolution, SuperResolutionConfig
from pellucid.lexicon import Entry, Lexicon
from pellucid.model import Model
from pellucid.pipeline import Progress, Request, enlarged, generate, resolve
from pellucid.plan import prompt_warnings
from pellucid.runtime import Runtime

FACTOR = 4


@pytest.fixture(scope="module")
def cascade(model: Model) -> Model:
    """Draws 16x16 and enlarges to 64x64."""
    torch.manual_seed(0)
    stage = SuperResolution(
        SuperResolutionConfig(FACTOR, block_out_channels=(8, 8), embedding=4)
    ).eval()
    words = Lexicon(
        (Entry("🍎", ("red apple", "apple"), ("fruit",)), Entry("🐰", ("rabbit",), ())), ("red",)
    )
    defaults = replace(model.defaults, width=64, height=64)
    return replace(model, second_stage=stage, lexicon=words, defaults=defaults)


def run(model: Model, **fields: Any) -> Progress:
    *_, last = generate(
        model, Request.model_validate({"prompt": "a red apple", "seed": 1} | fields)
    )
    return last


def image(last: Progress, i: int = 0) -> np.ndarray:
    assert last.images is not None
    return np.asarray(last.images[i]).astype(int)


def test_the_result_is_large_and_what_the_backbone_draws_is_not(cascade: Model) -> None:
    last = run(cascade)
    assert image(last).shape == (64, 64, 3) and last.x.shape[2:] == (8, 8)
    assert (last.request.width, last.request.drawn_size) == (64, (16, 16))
    assert last.request.record()["width"] == 64 and "drawn_size" not in last.request.record()


@pytest.mark.parametrize("size", [(4096, 1), (1, 4096), (129, 16), (4096, 500)])
def test_sides_that_differ_too_much_are_refused(cascade: Model, size: tuple[int, int]) -> None:
    """The shorter side is drawn at the model's own size: 4096x1 would be 65536x16."""
    request = Request(prompt="an apple", width=size[0], height=size[1])
    with pytest.raises(ValueError, match="at most 8 times the shorter one"):
        resolve(cascade, request)
    assert max(resolve(cascade, Request(prompt="an apple", width=128, height=16)).drawn_size) == 128


def test_at_its_own_size_it_is_the_first_stage_alone(model: Model, cascade: Model) -> None:
    small = run(cascade, width=16, height=16)
    assert np.array_equal(image(small), image(run(model, width=16, height=16)))


@pytest.mark.parametrize(
    ("size", "drawn"),
    [
        ((32, 32), (16, 16)),
        ((12, 12), (16, 16)),
        ((64, 32), (32, 16)),
        ((51, 100), (16, 32)),
        ((70, 70), (16, 16)),  # twice enlarged
    ],
)
def test_any_size(cascade: Model, size: tuple[int, int], drawn: tuple[int, int]) -> None:
    last = run(cascade, width=size[0], height=size[1])
    assert image(last).shape == (size[1], size[0], 3)
    assert last.x.shape[2:] == (drawn[1] // 2, drawn[0] // 2)
    warned = any("what it draws at" in warning for warning in last.warnings)
    assert warned == (drawn[0] != drawn[1])


def test_the_noise_of_the_second_stage_is_that_of_the_seed(cascade: Model) -> None:
    batch = run(cascade, count=3)
    for i, seed in enumerate(batch.seeds):
        assert np.abs(image(batch, i) - image(run(cascade, seed=seed))).max() <= 1


def test_the_noise_of_the_second_stage_counts(cascade: Model) -> None:
    pixels = torch.zeros(2, 3, 16, 16)
    with torch.no_grad():
        one, other = enlarged(Runtime(cascade), pixels, (64, 64), (1, 2))
        again, _ = enlarged(Runtime(cascade), pixels, (64, 64), (1, 3))
    assert float((one - other).abs().max()) > 1 / 127.5
    assert torch.equal(one, again)


def test_the_recorded_request_makes_the_picture_again(cascade: Model) -> None:
    first = run(cascade, width=48, height=48)
    *_, again = generate(cascade, Request.model_validate_json(first.request.model_dump_json()))
    assert np.array_equal(image(first), image(again))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (10, 10, 3), dtype=np.uint8)
    path = tmp_path / "picture.png"
    Image.fromarray(pixels.repeat(8, 0).repeat(8, 1)).save(path)
    return path


def test_a_picture_to_start_from(cascade: Model, picture: Path) -> None:
    drawn = run(cascade, image=str(picture), strength=0.7)
    assert image(drawn).shape == (64, 64, 3)
    same = run(cascade, image=str(picture), strength=0)
    with Image.open(picture) as given:
        assert np.array_equal(
            image(same), np.asarray(given.resize((64, 64), Image.Resampling.LANCZOS))
        )


@pytest.mark.parametrize("fields", [{}, {"only_masked": True, "padding": 4}])
def test_only_the_masked_part_of_a_large_picture_changes(
    cascade: Model, picture: Path, tmp_path: Path, fields: dict[str, Any]
) -> None:
    mask = Image.new("L", (80, 80))
    mask.paste(255, (20, 20, 50, 50))
    mask.save(tmp_path / "mask.png")
    drawn = run(cascade, image=str(picture), mask=str(tmp_path / "mask.png"), mask_blur=0, **fields)
    assert image(drawn).shape == (80, 80, 3) and drawn.x.shape[2:] == (8, 8)
    with Image.open(picture) as given:
        changed = np.abs(image(drawn) - np.asarray(given).astype(int)).max(2) > 0
    assert changed[20:50, 20:50].mean() > 0.9
    changed[20:50, 20:50] = False
    assert not changed.any()


def test_outpainting_and_a_second_pass(cascade: Model, picture: Path) -> None:
    wide = run(cascade, image=str(picture), extend=(0, 0, 20, 0))
    assert image(wide).shape == (80, 100, 3)
    twice = run(cascade, hires=1.5)
    assert image(twice).shape == (96, 96, 3) and twice.x.shape[2:] == (12, 12)
    assert any("its second pass distorts them; use hires_upscaler" in w for w in twice.warnings)
    mild = run(cascade, hires=1.5, hires_upscaler="lanczos", hires_strength=0.4)
    assert not any("distorts" in w for w in mild.warnings)


def test_its_second_stage_enlarges_before_a_second_pass(model: Model, cascade: Model) -> None:
    fields = {"hires": 1.5, "hires_upscaler": "diffusion", "hires_strength": 0.01, "hires_steps": 1}
    by_stage = run(cascade, **fields)
    assert image(by_stage).shape == (96, 96, 3) and by_stage.x.shape[2:] == (12, 12)
    other = run(cascade, **(fields | {"hires_upscaler": "lanczos"}))
    assert not torch.allclose(by_stage.x, other.x, atol=1e-3)
    with pytest.raises(ValueError, match="'diffusion', and no `adapt`"):
        run(model, **fields)  # it has none, and nothing opens the included model


def test_emoji_are_read_as_words_and_recorded_so(cascade: Model) -> None:
    emoji = run(cascade, prompt="🍎", mix=[("🐰", 1)])
    words = run(cascade, prompt="a red apple", mix=[("a rabbit", 1)])
    assert np.array_equal(image(emoji), image(words))
    assert (emoji.request.prompt, emoji.request.mix) == ("a red apple", (("a rabbit", 1),))
    assert resolve(replace(cascade, lexicon=None), Request(prompt="🍎")).prompt == "🍎"


def test_unknown_words_are_named(cascade: Model) -> None:
    def named(model: Model, **fields: Any) -> list[str]:
        return [
            each for each in run(model, **fields).warnings if "has not learned the word" in each
        ]

    prompt = "a (zebra:1.2) AND a [rabit|apple]"
    assert named(cascade, prompt=prompt, negative_prompt="blurry") == [
        f"{cascade.name} has not learned the words 'zebra' and 'rabit' (known: rabbit), "
        "and leaves them out"
    ]
    assert named(cascade, prompt="a piece of fruit") == [
        f"{cascade.name} has not learned the word 'fruit', and draws 'apple' in its place"
    ]
    assert named(cascade, prompt="two cute rabbits") == []
    assert "in its place" not in " ".join(named(cascade, prompt="a rabbit without fruit"))
    last = run(cascade, prompt="a photo of a cute rabbit")
    assert f"left out, as {cascade.name} has not learned them: 'cute', 'photo'" in last.warnings
    assert last.x.equal(run(cascade, prompt="a rabbit").x)
    assert last.request.record()["prompt"] == "a photo of a cute rabbit"
    assert named(replace(cascade, lexicon=None), prompt="a zebra") == []
    negated = run(cascade, prompt="a rabbit without a hat")
    assert any("left out: 'a hat'. Name it in negative_prompt" in w for w in negated.warnings)
    assert negated.x.equal(run(cascade, prompt="a rabbit").x)
    ten = "the prompt is drawn as a whole, where {} mixes its things up: it asks for more than 9 things"
    assert ten.format(cascade.name) in run(cascade, prompt="ten rabbits").warnings
    assert run(cascade, prompt="a couple of rabbits").warnings == ()
    sized = run(cascade, prompt="a small rabbit and a big rabbit")
    assert sized.request.layout is not None and sized.request.layout.sizes == (0.65, 1.5)
    assert not any("'big'" in warning for warning in sized.warnings)
    assert run(cascade, prompt="a big rabbit").x.equal(run(cascade, prompt="a rabbit").x)
    assert "'zebra'" in named(cascade, prompt="a rabbit", walk="a zebra", count=2)[0]
    taught = Request(prompt="a zebra, ink style", loras=(("ink.safetensors", 1, 1),))
    said = prompt_warnings(cascade, resolve(cascade, taught), (2,))
    assert not any("learned" in warning for warning in said)  # a LoRA brings words of its own

"""The second pass: a picture is enlarged and drawn over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from pellucid import hires
from pellucid.images.metadata import read_metadata
from pellucid.images.parameters import read_parameters, write_parameters
from pellucid.images.pixels import to_pil, to_tensor
from pellucid.model import Model
from pellucid.pipeline import Progress, Request, generate, resolve
from pellucid.runtime import Runtime


def steps_of(model: Model, **fields: Any) -> list[Progress]:
    request = Request.model_validate({"prompt": "a rabbit", "seed": 1, "steps": 3} | fields)
    return list(generate(model, request))


def test_both_passes_are_one_run(model: Model) -> None:
    steps = steps_of(model, hires=2, hires_steps=4, count=2)
    assert [(step.step, step.steps) for step in steps] == [(i, 7) for i in range(1, 8)]
    assert [step.x.shape[2:] for step in steps] == [(8, 8)] * 3 + [(16, 16)] * 4
    assert [step.images is None for step in steps] == [True] * 6 + [False]
    assert steps[2].level.sigma == steps[6].level.sigma == 0
    assert steps[-1].images is not None
    assert [picture.size for picture in steps[-1].images] == [(32, 32)] * 2
    assert all(step.x0.shape == step.x.shape for step in steps)
    # The first pass is that of a run without a second one.
    assert torch.equal(steps[2].x, steps_of(model, count=2)[2].x)


def test_steps_are_those_of_the_first_pass_unless_given(model: Model) -> None:
    request = resolve(model, Request(hires=1.5))
    assert (request.steps, request.hires_steps, request.hires_strength) == (3, 3, 0.7)
    assert resolve(model, Request()).hires_steps is None
    assert steps_of(model, hires=1.5)[-1].steps == 6


def test_strength_says_where_the_second_pass_begins(model: Model) -> None:
    """On a flow with even steps, sigma after the first of n steps is strength (n - 1) / n."""
    for strength, expected in ((0.5, 0.5 * 4 / 5), (1.0, 4 / 5)):
        steps = steps_of(model, hires=2, hires_steps=5, hires_strength=strength)
        assert steps[3].level.sigma == pytest.approx(expected)


@given(steps=st.integers(1, 1000), strength=st.floats(0.01, 1))
def test_levels(steps: int, strength: float) -> None:
    whole = hires.whole_steps(steps, strength)
    assert whole >= steps
    assert whole <= steps / strength + 1e-6 < whole + 1
    assert hires.whole_steps(21, 0.7) == 30 and hires.whole_steps(3, 1) == 3


@pytest.mark.parametrize("name", (*hires.LATENT, *hires.PICTURE))
def test_what_the_second_pass_begins_with(model: Model, name: str) -> None:
    """At hardly any strength the picture is the enlarged one."""
    fields = {"hires": 1.5, "hires_steps": 1, "hires_strength": 0.002, "guidance": 1}
    steps = steps_of(model, hires_upscaler=name, **fields)
    first = steps[2].x
    if name in hires.LATENT:
        mode, antialias = hires.LATENT[name]
        expected = F.interpolate(first, (12, 12), mode=mode, antialias=antialias)
    else:
        small = to_pil(model.vae.to_pixels(first)[0])
        how = {"lanczos": Image.Resampling.LANCZOS, "nearest": Image.Resampling.NEAREST}[name]
        pixels = to_tensor(small.resize((24, 24), how))
        expected = Runtime(model).encode(pixels[None])
    assert steps[-1].x.shape == expected.shape
    torch.testing.assert_close(steps[-1].x, expected, rtol=0, atol=0.01)
    assert expected.std() > 0.08


def test_sizes_are_rounded_to_the_unit(model: Model) -> None:
    last = steps_of(model, hires=1.3, width=18, height=10)[-1]
    assert last.images is not None and last.images[0].size == (24, 12)  # 23.4 and 13
    assert (last.request.width, last.request.height) == (18, 10)  # of the first pass, as in A1111


def test_each_picture_can_be_made_alone(model: Model) -> None:
    fields = {"hires": 2, "sampler": "euler_ancestral"}
    batch = steps_of(model, count=2, **fields)[-1]
    *_, alone = generate(model, batch.request.alone(1))
    torch.testing.assert_close(batch.x[1:], alone.x, rtol=1e-4, atol=1e-4)


def test_after_a_picture(model: Model, tmp_path: Path) -> None:
    path = str(tmp_path / "a.png")
    Image.new("RGB", (16, 16), "red").save(path)
    for strength, count in ((0.7, 2), (0, 0)):
        steps = steps_of(model, image=path, strength=strength, hires=2)
        assert [step.step for step in steps] == list(range(1, count + 4))
        assert steps[-1].images is not None and steps[-1].images[0].size == (32, 32)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"hires": 1}, "hires"),
        ({"hires": float("nan")}, "hires"),
        ({"hires": 100}, "hires"),
        ({"hires": 2, "hires_steps": 0}, "hires_steps"),
        ({"hires": 2, "hires_strength": 0}, "hires_strength"),
        ({"hires_upscaler": "lanczoz"}, "nearest first: lanczos"),
        ({"hires_upscaler": "R-ESRGAN 4x+"}, "unknown hires upscaler"),
    ],
)
def test_bad_fields(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        Request(**fields)


def test_what_cannot_be_done(model: Model) -> None:
    with pytest.raises(ValueError, match="makes 4100 pixels of 2050; at most 4096"):
        resolve(model, Request(width=2050, hires=2))
    with pytest.raises(ValueError, match="are the last of 2000 steps"):
        steps_of(model, hires=2, hires_steps=20, hires_strength=0.01)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("Latent", "latent"),
        ("Latent (bicubic antialiased)", "latent_bicubic_antialiased"),
        ("Latent (nearest-exact)", "latent_nearest_exact"),
        ("Lanczos", "lanczos"),
        ("nearest", "nearest"),
    ],
)
def test_names_of_another_program(theirs: str, ours: str) -> None:
    assert Request(hires_upscaler=theirs).hires_upscaler == ours


def test_parameters_of_a_second_pass() -> None:
    text = (
        "a\nSteps: 3, Denoising strength: 0.5, Hires upscale: 2, Hires steps: 4, "
        "Hires upscaler: Latent"
    )
    fields = read_parameters(text)
    assert (fields["hires"], fields["hires_steps"], fields["hires_strength"]) == (2, 4, 0.5)
    assert "strength" not in fields
    request = Request(prompt="a", steps=3, hires=2, hires_steps=4, hires_strength=0.5)
    assert "Denoising strength: 0.5, Hires upscale: 2.0, Hires steps: 4" in (
        write_parameters(request.record())
    )
    both = read_parameters(write_parameters(request.model_copy(update={"image": "b.png"}).record()))
    assert both["hires_strength"] == 0.5


def test_from_the_command_line_and_again(call: Any, model_file: Path, tmp_path: Path) -> None:
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    common = ("--model", model_file, "--out")
    options = ("--hires", 1.5, "--hires-steps", 2, "--hires-strength", 0.5)
    more = ("--hires-upscaler", "lanczos", "--film")
    assert call("generate", "a rabbit", *options, *more, *common, first)[0] == 0
    assert call("generate", "--like", first, *common, again)[0] == 0
    assert read_metadata(first).request == read_metadata(again).request
    with Image.open(first) as a, Image.open(again) as b:
        assert a.size == (24, 24) and np.array_equal(np.asarray(a), np.asarray(b))
    with Image.open(first.with_suffix(".webp")) as film:
        assert film.n_frames == 5

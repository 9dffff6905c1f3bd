"""A second model that goes on where the first one stops, against diffusers' pair of experts."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pellucid.checkpoints import load, save
from pellucid.images.metadata import read_metadata
from pellucid.model import Model
from pellucid.pipeline import generate
from pellucid.plan import split_at_refiner
from pellucid.request import Request
from pellucid.samplers import levels_for
from pellucid.schedule import Schedule
from pellucid.vae import VAE
from references import model_of, small_vocabulary, their_pipeline

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

STEPS, SIDE, SCALE, SEED = 10, 64, 4.0, 3
# Ours; diffusers' class and settings.
RUNS: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
    ("ddim", "leading"): ("DDIMScheduler", {"set_alpha_to_one": False}),
    ("euler", "leading"): ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}),
    ("dpmpp_2m", "leading"): ("DPMSolverMultistepScheduler", {"timestep_spacing": "leading"}),
}
EXACT = (
    0.55 / 255
)  # our picture is rounded to whole 255ths, theirs is not, and nothing else differs


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], list[Model], list[Path]]:
    """The base and the refiner, of diffusers and read here; they share the autoencoder."""
    folder = tmp_path_factory.mktemp("pair")
    pipes, models, paths = [], [], []
    for name in ("sdxl", "sdxl_refiner"):
        pipe = their_pipeline(name, small_vocabulary(folder))
        pipe.set_progress_bar_config(disable=True)
        if pipes:
            pipe.register_modules(vae=pipes[0].vae)
        pipe.save_pretrained(folder / name)
        pipes.append(pipe)
        paths.append(folder / name)
        models.append(load(folder / name))
    return pipes, models, paths


def asked(path: Path, **fields: Any) -> Request:
    usual = {"prompt": "a red apple", "seed": SEED, "steps": STEPS, "guidance": SCALE}
    size = {"width": SIDE, "height": SIDE, "refiner": str(path)}
    return Request.model_validate(usual | size | fields)


def drawn(request: Request, model: Model, refiner: Model | None) -> tuple[np.ndarray, Any]:
    *_, last = generate(model, request, refiner=refiner)
    assert last.images is not None
    return np.asarray(last.images[0], dtype=np.float64) / 255, last


@pytest.mark.parametrize("at", [0.8, 0.55])
@pytest.mark.parametrize(("sampler", "spacing"), RUNS)
def test_the_same_picture_as_diffusers(sampler: str, spacing: str, at: float, both: Any) -> None:
    import diffusers

    pipes, (model, refiner), (_, path) = both
    name, settings = RUNS[sampler, spacing]
    for pipe in pipes:
        kind = getattr(diffusers, name)
        pipe.scheduler = kind.from_config(pipe.scheduler.config, **settings)
    unit = model.vae.config.downsample
    noise = torch.randn(
        (1, 4, SIDE // unit, SIDE // unit), generator=torch.Generator().manual_seed(SEED)
    )
    usual = {"num_inference_steps": STEPS, "guidance_scale": SCALE}
    latents = pipes[0](
        "a red apple",
        height=SIDE,
        width=SIDE,
        latents=noise,
        denoising_end=at,
        output_type="latent",
        **usual,
    ).images
    expected = pipes[1](
        "a red apple", image=latents, denoising_start=at, output_type="np", **usual
    ).images[0]
    request = asked(path, sampler=sampler, spacing=spacing, refiner_at=at)
    mine, last = drawn(request, model, refiner)
    assert last.warnings == () and last.steps == STEPS
    assert expected.std() > 0.02
    assert np.abs(mine - expected).max() <= EXACT
    alone, _ = drawn(request.model_copy(update={"refiner": None}), model, None)
    assert np.abs(alone - expected).max() > 2 / 255


# ---------------------------------------------------------------- without diffusers


@pytest.fixture(scope="module")
def refiner(model: Model) -> Model:
    """Another network for the same latents."""
    backbone = copy.deepcopy(model.backbone)
    torch.manual_seed(9)
    for parameter in backbone.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return replace(model, backbone=backbone, name="second")


def run(model: Model, refiner: Model | None = None, **fields: Any) -> list[Any]:
    usual = {"prompt": "a rabbit", "seed": 1, "steps": 6, "sampler": "euler"}
    named = {} if refiner is None else {"refiner": "second"}
    request = Request.model_validate(usual | named | fields)
    return list(generate(model, request, refiner=refiner))


def test_it_goes_on_with_the_same_latents(model: Model, refiner: Model) -> None:
    alone, other, pair = run(model), run(refiner), run(model, refiner, refiner_at=0.5)
    assert [step.step for step in pair] == list(range(1, 7))
    switch = sum(level.t >= 500 for level in levels_for("euler", model.schedule, 6)[:-1])
    assert 0 < switch < 6
    for i, (one, both) in enumerate(zip(alone, pair, strict=True)):
        assert torch.equal(one.x, both.x) == (i < switch)
    # Euler's step knows nothing of those before, so that a pair of the same model is the model.
    assert torch.equal(run(model, model, refiner_at=0.5)[-1].x, alone[-1].x)
    assert not torch.equal(pair[-1].x, other[-1].x)


def test_where_the_steps_part(model: Model) -> None:
    schedule = Schedule()
    for name, spacing, at, switch in (
        ("euler", "leading", 0.8, 8),  # t = 901, 801, ..., 201, 101, 1
        ("euler", "trailing", 0.8, 8),  # 999, ..., 299, 199: not before 200
        ("euler", "leading", 0.0, 0),
        ("euler", "leading", 1.0, 10),
        ("euler", "karras", 0.8, 6),
    ):
        levels = levels_for(name, schedule, 10, spacing)
        request = Request(refiner="x", refiner_at=at)
        second = replace(model, schedule=schedule)
        assert split_at_refiner(second, request, levels) == [(0, switch), (switch, 10)]
        assert split_at_refiner(None, request, levels) == [(0, 10)]


def test_in_masks_and_second_passes(model: Model, refiner: Model, tmp_path: Path) -> None:
    picture, mask = Image.new("RGB", (16, 16), "red"), Image.new("L", (16, 16))
    mask.paste(255, (0, 0, 8, 16))
    picture.save(tmp_path / "picture.png")
    mask.save(tmp_path / "mask.png")
    paths = {"image": str(tmp_path / "picture.png"), "mask": str(tmp_path / "mask.png")}
    fields = paths | {"strength": 1.0, "mask_blur": 0, "refiner_at": 0.5}
    last = run(model, refiner, **fields)[-1]
    drawn, without = (
        np.asarray(x.images[0]) for x in (last, run(model, **paths, strength=1.0)[-1])
    )
    assert (drawn[:, 8:] == np.asarray(picture)[:, 8:]).all()
    assert (drawn[:, :8] != without[:, :8]).any()
    alone = run(model, hires=2, hires_steps=4)
    steps = run(model, refiner, hires=2, hires_steps=4, refiner_at=0.5)
    assert [step.x.shape for step in steps] == [step.x.shape for step in alone]
    assert not torch.equal(steps[-1].x, alone[-1].x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": Schedule()}, "the refiner second has another noise schedule than tiny"),
        ({"vae": 8}, "the refiner second has other latents than tiny"),
    ],
)
def test_what_cannot_go_on(change: Any, message: str, model: Model, refiner: Model) -> None:
    if "vae" in change:
        change = {"vae": VAE(replace(model.vae.config, latent_channels=change["vae"]))}
    with pytest.raises(ValueError, match=message):
        run(model, replace(refiner, **change))


def test_what_does_not_go_together(model: Model) -> None:
    with pytest.raises(ValueError, match="names the refiner 'x'; none is given"):
        next(generate(model, Request(refiner="x")))
    with pytest.raises(ValueError, match="clip_guidance and refiner cannot be combined"):
        Request(refiner="x", clip_guidance=1)
    assert (
        "refiner_at 1 gives the refiner no steps"
        in run(model, model, refiner_at=1.0)[-1].warnings[0]
    )
    assert run(model, refiner_at=0.3)[-1].warnings == ("refiner_at does nothing without refiner",)
    assert not {"refiner", "refiner_at"} & Request(seed=1).record().keys()


def test_from_the_command_line(
    model: Model, refiner: Model, model_file: Path, call: Any, tmp_path: Path
) -> None:
    second = tmp_path / "second.safetensors"
    save(refiner, second)
    words = ("generate", "a rabbit", "--model", model_file, "--seed", 1, "--steps", 6)
    names = ("plain", "pair", "again")
    plain, pair, again = (tmp_path / f"{name}.png" for name in names)
    assert call(*words, "--out", plain)[0] == 0
    status = call(*words, "--refiner", second, "--refiner-at", 0.4, "--out", pair)
    assert status == (0, f"{pair}\n", "")
    request = read_metadata(pair).request
    assert request is not None
    assert (request["refiner"], request["refiner_at"]) == (str(second), 0.4)
    assert call("generate", "--like", pair, "--out", again)[0] == 0
    pixels = [Image.open(path).tobytes() for path in (plain, pair, again)]
    assert pixels[0] != pixels[1] == pixels[2]
    status, out, err = call("explain", "--like", pair, "--json")
    assert status == 0 and json.loads(out) and f"{pair} was made with a refiner" in err
    second.unlink()
    status, out, err = call("generate", "--like", pair)
    assert (status, out) == (2, "") and "second.safetensors does not exist" in err
    status, _, err = call(*words, "--refiner", pair)
    assert status == 2 and err.count("\n") == 1


def test_the_prediction_is_for_a_refiner_that_does_not_say_its_own(
    call: Any, tmp_path: Path
) -> None:
    """The base is of a family that says it, so that only the refiner is told."""
    base, second = tmp_path / "base.safetensors", tmp_path / "second.safetensors"
    save(model_of("sd2", vocabulary=49408), second, to="ldm")
    save_file(load_file(second), second)  # without the metadata, as published files are
    save(model_of("sd1", vocabulary=49408), base, to="ldm")
    words = ("generate", "a", "--model", base, "--refiner", second, "--size", 64, "--steps", 2)
    status, _, err = call(*words, "--out", tmp_path)
    assert status == 2 and "second.safetensors is Stable Diffusion 2" in err
    assert "--prediction must be given, eps (" in err and "or v (" in err
    assert call(*words, "--out", tmp_path, "--prediction", "eps")[0] == 0

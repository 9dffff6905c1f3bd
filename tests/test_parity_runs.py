"""Whole runs of six steps, from the prompt to the picture, against diffusers' own pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pellucid.checkpoints import load
from pellucid.conditioning import encode_prompts
from pellucid.model import Model
from pellucid.pipeline import generate
from pellucid.request import Request
from pellucid.runtime import Runtime
from pellucid.samplers import levels_for
from references import close, small_vocabulary, their_pipeline

# diffusers makes numpy arrays of tensors in a way that numpy 2 warns of.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

STEPS, SIDE, SCALE, SEED = 6, 64, 4.0, 3  # enough steps for all orders of a multistep solver
DPM, UNIPC, DEIS = (f"{name}MultistepScheduler" for name in ("DPMSolver", "UniPC", "DEIS"))
# Ours; diffusers' class and settings.
RUNS: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
    ("ddim", "leading"): ("DDIMScheduler", {"set_alpha_to_one": False}),
    ("euler", "leading"): ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}),
    ("dpmpp_2m", "karras"): (DPM, {"use_karras_sigmas": True}),
    **{
        (sampler, spacing): (name, {"timestep_spacing": spacing})
        for sampler, name in (("dpmpp_2m", DPM), ("unipc", UNIPC), ("deis", DEIS))
        for spacing in ("leading", "trailing", "linspace")
    },
}
EXACT = (
    0.55 / 255
)  # our picture is rounded to whole 255ths, theirs is not, and nothing else differs


@pytest.fixture(scope="module", params=["sd1", "sd2", "sdxl"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A pipeline of diffusers, and what is read here of the folder that it writes."""
    folder = tmp_path_factory.mktemp(request.param)
    prediction = "v_prediction" if request.param == "sd2" else "epsilon"
    vocabulary = small_vocabulary(folder)
    pipeline = their_pipeline(request.param, vocabulary, prediction, layers_per_block=1)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder / "model")
    return pipeline, load(folder / "model")


def ours(model: Model, sampler: str, spacing: str, steps: int = STEPS) -> np.ndarray:
    """(SIDE, SIDE, 3) in [0, 1]."""
    *_, last = generate(
        model,
        Request(
            prompt="a red apple",
            negative_prompt="",
            seed=SEED,
            steps=steps,
            guidance=SCALE,
            sampler=sampler,
            spacing=spacing,
            width=SIDE,
            height=SIDE,
        ),
    )
    assert last.images is not None and last.warnings == ()
    return np.asarray(last.images[0], dtype=np.float64) / 255


def theirs(
    pipeline: Any,
    model: Model,
    sampler: str,
    spacing: str,
    steps: int = STEPS,
    as_it_comes: bool = False,
) -> np.ndarray:
    """With the times of Karras's levels as they are, which diffusers rounds as it comes."""
    import diffusers

    name, settings = RUNS[sampler, spacing]
    usual = pipeline.scheduler
    pipeline.scheduler = getattr(diffusers, name).from_config(usual.config, **settings)
    if spacing == "karras" and not as_it_comes:
        with_exact_times(pipeline.scheduler)
    side = SIDE // model.vae.config.downsample
    noise = torch.randn((1, 4, side, side), generator=torch.Generator().manual_seed(SEED))
    if spacing != "leading":  # there theirs begins with deviation 1, ours with the level's own
        noise = noise * levels_for(sampler, model.schedule, steps, spacing)[0].sigma
    picture = pipeline(
        "a red apple",
        height=SIDE,
        width=SIDE,
        num_inference_steps=steps,
        guidance_scale=SCALE,
        latents=noise,
        output_type="np",
    ).images[0]
    pipeline.scheduler = usual
    return np.asarray(picture, dtype=np.float64)


def with_exact_times(scheduler: Any) -> None:
    """diffusers finds the time of each of Karras's levels, and then rounds it: undone here."""
    rounded = scheduler.set_timesteps

    def set_timesteps(*args: Any, **options: Any) -> None:
        rounded(*args, **options)
        known = np.log(((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt().numpy())
        wanted = [float(scheduler._sigma_to_t(s, known)) for s in scheduler.sigmas[:-1].numpy()]
        assert np.abs(np.array(wanted) - scheduler.timesteps.numpy()).max() > 0.1
        scheduler.timesteps = torch.tensor(wanted)

    scheduler.set_timesteps = set_timesteps


@pytest.mark.parametrize(("sampler", "spacing"), RUNS)
def test_the_same_picture(sampler: str, spacing: str, both: tuple[Any, Model]) -> None:
    pipeline, model = both
    mine, expected = ours(model, sampler, spacing), theirs(pipeline, model, sampler, spacing)
    assert expected.std() > 0.02  # a picture
    assert np.abs(mine - expected).max() <= EXACT


def test_diffusers_rounds_the_times_of_karras(both: tuple[Any, Model]) -> None:
    pipeline, model = both
    run = ("dpmpp_2m", "karras", 10)  # with fewer the bound is passed
    mine, expected = ours(model, *run), theirs(pipeline, model, *run, as_it_comes=True)
    assert EXACT < np.abs(mine - expected).max() <= 1.5 / 255


@torch.no_grad()
def test_clip_skip(both: tuple[Any, Model]) -> None:
    """diffusers counts what is left out of the layers that there are, for SDXL from its default on;
    ours counts those that it was trained with, of which SD2's folder lacks the last."""
    pipeline, model = both
    tower = pipeline.text_encoder
    if not hasattr(tower, "text_model"):  # what it is in transformers 5 diffusers looks for in it
        object.__setattr__(tower, "text_model", tower)
    least = 1 + model.text_encoding.left_out
    assert least == (2 if model.prediction == "v" else 1)
    for skip in (least, least + 1):
        theirs_skip = skip - 2 if model.text_2 is not None else skip - least
        expected = pipeline.encode_prompt(
            "a red apple",
            device="cpu",
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
            clip_skip=theirs_skip,
        )[0]
        mine = encode_prompts(Runtime(model), ["a red apple"], clip_skip=skip)
        close(mine.tokens, expected)


def test_another_prompt_is_another_picture(both: tuple[Any, Model], tmp_path: Path) -> None:
    """So that the comparison above is one: words, guidance and seed do show."""
    _, model = both
    request = Request(prompt="a red apple", seed=SEED, steps=3, width=SIDE, height=SIDE)
    pictures = []
    for change in ({}, {"prompt": "@"}, {"guidance": 1.0}, {"seed": SEED + 1}):
        *_, last = generate(model, request.model_copy(update=change))
        assert last.images is not None
        pictures.append(np.asarray(last.images[0], dtype=np.float64) / 255)
    for other in pictures[1:]:
        assert np.abs(other - pictures[0]).max() > 2 / 255

"""Every way of teaching a denoiser: 200 steps of a tiny network, and the validation loss falls."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pellucid import noise
from pellucid.backbones.unet import UNetConfig
from pellucid.checkpoints import load
from pellucid.cli._bar import show_progress
from pellucid.data.emoji import Concept, EmojiArt
from pellucid.diffusion import Conditioning
from pellucid.recipes.emoji import RECIPE
from pellucid.schedule import Schedule
from pellucid.train import clip as train_clip
from pellucid.train import diffusion as train_diffusion
from pellucid.train import pack
from pellucid.train import vae as train_vae
from pellucid.train.objective import Objective, ObjectiveOptions

CASES = [
    ("eps", "linear"),
    ("eps", "cosine"),
    ("x0", "cosine"),
    ("v", "linear"),
    ("v", "flow"),
    ("flow", "cosine"),
    ("flow", "flow"),
]


def tiny(channels: tuple[int, ...]) -> UNetConfig:
    """A network without attention."""
    return UNetConfig(
        block_out_channels=channels, layers_per_block=1, transformer_layers=(0,) * len(channels),
        mid_transformer_layers=0, heads=(1,) * len(channels), norm_groups=8,
    )  # fmt: skip


TINY = replace(
    RECIPE,
    vae=replace(RECIPE.vae, latent_channels=4, block_out_channels=(8, 8)),
    text=replace(RECIPE.text, width=16, heads=2, layers=1, mlp_width=16, projection=16),
    vision=replace(RECIPE.vision, width=16, heads=2, layers=1, mlp_width=16, projection=16),
    unet=tiny,
)
ONE_LEVEL = replace(TINY, unet=lambda channels: tiny(channels[:1]))  # enough to learn four colours


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> train_diffusion.DiffusionOptions:
    """Things of one colour each, with an autoencoder and a CLIP that saw a little of it."""
    folder = tmp_path_factory.mktemp("tiny")
    pixels = np.full((4, 4, 32, 32, 4), 255, np.uint8)
    pixels[..., :3] = np.random.default_rng(0).integers(0, 255, (4, 1, 1, 1, 3))
    names = ("frog", "owl", "star", "boat")
    art = folder / "art.npz"
    EmojiArt([Concept("x", (name,)) for name in names], pixels).save(art)
    vae = train_vae.VAEOptions(art, folder / "vae", steps=2, batch=2, device="cpu")
    clip = train_clip.CLIPOptions(
        art, folder / "clip", steps=2, batch=4, vocabulary=300, captions=50, device="cpu"
    )
    return train_diffusion.DiffusionOptions(
        art,
        vae=train_vae.train(vae, TINY),
        clip=train_clip.train(clip, TINY),
        out=folder,
        steps=200,
        batch=8,
        rate=5e-3,
        pool=64,
        channels="16,16",
        save_every=50,
        sample_every=0,
        device="cpu",
    )


@pytest.mark.parametrize(("prediction", "schedule"), CASES)
def test_the_validation_loss_falls(
    prediction: str,
    schedule: str,
    options: train_diffusion.DiffusionOptions,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fields: dict[str, Any] = {"prediction": prediction, "schedule": schedule}
    train_diffusion.train(
        replace(options, out=tmp_path, **fields, steps=1, ema=0.0), ONE_LEVEL, show_progress
    )
    train_diffusion.train(
        replace(options, out=tmp_path, **fields, resume=True), ONE_LEVEL, show_progress
    )
    losses = [float(x) for x in re.findall(r"validation loss (\S+)", capsys.readouterr().err)]
    assert len(losses) == 5 and losses[-1] < 0.8 * losses[0]


def test_further_ways_are_learned_and_packed(
    options: train_diffusion.DiffusionOptions,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fields: dict[str, Any] = {
        "prediction": "v",
        "schedule": "scaled_linear",
        "zero_terminal_snr": True,
        "weighting": "min_snr",
        "noise": "pyramid",
        "times": "logit_normal",
    }
    options = replace(options, out=tmp_path, steps=120, sample_every=120, **fields)
    drawn_with = load(train_diffusion.train(options, TINY, show_progress))
    assert drawn_with.prediction == "v" and drawn_with.name == tmp_path.name
    losses = [float(x) for x in re.findall(r"validation loss (\S+)", capsys.readouterr().err)]
    assert losses[-1] < losses[0] and (tmp_path / "samples" / "000120.png").is_file()
    parts = pack.PackOptions(
        vae=options.vae,
        clip=options.clip,
        diffusion=tmp_path / "state.pt",
        out=tmp_path / "m.safetensors",
        steps=7,
    )
    model = load(pack.train(parts, TINY))
    assert model.prediction == "v" and model.defaults.steps == 7
    assert model.schedule == Schedule("scaled_linear", zero_terminal_snr=True)
    with pytest.raises(ValueError, match="from a run with other options"):
        train_diffusion.train(replace(options, noise="offset", resume=True), TINY)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"schedule": "cosin"}, "schedule 'cosin'.*nearest first: cosine"),
        ({"prediction": "x1"}, "prediction 'x1'"),
        ({"weighting": "snr"}, "loss weighting 'snr'.*nearest first: min_snr"),
        ({"noise": "offst"}, "noise 'offst'.*nearest first: offset"),
        ({"times": "normal"}, "distribution of t 'normal'.*nearest first: logit_normal"),
        ({"prediction": "eps"}, "prediction is eps, and the schedule begins at pure noise"),
    ],
)
def test_objectives_that_do_not_exist(
    fields: dict[str, Any], sentence: str, options: train_diffusion.DiffusionOptions
) -> None:
    with pytest.raises(ValueError, match=sentence):
        train_diffusion.train(replace(options, **fields), TINY)


def test_the_loss_uses_the_noise_and_the_times_of_the_objective() -> None:
    x0, cond = torch.zeros(16, 2, 4, 4), Conditioning(torch.zeros(16, 0, 1))

    def loss(**fields: Any) -> float:
        def always_zero(x: torch.Tensor, t: torch.Tensor, cond: Conditioning) -> torch.Tensor:
            times.append(t)
            return torch.zeros_like(x)

        objective = Objective(Schedule("cosine"), "eps", **fields)
        return float(objective.loss(always_zero, x0, cond, torch.Generator().manual_seed(1)))

    times: list[torch.Tensor] = []
    random = torch.Generator().manual_seed(1)
    t = torch.rand(16, generator=random) * 1000
    assert loss() == pytest.approx(float(torch.randn(x0.shape, generator=random).square().mean()))
    assert torch.equal(times[0], t.clamp(max=999))
    assert loss(noise="pyramid") == pytest.approx(1, abs=1e-5)  # its mean square is exactly 1
    loss(times="logit_normal")
    assert not torch.equal(times[-1], times[0])
    assert ObjectiveOptions().objective().times == "logit_normal"
    assert set(noise.NOISES) > {"gaussian", "offset", "pyramid"}

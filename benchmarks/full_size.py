"""Stable Diffusion 1.5 at its full size against diffusers, number by number, in float32.

    python benchmarks/full_size.py [--side 256] [--latents 64] [--steps 10]

A file in the original layout is made on the spot, with the published shapes and random weights. It
is loaded here and by diffusers' `from_single_file`, each in a process of its own, and both are asked
the same. Compared are:

- the parts: the U-Net, the autoencoder both ways (mean and log of the variance; pixels), the text
  encoder: the largest difference over the largest value (the bar is 1e-4);
- whole runs, from the prompt to the picture, with DDIM, Euler and DPM++ 2M: the largest difference
  of the pixels (the bar is 1/255), with the deviation of the picture, which a grey one has not.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from load import MAKE, run

if TYPE_CHECKING:
    from torch import Tensor

OURS, THEIRS = "ours", "theirs"
PROMPT, SCALE, SEED = "a frog on stilts", 7.5, 3
# diffusers' class and settings for a sampler with the spacing "leading", that of SD1.5's own config.
RUNS = {
    "ddim": ("DDIMScheduler", {"set_alpha_to_one": False}),
    "euler": ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"timestep_spacing": "leading"}),
}
PICTURE = "picture, "


def inputs(latents: int) -> dict[str, Tensor]:
    """What the parts are asked."""
    import torch

    draw = torch.Generator().manual_seed(2)
    ids = torch.randint(0, 49406, (1, 77), generator=draw)
    ids[:, 0], ids[:, 60:] = 49406, 49407  # as a prompt begins, and how it is filled up
    return {
        "x": torch.randn(1, 4, latents, latents, generator=draw),
        "context": torch.randn(1, 77, 768, generator=draw),
        "pixels": torch.rand(1, 3, latents * 8, latents * 8, generator=draw) * 2 - 1,
        "ids": ids,
    }


def ours(path: Path, answers: Path, side: int, latents: int, steps: int) -> None:
    """Writes what Pellucid makes of the file."""
    import numpy as np
    import torch
    from safetensors.torch import save_file

    from pellucid import checkpoints
    from pellucid.diffusion import Conditioning
    from pellucid.pipeline import generate
    from pellucid.request import Request

    model, asked = checkpoints.load(path), inputs(latents)
    with torch.no_grad():
        posterior = model.vae.encode(asked["pixels"])
        found = {
            "U-Net": model.backbone(
                asked["x"], torch.tensor([500.0]), Conditioning(asked["context"])
            ),
            "encoder, mean": posterior.mean,
            "encoder, log of the variance": posterior.logvar,
            "decoder": model.vae.decode(asked["x"]),
            "text encoder": model.text(asked["ids"]).hidden,
        }
    for sampler in RUNS:
        request = Request(
            prompt=PROMPT,
            seed=SEED,
            steps=steps,
            guidance=SCALE,
            sampler=sampler,
            spacing="leading",
            width=side,
            height=side,
        )
        *_, last = generate(model, request)
        assert last.images is not None
        found[PICTURE + sampler] = torch.from_numpy(np.asarray(last.images[0]) / np.float32(255))
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, answers)


def theirs(path: Path, folder: Path, answers: Path, side: int, latents: int, steps: int) -> None:
    """Writes what diffusers makes of it; folder: its configs."""
    import diffusers
    import torch
    from safetensors.torch import save_file

    diffusers.logging.disable_progress_bar()
    pipeline = diffusers.StableDiffusionPipeline.from_single_file(
        str(path), config=str(folder), local_files_only=True, torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    asked = inputs(latents)
    with torch.no_grad():
        moments = pipeline.vae.encode(asked["pixels"]).latent_dist
        found = {
            "U-Net": pipeline.unet(asked["x"], torch.tensor([500.0]), asked["context"]).sample,
            "encoder, mean": moments.mean,
            "encoder, log of the variance": moments.logvar,
            "decoder": pipeline.vae.decode(asked["x"]).sample,
            "text encoder": pipeline.text_encoder(asked["ids"]).last_hidden_state,
        }
    for sampler, (name, settings) in RUNS.items():
        kind = getattr(diffusers, name)
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **settings)
        drawn = pipeline(
            PROMPT,
            height=side,
            width=side,
            num_inference_steps=steps,
            guidance_scale=SCALE,
            generator=torch.Generator().manual_seed(SEED),
            output_type="np",
        )
        found[PICTURE + sampler] = torch.from_numpy(drawn.images[0])
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, answers)


def compare(mine: Path, other: Path) -> None:
    from safetensors.torch import load_file

    found, expected = load_file(mine), load_file(other)
    for name, tensor in expected.items():
        difference = float((found[name] - tensor).abs().max())
        if name.startswith(PICTURE):
            print(
                f"{name}: {difference * 255:.2f}/255 at most; it deviates by {tensor.std():.3f} of 1"
            )
        else:
            print(f"{name}: {difference / float(tensor.abs().max()):.1e} of the maximum")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=256, help="of the pictures, in pixels")
    parser.add_argument("--latents", type=int, default=64, help="side of what the parts are asked")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("paths", nargs="*", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    sizes = (options.side, options.latents, options.steps)
    if options.task is not None:
        {OURS: ours, THEIRS: theirs}[options.task](*options.paths, *sizes)
        return
    words = ("--side", sizes[0], "--latents", sizes[1], "--steps", sizes[2])
    with tempfile.TemporaryDirectory() as room:
        path, folder = Path(room) / "sd15.safetensors", Path(room) / "configs"
        answers = Path(room) / OURS, Path(room) / THEIRS
        run(MAKE, path, folder)
        for task, paths in ((OURS, (path, answers[0])), (THEIRS, (path, folder, answers[1]))):
            cost = run(task, *paths, *words, script=__file__)
            print(f"{task}: {cost.wall:.0f} s, {cost.cpu:.0f} s of CPU", file=sys.stderr)
        compare(*answers)


if __name__ == "__main__":
    main()

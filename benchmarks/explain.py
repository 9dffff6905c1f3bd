"""Time a run that is recorded beside the plain run, and the page that is written of it.

    python benchmarks/explain.py [--shape emoji|thin] [--steps 20] [--repeats 5]

The plain run, the recorded one, and the plain one again on the model that was watched take turns;
the fastest of the repeats counts, in CPU time, which other work on the machine disturbs less than
the clock. Shapes: the shipped model; the same with a network of SD1.5's shape at 3/10 of its width,
random weights, on 32x32 latents.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from pellucid import checkpoints
from pellucid.backbones.unet import SD15, UNet
from pellucid.data.emoji import concept_names
from pellucid.explain.run import Recorder, page
from pellucid.model import Model
from pellucid.pipeline import generate
from pellucid.request import Request


def thin(model: Model) -> Model:
    """The model with SD1.5's network, narrower, for the latents that it has."""
    channels = model.vae.config.latent_channels
    config = replace(
        SD15,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(96, 192, 384, 384),
        cross_attention_dim=model.text.config.width,
    )
    torch.manual_seed(0)
    return replace(model, backbone=UNet(config).eval().to(memory_format=torch.channels_last))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=("emoji", "thin"), default="emoji")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    model = checkpoints.load()
    side = model.defaults.width
    if options.shape == "thin":
        model, side = thin(model), 32 * model.vae.config.downsample
    request = Request(
        prompt="a red rabbit on a blue background",
        seed=1,
        steps=options.steps,
        width=side,
        height=side,
    )

    def plain() -> None:
        *_, _ = generate(model, request)

    def recorded() -> Recorder:
        recorder = Recorder(model, request)
        for _ in recorder.run():
            pass
        return recorder

    runs: dict[str, Callable[[], object]] = {
        "plain": plain,
        "recorded": recorded,
        "plain, after it": plain,
    }
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(options.repeats + 1):  # the first warms up, and is never the fastest
        for name, run in runs.items():
            start = time.process_time()
            run()
            best[name] = min(best[name], time.process_time() - start)
    print(f"{options.shape}, {side}x{side}, {options.steps} steps; least CPU time")
    for name, seconds in best.items():
        print(f"{name}: {seconds:.3f} s, {seconds / best['plain']:.2f} times the plain run")

    recorder = recorded()
    start = time.process_time()
    explanation = recorder.explanation(concept_names())
    near = time.process_time() - start
    text, left_out = page.page(model, [explanation])
    written = time.process_time() - start - near
    print(f"near words: {near:.3f} s; page: {written:.3f} s, {len(text.encode()) / 1e6:.2f} MB")
    print(left_out or "nothing was left out")


if __name__ == "__main__":
    main()

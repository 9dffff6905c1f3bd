"""The figures of the documentation, drawn for every build: ``python docs/figures.py FOLDER``.

Each function draws the figures of one page with Pellucid's public functions, the shipped model and
fixed seeds, so that every figure shows what the current code does. Their layout is in layout.py.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from layout import Cell, dots, grey, heat, matrix, plot, sheet
from PIL import Image
from torch import Tensor, nn

from pellucid import checkpoints, noise
from pellucid.conditioning import chunked, encode_prompts
from pellucid.diffusion import add_noise, predictor, target
from pellucid.html.plots import Series
from pellucid.images.metadata import save_image
from pellucid.images.pixels import to_pil, to_tensor
from pellucid.model import Model
from pellucid.pipeline import Progress, Request, generate
from pellucid.preview import pictures
from pellucid.runtime import Runtime
from pellucid.schedule import Schedule
from pellucid.train.gan import GANTrainer, update

PROMPT = "a lion"
PAIR = "a dog and an apple"

LENGTH = 1.0
"""The share of the steps of runs and trainings that are taken."""

Figures = Iterator[tuple[str, Image.Image]]
"""Names, without a suffix, and pictures."""


# ---------------------------------------------------------------- one function for each page


def of_gan(model: Model) -> Figures:
    """A GAN that learns points in eight places on a ring."""
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(0)
    angles = torch.arange(8) * math.pi / 4
    places = 2 * torch.stack([angles.cos(), angles.sin()], dim=1)  # (8, 2)

    def real(count: int) -> Tensor:
        chosen = places[torch.randint(8, (count,), generator=random)]
        return chosen + 0.02 * torch.randn(count, 2, generator=random)

    trainer = GANTrainer(PointsNetwork(2, 2), PointsNetwork(2, 1), latent=2, rate=1e-3)
    cells, losses = [Cell(dots(real(1000)), "real")], []
    with torch.enable_grad():
        for step in range(1, shortened(1000) + 1):
            losses.append(update(trainer, real(256), None, random))
            if step in map(shortened, (100, 300, 500, 1000)):
                made = trainer.generator(torch.randn(1000, 2, generator=random), None).detach()
                near = torch.cdist(made, places).min(dim=1)
                found = len(near.indices[near.values < 0.2].unique())
                cells.append(Cell(dots(made), f"{step}: {found} of 8"))
    yield "gan-ring", sheet(cells, len(cells))
    steps = list(range(0, len(losses), 10))
    curves = [
        Series(name, steps, [float(losses[i][name]) for i in steps])
        for name in ("generator", "discriminator")
    ]
    yield "gan-losses", plot("loss", curves, "step", "")


def of_noise(model: Model) -> Figures:
    kinds = [
        Cell(to_pil(noise.draw(kind, (3, 64, 64), noise.generators(1, 1))[0] / 3), kind)
        for kind in noise.NOISES
    ]
    yield "noise-kinds", sheet(kinds, len(kinds))
    seeds = [1, 2, 3, 4, 1]
    drawn = [Cell(last(model, seed=seed).images[0], f"seed {seed}") for seed in seeds]
    yield "noise-seeds", sheet(drawn, len(drawn))


def of_schedule(model: Model) -> Figures:
    schedules = {
        "linear": Schedule("linear", beta_start=1e-4, beta_end=0.02),
        "scaled": Schedule("scaled_linear"),
        "cosine": Schedule("cosine"),
        "sigmoid": Schedule("sigmoid"),
        "flow": Schedule("flow"),
    }
    u = torch.linspace(0.002, 0.998, 300, dtype=torch.float64)
    left, log_snr = [], []
    for name, schedule in schedules.items():
        alpha, sigma = schedule.alpha_sigma(u * schedule.T)
        snr = (alpha / sigma) ** 2
        left.append(Series(name, u.tolist(), (snr / (1 + snr)).tolist()))
        log_snr.append(Series(name, u.tolist(), snr.log().tolist()))
    yield (
        "schedule-picture",
        plot(
            "share of the picture in the variance",
            left,
            "t / T",
            "",
            x_range=(0, 1),
            y_range=(0, 1),
        ),
    )
    yield (
        "schedule-snr",
        plot("log of the signal-to-noise ratio", log_snr, "t / T", "", x_range=(0, 1)),
    )
    steps = [
        Series(
            spacing,
            list(range(20)),
            [level.s for level in Schedule().levels(20, spacing)[:-1]],
            "dots",
        )
        for spacing in ("uniform", "karras", "exponential")
    ]
    yield (
        "schedule-spacing",
        plot("sigma / alpha at each of 20 steps", steps, "step", "", log_y=True),
    )


def of_forward(model: Model) -> Figures:
    x0 = to_tensor(last(model).images[0])[None]
    eps = noise.draw("gaussian", tuple(x0.shape[1:]), noise.generators(1, 1))
    cells = []
    for name in ("scaled_linear", "cosine"):
        for t in (0, 200, 400, 600, 800, 999):
            level = Schedule(name).level(t)
            x = add_noise(x0, eps, level.alpha, level.sigma)
            cells.append(Cell(to_pil(x[0]), f"t = {t}"))
    yield "forward-jump", sheet(cells, 6)


def first_stage(model: Model) -> Model:
    """The model without what makes its pictures larger."""
    width, height = model.drawn_size
    small = replace(model.defaults, width=width, height=height)
    return replace(model, second_stage=None, defaults=small)


def of_unet(model: Model) -> Figures:
    unet = model.backbone
    level = model.schedule.level(500)
    x0 = model.vae.to_latents(to_tensor(last(model).images[0])[None])
    eps = noise.draw("gaussian", tuple(x0.shape[1:]), noise.generators(1, 1))
    x = add_noise(x0, eps, level.alpha, level.sigma)
    parts = {"in": unet.conv_in}
    parts |= {f"down {i}": block.resnets[-1] for i, block in enumerate(unet.down_blocks, 1)}
    parts |= {"bottom": unet.mid_block}
    parts |= {f"up {i}": block.resnets[-1] for i, block in enumerate(unet.up_blocks, 1)}
    parts |= {"out": unet.conv_out}
    cells: list[Cell] = []

    def record(part: str) -> Callable[[nn.Module, object, Tensor], None]:
        def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
            strength = output[0].square().mean(0).sqrt()
            cells.append(Cell(heat(strength), f"{part}: {output.shape[1]}"))

        return keep

    hooks = [part.register_forward_hook(record(name)) for name, part in parts.items()]
    unet(x, torch.tensor([level.t]), encode_prompts(Runtime(model), [PROMPT]))
    for hook in hooks:
        hook.remove()
    yield "unet-levels", sheet(cells, 4)

    picture = last(model, PAIR).images[0]  # drawn one by one; here the network sees both at once
    x0 = model.vae.to_latents(to_tensor(picture)[None])
    maps: list[Tensor] = []
    x = add_noise(x0, eps, level.alpha, level.sigma)
    unet(x, torch.tensor([level.t]), encode_prompts(Runtime(model), [PAIR]), record=maps)
    largest = max(layer.shape[2] for layer in maps)  # where places are finest
    fine = [layer[0].mean(0) for layer in maps if layer.shape[2] == largest]
    attention = torch.stack(fine).mean(0)  # (h, w, L)
    cells = [Cell(picture, "the picture")]
    (chunk,) = chunked(model.tokenizer, PAIR)
    for position, token in enumerate(chunk, 1):  # the row begins with the start token
        if token.text in PAIR.split()[1::3]:
            cells.append(Cell(heat(attention[..., position]), token.text))
    yield "unet-words", sheet(cells, 3)


def of_prediction(model: Model) -> Figures:
    x0 = to_tensor(last(model).images[0])[None]
    eps = noise.draw("gaussian", tuple(x0.shape[1:]), noise.generators(1, 1))
    level = Schedule("cosine").level(500)
    x = add_noise(x0, eps, level.alpha, level.sigma)
    cells = [Cell(to_pil(x[0]), "x")]
    for kind in ("eps", "x0", "v", "flow"):
        goal = target(kind, x0, eps, level.alpha, level.sigma)
        cells.append(Cell(to_pil(goal[0]), kind))
    yield "prediction-targets", sheet(cells, 5)

    latents = model.vae.to_latents(x0)
    draw = noise.draw("gaussian", tuple(latents.shape[1:]), noise.generators(1, 1))
    predict = predictor(model.backbone, model.prediction)
    # With the prompt the small model's first estimate would already be good.
    cond = encode_prompts(Runtime(model), [""])
    noisy, estimated = [], []
    for t in (100, 300, 500, 700, 900):
        level = model.schedule.level(t)
        x = add_noise(latents, draw, level.alpha, level.sigma)
        noisy.append(Cell(pictures(Runtime(model), x)[0], f"x, t = {t}"))
        estimated.append(Cell(pictures(Runtime(model), predict(x, level, cond))[0], "estimate"))
    yield "prediction-guess", sheet([*noisy, *estimated], 5)


def of_samplers(model: Model) -> Figures:
    names, counts = ("ddpm", "euler", "heun", "dpmpp_2m"), (2, 4, 8, 16)
    cells = [
        Cell(last(model, sampler=name, steps=steps).images[0], f"{name}, {steps}")
        for name in names
        for steps in counts
    ]
    yield "samplers-steps", sheet(cells, len(counts))
    yield "samplers-error", errors(model)


def of_text(model: Model) -> Figures:
    prompts = ("a lion", "a panda", "a red heart", "a crescent moon", "a slice of pizza")
    drawn = [last(model, prompt=prompt).images[0] for prompt in prompts]
    texts = F.normalize(model.text(model.tokenizer(prompts)).projected, dim=-1)
    seen = model.vision(torch.stack([to_tensor(picture) for picture in drawn]))
    yield "text-clip", matrix(texts @ F.normalize(seen, dim=-1).T, prompts, drawn)


def of_guidance(model: Model) -> Figures:
    scales = (1, 2, 4, 8, 16)
    cells = [Cell(last(model, guidance=s).images[0], f"scale {s}") for s in scales]
    yield "guidance-scale", sheet(cells, len(scales))
    early = next(run(model))
    assert early.parts is not None
    cells = [
        Cell(pictures(Runtime(model), early.parts.uncond)[0], "no prompt"),
        Cell(pictures(Runtime(model), early.parts.cond)[0], "prompt"),
        Cell(heat(early.difference[0].abs().mean(0)), "difference"),
        Cell(pictures(Runtime(model), early.parts.guided)[0], "guided"),
    ]
    yield "guidance-parts", sheet(cells, len(cells))


def of_latents(model: Model) -> Figures:
    before = to_tensor(last(model).images[0])
    latents = model.vae.to_latents(before[None])
    after = model.vae.to_pixels(latents)[0]
    cells = [
        Cell(to_pil(before), "pixels"),
        Cell(to_pil(after), "round trip"),
        Cell(to_pil(1 - 4 * (before - after).abs()), "difference x 4"),
    ]
    yield "latents-trip", sheet(cells, len(cells))
    channels = [Cell(grey(channel)) for channel in latents[0]]
    yield "latents-channels", sheet(channels, 8, side=72)


def of_stable_diffusion(model: Model) -> Figures:
    steps = list(run(model, steps=20))
    shown = [steps[i] for i in (0, 3, 6, 10, 14, 19)]
    cells = [Cell(pictures(Runtime(model), p.x)[0], f"step {p.step}") for p in shown]
    cells += [Cell(pictures(Runtime(model), p.x0)[0], "estimate") for p in shown]
    yield "stable-diffusion-run", sheet(cells, len(shown))


def of_regions(model: Model) -> Figures:
    steps = list(run(model, PAIR, seed=3, steps=8))
    cells = [
        Cell(pictures(Runtime(model), p.x0)[0], f"step {p.step}")
        for p in (steps[i] for i in (0, 2, 4, 7))
    ]
    yield "regions-steps", sheet(cells, len(cells))
    whole = last(model, PAIR, seed=3, steps=8, arrange=False)
    cells = [Cell(steps[-1].images[0], "regions"), Cell(whole.images[0], "as a whole")]
    yield "regions-whole", sheet(cells, 2)


PAGES: tuple[Callable[[Model], Figures], ...] = (
    of_gan,
    of_noise,
    of_schedule,
    of_forward,
    of_unet,
    of_prediction,
    of_samplers,
    of_text,
    of_guidance,
    of_latents,
    of_regions,
    of_stable_diffusion,
)


def draw_all(folder: Path, short: bool = False) -> None:
    """Draw all figures into `folder` as PNG. short: with a few steps, for tests."""
    global LENGTH
    LENGTH = 0.02 if short else 1.0
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # for tiny tensors more threads are slower
    model = first_stage(checkpoints.load())
    with torch.no_grad():
        for page in PAGES:
            for name, image in page(model):
                save_image(image, folder / f"{name}.png")


# ---------------------------------------------------------------- runs of the model


def run(
    model: Model, prompt: str = PROMPT, seed: int = 1, **settings: object
) -> Iterator[Progress]:
    """Every step of a run; `settings` are further fields of the request."""
    return generate(model, Request.model_validate({"prompt": prompt, "seed": seed} | settings))


def last(model: Model, prompt: str = PROMPT, seed: int = 1, **settings: Any) -> Progress:
    """The last step, which has the pictures."""
    steps = shortened(settings.pop("steps", model.defaults.steps))
    *_, end = run(model, prompt, seed, steps=steps, **settings)
    return end


def shortened(steps: int) -> int:
    """`LENGTH` times the steps, at least one."""
    return math.ceil(LENGTH * steps)


class PointsNetwork(nn.Module):
    """Vectors (B, before) -> (B, after), or where `after` is 1 scores (B,)."""

    def __init__(self, before: int, after: int, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(before, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()),
            nn.Linear(width, after),
        )

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        made = self.layers(x)
        return made[:, 0] if made.shape[1] == 1 else made


def errors(model: Model) -> Image.Image:
    """The distance of several samplers' latents from those of many steps, without guidance."""
    plain = {"spacing": "uniform", "guidance": 1}
    exact = last(model, sampler="heun", steps=50, **plain).x
    curves = []
    for name in ("euler", "dpmpp_2m", "unipc"):
        counts = (4, 8, 16, 32)
        ends = [last(model, sampler=name, steps=n, **plain).x for n in counts]
        curves.append(
            Series(name, counts, [float((x - exact).norm() / exact.norm()) for x in ends])
        )
    return plot(
        "distance from the result of 50 steps of heun", curves, "steps", "", log_x=True, log_y=True
    )


if __name__ == "__main__":
    draw_all(Path(sys.argv[1]))

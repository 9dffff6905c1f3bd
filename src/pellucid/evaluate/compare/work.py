"""The parts of a comparison are worked through, several at a time."""

from __future__ import annotations

import json
import multiprocessing
import queue
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pellucid.evaluate.compare import (
    PACKS,
    CompareOptions,
    Part,
    contest_of,
    made_of,
    parameters_of,
)
from pellucid.evaluate.compare.contest import Contest, Recipe
from pellucid.evaluate.compare.contestants import draw_denoiser, draw_gan, train_denoiser, train_gan
from pellucid.files import write_text
from pellucid.images.metadata import save_image
from pellucid.train.gan import Players
from pellucid.train.loop import Ema

POINTS = 100  # of each curve
KEPT = 1000  # samples that are kept to look at


def run(part: Part, contest: Contest, recipe: Recipe, out: Path) -> Iterator[float]:
    """Train, draw, count, and write what was found; yields how much is done, 0..1."""
    began = time.process_time()
    curves: dict[str, list[float]] = defaultdict(list)
    torch.manual_seed(part.seed)
    batches: Iterator[Tensor]
    if part.method == "real":
        rng = np.random.default_rng([part.seed, 17])
        batches = (contest.draw(250, rng) for _ in range(recipe.samples // 250 + 1))
    elif part.method == "diffusion":
        network = contest.denoiser()
        ema = Ema(network, recipe.ema)
        figures = train_denoiser(network, ema, contest.draw, recipe, part.seed)
        yield from followed(figures, recipe.updates, curves)
        network.load_state_dict(ema.weights)
        batches = draw_denoiser(
            network, contest.shape, recipe.samples, recipe.steps, part.seed, recipe.half
        )
    else:
        generator, discriminator = contest.gan(PACKS[part.method])
        players = Players(generator, discriminator, contest.latent, recipe.gan_rate)
        figures = train_gan(players, contest.draw, recipe, part.seed)
        yield from followed(figures, recipe.updates, curves)
        batches = draw_gan(generator, contest.latent, recipe.samples, part.seed, recipe.half)
    trained = time.process_time()
    samples = torch.cat(list(batches))[: recipe.samples]
    drawn = time.process_time()
    finite = bool(torch.isfinite(samples).all())
    found = asdict(contest.measure([samples])) if finite else None
    target = part.path(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    label = "real" if part.method == "real" else "made"
    save_image(contest.look(samples[:KEPT].nan_to_num(), label), target.with_suffix(".png"))
    findings = {
        "made_of": made_of(contest, recipe, part),
        "coverage": found,
        "curves": dict(curves),
        "seconds": {"training": trained - began, "drawing": drawn - trained},
        "parameters": None
        if part.method == "real"
        else parameters_of(contest, [part.method])[part.method],
    }
    write_text(target, json.dumps(findings))
    yield 1.0


def followed(
    figures: Iterator[Mapping[str, Tensor]], updates: int, curves: dict[str, list[float]]
) -> Iterator[float]:
    """How far the training is; on the way `curves` gets the mean of each hundredth of the run."""
    window: dict[str, list[Tensor]] = defaultdict(list)
    for step, told in enumerate(figures):
        for name, value in told.items():
            window[name].append(value)
        if (step + 1) * POINTS // updates > step * POINTS // updates:
            for name, values in window.items():
                curves[name].append(float(torch.stack(values).mean()))
            window.clear()
            yield 0.95 * (step + 1) / updates


def known(part: Part, contest: Contest, recipe: Recipe, out: Path) -> dict[str, Any] | None:
    """What an earlier run found for this part with the same settings; None if there is nothing."""
    try:
        findings: dict[str, Any] = json.loads(part.path(out).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    same = isinstance(findings, dict) and findings.get("made_of") == made_of(contest, recipe, part)
    return findings if same and part.path(out).with_suffix(".png").is_file() else None


def work(options: CompareOptions, parts: Any, news: Any) -> None:
    """One process: takes parts off a queue until there is None, and tells how far it is."""
    torch.set_num_threads(1)
    contests: dict[str, Contest] = {}
    parent = multiprocessing.parent_process()
    while (part := parts.get()) is not None:
        try:
            if part.data not in contests:
                contests[part.data] = contest_of(part.data, options)
            contest = contests[part.data]
            for done in run(part, contest, options.recipe(contest), options.out):
                if parent is not None and not parent.is_alive():  # it was killed
                    return
                news.put((part, done))
        except (OSError, ValueError) as error:  # of the user's making: a full disk, say
            news.put((part, ValueError(str(error))))
            return
        except Exception as error:
            news.put((part, RuntimeError(f"{type(error).__name__}: {error}")))
            return


def run_all(
    options: CompareOptions, parts: Sequence[Part], workers: int
) -> Iterator[tuple[Part, float]]:
    """All of these parts, `workers` at a time; yields whenever one has come further.

    A caller that stops listening stops the work. ValueError if what a part needs is not there or
    its findings cannot be written, RuntimeError if a process broke down.
    """
    if not parts:
        return
    context = multiprocessing.get_context("spawn")
    waiting, news = context.Queue(), context.Queue()
    workers = min(workers, len(parts))
    for part in (*parts, *[None] * workers):
        waiting.put(part)
    processes = [
        context.Process(target=work, args=(options, waiting, news), daemon=True)
        for _ in range(workers)
    ]
    for process in processes:
        process.start()
    left = set(parts)
    try:
        while left:
            try:
                part, done = news.get(timeout=1)
            except queue.Empty:
                if not any(process.is_alive() for process in processes) and news.empty():
                    raise RuntimeError(f"the work stopped before {min(left)} was done") from None
                continue
            if isinstance(done, Exception):
                where = f"{part.data}, {part.method}, seed {part.seed}"
                raise type(done)(f"{where}: {done}")
            if done == 1:
                left.discard(part)
            yield part, done
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()

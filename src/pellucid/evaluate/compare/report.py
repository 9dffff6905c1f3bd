"""The comparison as an HTML page, and the same as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from pellucid.evaluate.compare.benchmark import CompareOptions, ComparePart
from pellucid.evaluate.compare.methods import METHODS
from pellucid.files import write_text
from pellucid.html import pages
from pellucid.html.bundles import bundle, read
from pellucid.html.numbers import people
from pellucid.html.pages import control, figure, paragraph, picture, row, section, table
from pellucid.html.plots import Plot, Series
from pellucid.images.metadata import save_image
from pellucid.train.gan import FIGURE_NAMES

HEAD = (
    *("method", "parameters", "modes", "good modes", "KL to uniform", "good", "precision"),
    *("recall", "apart", "failed", "CPU seconds"),
)
FOLDER = "evaluate/compare"
SHOWN = 3  # seeds whose samples are on the page
LINE = 16  # pixels, of the picture's text
LOSSES = FIGURE_NAMES | {"loss": "loss"}


def write(options: CompareOptions, results: Mapping[str, Any]) -> list[Path]:
    """Write results.json, compare.html and compare.png to the folder `options.out`; their paths."""
    paths = [options.out / name for name in ("compare.html", "compare.png", "results.json")]
    pages.write(paths[0], html(options, results))
    save_image(image(options, results), paths[1])
    write_text(paths[2], json.dumps(results, indent=1) + "\n")
    return paths


def html(options: CompareOptions, results: Mapping[str, Any]) -> str:
    """The page."""
    names = " against ".join(METHODS[m].title for m in options.methods)
    body = [
        paragraph(
            "The same data, the same number of pictures, and networks of one size. A run has failed "
            f"if {results['failed_means']}."
        )
    ]
    for name, one in results["data"].items():
        body.append(section(one["title"], *contents(options, name, one)))
    return pages.page(names, *body, script=bundle(read(f"{FOLDER}/page.js"), FOLDER))


def contents(options: CompareOptions, name: str, one: Mapping[str, Any]) -> list[str]:
    """A data set's part of the page."""
    recipe, real = one["recipe"], picture_of(options, ComparePart(name, "real", 0))
    shown = min(recipe["seeds"], SHOWN)
    return [
        *(paragraph(sentence) for sentence in one["verdict"]),
        paragraph(
            f"Each method saw {people(recipe['seen'])} pictures or points in batches of "
            f"{recipe['batch']} and drew {people(recipe['samples'])}, with {recipe['seeds']} "
            f"{'seed' if recipe['seeds'] == 1 else 'seeds'}. A sample is good if "
            f"{one['good']}. Precision and recall compare {one['features']}. Apart is how far a "
            "sample is from the nearest other one, divided by the same of real ones."
        ),
        table(HEAD, rows(one)),
        *([paragraph(one["published"])] if one["published"] else []),
        control("samples"),
        row(picture(real, "the data"), *samples(options, name, shown), name="samples"),
        row(*(figure(plot.html()) for plot in plots(options, one))),
    ]


def samples(options: CompareOptions, name: str, shown: int) -> list[str]:
    """What the methods drew, with their first seeds."""
    parts = [ComparePart(name, method, seed) for method in options.methods for seed in range(shown)]
    return [
        picture(picture_of(options, part), f"{METHODS[part.method].title}, seed {part.seed}")
        for part in parts
    ]


def picture_of(options: CompareOptions, part: ComparePart) -> Image.Image:
    """Its samples."""
    with Image.open(part.path(options.out).with_suffix(".png"), formats=("PNG",)) as kept:
        return kept.convert("RGB")


def rows(one: Mapping[str, Any]) -> list[Sequence[object]]:
    """The table: the means of each method, and the data themselves."""
    lines: list[Sequence[object]] = []
    for method, found in one["methods"].items():
        mean, runs = found["mean"], len(found["runs"])
        ends = (f"{found['failed']} of {runs}", round(found["seconds"], 1))
        start = (METHODS[method].title, one["parameters"][method])
        lines.append((*start, *(figures(mean) if mean else ("-",) * 7), *ends))
    return [*lines, ("the data", "-", *figures(one["real"]), "-", "-")]


def figures(coverage: Mapping[str, Any]) -> tuple[str, ...]:
    """Modes, good modes, KL, good, precision, recall and apart as text."""
    modes = (people(coverage[name]) for name in ("modes", "good_modes"))
    fractions = (f"{coverage[name]:.2f}" for name in ("good", "precision", "recall", "apart"))
    return (*modes, people(coverage["kl"]), *fractions)


def plots(options: CompareOptions, one: Mapping[str, Any]) -> list[Plot]:
    """How the losses moved, and how often the discriminator was right; a curve for each seed."""
    found = []
    for method in options.methods:
        runs = one["methods"][method]["runs"]
        for title, names in (
            ("losses", ("generator", "discriminator", "loss")),
            ("fraction that the discriminator knew", ("real", "fake")),
        ):
            series = [
                Series(LOSSES[name], progress(run["curves"][name]), run["curves"][name])
                for name in names
                for run in runs[:1]
                if run["curves"].get(name)
            ]
            if series:
                found.append(
                    Plot(
                        f"{METHODS[method].title}: {title} (seed 0)", series, "fraction of the run"
                    )
                )
    return found


def progress(curve: Sequence[float]) -> list[float]:
    """Where each point of a curve lies in the run, 0..1."""
    return [(i + 1) / len(curve) for i in range(len(curve))]


def image(options: CompareOptions, results: Mapping[str, Any]) -> Image.Image:
    """The same in one picture: sentences, samples of the first seed, curves."""
    blocks: list[Image.Image] = []
    for name, one in results["data"].items():
        blocks.append(words([[line] for line in (one["title"], *one["verdict"])]))
        blocks.append(words([HEAD, *rows(one)]))
        shown = [ComparePart(name, "real", 0), *(ComparePart(name, m, 0) for m in options.methods)]
        blocks.append(side_by_side([picture_of(options, part) for part in shown]))
        blocks.append(side_by_side([plot.image(1) for plot in plots(options, one)]))
    return below(blocks)


def words(lines: Sequence[Sequence[object]]) -> Image.Image:
    """Lines of cells, in columns, on white."""
    font = ImageFont.load_default(12)  # which has no letter for infinity
    columns = [[_text(cell) for cell in column] for column in zip(*lines, strict=True)]
    widths = [max(int(font.getlength(cell)) for cell in column) + 16 for column in columns]
    drawn = Image.new("RGB", (sum(widths) + 8, LINE * len(lines) + 12), "white")
    brush = ImageDraw.Draw(drawn)
    for i, column in enumerate(columns):
        for j, cell in enumerate(column):
            brush.text((8 + sum(widths[:i]), 6 + LINE * j), cell, fill="black", font=font)
    return drawn


def _text(cell: object) -> str:
    text = people(cell) if isinstance(cell, int | float) else str(cell)
    return text.replace("∞", "infinite")


def side_by_side(pictures: Sequence[Image.Image], gap: int = 8) -> Image.Image:
    """Pictures from left to right on white."""
    width = sum(p.width + gap for p in pictures)
    joined = Image.new("RGB", (width, max(p.height for p in pictures)), "white")
    left = 0
    for one in pictures:
        joined.paste(one, (left, 0))
        left += one.width + gap
    return joined


def below(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures one under the other on white."""
    height = sum(p.height for p in pictures)
    joined = Image.new("RGB", (max(p.width for p in pictures), height), "white")
    top = 0
    for one in pictures:
        joined.paste(one, (0, top))
        top += one.height
    return joined

"""The page of a run: one HTML file of at most 5 MB that loads nothing else.

`sections/` has its sections, `page.js` what moves them, `style.css` the style. Numbers and pictures
are embedded as one JSON record (`page_data.py`; CONTRIBUTING.md says how it looks). Where they would
exceed the limit, the page gets smaller pictures, then averaged attention maps, then fewer steps, and
says so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from textwrap import shorten
from typing import Any

from torch import Tensor

from pellucid.explain.run.page_data import PageData, details
from pellucid.explain.run.record import Explanation, project
from pellucid.explain.run.sections import Content, Section, in_order
from pellucid.html import bundles, pages
from pellucid.model import Model

LIMIT = 5_000_000
"""Bytes of a page."""
PARAGRAPH = re.compile(r"<p>.*?</p>", re.S)
TITLE = 90  # letters of a prompt in the title
FOLDER = "explain/run"

PagePart = tuple[Section, list[Content | None]]
"""A section, and its content for each run."""


def write(path: str | Path, model: Model, explanations: Sequence[Explanation]) -> str:
    """Write the page of one explanation, or of two side by side, drawn by `model`.

    Returns what had to be left out, in words; "" if nothing was. ValueError: no such folder, a full
    disk, not one or two explanations.
    """
    text, left_out = page(model, explanations)
    pages.write(path, text)
    return left_out


def page(model: Model, explanations: Sequence[Explanation]) -> tuple[str, str]:
    """The page as text, and what had to be left out."""
    if not 1 <= len(explanations) <= 2:
        raise ValueError(f"explanations must be one or two, got {len(explanations)}")
    parts = parts_of(model, explanations)
    data = [PageData(model, explanation) for explanation in explanations]
    size = max((each.places for each in explanations), key=math.prod)
    paths, spread = project([trail for each in explanations for trail in each.trails(size)])
    for detail in details(max(len(each.steps) for each in explanations)):
        if sum(each.estimated_bytes(detail) for each in data) > LIMIT:
            continue
        runs = [each.data(detail) for each in data]
        for i, (run, x, x0) in enumerate(zip(runs, paths[::2], paths[1::2], strict=True)):
            run["path"] = {"x": rounded(x), "x0": rounded(x0)}
            run["sections"] = {
                name: content.data
                for name, (_, contents) in parts.items()
                if (content := contents[i]) is not None
            }
        left_out = detail.omissions(explanations)
        record = {"runs": runs, "shares": spread, "note": left_out, "opening": opening(runs)}
        text = document(explanations, parts, record)
        if len(text.encode()) <= LIMIT:
            return text, left_out
    raise ValueError("even two steps make a page of more than 5 MB; use a shorter prompt")


def parts_of(model: Model, explanations: Sequence[Explanation]) -> dict[str, PagePart]:
    """The sections that these runs have, in order."""
    found = {}
    for name, module in in_order().items():
        contents = [module.content(model, each) for each in explanations]
        if any(content is not None for content in contents):
            found[name] = (module.SECTION, contents)
    return found


def opening(runs: Sequence[Mapping[str, Any]]) -> int:
    """Where the page opens, counted from 1: the step at which the estimates with the text and without
    it differ most, as they are shown; without guidance, early in the run. Not at pure noise (alpha
    = 0), where the text cannot change the noise that is in x."""
    steps = max(len(run["steps"]) for run in runs)
    at = [[run["steps"][min(i, len(run["steps"]) - 1)] for run in runs] for i in range(steps)]
    seen = [sum(step["seen"] * (step["alpha"] > 0) for step in each) for each in at]
    return 1 + (seen.index(max(seen)) if max(seen) > 0 else round(2 * (steps - 1) / 9))


def rounded(points: Tensor) -> list[list[float]]:
    return [[round(value, 4) for value in point] for point in points.tolist()]


def document(
    explanations: Sequence[Explanation], parts: Mapping[str, PagePart], record: dict[str, Any]
) -> str:
    """The HTML with the record inside."""
    record["sections"] = [
        {"name": name, "number": number, **vars(section)}
        for number, (name, (section, _)) in enumerate(parts.items(), start=1)
    ]
    short = [shorten(each.request.prompt, TITLE, placeholder=" …") for each in explanations]
    prompts = list(dict.fromkeys(f"“{prompt}”" for prompt in short))
    title = f"How {' and '.join(prompts)} {'was' if len(prompts) == 1 else 'were'} drawn"
    if len(prompts) < len(explanations):
        title += ", twice"
    return pages.page(
        title,
        body(parts),
        script=script(parts),
        style=bundles.read(f"{FOLDER}/style.css"),
        data=record,
    )


def body(parts: Mapping[str, PagePart]) -> str:
    """The HTML that the scripts fill: the lead, the overview, the sections, the player."""
    numbered = enumerate(parts.items(), start=1)
    return "\n".join(
        [LEAD, *(section_html(i, name, *part) for i, (name, part) in numbered), PLAYER]
    )


LEAD = """<p class="lead">A diffusion model starts from pure noise and removes a little of it at every
step. At each step it estimates the finished picture: <em>given these words, what could be behind the
noise?</em> This page shows one such run, from the words to the pixels. Move the slider at the bottom
of the window, or press Play, and every part of the page follows.</p>
<nav id="overview" aria-label="The parts of the chain"></nav>
<div id="hero" class="runs"></div>
<p id="note" class="note" hidden></p>
"""

PLAYER = """<div id="player" role="group" aria-label="The current step">
<button type="button" id="play" aria-pressed="false">Play</button>
<label for="step" class="hidden">Step</label>
<input id="step" type="range" min="1" max="1" value="1" step="1">
<output id="where" for="step" aria-live="off"></output>
</div>
"""


def section_html(
    number: int, name: str, section: Section, contents: Sequence[Content | None]
) -> str:
    """The section with its text; its JavaScript fills the element with `data-part`."""
    content = next(content for content in contents if content is not None)
    text = paragraphs_of([each.text for each in contents if each is not None])
    return "\n".join(
        [
            f'<section id="{name}">',
            f'<h2><span class="number">{number}</span> {escape(section.title)}</h2>',
            text,
            f'<div class="runs" data-part="{name}"></div>',
            f'<p class="equation">{content.equation}</p>',
            *(pages.source_code(function) for function in content.sources),
            "</section>",
        ]
    )


def paragraphs_of(texts: Sequence[str]) -> str:
    """The paragraphs of a section, once where all runs have the same; others begin with the letter of
    their run."""
    split = [PARAGRAPH.findall(text) for text in texts]
    found = []
    for letter, paragraphs in zip("AB", split, strict=False):
        for paragraph in paragraphs:
            if all(paragraph in other for other in split):
                found.append(paragraph)
            else:
                found.append(f"<p><b>{letter}:</b> {paragraph.removeprefix('<p>')}")
    return "\n".join(dict.fromkeys(found))


def script(names: Sequence[str] | Mapping[str, object]) -> str:
    """The JavaScript of a page with these sections, in one piece."""
    lines = ['import { pageData } from "../../html/modules/elements.js";']
    lines += ['import { start } from "./page.js";']
    lines += [f'import {{ show as {name} }} from "./sections/{name}.js";' for name in names]
    return bundles.bundle(
        "\n".join([*lines, f"start(pageData(), {{ {', '.join(names)} }});\n"]), FOLDER
    )

"""The page of a run: one HTML file of at most 5 MB that loads nothing else.

``page.html`` is its text, ``page.css`` its style, the ``.js`` files its behaviour. Numbers and
pictures are embedded as one JSON record (``page_data.py``). Where they would exceed the limit, the
page gets smaller pictures, then averaged attention maps, then fewer steps, and says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from textwrap import shorten
from typing import Any

from torch import Tensor

from pellucid import noise, samplers
from pellucid.clip import TextTower
from pellucid.diffusion import to_x0
from pellucid.explain.run.page_data import PageData, details
from pellucid.explain.run.record import Explanation, project
from pellucid.guidance import ClassifierFree
from pellucid.html import pages
from pellucid.html.pages import source_code
from pellucid.model import Model
from pellucid.nn import attend
from pellucid.pipeline import generate
from pellucid.tokenizer import Tokenizer
from pellucid.vae import VAE

LIMIT = 5_000_000
"""Bytes of a page."""
TITLE = 90  # letters of a prompt in the title
SCRIPTS = ("draw.js", "parts.js", "attention.js", "path.js", "player.js")

# How the estimate follows from the network's output, by prediction; `diffusion.to_x0`.
X0 = {
    "eps": "x̂<sub>0</sub> = (x − σ ε̂) / α &emsp; the network predicts the noise ε̂",
    "x0": "x̂<sub>0</sub> is what the network predicts",
    "v": "x̂<sub>0</sub> = α x − σ v̂ &emsp; the network predicts v = α ε − σ x<sub>0</sub>",
    "flow": "x̂<sub>0</sub> = (x − σ û) / (α + σ) &emsp; the network predicts the direction from picture "
    "to noise, u = ε − x<sub>0</sub>",
}


# How a run starts: from noise alone, or from a picture with added noise.
START = {
    False: {
        "start": "At the start every number in them is random.",
        "equation_start": "x<sub>T</sub> = σ<sub>T</sub> ε,",
    },
    True: {
        "start": "This run started from a picture: its latents x<sub>0</sub>, with random numbers "
        "added to all of them.",
        "equation_start": "x = α x<sub>0</sub> + σ ε,",
    },
}


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
    data = [PageData(model, explanation) for explanation in explanations]
    size = max((each.places for each in explanations), key=math.prod)
    paths, spread = project([trail for each in explanations for trail in each.trails(size)])
    for detail in details(max(len(each.steps) for each in explanations)):
        if sum(each.estimated_bytes(detail) for each in data) > LIMIT:
            continue
        runs = [each.data(detail) for each in data]
        for run, x, x0 in zip(runs, paths[::2], paths[1::2], strict=True):
            run["path"] = {"x": rounded(x), "x0": rounded(x0)}
        left_out = detail.omissions(explanations)
        text = document(explanations, {"runs": runs, "shares": spread, "note": left_out})
        if len(text.encode()) <= LIMIT:
            return text, left_out
    raise ValueError("even two steps make a page of more than 5 MB; use a shorter prompt")


def rounded(points: Tensor) -> list[list[float]]:
    return [[round(value, 4) for value in point] for point in points.tolist()]


def document(explanations: Sequence[Explanation], record: dict[str, Any]) -> str:
    """The HTML with the record inside."""
    first = explanations[0]
    sampler = samplers.get(first.request.sampler or "")
    sources = {
        "tokens": source_code(Tokenizer.__call__),
        "meaning": source_code(TextTower.forward),
        "noise": source_code(noise.draw),
        "estimate": source_code(to_x0),
        "guidance": source_code(ClassifierFree.__call__),
        "attention": source_code(attend),
        "sampler": source_code(sampler.sample),
        "path": source_code(project),
        "decoder": source_code(VAE.decode),
        "time": source_code(generate),
    }
    body = Template(asset("page.html")).substitute(
        {f"source_{name}": text for name, text in sources.items()},
        **START[first.request.image is not None],
        equation_x0=X0[first.prediction],
        sampler=escape(first.request.sampler or ""),
        sampler_words=escape(sampler.doc),
        # A "<" in the prompt must not end the element.
        record=json.dumps(record, separators=(",", ":")).replace("<", "\\u003c"),
    )
    short = [shorten(each.request.prompt, TITLE, placeholder=" …") for each in explanations]
    prompts = list(dict.fromkeys(f"“{prompt}”" for prompt in short))
    title = f"How {' and '.join(prompts)} {'was' if len(prompts) == 1 else 'were'} drawn"
    if len(prompts) < len(explanations):
        title += ", twice"
    return pages.page(
        title, body, script="".join(asset(name) for name in SCRIPTS), style=asset("page.css")
    )


def asset(name: str) -> str:
    """The text of a file next to this module."""
    return resources.files("pellucid.explain.run").joinpath(name).read_text(encoding="utf-8")

"""The tokens become vectors, and what the text encoder counts as similar."""

from __future__ import annotations

from html import escape
from typing import Any

from pellucid.clip import TextTower
from pellucid.explain.run.record import Explanation, Near
from pellucid.explain.run.sections._section import Content, Section
from pellucid.explain.word_space import WordSpace
from pellucid.model import Model

NEAREST = 8  # on the page, for each word
SAME = 0.999  # a cosine above this: the text itself

SECTION = Section(20, "text", "The numbers become vectors", "Text encoder", "numbers to meaning")


def content(model: Model, run: Explanation) -> Content:
    return Content(
        "<p>CLIP’s text encoder turns each token into a vector that depends on the tokens before "
        "it: the same token means something else after other words. It was trained on pictures with "
        "captions, so that a text points in the direction of its picture. The cosine compares two "
        "directions: 1 is the same, 0 is unrelated.</p>" + learnt(run.near, run.space),
        "cos(a, b) = a · b / (|a| |b|)",
        [TextTower.forward],
        data(run),
    )


def data(run: Explanation) -> dict[str, Any]:
    """The nearest words of each word, and where the middle of all pairs lies."""
    near = [
        {"word": one.word, "others": [[text, round(c, 2)] for text, c in one.others[:NEAREST]]}
        for one in run.near
    ]
    space = run.space
    rounded = (
        None if space is None else [round(v, 2) for v in (space.low, space.median, space.high)]
    )
    return {"near": near, "space": rounded}


def learnt(near: tuple[Near, ...], space: WordSpace | None) -> str:
    """What the cosines on the page say about this text encoder, as HTML; every claim is computed."""
    if space is None or not near:
        return ""
    said = ["Here single words are compared with words that are the names of things."]
    said += space.sentences()
    for one in near[:2]:
        others = [(text, cosine) for text, cosine in one.others if cosine < SAME]
        if others:
            said.append(space.neighbour(one.word, *others[0]))
    return f"<p>{escape(' '.join(said))}</p>"

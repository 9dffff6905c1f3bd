"""The tokens become vectors, and what the text encoder counts as similar."""

from __future__ import annotations

from html import escape
from typing import Any

from pellucid.clip import TextTower
from pellucid.explain.run.record import Explanation, Near, WordSpace
from pellucid.explain.run.sections._section import Content, Section
from pellucid.model import Model

NEAREST = 8  # on the page, for each word
SAME = 0.999  # a cosine above this: the text itself
APART = 0.2  # names of one thing are this much nearer than other words, or they are not told apart

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
    said = [
        f"Here single words are compared with {space.count:,} words that are the names of things. "
        f"Two different ones of these have a cosine of {space.median:.2f} in the middle of all "
        f"pairs; nine pairs in ten lie between {space.low:.2f} and {space.high:.2f}."
    ]
    if space.same is not None:
        said.append(f"Two names for one thing have {space.same:.2f} on average.")
        if space.same > space.median + APART:
            said.append("So it learnt which words name the same picture.")
        else:
            said.append("So it does not know which words name the same thing.")
    for one in near[:2]:
        others = [(text, cosine) for text, cosine in one.others if cosine < SAME]
        if others:
            said.append(_neighbour(one.word, *others[0], space))
    return f"<p>{escape(' '.join(said))}</p>"


def _neighbour(word: str, other: str, cosine: float, space: WordSpace) -> str:
    start = f"The nearest other word to “{word}” is “{other}”, with {cosine:.2f}"
    if space.same is not None and cosine >= space.same:
        return (
            f"{start}: as near as two names for one thing. The encoder never learnt what words "
            "mean, only which pictures they go with."
        )
    if cosine <= space.high:
        return f"{start}: no nearer than many pairs that have nothing to do with each other."
    return f"{start}: nearer than 19 of 20 pairs."

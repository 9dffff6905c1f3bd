"""Cross-attention: where each word acts."""

from __future__ import annotations

from html import escape

from pellucid.backbones.mmdit import MMDiTConfig
from pellucid.explain.run.record import Explanation
from pellucid.explain.run.recorder import MAP_SIDE
from pellucid.explain.run.sections._section import Content, Section
from pellucid.model import Model
from pellucid.nn import attend

SECTION = Section(70, "loop", "Attention: where each word acts", "Attention", "where words act")

# What the last column of the maps adds up; by whether the patches attend to each other as well.
REST = {
    False: "the start, the end and the padding of the row",
    True: "the start, the end and the padding of the row, and the other positions of the picture",
}


def content(model: Model, run: Explanation) -> Content:
    small = dict.fromkeys(w.whole for step in run.steps for w in step.words if not w.content)
    listed = ", ".join(f"“{text}”" for text in small)
    rest = REST[isinstance(model.backbone.config, MMDiTConfig)]
    little = f"<p>Tokens that mean little alone count as no words: {escape(listed)}.</p>"
    return Content(
        "<p>The words reach the picture through cross-attention: at every position of the picture "
        "each token gets a share, and the shares add up to 1. Others get a "
        f"share too, often the largest: {rest}. This share is stated as a number. The maps "
        "are normalised over the words that mean something: a word’s percentage is its part of what "
        "these words get together, and its map shows how that is distributed over the positions. 1× "
        "is the word’s own average: a map of one colour says that the word acts everywhere "
        "alike.</p>"
        "<p>A map has as many squares as the layer has positions. It is laid over the estimate of "
        "the step without smoothing: inside a square nothing is known. Layers of more than "
        f"{MAP_SIDE}×{MAP_SIDE} positions are averaged to that. Choose a word to enlarge its "
        "map.</p>" + little * bool(small),
        "share = softmax(Q K<sup>T</sup> / √d) &emsp; Q: positions of the picture, K: tokens of the "
        "prompt",
        [attend],
        {"rest": rest},
    )

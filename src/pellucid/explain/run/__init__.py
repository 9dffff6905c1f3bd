"""A picture, explained: the run that made it, recorded step by step, and a page that shows it.

    explanation = explain(model, Request(prompt="a frog on stilts"))
    page.write("frog.html", model, [explanation])

`record.py` is what is known afterwards, `watch.py` how it is noted while the picture is drawn,
`words.py` the prompt's tokens at each step, and `page.py` writes the page.
"""

from __future__ import annotations

from collections.abc import Sequence

from pellucid.explain.run.record import Explanation, Step, Word
from pellucid.explain.run.watch import Watch
from pellucid.model import Model
from pellucid.pipeline import Adapt, plain
from pellucid.request import Request

__all__ = ["Explanation", "Step", "Watch", "Word", "explain"]


def explain(
    model: Model, request: Request, words: Sequence[str] = (), adapt: Adapt = plain
) -> Explanation:
    """Draw what is asked for, one picture, and tell how it came about.

    words: those that the prompt is compared with. adapt: as in `generate`. Raises ValueError as
    `generate` does, and for a prompt without tokens, more than one picture, and a strength of 0.
    """
    watch = Watch(model, request, adapt)
    for _ in watch.run():
        pass
    return watch.explanation(words)

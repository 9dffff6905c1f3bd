"""A picture explained: the run that made it, recorded step by step, and a page that shows it.

    explanation = explain(model, Request(prompt="a frog on stilts"))
    page.write("frog.html", model, [explanation])

`recorder.py` records a run, `record.py` is the result, `words.py` has the prompt's tokens at each
step, and `page.py` writes the page, a file of `sections/` for each of its sections.
"""

from __future__ import annotations

from collections.abc import Sequence

from pellucid.explain.run.record import Explanation, RecordedStep, Word
from pellucid.explain.run.recorder import Recorder
from pellucid.model import Model
from pellucid.pipeline import Adapt, plain
from pellucid.request import Request

__all__ = ["Explanation", "RecordedStep", "Recorder", "Word", "explain"]


def explain(
    model: Model, request: Request, words: Sequence[str] = (), adapt: Adapt = plain
) -> Explanation:
    """Draw one picture and record the run.

    words: those that the words of the prompt are compared with. adapt: as in `generate`. Raises
    ValueError as `generate` does, and for a prompt without tokens, more than one picture, and a
    strength of 0.
    """
    recorder = Recorder(model, request, adapt)
    for _ in recorder.run():
        pass
    return recorder.explanation(words)

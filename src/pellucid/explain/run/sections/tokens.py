"""The words become tokens."""

from __future__ import annotations

from html import escape

from pellucid.explain.run.record import Explanation
from pellucid.explain.run.sections._section import Content, Section
from pellucid.model import Model
from pellucid.tokenizer import Tokenizer

SECTION = Section(10, "text", "The words become numbers", "Tokens", "words to numbers")


def content(model: Model, run: Explanation) -> Content:
    prompts = [region.prompt for region in run.request.regions]
    regions = (
        f"<p>The prompt names {len(prompts)} thing{'s'[: len(prompts) > 1]}, each drawn by itself, in "
        f"its own region of the picture: {escape('; '.join(prompts))}. Their tokens stand one after the "
        "other.</p>"
    )
    return Content(
        "<p>The tokenizer splits the prompt into known pieces, the tokens, and gives each its "
        "number. An unknown word is split into smaller pieces. A weight other than 1 makes a token "
        "count more or less than the others.</p>" + (regions if prompts else ""),
        "row = start, token<sub>1</sub>, token<sub>2</sub>, …, token<sub>n</sub>, end, padding",
        [Tokenizer.__call__],
    )

"""The prompt as the model reads it: its tokens at each step, and the words that lie near."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.conditioning import chunked
from pellucid.explain.run.record import Word
from pellucid.guidance import progress
from pellucid.model import Model
from pellucid.pipeline import levels_of
from pellucid.prompt import each_step, parse, split_and, take_loras
from pellucid.request import Request
from pellucid.schedule import Level, Schedule

BATCH = 64
"""Texts that are read at once."""


@dataclass(frozen=True)
class Plan:
    """What a run will be: its levels, and what the prompt is at each step.

    Of prompts that are joined or mixed it is the first.
    """

    schedule: Schedule
    passes: list[list[Level]]
    texts: list[tuple[Word, ...]]
    """The words of each step, of all passes."""

    def level(self, t: float) -> Level:
        """The level at which the network was told t: one of the run's, or one between them."""
        near = min((level for each in self.passes for level in each), key=lambda at: abs(at.t - t))
        return near if abs(near.t - t) < 1e-3 else self.schedule.level(t)

    def words(self, done: int, t: float) -> tuple[Word, ...]:
        """What a look at t reads when `done` steps are done. See `guidance.ByStep`."""
        first = len(self.passes[0]) - 1
        number, before = (0, 0) if done < first else (1, first)
        begins = [progress(level) for level in self.passes[number][:-1]]
        at = bisect.bisect_right(begins, progress(self.level(t))) - 1
        return self.texts[before + max(at, 0)]


def plan_of(model: Model, request: Request) -> Plan:
    """The plan of a request whose defaults are filled in.

    ValueError: a prompt that has no tokens at any step.
    """
    passes = levels_of(model, request)
    text = split_and(take_loras(request.prompt)[0])[0][0]
    each = each_step(text, *(len(levels) - 1 for levels in passes))
    words = {text: words_of(model, text) for text in (text, *each)}
    if not any(words.values()):
        raise ValueError(
            f"the prompt {request.prompt!r} has no tokens, so that there is nothing to see the "
            'model read; at least one word is wanted, such as "a rabbit"'
        )
    return Plan(model.schedule, passes, [words[text] for text in each])


def words_of(model: Model, text: str) -> tuple[Word, ...]:
    """The tokens of a prompt of one step, and their places in what the network reads."""
    length = model.tokenizer.context_length
    return tuple(
        Word(token.text.strip() or token.text, token.id, token.weight, row * length + place)
        for row, chunk in enumerate(chunked(model.tokenizer, text))
        for place, token in enumerate(chunk, start=1)  # 0 is the start of the row
    )


@torch.no_grad()
def nearest(model: Model, prompt: str, words: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """`words` and the cosine of each one's text vector and the prompt's, the nearest first.

    The vector is that of the text tower for the whole text, in the space of CLIP's pictures where
    the tower has a projection to it. Weights in the prompt do not count.
    """
    if not words:
        return ()
    text = split_and(take_loras(prompt)[0])[0][0]
    plain = " ".join(run.text for part in parse(each_step(text, 1)[0]) for run in part)
    texts = [plain, *words]
    parts = [texts[i : i + BATCH] for i in range(0, len(texts), BATCH)]
    vectors = F.normalize(torch.cat([whole(model, part) for part in parts]).float(), dim=-1)
    cosines = (vectors[1:] @ vectors[0]).tolist()
    return tuple(sorted(zip(words, cosines, strict=True), key=lambda pair: -pair[1]))


def whole(model: Model, texts: Sequence[str]) -> Tensor:
    """One vector for each text, (B, P)."""
    # The tower is causal, so that what follows the end of the text changes nothing.
    ids = model.tokenizer(texts, padded=False)
    out = model.text(ids.to(next(model.text.parameters()).device))
    return out.pooled if out.projected is None else out.projected

"""The words of a prompt: its tokens at each step of a run, and the words nearest to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pellucid.conditioning import chunked
from pellucid.explain.run.record import Word
from pellucid.explain.text_vectors import text_vectors
from pellucid.guidance import step_at
from pellucid.model import Model
from pellucid.plan import levels_of
from pellucid.prompt import each_step, parse, split_and, take_loras
from pellucid.request import ResolvedRequest
from pellucid.schedule import Level, Schedule


@dataclass(frozen=True)
class WordSchedule:
    """The levels of a run, and the words of the prompt at each step.

    Of prompts that are joined or mixed only the first is followed.
    """

    schedule: Schedule
    passes: list[list[Level]]
    texts: list[tuple[Word, ...]]
    """The words of each step, of all passes."""

    def level(self, t: float) -> Level:
        """The level of the network's t: one of the run's, or one between them."""
        near = min((level for each in self.passes for level in each), key=lambda at: abs(at.t - t))
        return near if abs(near.t - t) < 1e-3 else self.schedule.level(t)

    def words(self, done: int, t: float) -> tuple[Word, ...]:
        """The words at t when `done` steps are complete."""
        first = len(self.passes[0]) - 1
        number, before = (0, 0) if done < first else (1, first)
        return self.texts[before + step_at(self.passes[number][:-1], self.level(t))]


def word_schedule(model: Model, request: ResolvedRequest) -> WordSchedule:
    """The words of a request at each step.

    ValueError: a prompt that has no tokens at any step.
    """
    passes = levels_of(model, request)
    text = split_and(take_loras(request.prompt)[0])[0][0]
    each = each_step(text, *(len(levels) - 1 for levels in passes))
    words = {text: words_of(model, text) for text in (text, *each)}
    if not any(words.values()):
        raise ValueError(
            f"the prompt {request.prompt!r} has no tokens, so there is nothing to explain; use at "
            'least one word, such as "a rabbit"'
        )
    return WordSchedule(model.schedule, passes, [words[text] for text in each])


def words_of(model: Model, text: str) -> tuple[Word, ...]:
    """The tokens of a prompt of one step, and their places in what the network reads."""
    length = model.tokenizer.context_length
    return tuple(
        Word(token.text.strip() or token.text, token.id, token.weight, row * length + place)
        for row, chunk in enumerate(chunked(model.tokenizer, text))
        for place, token in enumerate(chunk, start=1)  # 0 is the start of the row
    )


def nearest_words(model: Model, prompt: str, words: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """`words` and the cosine of each one's text vector and the prompt's, the nearest first.

    Weights in the prompt do not count.
    """
    if not words:
        return ()
    text = split_and(take_loras(prompt)[0])[0][0]
    plain = " ".join(run.text for part in parse(each_step(text, 1)[0]) for run in part)
    vectors = text_vectors(model, [plain, *words])
    cosines = (vectors[1:] @ vectors[0]).tolist()
    return tuple(sorted(zip(words, cosines, strict=True), key=lambda pair: -pair[1]))

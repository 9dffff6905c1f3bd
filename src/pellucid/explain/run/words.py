"""The words of a prompt: its tokens at each step of a run, and the words nearest to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pellucid.conditioning import chunked
from pellucid.explain.run.record import Near, Word
from pellucid.explain.text_vectors import text_vectors
from pellucid.explain.word_space import WordSpace, flat, word_space
from pellucid.guidance import step_at
from pellucid.model import Model
from pellucid.plan import levels_of
from pellucid.prompt import each_step, parse, split_and, take_loras
from pellucid.request import ResolvedRequest
from pellucid.schedule import Level, Schedule
from pellucid.tokenizer import clean

FUNCTION_WORDS = frozenset(
    (
        *("a", "an", "the", "this", "that", "and", "or", "of", "in", "on", "at", "to", "by"),
        *("for", "with", "from", "as", "is", "are", "it", "its"),
    )
)
"""Words that join others and mean little alone. Their attention is counted, but not shown as maps."""
MOST_NEAR = 8
"""Words of a prompt that are compared with others."""


@dataclass(frozen=True)
class WordSchedule:
    """The levels of a run, and the words of the prompt at each step.

    Of prompts that are joined or mixed only the first is followed; of regions, all are, one after the
    other.
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
    if request.regions:
        own = [words_of(model, request.styled(request.read(r.prompt))[0]) for r in request.regions]
        return WordSchedule(model.schedule, passes, [joined(own)] * sum(map(len, passes)))
    (text, *_) = request.styled(request.read(split_and(take_loras(request.prompt)[0])[0][0]))
    each = each_step(text, *(len(levels) - 1 for levels in passes))
    words = {text: words_of(model, text) for text in (text, *each)}
    if not any(words.values()):
        raise ValueError(
            f"the prompt {request.prompt!r} has no tokens, so there is nothing to explain; use at "
            'least one word, such as "a rabbit"'
        )
    return WordSchedule(model.schedule, passes, [words[text] for text in each])


def joined(regions: Sequence[Sequence[Word]]) -> tuple[Word, ...]:
    """The words of all regions, numbered as one text."""
    found: list[Word] = []
    for region, words in enumerate(regions):
        before = found[-1].word + 1 if found else 0
        found += [replace(word, word=before + word.word, region=region) for word in words]
    return tuple(found)


def words_of(model: Model, text: str) -> tuple[Word, ...]:
    """The tokens of a prompt of one step, and their places in what the network reads."""
    length = model.tokenizer.context_length
    numbers, words = whole_words(model, text)
    content = [means_something(word) for word in words]
    if not any(content):  # a prompt of such words alone: they are all there is
        content = [True] * len(words)
    tokens = [
        (token, row * length + place)
        for row, chunk in enumerate(chunked(model.tokenizer, text))
        for place, token in enumerate(chunk, start=1)  # 0 is the start of the row
    ]
    return tuple(
        Word(
            text=token.text.strip() or token.text,
            id=token.id,
            weight=token.weight,
            place=place,
            word=number,
            whole=words[number],
            content=content[number],
        )
        for (token, place), number in zip(tokens, numbers, strict=True)
    )


def whole_words(model: Model, text: str) -> tuple[list[int], list[str]]:
    """For each token of a prompt of one step the number of the word that it is a piece of, and the
    words. Letters and digits with nothing between them are one word."""
    numbers: list[int] = []
    words: list[str] = []
    for run in (run for part in parse(text) for run in part):
        read = clean(run.text)
        first = end = -1  # where the present word begins and ends
        for piece in model.tokenizer.pieces(run.text):
            stop = piece.start + len(piece.text)
            # Two pieces of one letter's bytes overlap.
            if not 0 <= piece.start <= end or not read[first:stop].strip().isalnum():
                words.append("")
                first = piece.start
            end = max(stop, end) if first < piece.start else stop
            words[-1] = read[first:end].strip()
            numbers.append(len(words) - 1)
    return numbers, words


def means_something(word: str) -> bool:
    """Whether a word is more than an article, a preposition, a comma."""
    return word.lower() not in FUNCTION_WORDS and any(letter.isalnum() for letter in word)


def compared(
    model: Model, words: Sequence[Word], others: Sequence[str], synonyms: Sequence[tuple[str, str]]
) -> tuple[tuple[Near, ...], WordSpace | None]:
    """The words of a prompt that mean something compared with `others`, and these with each other.

    synonyms: pairs of names for one thing. Words are compared as words: each is encoded alone.
    """
    if not others:
        return (), None
    own = list(dict.fromkeys(word.whole for word in words if word.content))[:MOST_NEAR]
    texts = [*own, *others, *flat(synonyms)]
    vectors = text_vectors(model, texts)
    mine, theirs, pairs = vectors.split([len(own), len(others), 2 * len(synonyms)])
    near = []
    for word, cosines in zip(own, (mine @ theirs.T).tolist(), strict=True):
        ranked = sorted(zip(others, cosines, strict=True), key=lambda pair: -pair[1])
        near.append(Near(word, tuple(ranked)))
    return tuple(near), word_space(theirs, pairs)

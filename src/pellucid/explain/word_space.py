"""What the cosines between the words of a list say about a text tower."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pellucid.html.records import Record

APART = 0.2
"""Names of one thing are this much nearer than other words, or they are not told apart."""


class WordSpace(Record):
    """How the cosines of a list of words lie: what is near, and what is not, follows from it."""

    count: int
    low: float
    """One pair of different words in 20 has a cosine below this."""
    median: float
    high: float
    """One pair in 20 has a cosine above this."""
    same: float | None
    """The mean of pairs of names for one thing; None without such pairs."""

    def sentences(self) -> list[str]:
        """What follows from the numbers, and no more."""
        said = [
            f"Two different words of the {self.count:,} have a median cosine of {self.median:.2f}; "
            f"nine pairs in ten lie between {self.low:.2f} and {self.high:.2f}."
        ]
        if self.same is not None:
            said.append(f"Two names for one thing have {self.same:.2f} on average.")
            if self.same > self.median + APART:
                said.append("So names of one thing are nearer to each other than most words are.")
            else:
                said.append("So this CLIP does not know which words name the same thing.")
        return said

    def neighbour(self, word: str, other: str, cosine: float) -> str:
        """What the cosine of a word and its nearest other one says."""
        start = f"The nearest other word to “{word}” is “{other}”, with {cosine:.2f}"
        if self.same is not None and cosine >= self.same:
            return (
                f"{start}: as near as two names for one thing. The encoder never learnt what words "
                "mean, only which pictures they go with."
            )
        if cosine <= self.high:
            return f"{start}: no nearer than many pairs that have nothing to do with each other."
        return f"{start}: nearer than 19 of 20 pairs."


def word_space(vectors: Tensor, pairs: Tensor) -> WordSpace | None:
    """vectors: (N, D) of different words, each of length 1; None for fewer than two. pairs: (2 M, D),
    two names for one thing after one another."""
    count = len(vectors)
    if count < 2:
        return None
    row, column = torch.triu_indices(count, count, offset=1)
    cosines = (vectors @ vectors.T)[row, column]
    if len(cosines) > MOST:  # an even sample, for `quantile` takes no more
        cosines = cosines[:: len(cosines) // MOST + 1]
    low, median, high = cosines.quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
    same = float((pairs[::2] * pairs[1::2]).sum(1).mean()) if len(pairs) else None
    return WordSpace(count=count, low=low, median=median, high=high, same=same)


MOST = 2**20
"""Pairs that are looked at."""


def flat(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Pairs of names after one another, as `word_space` takes their vectors."""
    return [name for pair in pairs for name in pair]

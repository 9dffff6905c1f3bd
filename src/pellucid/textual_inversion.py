"""Textual inversion: a new word, whose vectors were trained while the model was frozen.

Gal et al. 2022 (arXiv:2208.01618): a vector in place of a word can describe what no word does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.lora import sharing
from pellucid.model import Model


@dataclass(frozen=True, eq=False)
class Embedding:
    """A word as it is written in a prompt, and its vectors in each tower.

    vectors: "text" and, where there is a second tower, "text_2", the fields of `Model` -> (n, width
    of the tower), with the same n: the word takes n tokens.
    """

    word: str
    vectors: Mapping[str, Tensor]
    file: str = ""


def numbers_of(model: Model, embeddings: Sequence[Embedding]) -> dict[str, range]:
    """The token numbers of these words, after those that the model's towers have.

    Raises ValueError for two of the same word, and for vectors that do not fit the model.
    """
    towers = model.towers
    # All towers read the same numbers, so a word has the same row in each table.
    first = max(tower.config.vocab_size for tower in towers.values())
    numbers: dict[str, range] = {}
    for embedding in embeddings:
        word = embedding.word.lower()
        if word in {known.lower() for known in (*numbers, *model.tokenizer.words)}:
            raise ValueError(f"there are two embeddings for the word {embedding.word!r}")
        if embedding.vectors.keys() != towers.keys():
            raise ValueError(
                f"{embedding.word!r} has vectors for {', '.join(embedding.vectors)}; {model.name} "
                f"has {', '.join(towers)}"
            )
        count = len(next(iter(embedding.vectors.values())))
        numbers[embedding.word] = range(first, first + count)
        first += count
    return numbers


def reads_words(model: Model, embeddings: Sequence[Embedding]) -> Model:
    """The model with a tokenizer that knows these words, and with its own towers, which do not: for
    prompts that are checked and not drawn. Raises ValueError as `numbers_of`."""
    if not embeddings:
        return model
    words = numbers_of(model, embeddings)
    return replace(model, tokenizer=model.tokenizer.with_words(words))


def with_words(model: Model, embeddings: Sequence[Embedding]) -> Model:
    """The model that also knows these words. `model` is not changed; all weights are shared with it,
    except the towers' token embeddings. Raises ValueError as `numbers_of`."""
    if not embeddings:
        return model
    towers, numbers = model.towers, numbers_of(model, embeddings)
    rows_needed = max(own.stop for own in numbers.values())
    changed: dict[str, Any] = {}
    for name, tower in towers.items():
        changed[name] = tower = sharing(tower)
        table = tower.text_model.embeddings.token_embedding
        rows = torch.zeros(rows_needed, table.embedding_dim).to(table.weight)
        rows[: table.num_embeddings] = table.weight
        for embedding in embeddings:
            own = numbers[embedding.word]
            rows[own.start : own.stop] = embedding.vectors[name].to(rows)
        table.weight = nn.Parameter(rows, requires_grad=False)
        table.num_embeddings = rows_needed
        tower.config = replace(tower.config, vocab_size=rows_needed)
    return replace(model, tokenizer=model.tokenizer.with_words(numbers), **changed)

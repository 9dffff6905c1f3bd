"""Text to numbers: byte-pair encoding (Sennrich, Haddow, Birch 2016, arXiv:1508.07909).

A tokenizer cuts a prompt into frequent character sequences ("rab", "bit") and gives each piece its
number. The bytes themselves are pieces too, so there is no unknown word: an unknown word is split
into smaller pieces.
"""

from __future__ import annotations

import functools
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
import torch
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
CLIP_MERGES = Path(__file__).parent / "data" / "clip_merges.txt"
END_OF_WORD = "</w>"  # CLIP's mark on the last piece of a word
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
WORDS = r"[\p{L}\p{M}]+|[\p{N}]|[^\s\p{L}\p{M}\p{N}]+"
NOT_A_WORD = r"^Ġ(?=[^a-z])"  # a comma or a digit needs no mark that a word starts here
PLAIN = re.compile("[ -%'-~]*")  # printable ASCII without &: there is nothing to undo
# The s of a plural is a piece of its own, so that "rabbits" is "rabbit" and "s" even if only
# "rabbit" was met.
PLURAL = r"(?<=[a-z]{2}[a-rt-z])s$"


class Piece(NamedTuple):
    """A number, what it stands for in the cleaned text, and where that begins."""

    number: int
    text: str
    start: int


def clean(text: str) -> str:
    """A text as CLIP reads it: wrong encodings and HTML's entities undone, control characters gone.

    As `basic_clean` of CLIP's own tokenizer: typographic quotes become plain ones, ligatures and
    full-width letters become usual letters. Lone surrogates, which nothing can encode, become "?".
    """
    if PLAIN.fullmatch(text):
        return text
    import ftfy  # which most prompts do not need, and which takes as long as all of this package

    fixed = ftfy.fix_text(text.encode("utf-8", "replace").decode("utf-8"))
    return html.unescape(html.unescape(fixed))


class Tokenizer:
    """Prompts to rows of token numbers that a text tower reads.

    A row is `bos`, the pieces of the prompt, `eos`, then `pad` up to `context_length`. The special
    numbers cannot be written in a prompt: "<|endoftext|>" typed by a person is ordinary text.
    Every text is cleaned first (`clean`). words: what is not cut into pieces but has numbers of its
    own, as many as it takes places in a row (textual inversion); capitals do not matter.
    """

    def __init__(
        self,
        bpe: tokenizers.Tokenizer,
        *,
        context_length: int,
        bos: int,
        eos: int,
        pad: int,
        words: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        if context_length < 3:
            raise ValueError(f"context_length must be at least 3, got {context_length}")
        longest = sorted(words or (), key=len, reverse=True)  # "bad-hands-5" before "bad-hands"
        self.words = {word: tuple((words or {})[word]) for word in longest}
        self._word = _any_of(clean(word) or word for word in self.words)
        self.bpe = bpe
        self.context_length = context_length
        self.bos, self.eos, self.pad = bos, eos, pad

    @property
    def vocab_size(self) -> int:
        """How many rows the token embedding must have: one more than the largest number."""
        own = (number for numbers in self.words.values() for number in numbers)
        return max(self.bpe.get_vocab_size() - 1, self.bos, self.eos, self.pad, *own) + 1

    def with_words(self, words: Mapping[str, Sequence[int]]) -> Tokenizer:
        """A tokenizer with these words in addition to its own; this one does not change."""
        return Tokenizer(
            self.bpe,
            context_length=self.context_length,
            bos=self.bos,
            eos=self.eos,
            pad=self.pad,
            words={**self.words, **words},
        )

    def pieces(self, text: str) -> list[Piece]:
        """The pieces of `text`, without bos, eos or padding, however many there are."""
        cleaned = clean(text)
        if self._word is None:
            return self._cut(cleaned, 0)
        numbers = list(self.words.values())
        pieces, end = list[Piece](), 0
        for found in self._word.finditer(cleaned):
            assert found.lastindex is not None
            pieces += self._cut(cleaned[end : found.start()], end)
            own = self.words.get(found[0], numbers[found.lastindex - 1])  # "<Cat>" next to "<cat>"
            pieces += [Piece(number, found[0], found.start()) for number in own]
            end = found.end()
        return pieces + self._cut(cleaned[end:], end)

    def encode(self, text: str) -> list[int]:
        """The numbers of the pieces of `text`."""
        return [piece.number for piece in self.pieces(text)]

    def tokens(self, text: str) -> list[str]:
        """The pieces of `text` as they stand in it, one for each number of `encode(text)`."""
        return [piece.text for piece in self.pieces(text)]

    def whole_words(self) -> list[str]:
        """What can be written with one piece of at least three letters, sorted: the words of the
        vocabulary, and beginnings of words, or ends, that the tokenizer does not mark as such."""
        bare = {piece.removeprefix("Ġ").removesuffix("</w>") for piece in self.bpe.get_vocab()}
        long = sorted(word for word in bare if len(word) > 2 and word.isalpha())
        return [word for word in long if len(self.encode(word)) == 1]

    def cut(self, text: str) -> str | None:
        """The end of the cleaned text that does not fit into one row, or None if all of it does."""
        pieces, room = self.pieces(text), self.context_length - 2
        return None if len(pieces) <= room else clean(text)[pieces[room].start :]

    def __call__(self, texts: Sequence[str], *, padded: bool = True) -> Tensor:
        """Rows of numbers, (B, context_length) int64; what does not fit is left out (see `cut`).

        padded=False makes the rows only as long as the longest prompt needs: the pooled output of a
        causal tower is the same, and training is much faster.
        """
        if isinstance(texts, str):
            raise ValueError("texts must be a list of strings, got a single string")
        room = self.context_length - 2
        rows = [[self.bos, *self.encode(text)[:room], self.eos] for text in texts]
        length = self.context_length if padded else max(map(len, rows), default=0)
        ids = torch.full((len(rows), length), self.pad, dtype=torch.int64)
        for row, pieces in zip(ids, rows, strict=True):
            row[: len(pieces)] = torch.tensor(pieces)
        return ids

    def to_json(self) -> str:
        """All of the tokenizer as one string that `from_json` reads."""
        fields = {
            "context_length": self.context_length,
            "bos": self.bos,
            "eos": self.eos,
            "pad": self.pad,
            "bpe": json.loads(self.bpe.to_str()),
        }
        if self.words:
            fields["words"] = self.words
        return json.dumps(fields, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """The tokenizer that `to_json` wrote. Raises ValueError if the text is something else."""
        try:
            fields = json.loads(text)
            bpe = tokenizers.Tokenizer.from_str(json.dumps(fields.pop("bpe")))
            words = {
                word: [int(number) for number in numbers]
                for word, numbers in fields.pop("words", {}).items()
            }
            if not all(word.strip() and numbers for word, numbers in words.items()):
                raise ValueError("a word is empty, or has no number")
            numbers: dict[str, Any] = {name: int(value) for name, value in fields.items()}
            return cls(bpe, words=words, **numbers)
        except Exception as error:  # tokenizers raises plain Exception for what is not its own
            raise ValueError(f"the tokenizer's JSON cannot be read: {error}") from error

    @classmethod
    def from_files(
        cls,
        vocab: str | Path,
        merges: str | Path,
        *,
        context_length: int = 77,
        pad: int | None = None,
    ) -> Tokenizer:
        """CLIP's own tokenizer from its vocab.json and merges.txt.

        pad: None pads with eos, as SD1 does; SD2 pads with 0.
        """
        for path in (vocab, merges):
            if not Path(path).is_file():
                raise ValueError(
                    f"{path} is not a file; CLIP's vocab.json and merges.txt are needed"
                )
        try:
            numbers, pairs = models.BPE.read_file(str(vocab), str(merges))
        except Exception as error:  # tokenizers raises plain Exception
            raise ValueError(f"{vocab} and {merges} are not a BPE vocabulary: {error}") from error
        try:
            return cls.from_table(numbers, pairs, context_length=context_length, pad=pad)
        except ValueError as error:
            raise ValueError(f"{vocab}: {error}") from error

    @classmethod
    def from_table(
        cls,
        numbers: dict[str, int],
        pairs: list[tuple[str, str]],
        *,
        context_length: int = 77,
        pad: int | None = None,
    ) -> Tokenizer:
        """CLIP's way of cutting with another vocabulary: piece -> number, and what merges in order.

        ValueError if it has no bos and eos, or if the merges are not of its pieces.
        """
        if BOS not in numbers or EOS not in numbers:
            raise ValueError(f"it has no {BOS} and {EOS}: it is not CLIP's vocabulary")
        try:
            bpe = clip_bpe(numbers, pairs)
        except Exception as error:  # tokenizers raises plain Exception
            raise ValueError(f"it is not a BPE vocabulary: {error}") from error
        return cls._of_clip(bpe, context_length, pad)

    def table(self) -> tuple[dict[str, int], list[tuple[str, str]]]:
        """What `from_table` takes: piece -> number, and the merges in order."""
        model = json.loads(self.bpe.to_str())["model"]
        return model["vocab"], [tuple(pair) for pair in model["merges"]]

    @classmethod
    def clip(cls, *, context_length: int = 77, pad: int | None = None) -> Tokenizer:
        """CLIP's own tokenizer, which all Stable Diffusion models use; its table is in the package.

        pad: None pads with eos, as SD1 does; SD2 pads with 0.
        """
        return cls._of_clip(published_bpe(), context_length, pad)

    @classmethod
    def _of_clip(cls, bpe: tokenizers.Tokenizer, context_length: int, pad: int | None) -> Tokenizer:
        bos, eos = bpe.token_to_id(BOS), bpe.token_to_id(EOS)
        assert bos is not None and eos is not None
        pad = eos if pad is None else pad
        return cls(bpe, context_length=context_length, bos=bos, eos=eos, pad=pad)

    @classmethod
    def train(
        cls, corpus: Iterable[str], vocab_size: int = 4096, context_length: int = 24
    ) -> Tokenizer:
        """A small tokenizer from the captions of a data set; `vocab_size` counts bos and eos.

        The start of a word is part of its first piece, not the end of its last, so that a word and
        the longer words made of it begin with the same pieces. The same corpus gives the same
        tokenizer.
        """
        if vocab_size < 256 + 2:
            raise ValueError(f"vocab_size is {vocab_size}; the 256 bytes, bos and eos need 258")
        bpe = tokenizers.Tokenizer(models.BPE())
        bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False),
                pre_tokenizers.Split(Regex(NOT_A_WORD), behavior="removed"),
                pre_tokenizers.Split(Regex(PLURAL), behavior="isolated"),
            ]
        )
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 2,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        bpe.train_from_iterator(map(clean, corpus), trainer)
        bos = bpe.get_vocab_size()
        return cls(bpe, context_length=context_length, bos=bos, eos=bos + 1, pad=bos + 1)

    def _cut(self, text: str, before: int) -> list[Piece]:
        """The pieces of a cleaned text, which begins at character `before` of the prompt."""
        found = self.bpe.encode(text, add_special_tokens=False)
        return [
            Piece(number, text[start:end], before + start)
            for number, (start, end) in zip(found.ids, found.offsets, strict=True)
        ]


def _any_of(words: Iterable[str]) -> re.Pattern[str] | None:
    """Finds each word where it stands alone; the group is its number. None for no words."""
    alone = []
    for word in words:
        before = r"(?<!\w)" if re.match(r"\w", word) else ""
        after = r"(?!\w)" if re.search(r"\w$", word) else ""
        alone.append(f"({before}{re.escape(word)}{after})")
    return re.compile("|".join(alone), re.IGNORECASE) if alone else None


def clip_bpe(numbers: dict[str, int], pairs: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    """CLIP's way of cutting a text, with the pieces and merges that are given."""
    bpe = tokenizers.Tokenizer(models.BPE(numbers, pairs, end_of_word_suffix=END_OF_WORD))
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return bpe


@functools.cache
def published_bpe() -> tokenizers.Tokenizer:
    """The tokenizer of Radford et al. 2021, from its table of merges.

    Its pieces are numbered in this order: the letters that stand for the 256 bytes, the same at the
    end of a word, what each merge makes, bos and eos.
    """
    lines = CLIP_MERGES.read_text("utf-8").rstrip("\n").split("\n")
    pairs = [(first, second) for first, second in (line.split(" ") for line in lines)]
    # Bytes that can be printed stand for themselves and come first; the library's letters of the
    # others begin at U+0100, so that sorting gives CLIP's order.
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(letter + END_OF_WORD for letter in letters), *map("".join, pairs)]
    return clip_bpe({piece: i for i, piece in enumerate([*pieces, BOS, EOS])}, pairs)

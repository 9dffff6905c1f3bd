"""The folder of a tokenizer in diffusers' layout: vocab.json and merges.txt, or tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pellucid.checkpoints.json_config import JsonConfig
from pellucid.safetensors_header import CheckpointError
from pellucid.tokenizer import BOS, EOS, Tokenizer

VOCABULARY_BYTES = 2**24  # CLIP's tokenizer.json has a fifth of it
MARKS = ("special_tokens_map.json", "tokenizer_config.json")  # either may name the padding token
CONFIG_CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast")
CONFIG_FIXED = {"add_prefix_space": False, "do_lower_case": True, "split_special_tokens": False}
MODEL_FIXED = {  # of tokenizer.json
    "type": "BPE",
    "continuing_subword_prefix": "",
    "end_of_word_suffix": "</w>",
    "dropout": None,
    "byte_fallback": False,
    "ignore_merges": False,
}
# What transformers writes, and the splitting of texts does not depend on.
CONFIG_IDLE = (
    *("add_bos_token", "add_eos_token", "added_tokens_decoder", "additional_special_tokens"),
    *("backend", "bos_token", "clean_up_tokenization_spaces", "eos_token", "errors"),
    *("extra_special_tokens", "is_local", "local_files_only", "max_length", "model_input_names"),
    *("model_max_length", "name_or_path", "pad_to_multiple_of", "pad_token", "pad_token_type_id"),
    *("padding_side", "processor_class", "special_tokens_map_file", "stride", "tokenizer_file"),
    *("truncation_side", "truncation_strategy", "unk_token", "use_fast"),
)
FILES = ("vocab.json", "merges.txt"), ("tokenizer.json",)  # either is a vocabulary


def clip_tokenizer() -> Tokenizer:
    """The tokenizer of all Stable Diffusion models."""
    return Tokenizer.clip()


def _content(folder: Path) -> tuple[bytes, ...]:
    """The bytes of the vocabulary in `folder`, () if there is none. Raises CheckpointError."""
    for names in FILES:
        files = [folder / name for name in names]
        if all(file.is_file() for file in files):
            try:
                if max(file.stat().st_size for file in files) > VOCABULARY_BYTES:
                    raise CheckpointError(f"{folder} has a file that is larger than any vocabulary")
                return tuple(file.read_bytes() for file in files)
            except OSError as error:
                raise CheckpointError(f"{folder} cannot be read: {error}") from error
    return ()


def read(folder: Path) -> Tokenizer | None:
    """The tokenizer in `folder` with the words that it adds, None if there is none.

    Raises CheckpointError if it is damaged, or if a word has a number that is not free.
    """
    tokenizer, words = _vocabulary(folder), _added(folder)
    if not words:
        return tokenizer
    tokenizer = clip_tokenizer() if tokenizer is None else tokenizer
    return tokenizer.with_words(_free(folder, tokenizer, words))


def _added(folder: Path) -> tuple[tuple[str, Any], ...]:
    """The words that the files of `folder` add to the vocabulary, and the numbers that they give
    them, unchecked; the special tokens of the vocabulary are among them."""
    found: list[tuple[str, Any]] = []
    for name, pairs in _ADDED.items():
        if (folder / name).is_file():
            values = JsonConfig.open(folder / name, VOCABULARY_BYTES).values
            try:
                found += pairs(values)
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise CheckpointError(f"{folder / name}: its added tokens are damaged") from error
    return tuple(dict.fromkeys(found))


# Where transformers writes them: its versions up to 4.33, the fast tokenizers, all from 4.34 on.
_ADDED: Mapping[str, Callable[[Mapping[str, Any]], Iterable[tuple[str, Any]]]] = {
    "added_tokens.json": lambda values: values.items(),
    "tokenizer.json": lambda values: [
        (token["content"], token["id"]) for token in values.get("added_tokens") or ()
    ],
    "tokenizer_config.json": lambda values: [
        (token["content"], int(number))
        for number, token in (values.get("added_tokens_decoder") or {}).items()
    ],
}


def _free(
    folder: Path, tokenizer: Tokenizer, words: Iterable[tuple[str, Any]]
) -> dict[str, list[int]]:
    """The words that are not in the vocabulary, and the numbers of their places in a row.

    "<cat>", "<cat>_1" and "<cat>_2" are the places of "<cat>", as in diffusers. Raises
    CheckpointError for a number that is not free.
    """
    known, owners, free = tokenizer.bpe.get_vocab(), dict[int, str](), dict[str, int]()
    taken = set(known.values())
    for word, number in words:
        if known.get(word) == number:
            continue
        whole = isinstance(number, int) and not isinstance(number, bool) and number >= 0
        if (
            not isinstance(word, str)
            or not word.strip()
            or not whole
            or number in taken
            or owners.setdefault(number, word) != word
            or free.setdefault(word, number) != number
        ):
            raise CheckpointError(
                f"{folder}: the added token {str(word)[:80]!r} must have a number of its own from "
                f"{len(known)} on, got {str(number)[:80]}"
            )
    places: dict[str, list[int]] = {}
    for word, number in free.items():
        places[word] = [number]
        while (later := f"{word}_{len(places[word])}") in free:
            places[word].append(free[later])
    return places


_READ: dict[tuple[bytes, ...], Tokenizer] = {}  # by its files: most models have the same one


def _vocabulary(folder: Path) -> Tokenizer | None:
    found = _content(folder)
    if not found:
        return None
    tokenizer = _READ.get(found)
    if tokenizer is None:
        tokenizer = _parsed(folder, found)
        if len(_READ) == 2:
            _READ.clear()
        _READ[found] = tokenizer
    return tokenizer


def _parsed(folder: Path, found: tuple[bytes, ...]) -> Tokenizer:
    try:
        if len(found) == 2:
            return Tokenizer.from_files(*(folder / name for name in FILES[0]))
        settings = JsonConfig(folder / FILES[1][0], json.loads(found[0])["model"])
        settings.fixed(MODEL_FIXED)
        settings.finish(("fuse_unk", "merges", "unk_token", "vocab"))
        model = settings.values
        pairs = [_pair(pair) for pair in model["merges"]]
        return Tokenizer.from_table({str(k): int(v) for k, v in model["vocab"].items()}, pairs)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{folder} is not a tokenizer of CLIP's kind: {error}") from error
    except RecursionError as error:
        raise CheckpointError(f"{folder} is not a tokenizer: {error}") from error


def _pair(pair: Any) -> tuple[str, str]:
    first, second = pair.split(" ") if isinstance(pair, str) else pair  # before tokenizers 0.20
    return str(first), str(second)


def check_config(folder: Path) -> None:
    """Check that the tokenizer's config, if there is one, is of CLIP's kind. Raises CheckpointError."""
    if not (folder / MARKS[1]).is_file():
        return
    settings = JsonConfig.open(folder / MARKS[1], VOCABULARY_BYTES)
    settings.word("tokenizer_class", CONFIG_CLASSES[0], dict.fromkeys(CONFIG_CLASSES))
    settings.fixed(CONFIG_FIXED)
    settings.finish(CONFIG_IDLE)


def padding(folder: Path, tokenizer: Tokenizer) -> int | None:
    """The number that pads rows according to `folder`; None if it does not say."""
    for name in MARKS:
        if not (folder / name).is_file():
            continue
        said = JsonConfig.open(folder / name, VOCABULARY_BYTES).get("pad_token")
        if isinstance(said, dict):
            said = said.get("content")
        if isinstance(said, str):
            number: int | None = tokenizer.bpe.token_to_id(said)
            return tokenizer.words[said][0] if said in tokenizer.words else number
    return None


def write(folder: Path, tokenizer: Tokenizer, pad: int) -> None:
    """Write the folder; `pad` is the number that pads rows.

    Raises CheckpointError for a tokenizer that is not of CLIP's kind.
    """
    numbers, pairs = tokenizer.table()
    words = {
        word if place == 0 else f"{word}_{place}": number
        for word, places in tokenizer.words.items()
        for place, number in enumerate(places)
    }
    names = {number: piece for piece, number in (numbers | words).items()}
    if BOS not in numbers or EOS not in numbers or pad not in names:
        raise CheckpointError(
            f"{folder} was not written: the layout is for CLIP's kind of tokenizer, and the model "
            "has another"
        )
    marks = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": names[pad]}
    length = tokenizer.context_length
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, **marks}
    folder.mkdir()
    merges = "".join(f"{first} {second}\n" for first, second in pairs)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", "utf-8")
    contents: Mapping[str, Any] = {
        "vocab.json": numbers,
        "special_tokens_map.json": marks,
        "tokenizer_config.json": config,
    }
    if words:
        contents = {**contents, "added_tokens.json": words}
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    again = read(folder)
    if (
        again is None
        or again.bpe.to_str() != tokenizer.bpe.to_str()
        or not tokenizer.words.items() <= again.words.items()
    ):
        raise CheckpointError(
            f"{folder} was not written: the model's tokenizer splits texts in another way than CLIP's"
        )

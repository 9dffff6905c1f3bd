"""Files of textual inversion: a word and its vectors, in all the ways that people store them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pellucid.checkpoints.families import SD1, SD2, SDXL_BASE, what_is
from pellucid.checkpoints.header import CheckpointError
from pellucid.checkpoints.weights import Parameters, Stored, is_pickle, open_pickle, open_weights
from pellucid.model import Model
from pellucid.textual_inversion import Embedding

# The keys of one word's vectors for two towers. "text_encoders_0" was diffusers' first name of it.
_TOWERS = {
    "clip_l": "text",
    "clip_g": "text_2",
    "text_encoders_0": "text",
    "text_encoders_1": "text_2",
}
_ALONE = "emb_params"
KIND = "a textual-inversion embedding"  # as `what_is` says it
_MARK = "<embed>"  # what cloneofsimo's metadata say of a key that is a word
_WIDTHS = {768: SD1.title, 1024: SD2.title}
FIRST = 3  # how many keys an error names


def read(path: Path, model: Model) -> tuple[Embedding, ...]:
    """The words in `path`, with vectors for `model`.

    Raises CheckpointError: no embedding, vectors of another width than the model's.
    """
    return tuple(
        Embedding(
            word, {p: _rows(path, word, v) for p, v in _checked(path, model, vectors).items()}
        )
        for word, vectors in words_in(path)
    )


def describe(path: Path) -> dict[str, Any]:
    """What `pellucid info` says of a file. Raises CheckpointError if it is none."""
    told = {}
    for word, vectors in words_in(path):
        sizes = {part: (1, 1, *tensor.shape)[-2:] for part, tensor in vectors.items()}
        counts = dict.fromkeys(size[0] for size in sizes.values())
        widths = {part: size[1] for part, size in sizes.items()}
        told[word] = f"{' and '.join(map(str, counts))} of width {_told(widths)}"
    return {"kind": KIND, "words": told}


def seems(weights: Mapping[str, Stored]) -> bool:
    """Whether these may be the vectors of words, by their widths, whatever their keys are."""
    shapes = [stored.shape for stored in weights.values()]
    return all(len(shape) in (1, 2) and shape[-1] in _WIDTHS for shape in shapes)


def words_in(path: Path) -> list[tuple[str, dict[str, Tensor]]]:
    """The words in `path`, each with its vectors for the text towers.

    Where a file does not say the word, it is the file's name without its ending.
    Raises CheckpointError if it is no embedding.
    """
    words, marked = (_pickled(path), ()) if is_pickle(path) else _plain(path)
    found: list[tuple[str, dict[str, Tensor]]] = []
    towers = {part: words[key] for key, part in _TOWERS.items() if key in words}
    if marked:
        found = [(word, {"text": words[word]}) for word in marked]
    elif towers:
        found = [(path.stem, towers)]
    elif words.keys() == {_ALONE}:
        found = [(path.stem, {"text": words[_ALONE]})]
    else:
        what = what_is(words)
        if what not in (None, KIND) or any(vectors.ndim > 2 for vectors in words.values()):
            raise _no_embedding(path, words, what)
        found = [(word, {"text": vectors}) for word, vectors in words.items()]
    if not found:
        raise _no_embedding(path, words, None)
    return found


def _plain(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of a safetensors file, and those keys that its metadata say are words."""
    weights = open_weights(path)
    small = {key: stored for key, stored in weights.items() if len(stored.shape) <= 2}
    marked = tuple(key for key in small if weights.metadata.get(key) == _MARK)
    if not marked and len(small) < len(weights):
        raise _no_embedding(path, dict.fromkeys(weights), what_is(weights))
    return {key: stored.get(stored.dtype) for key, stored in small.items()}, marked


def _pickled(path: Path) -> dict[str, Tensor]:
    content: Any = open_pickle(path)
    if isinstance(content, dict) and "string_to_param" in content:
        inside = content["string_to_param"]
        inside = inside.inside if isinstance(inside, Parameters) else inside
        if not isinstance(inside, dict) or len(inside) != 1:
            raise CheckpointError(
                f"{path}: its string_to_param does not hold the vectors of a word"
            )
        content = {_ALONE: next(iter(inside.values()))}  # the word "*" stands for the file's name
    if not isinstance(content, dict) or not content:
        raise CheckpointError(
            f"{path} is a pickle of a {type(content).__name__}; a word and its vectors are wanted"
        )
    for key, value in content.items():
        whole = isinstance(value, Tensor) and not value.is_quantized
        if not isinstance(key, str) or not whole:
            raise _no_embedding(path, dict.fromkeys(map(str, content)), None)
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise CheckpointError(f"{path}: {key} is larger than the memory that it stands for")
    return {key: value.detach() for key, value in content.items()}


def _no_embedding(path: Path, keys: Mapping[str, Any], what: str | None) -> CheckpointError:
    told = "no textual-inversion embedding" if what is None else f"{what}, not an embedding"
    first = ", ".join(key[:80] for key in list(keys)[:FIRST])
    return CheckpointError(f"{path} is {told}: its keys begin with {first or 'nothing'}")


def _rows(path: Path, word: str, vectors: Tensor) -> Tensor:
    """(n, width); CheckpointError for what are no finite numbers."""
    if not vectors.is_floating_point() or not vectors.float().isfinite().all():
        raise CheckpointError(f"{path}: the vectors of {word!r} are not finite numbers")
    return vectors.reshape(-1, vectors.shape[-1])


def _checked(path: Path, model: Model, vectors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """`vectors`, if they are for the towers that the model has."""
    towers = {"text": model.text} | ({} if model.text_2 is None else {"text_2": model.text_2})
    wanted = {part: tower.config.width for part, tower in towers.items()}
    shapes = {part: tuple(tensor.shape) for part, tensor in vectors.items()}
    if any(len(shape) not in (1, 2) or 0 in shape for shape in shapes.values()):
        raise CheckpointError(f"{path}: its vectors have the shape {next(iter(shapes.values()))}")
    widths = {part: shape[-1] for part, shape in shapes.items()}
    if widths != wanted:
        theirs = _family(widths)
        ours = _family(wanted)
        known = ours or model.name
        raise CheckpointError(
            f"{path}: "
            + (f"this embedding is for {theirs}, the model is {known}; " if theirs else "")
            + f"its vectors have the width {_told(widths)}, and {known} wants {_told(wanted)}"
        )
    counts = {1 if len(shape) == 1 else shape[0] for shape in shapes.values()}
    room = model.tokenizer.context_length - 2
    if len(counts) > 1 or max(counts) > room:
        raise CheckpointError(
            f"{path}: it has {' and '.join(map(str, sorted(counts)))} vectors; the same number for "
            f"each text encoder is wanted, at most {room}"
        )
    return vectors


def _family(widths: Mapping[str, int]) -> str | None:
    """The family whose text encoders have these widths, by their number where that tells it."""
    return SDXL_BASE.title if len(widths) > 1 else _WIDTHS.get(widths.get("text", 0))


def _told(widths: Mapping[str, int]) -> str:
    return " and ".join(str(widths[part]) for part in sorted(widths))

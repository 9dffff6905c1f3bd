"""Files of textual inversion: words and their vectors, in all layouts that are common."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pellucid.checkpoints import families
from pellucid.checkpoints.identify import EMBEDDING, what_is
from pellucid.checkpoints.pickles import Parameters, is_pickle, open_pickle
from pellucid.checkpoints.weights import CheckpointSource, open_weights
from pellucid.images.load import is_picture
from pellucid.images.metadata.embedding import embedding_in, word_of
from pellucid.model import Model
from pellucid.safetensors_header import CheckpointError, first_keys
from pellucid.textual_inversion import Embedding

# The keys of one word's vectors for two towers. diffusers first wrote "text_encoders_0".
_TOWERS = {
    "clip_l": "text",
    "clip_g": "text_2",
    "text_encoders_0": "text",
    "text_encoders_1": "text_2",
}
_ALONE = ("emb_params", "emp_params", "*")  # OneTrainer's spelling; A1111's, converted
_OUTPUT = re.compile(r"(em[bp]_params|clip_[lg])_out")
_MARK = "<embed>"  # in cloneofsimo's metadata, for a key that is a word


class OtherFamily(CheckpointError):
    """An embedding is for models of another family."""


def load_embeddings(
    paths: Sequence[str | Path], model: Model, skipped: list[str] | None = None
) -> tuple[Embedding, ...]:
    """The words in files of textual inversion; `textual_inversion.with_words` adds them to `model`.

    A word may be in two files, one for each text tower, as diffusers' trainer of SDXL writes them.
    skipped: gets a sentence for each word of another family, which is left out; None: that is an error.
    Raises CheckpointError: no such file, not an embedding, vectors of another width than the model's.
    """
    files = [Path(path) for path in paths]
    for path in files:
        if not path.is_file():
            raise CheckpointError(f"{path} is not a file; expected a textual-inversion embedding")
    widths = {part: tower.config.width for part, tower in model.towers.items()}
    words: dict[str, dict[str, Tensor]] = {}
    last: dict[str, Path] = {}
    for path in files:
        for word, vectors in words_in(path):
            known = words.setdefault(word, {})
            for part, tensor in vectors.items():
                if len(vectors) == 1 and tensor.ndim > 0:  # its width shows for which tower it is
                    fits = [p for p, width in widths.items() if width == tensor.shape[-1]]
                    part = next((p for p in fits if p not in known), fits[0] if fits else part)
                if part in known:
                    raise CheckpointError(
                        f"{path}: there are two embeddings for the word {word!r}; the other one is in "
                        f"{last[word]}"
                    )
                known[part] = tensor
            last[word] = path
    found = []
    for word, vectors in words.items():
        try:
            found.append(embedding(last[word], model, word, vectors))
        except OtherFamily as error:
            if skipped is None:
                raise
            skipped.append(f"{error}; {word!r} is read as text")
    return tuple(found)


def embedding(path: Path, model: Model, word: str, vectors: Mapping[str, Tensor]) -> Embedding:
    """A word of `path` with its vectors, checked. Raises CheckpointError if they do not fit `model`."""
    checked = _checked(path, model, vectors)
    rows = {part: _rows(path, word, tensor) for part, tensor in checked.items()}
    return Embedding(word, rows, str(path))


def matches(source: CheckpointSource) -> bool:
    """Whether it is an embedding: by its keys, or by the widths of all its vectors."""
    if not source.path.is_file():  # opening a pipe would block
        return False
    if not source.keys and is_pickle(source.path):  # A1111's, which are not a table of tensors
        content = open_pickle(source.path)
        return isinstance(content, dict) and "string_to_param" in content
    what = what_is(source.keys)
    if what is not None or not source.keys:
        return what == EMBEDDING
    widths = {tower.config.width for f in families.known().values() for tower in f.towers}
    shapes = source.weights.shapes().values()
    return all(len(shape) in (1, 2) and shape[-1] in widths for shape in shapes)


def describe(source: CheckpointSource) -> dict[str, Any]:
    """What `pellucid info` reports of a file. Raises CheckpointError if it is not an embedding."""
    return describe_words(source.path)


def describe_words(path: Path) -> dict[str, Any]:
    """The same, of a file that may be a picture."""
    words = {}
    for word, vectors in words_in(path):
        sizes = {part: (1, 1, *tensor.shape)[-2:] for part, tensor in vectors.items()}
        counts = dict.fromkeys(size[0] for size in sizes.values())
        widths = {part: size[1] for part, size in sizes.items()}
        words[word] = f"{' and '.join(map(str, counts))} of width {_joined(widths)}"
    return {"kind": EMBEDDING, "words": words}


def words_in(path: Path) -> list[tuple[str, dict[str, Tensor]]]:
    """The words in `path`, each with its vectors for the text towers.

    If a file does not name the word, it is the file's name without its ending.
    Raises CheckpointError if it is not an embedding.
    """
    if is_picture(path):
        return [_in_picture(path)]
    words, marked = (_pickled(path), ()) if is_pickle(path) else _plain(path)
    found: list[tuple[str, dict[str, Tensor]]] = []
    if outputs := [key for key in words if _OUTPUT.fullmatch(key)]:
        raise CheckpointError(
            f"{path}: {outputs[0]} is for the output of a text encoder (OneTrainer's output embedding), "
            "which is not supported"
        )
    towers = {part: words[key] for key, part in _TOWERS.items() if key in words}
    if marked:
        found = [(word, {"text": words[word]}) for word in marked]
    elif towers:
        if others := [key for key in words if key not in _TOWERS and not key.startswith("t5")]:
            raise CheckpointError(
                f"{path} has {first_keys(others)} next to {', '.join(_TOWERS.keys() & words)}; "
                f"known are {', '.join(_TOWERS)}"
            )
        found = [(path.stem, towers)]
    elif len(words) == 1 and (alone := words.keys() & set(_ALONE)):
        found = [(path.stem, {"text": words[alone.pop()]})]
    else:
        what = what_is(words)
        if what not in (None, EMBEDDING) or any(vectors.ndim > 2 for vectors in words.values()):
            raise _not_an_embedding(path, words, what)
        named = ((word if word.strip() else path.stem, it) for word, it in words.items())
        found = [(word, {"text": vectors}) for word, vectors in named]
    if not found:
        raise _not_an_embedding(path, words, None)
    return found


def _in_picture(path: Path) -> tuple[str, dict[str, Tensor]]:
    content = embedding_in(path)
    if content is None:
        raise CheckpointError(f"{path} is a picture without an embedding in it")
    parameters = content.get("string_to_param")
    try:
        if not isinstance(parameters, dict) or len(parameters) != 1:
            raise ValueError("its string_to_param does not hold the vectors of a word")
        (vectors,) = parameters.values()
        rows = torch.tensor(vectors["TORCHTENSOR"], dtype=torch.float32)
    except (ValueError, TypeError, KeyError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{path} has a damaged embedding in it: {error}") from error
    return word_of(content, path), {"text": rows}


def _plain(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of a safetensors file, and the keys that its metadata mark as words."""
    weights = open_weights(path)
    small = {key: stored for key, stored in weights.items() if len(stored.shape) <= 2}
    marked = tuple(key for key in small if weights.metadata.get(key) == _MARK)
    if not marked and len(small) < len(weights):
        raise _not_an_embedding(path, dict.fromkeys(weights), what_is(weights))
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
        content = {_ALONE[0]: next(iter(inside.values()))}  # the word "*" means the file's name
    if not isinstance(content, dict) or not content:
        raise CheckpointError(
            f"{path} is a pickle of a {type(content).__name__}; expected a word and its vectors"
        )
    for key, value in content.items():
        whole = isinstance(value, Tensor) and not value.is_quantized
        if not isinstance(key, str) or not whole:
            raise _not_an_embedding(path, dict.fromkeys(map(str, content)), None)
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise CheckpointError(f"{path}: {key} claims more bytes than the file stores for it")
    return {key: value.detach() for key, value in content.items()}


def _not_an_embedding(path: Path, keys: Mapping[str, Any], what: str | None) -> CheckpointError:
    kind = f"not {EMBEDDING}" if what is None else f"{what}, not an embedding"
    return CheckpointError(f"{path} is {kind}: its keys begin with {first_keys(keys)}")


def _rows(path: Path, word: str, vectors: Tensor) -> Tensor:
    """(n, width). Raises CheckpointError if they are not finite numbers."""
    if not vectors.is_floating_point() or not vectors.float().isfinite().all():
        raise CheckpointError(f"{path}: the vectors of {word!r} are not finite numbers")
    return vectors.reshape(-1, vectors.shape[-1])


def _checked(path: Path, model: Model, vectors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """`vectors`, if they are for the towers that the model has."""
    needed = {part: tower.config.width for part, tower in model.towers.items()}
    shapes = {part: tuple(tensor.shape) for part, tensor in vectors.items()}
    if any(len(shape) not in (1, 2) or 0 in shape for shape in shapes.values()):
        raise CheckpointError(f"{path}: its vectors have the shape {next(iter(shapes.values()))}")
    widths = {part: shape[-1] for part, shape in shapes.items()}
    if widths != needed:
        family = families.of_model(model)
        same = [f for f in families.known().values() if f.widths == (*widths.values(),)]
        ours = model.name if family is None or family in same else family.title
        titles = " or ".join(family.title for family in same)
        theirs = f"this embedding is for {titles}, the model is {ours}; " if same else ""
        raise (OtherFamily if same else CheckpointError)(
            f"{path}: {theirs}its vectors have the width {_joined(widths)}, and {ours} needs "
            f"{_joined(needed)}"
        )
    counts = {1 if len(shape) == 1 else shape[0] for shape in shapes.values()}
    room = model.tokenizer.context_length - 2
    if len(counts) > 1 or max(counts) > room:
        raise CheckpointError(
            f"{path}: it has {' and '.join(map(str, sorted(counts)))} vectors; it must have the same "
            f"number for each text encoder, at most {room}"
        )
    return vectors


def _joined(widths: Mapping[str, int]) -> str:
    return " and ".join(str(widths[part]) for part in sorted(widths))

"""Which file in a part's folder has its weights: the same weights may be there several times."""

from __future__ import annotations

from pathlib import Path

from pellucid.safetensors_header import CheckpointError

# Without variant and ending: diffusers', transformers' safetensors, transformers' pickles.
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
VARIANTS = ("fp16", "bf16")  # preferred to others, if there are only variants


def weights_of(folder: Path) -> Path:
    """The file of weights in a part's folder, or the index of several.

    safetensors before pickles, the plain name before a variant. Raises CheckpointError if there is
    no such file.
    """
    for ending in ("safetensors", "bin"):
        found = [(_variant(path.name, ending), path) for path in _files(folder)]
        known = [(variant, path) for variant, path in found if variant is not None]
        if known:
            return min(known, key=_rank)[1]
    raise CheckpointError(
        f"{folder} has no weights; expected {STEMS[0]}.safetensors or {STEMS[1]}.safetensors"
    )


def _rank(found: tuple[str, Path]) -> tuple[int, str]:
    order = ["", *VARIANTS]
    variant, path = found
    return (order.index(variant) if variant in order else len(order)), path.name


def _files(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_file()]
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror}") from error


def _variant(name: str, ending: str) -> str | None:
    """ "" for the plain weights, "fp16" for model.fp16.safetensors; None for another file."""
    for stem in STEMS:
        for whole in (f".{ending}", f".{ending}.index.json"):
            if name == stem + whole:
                return ""
            if name.startswith(f"{stem}.") and name.endswith(whole):
                between = name.removeprefix(f"{stem}.").removesuffix(whole)
                if between and "." not in between and "-of-" not in between:
                    return between
        # diffusers since 0.28: model.safetensors.index.fp16.json
        start, end = f"{stem}.{ending}.index.", ".json"
        if name.startswith(start) and name.endswith(end) and len(name) > len(start + end):
            return name.removeprefix(start).removesuffix(end)
    return None

"""One model from two or three: their weights added up, tensor by tensor.

A mean of models that were finetuned from one model often has what both have learned ("Model soups",
Wortsman et al. 2022, arXiv:2203.05482), and the difference between a model and the one that it was made
from can be added to another ("Editing models with task arithmetic", Ilharco et al. 2023,
arXiv:2212.04089).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from pellucid import __version__
from pellucid.checkpoints.assembly import Part
from pellucid.checkpoints.contents import Contents
from pellucid.checkpoints.formats import ldm, native
from pellucid.checkpoints.merge_record import ENTRY
from pellucid.checkpoints.models import examine
from pellucid.checkpoints.weights import existing, is_index, shards_of
from pellucid.folders import WEIGHTS
from pellucid.messages import FieldMessage
from pellucid.plugins import choose
from pellucid.progress import stage
from pellucid.safetensors_header import CheckpointError

RANGES = {"sum": (0.0, 1.0), "difference": (0.0, 2.0)}
"""The methods, and what a share may be."""
GROUPS = {
    "backbone": ("backbone", "upscaler"),
    "text": ("text", "text_2", "vision"),
    "vae": ("vae", "tiny_vae"),
}
"""What has a share of its own, and the networks of a model in it."""
FIRST = "conv_in.weight"
"""Of a U-Net, which takes a mask too in an inpainting model."""
READ_BYTES = 2**20  # of a file that is hashed, at a time

Shares = tuple[float, ...]


@dataclass(frozen=True)
class MergeRecipe:
    """How models are merged. ValueError: a share out of range, or not as many as there must be.

    method: "sum" of two or three models A, B, C with shares b, c: (1 - b - c) A + b B + c C;
    "difference" with share m: A + m (B - C). shares: of all parts. of: those of a group in `GROUPS`.
    """

    count: int
    method: str
    shares: Shares
    of: Mapping[str, Shares] = field(default_factory=dict)

    def __post_init__(self) -> None:
        choose(self.method, RANGES, "method")
        least, most = (3, 3) if self.method == "difference" else (2, 3)
        if not least <= self.count <= most:
            allowed = "3 models" if least == most else "2 or 3 models"
            raise ValueError(
                FieldMessage(f"{{method}} {self.method} merges {allowed}, got {self.count}")
            )
        need = 1 if self.method == "difference" else self.count - 1
        low, high = RANGES[self.method]
        for group, shares in {"": self.shares, **self.of}.items():
            name = f"{{part}} {choose(group, GROUPS, 'part')}" if group else "{share}"
            shown = ",".join(f"{share:g}" for share in shares)
            if len(shares) != need:
                numbers = "1 number" if need == 1 else f"{need} numbers with a comma"
                raise ValueError(
                    FieldMessage(
                        f"{name} must be {numbers} for {self.method} of {self.count} models, got {shown}"
                    )
                )
            if not all(low <= share <= high for share in (*shares, math.fsum(shares))):
                total = " and in all at most 1" if need > 1 else ""
                raise ValueError(
                    FieldMessage(f"{name} must be between {low:g} and {high:g}{total}, got {shown}")
                )

    def shares_of(self, network: str) -> Shares:
        """The shares of a network of a model."""
        group = next((name for name, inside in GROUPS.items() if network in inside), "")
        return self.of.get(group, self.shares)

    def apply(self, network: str, values: Sequence[Tensor]) -> Tensor:
        """A parameter of this network, from that of each model."""
        first, *others = values
        shares = self.shares_of(network)
        if self.method == "difference":
            return first + shares[0] * (others[0] - others[1])
        merged = (1 - math.fsum(shares)) * first
        for share, value in zip(shares, others, strict=True):
            merged = merged + share * value
        return merged

    def record(self) -> dict[str, Any]:
        """As it is stored in a file."""
        per_part = {group: self.of.get(group, self.shares) for group in GROUPS}
        return {"method": self.method, "shares": per_part}


def merge(
    paths: Sequence[Path],
    out: Path,
    recipe: MergeRecipe,
    prediction: str | None = None,
    vae: Path | None = None,
) -> tuple[str, ...]:
    """Write the merged model to the file `out`: in the layout of the first if that is one file, in the
    original one if it is a diffusers folder (in Pellucid's own for Stable Diffusion 3). Every weight
    keeps the number type that it has in the first, and is computed in float32 at least.

    prediction, vae: as in `models.load`, vae for the first model. Returns what there is to know, in
    words. One tensor of each model is in memory at a time. Raises CheckpointError: a file that cannot
    be read, models of different families, weights of different shapes, a weight that is not finite. An
    inpainting model may be the first of others that are none: their changes make it draw as they do.
    """
    contents = [examine(existing(path, "a checkpoint"), prediction) for path in paths]
    if vae is not None:
        contents[0] = contents[0].with_vae(existing(vae, "an autoencoder").path)
    for each in contents:
        each.check()
    warnings = [text for each in contents[1:] for text in _compared(contents[0], each)]
    model = contents[0].read("meta", None)
    # What only some of them have stays as it is in the first.
    shared = set.intersection(*({*each.parts} for each in contents))

    def read(network: str, name: str) -> Tensor:
        first = contents[0].parts[network]
        wide = _stored(first, name).dtype == torch.float64
        models = contents if network in shared else contents[:1]
        kind = torch.float64 if wide else torch.float32
        values = [_read(each.parts[network], name, kind) for each in models]
        return _merged(recipe, network, values) if network in shared else values[0]

    form = native if contents[0].form == "native" or not ldm.holds(model) else ldm
    about = {ENTRY: json.dumps(_record(contents, recipe), ensure_ascii=False)}
    left_out = form.write(model, out, None, read, about)
    return (*dict.fromkeys(warnings), *(f"left out: {what}" for what in left_out))


def _merged(recipe: MergeRecipe, network: str, values: Sequence[Tensor]) -> Tensor:
    """A parameter of the merged model; the channels that only the first model takes stay its own."""
    first, *others = values
    channels = min(value.shape[1] for value in values) if first.ndim > 1 else 0
    if all(value.shape == first.shape for value in others):
        return recipe.apply(network, values)
    merged = first.clone()
    merged[:, :channels] = recipe.apply(network, [value[:, :channels] for value in values])
    return merged


def _stored(part: Part, name: str) -> Any:
    return part.weights[part.locations[name].key]


def _read(part: Part, name: str, kind: torch.dtype) -> Tensor:
    return part.locations[name].unpack(_stored(part, name).get(kind))


def _compared(first: Contents, other: Contents) -> list[str]:
    """What differs between two models that can be merged, in words. CheckpointError: they cannot."""
    said: list[str] = []
    for part in ("backbone", "vae", "text", "text_2"):
        if part not in first.parts or part not in other.parts:
            continue
        ours, theirs = (c.parts[part].module.state_dict() for c in (first, other))
        different = ours.keys() ^ theirs.keys()
        wrong = [n for n in ours.keys() & theirs.keys() if ours[n].shape != theirs[n].shape]
        if not different and not wrong:
            continue
        if part == "backbone" and not different and wrong == [FIRST]:
            more, fewer = (shapes[FIRST].shape for shapes in (ours, theirs))
            if (more[0], *more[2:]) == (fewer[0], *fewer[2:]) and more[1] != fewer[1]:
                if more[1] < fewer[1]:
                    raise CheckpointError(
                        f"{other.path} is {other.title} and {first.path} is {first.title}; the model "
                        f"that takes more channels ({fewer[1]} and not {more[1]}) must be the first"
                    )
                said.append(
                    f"{other.path} takes {fewer[1]} channels and not {more[1]}; what is done with the "
                    f"others stays as in {first.path}"
                )
                continue
        if first.title != other.title:
            raise CheckpointError(
                f"{first.path} is {first.title} and {other.path} is {other.title}; only models of "
                "one family can be merged"
            )
        if wrong:
            name = min(wrong)
            raise CheckpointError(
                f"{other.path}: {part}.{name} has the shape {tuple(theirs[name].shape)}, and "
                f"{tuple(ours[name].shape)} in {first.path}"
            )
        name = min(different)
        missing = other if name in ours else first
        raise CheckpointError(
            f"{missing.path} has no {part}.{name}, which the other model has; "
            f"{len(different)} weights differ"
        )
    if first.prediction != other.prediction:
        said.append(
            f"{first.path} predicts {first.prediction} and {other.path} {other.prediction}; the "
            "merged model is recorded as predicting what the first does"
        )
    if missing_parts := [name for name in first.parts if name not in other.parts]:
        said.append(
            f"{other.path} has no {', '.join(missing_parts)}; the merged model has that of "
            f"{first.path}"
        )
    return said


def _record(contents: Sequence[Contents], recipe: MergeRecipe) -> dict[str, Any]:
    """The recipe, with the names and hashes of the files that the models were read from."""
    models = [
        {"name": each.name, "path": each.path.name, "sha256": _hashes(each.path)}
        for each in contents
    ]
    return {"program": f"pellucid {__version__}", **recipe.record(), "models": models}


def _hashes(path: Path) -> str | dict[str, str]:
    """The SHA-256 of a file, or of each file of weights in a folder or of an index."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in WEIGHTS)
        return {file.relative_to(path).as_posix(): cast(str, _hashes(file)) for file in files}
    if is_index(path):
        return {name: cast(str, _hashes(file)) for name, file in shards_of(path).items()}
    digest = hashlib.sha256()
    try:
        with stage(f"hashing {path.name}", path.stat().st_size) as now, path.open("rb") as file:
            while data := file.read(READ_BYTES):
                digest.update(data)
                now.done += len(data)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()

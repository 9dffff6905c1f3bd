"""From a LoRA file to the changes of a model's parameters."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from pellucid.checkpoints import embedding_files
from pellucid.checkpoints.assembly import type_name
from pellucid.checkpoints.lora.description import family_of, family_of_model
from pellucid.checkpoints.lora.file import KINDS, MODIFIERS, LoraFile, Target, examine
from pellucid.checkpoints.lora.names import ModulePath, Names, in_order, kohya_names
from pellucid.files import write_tensors
from pellucid.lora import Change, Lora, Matrix
from pellucid.model import Model
from pellucid.safetensors_header import CheckpointError, first_keys

BIASES = ("diff_b", "up_bias")  # what changes a bias and not a weight
FIRST = 3  # how many changes that do not fit an error names


def load_lora(path: str | Path, model: Model) -> Lora:
    """The LoRA in a file, for `model`; `lora.attach` applies it. Its tensors stay in the file until
    they are used, so it must not be overwritten.

    A change that does not fit the model is left out, and its keys are among the `unmatched`.
    Raises CheckpointError: no such file, not a LoRA, incomplete, of another family, nothing in it
    fits.
    """
    path = Path(path)
    found = examine(path)
    theirs, ours = family_of(found), family_of_model(model)
    title = f"this LoRA is for {theirs}, the model is {ours or model.name}"
    if theirs is not None and ours is not None and theirs != ours:
        raise CheckpointError(f"{path}: {title}")
    find = _numbered(found, model) or Names(model).find
    changes: dict[str, dict[str, Change]] = {}
    unmatched, wrong = list(found.alien), list[str]()
    for target in found.targets:
        module = find(target.name)
        if module is None:
            unmatched += target.keys.values()
            continue
        made, unused = _fitting(found, target, getattr(model, module.part), module.module, wrong)
        unmatched += unused
        for name, change in made.items():
            if name in changes.setdefault(module.part, {}):
                raise CheckpointError(f"{path} changes {name} twice, the second time {target.name}")
            changes[module.part][name] = change
    if not any(changes.values()):
        known = f"{title}; " if theirs is not None and theirs != ours else ""
        problem = (
            "all of its changes have another shape than the model's weights: "
            + "; ".join(wrong[:FIRST])
            if wrong
            else f"none of its keys match {model.name}; they begin with {first_keys(unmatched)}"
        )
        raise CheckpointError(f"{path}: {known}{problem}")
    words = {}
    for word, keys in found.words.items():
        vectors = {part: _tensor(found, key) for part, key in keys.items()}
        try:
            words[word] = embedding_files.embedding(path, model, word, vectors).vectors
        except CheckpointError:
            unmatched += keys.values()
    return Lora(path.stem, changes, tuple(unmatched), words)


def _fitting(
    found: LoraFile, target: Target, network: nn.Module, module: str, wrong: list[str]
) -> tuple[dict[str, Change], list[str]]:
    """The changes of a module by the names of its parameters, and the keys that are not used.

    wrong: gets what does not fit.
    """
    owner, unused = network.get_submodule(module), set(target.keys.values())
    fitting = {}
    for leaf, (change, keys) in _changes(found, target).items():
        parameter = getattr(owner, leaf, None)
        if parameter is None:
            continue
        if module == "conv_in" and leaf == "weight":
            change = _for_more_channels(change, parameter.shape, network)
        shape = tuple(parameter.shape)
        try:
            sides = change.sides
            if sides == (shape[0], math.prod(shape[1:])):
                change.check(shape)
        except ValueError as error:  # a damaged file
            raise CheckpointError(f"{found.path}: {target.name}: {error}") from error
        if sides != (shape[0], math.prod(shape[1:])):
            wrong.append(f"{target.name} changes {sides} and not {shape}")
            continue
        unused -= keys
        fitting[f"{module}.{leaf}"] = change
    return fitting, sorted(unused)


def _for_more_channels(change: Change, shape: torch.Size, network: nn.Module) -> Change:
    """A change of the first convolution for the latents alone, on an inpainting model, which takes a
    mask too: zeros for the further channels, as in A1111 and ComfyUI. Any other change as it is."""
    latents = getattr(getattr(network, "config", None), "out_channels", shape[1])
    own = torch.Size((shape[0], latents, *shape[2:]))
    if latents >= shape[1] or change.magnitude is not None:
        return change
    try:
        change.check(own)
    except ValueError:
        return change
    padded = torch.zeros(shape)
    padded[:, :latents] = change.of(torch.zeros(own))
    return Change("full", (Matrix(padded),))


def save_lora(
    lora: Lora, model: Model, path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a LoRA of `model` as one safetensors file with the keys of kohya's trainer, which A1111
    and diffusers read too; whole or not at all.

    Raises CheckpointError for changes of other kinds than plain LoRA, and if it cannot be written.
    """
    weights: dict[str, Tensor] = {}
    for part, changes in lora.changes.items():
        keys = kohya_names(model, part)
        for name, change in changes.items():
            matrix = change.matrices[0]
            plain = change.kind == "LoRA" and matrix.core is None and change.magnitude is None
            if not plain or matrix.b is None or not name.endswith(".weight"):
                raise CheckpointError(
                    f"{path} was not written: {name} is not changed by a plain LoRA"
                )
            key = keys[name.removesuffix(".weight")]
            weights[f"{key}.lora_down.weight"] = matrix.b.detach().cpu().contiguous()
            weights[f"{key}.lora_up.weight"] = matrix.a.detach().cpu().contiguous()
            weights[f"{key}.alpha"] = torch.tensor(change.scale * len(matrix.b))
    write_tensors(path, weights, metadata or {}, CheckpointError)


# ---------------------------------------------------------------- from tensors to changes


def _changes(found: LoraFile, target: Target) -> dict[str, tuple[Change, set[str]]]:
    """ "weight" and "bias" -> the change, and the keys that it is made of."""
    names = {what: key for what, key in target.keys.items() if what not in MODIFIERS}
    made: dict[str, tuple[Change, set[str]]] = {}
    if target.kind is not None:
        needed, allowed = KINDS[target.kind]
        if strange := names.keys() - needed - allowed:
            raise CheckpointError(
                f"{found.path}: {target.name} has {names[min(strange)]} next to a {target.kind}"
            )
        if missing := needed - names.keys():
            raise CheckpointError(
                f"{found.path} is incomplete: {target.name} has {min(names.values())} and no "
                f"{min(missing)}"
            )
        tensors = {
            what: _tensor(found, key, scalar=what == "alpha") for what, key in target.keys.items()
        }
        matrices = _matrices(found.path, target, tensors)
        if config := found.configs.of(target.name):
            config[0].check(config[1], matrices[0].rank, target.keys)
        scale = _scale(found, target, tensors, matrices)
        lengths = tensors.get("lengths")  # PEFT's, one for each output, in any shape
        magnitude = tensors.get("magnitude") if lengths is None else lengths.flatten()
        keys = {key for what, key in target.keys.items() if what not in BIASES}
        made["weight"] = Change(target.kind, matrices, scale, magnitude), keys
        if "up_bias" in target.keys:  # of PEFT's lora_bias
            key = target.keys["up_bias"]
            made["bias"] = Change("full", (Matrix(tensors["up_bias"]),), scale), {key}
    if "diff_b" in target.keys:
        key = target.keys["diff_b"]
        made["bias"] = Change("full", (Matrix(_tensor(found, key)),)), {key}
    return made


def _tensor(found: LoraFile, key: str, scalar: bool = False) -> Tensor:
    stored = found.weights[key]
    numbers = stored.dtype.is_floating_point or scalar
    if not numbers or 0 in stored.shape or (not stored.shape and not scalar):
        kind = type_name(stored.dtype)
        raise CheckpointError(
            f"{found.path}: {key} is {kind} of the shape {stored.shape}; expected numbers"
        )
    return stored.get(stored.dtype)


def _matrices(path: Path, target: Target, t: Mapping[str, Tensor]) -> tuple[Matrix, ...]:
    if target.kind == "LoRA":
        return (Matrix(t["up"], t["down"], t.get("core")),)
    if target.kind == "full":
        return (Matrix(t["diff"]),)
    if target.kind == "LoHa":
        return tuple(
            _tucker(t[f"hada_w{i}_a"], t[f"hada_w{i}_b"], t.get(f"hada_t{i}")) for i in (1, 2)
        )
    both = []
    for name in ("lokr_w1", "lokr_w2"):
        if name in t:
            both.append(Matrix(t[name]))
        elif f"{name}_a" in t and f"{name}_b" in t:
            core = t.get("lokr_t2") if name == "lokr_w2" else None
            both.append(_tucker(t[f"{name}_a"], t[f"{name}_b"], core))
        else:
            raise CheckpointError(f"{path} is incomplete: {target.name} has no {name}")
    return tuple(both)


def _tucker(a: Tensor, b: Tensor, core: Tensor | None) -> Matrix:
    """LyCORIS stores a as (r, out) if there is a core."""
    return Matrix(a, b) if core is None else Matrix(a.reshape(len(a), -1).T, b, core)


def _scale(
    found: LoraFile, target: Target, t: Mapping[str, Tensor], matrices: Sequence[Matrix]
) -> float:
    """alpha / rank; 1 if there is no alpha, or no rank."""
    ranks = [matrix.rank for matrix in matrices if matrix.rank is not None]
    rank = ranks[-1] if ranks else found.rank(target) if target.kind == "LoKr" else None
    if rank is None:
        return 1.0
    if "alpha" not in t:
        config = found.configs.of(target.name)
        return 1.0 if config is None else config[0].scale(config[1], rank)
    alpha = t["alpha"]
    if alpha.numel() != 1 or not math.isfinite(float(alpha)):
        raise CheckpointError(
            f"{found.path}: {target.keys['alpha']} must be one finite number, got "
            + (f"{float(alpha):g}" if alpha.numel() == 1 else f"the shape {tuple(alpha.shape)}")
        )
    return float(alpha) / rank


# ---------------------------------------------------------------- by number


def _numbered(found: LoraFile, model: Model) -> Callable[[str], ModulePath | None] | None:
    """For files that number the modules: "unet:3" -> the module. None for all other files."""
    places: dict[str, ModulePath] = {}
    for name, part in (("unet", "backbone"), ("text_encoder", "text")):
        numbered = {t.name: t for t in found.targets if t.name.startswith(f"{name}:")}
        if not numbered:
            continue
        network = getattr(model, part)
        try:
            classes = json.loads(found.weights.metadata.get(name, "null"))
            if not isinstance(classes, list):
                raise ValueError("its metadata does not name the classes whose modules it numbers")
            orders = in_order(network, [str(kind) for kind in classes])
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{found.path}: {error}") from error
        shapes = [_sides(found, numbered.get(f"{name}:{i}")) for i in range(len(numbered))]
        order = next((o for o in orders if [_weight_sides(network, m) for m in o] == shapes), None)
        if order is None:
            raise CheckpointError(
                f"{found.path}: it numbers {len(numbered)} modules of {name}, which are not those of "
                f"{model.name} ({len(orders[0])} in {', '.join(map(str, classes))})"
            )
        places |= {f"{name}:{i}": ModulePath(part, module) for i, module in enumerate(order)}
    return places.get if places else None


def _sides(found: LoraFile, target: Target | None) -> tuple[int, int] | None:
    """(out, in * kh * kw) of the weight that a target changes."""
    if target is None or not {"up", "down"} <= target.keys.keys():
        return None
    up, down = (found.weights[target.keys[name]].shape for name in ("up", "down"))
    return (up[0], math.prod(down[1:])) if up and down else None


def _weight_sides(network: nn.Module, module: str) -> tuple[int, int]:
    shape = network.get_parameter(f"{module}.weight").shape
    return shape[0], math.prod(shape[1:])

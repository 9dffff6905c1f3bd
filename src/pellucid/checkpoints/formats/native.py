"""Pellucid's own format: one safetensors file that says by itself what it is.

The weights of every part are under the part's name ("backbone.", "vae.", "text.", "vision."). The
metadata entry "pellucid" is a JSON object: the class and config of every part, the tokenizer, the
schedule, the prediction and the defaults.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pellucid import plugins
from pellucid.checkpoints import description, pipelines, vae_files
from pellucid.checkpoints.assembly import (
    Part,
    assemble,
    build,
    check_tokenizer,
    compare,
    gather,
    same_names,
    write_file,
)
from pellucid.checkpoints.header import CheckpointError, read_header
from pellucid.checkpoints.metadata import dataclass_from
from pellucid.checkpoints.weights import open_weights
from pellucid.clip import TextTower, VisionTower
from pellucid.model import Defaults, Model, TextEncoding
from pellucid.schedule import Schedule
from pellucid.tiny_vae import TinyVAE
from pellucid.tokenizer import Tokenizer
from pellucid.vae import VAE

VERSION = 1
REQUIRED = ("backbone", "vae", "text")
OPTIONAL = ("text_2", "vision", "tiny_vae")


def matches(path: Path) -> bool:
    """Whether `path` is a safetensors file with Pellucid's metadata."""
    try:
        return "pellucid" in (read_header(path).get("__metadata__") or {})
    except CheckpointError:
        return False


def read(
    path: Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = torch.float32,
    prediction: str | None = None,
    vae: Path | None = None,
) -> Model:
    """The model in `path`; `prediction` None is what the file says.

    vae: the file or folder of an autoencoder that it gets instead of its own.
    Raises CheckpointError that names the first keys that are wrong.
    """
    facts = _facts(path, read_header(path))
    stored = _parts(path, facts)
    unused: list[str] = []
    if vae is not None:
        own = stored["vae"]
        assert isinstance(own.module, VAE)
        config = own.module.config
        stored["vae"], unused = vae_files.instead(vae, config.latent_channels, config, config)
        unused += (place.key for place in own.places.values())
    assemble(path, stored, device, dtype, unused)
    parts = {name: part.module for name, part in stored.items()}
    tokenizer = _tokenizer(path, facts)
    text = typing.cast(TextTower, parts["text"])
    check_tokenizer(path, tokenizer, text.config)
    return Model(
        backbone=parts["backbone"],
        vae=typing.cast(VAE, parts["vae"]),
        text=text,
        tokenizer=tokenizer,
        schedule=dataclass_from(path, "schedule", Schedule, facts["schedule"]),
        prediction=str(facts["prediction"]) if prediction is None else prediction,
        name=str(facts["name"]),
        text_2=typing.cast("TextTower | None", parts.get("text_2")),
        text_encoding=dataclass_from(path, "reading", TextEncoding, facts.get("reading", {})),
        vision=typing.cast("VisionTower | None", parts.get("vision")),
        tiny_vae=typing.cast("TinyVAE | None", parts.get("tiny_vae")),
        defaults=dataclass_from(path, "defaults", Defaults, facts["defaults"]),
    )


def describe(path: Path, prediction: str | None = None) -> dict[str, Any]:
    """What `pellucid info` says of a file, from its header alone."""
    facts = _facts(path, read_header(path))
    parts = _parts(path, facts)
    compare(path, parts)
    backbone: Any = parts["backbone"].module
    told = description.model(
        form="native",
        family=_family(path, facts, parts),
        channels=backbone.config.out_channels,
        parts=parts,
        prediction=str(facts["prediction"]) if prediction is None else prediction,
        schedule=dataclass_from(path, "schedule", Schedule, facts["schedule"]),
        defaults=dataclass_from(path, "defaults", Defaults, facts["defaults"]),
        tokenizer=_tokenizer(path, facts),
    )
    return {"name": str(facts["name"])} | told


def _family(path: Path, facts: Mapping[str, Any], parts: Mapping[str, Part]) -> str:
    """What a file is, if it was made of a published model; else our own."""
    backbone: Any = parts["backbone"].module
    towers = [parts[name].module for name in ("text", "text_2") if name in parts]
    texts = [tower.config for tower in towers if isinstance(tower, TextTower)]
    reading = dataclass_from(path, "reading", TextEncoding, facts.get("reading", {}))
    family = pipelines.family_of(backbone, texts, reading)
    try:
        if family is not None:
            return pipelines.title(family, backbone.config)
    except CheckpointError:  # made from one, but it sees something else
        pass
    return f"Pellucid's own, backbone {facts['parts']['backbone'].get('kind')}"


def _parts(path: Path, facts: Mapping[str, Any]) -> dict[str, Part]:
    """The networks, on the meta device, and where the file has their parameters."""
    modules = {part: _build(path, part, entry) for part, entry in facts["parts"].items()}
    weights = open_weights(path)
    return {
        part: Part(module, weights, same_names(module, f"{part}."))
        for part, module in modules.items()
    }


def _tokenizer(path: Path, facts: Mapping[str, Any]) -> Tokenizer:
    try:
        return Tokenizer.from_json(json.dumps(facts["tokenizer"]))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def write(model: Model, path: Path, dtype: torch.dtype | None = None) -> tuple[str, ...]:
    """Write `model` to `path`, whole or not at all; `dtype` None keeps the weights as they are.
    Nothing is left out.

    Raises CheckpointError: a weight that is not finite (or not any more, as float16), a folder that
    does not exist, a full disk.
    """
    modules: dict[str, nn.Module] = {
        "backbone": model.backbone,
        "vae": model.vae,
        "text": model.text,
    }
    modules |= {name: part for name in OPTIONAL if (part := getattr(model, name)) is not None}
    places = {part: same_names(module, f"{part}.") for part, module in modules.items()}
    weights = gather(path, {part: (modules[part], places[part]) for part in modules}, dtype)
    facts = {
        "version": VERSION,
        "name": model.name,
        "prediction": model.prediction,
        "parts": {
            part: {"kind": _kind_of(part, module), "config": dataclasses.asdict(_config_of(module))}
            for part, module in modules.items()
        },
        "schedule": dataclasses.asdict(model.schedule),
        "reading": dataclasses.asdict(model.text_encoding),
        "defaults": dataclasses.asdict(model.defaults),
        "tokenizer": json.loads(model.tokenizer.to_json()),
    }
    write_file(path, weights, {"pellucid": json.dumps(facts, ensure_ascii=False)})
    return ()


def _config_of(module: nn.Module) -> Any:
    config = getattr(module, "config", None)
    if not dataclasses.is_dataclass(config):
        raise CheckpointError(
            f"{type(module).__name__} has no config dataclass, so a file could not say what it is"
        )
    return config


def _facts(path: Path, header: Mapping[str, Any]) -> dict[str, Any]:
    text = (header.get("__metadata__") or {}).get("pellucid")
    if text is None:
        raise CheckpointError(f"{path} has no 'pellucid' entry in its metadata")
    try:
        facts = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: its 'pellucid' metadata is not JSON") from error
    if not isinstance(facts, dict):
        raise CheckpointError(f"{path}: its 'pellucid' metadata is not a JSON object")
    version = facts.get("version")
    if not isinstance(version, int):
        raise CheckpointError(f"{path}: its metadata has no format version; {VERSION} is wanted")
    if version > VERSION:
        raise CheckpointError(
            f"{path} has format version {version}; this Pellucid reads up to {VERSION}, a newer "
            "Pellucid is needed"
        )
    wanted = {"name", "prediction", "parts", "schedule", "defaults", "tokenizer"}
    if missing := sorted(wanted - facts.keys()):
        raise CheckpointError(f"{path}: its metadata has no {', '.join(missing)}")
    parts = facts["parts"]
    if not isinstance(parts, dict) or not all(isinstance(part, dict) for part in parts.values()):
        raise CheckpointError(f"{path}: 'parts' in its metadata is not an object of objects")
    if missing := [part for part in REQUIRED if part not in parts]:
        raise CheckpointError(f"{path} has no {', '.join(missing)}; a model needs them")
    if unknown := sorted(parts.keys() - {*REQUIRED, *OPTIONAL}):
        known = ", ".join((*REQUIRED, *OPTIONAL))
        raise CheckpointError(f"{path} has a part {unknown[0]!r}; known are {known}")
    return facts


def _kinds(part: str) -> dict[str, type[nn.Module]]:
    """What may stand for a part: its name in files -> its class.

    A backbone goes by the name of its file in backbones/: the class there that has a config.
    """
    fixed: dict[str, dict[str, type[nn.Module]]] = {
        "vae": {"vae": VAE},
        "text": {"clip_text": TextTower},
        "text_2": {"clip_text": TextTower},
        "vision": {"clip_vision": VisionTower},
        "tiny_vae": {"tiny_vae": TinyVAE},
    }
    if part in fixed:
        return fixed[part]
    return {
        stem: thing
        for stem, module in plugins.discover("pellucid.backbones").items()
        for name, thing in vars(module).items()
        if isinstance(thing, type) and issubclass(thing, nn.Module)
        if f"{name}Config" in vars(module)
    }


def _kind_of(part: str, module: nn.Module) -> str:
    for kind, known in _kinds(part).items():
        if type(module) is known:
            return kind
    raise CheckpointError(
        f"the model's {part} is a {type(module).__name__}, which no file can name; "
        f"known are {', '.join(sorted(_kinds(part)))}"
    )


def _build(path: Path, part: str, entry: Mapping[str, Any]) -> nn.Module:
    kinds = _kinds(part)
    kind = entry.get("kind")
    if kind not in kinds:
        raise CheckpointError(
            f"{path}: its {part} is of the kind {kind!r}; known are {', '.join(sorted(kinds))}"
        )
    config_type = typing.get_type_hints(kinds[kind].__init__)["config"]
    config = dataclass_from(path, part, config_type, entry.get("config"))
    return build(path, part, kinds[kind], config)

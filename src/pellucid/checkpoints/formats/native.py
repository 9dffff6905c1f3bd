"""Pellucid's own format: one safetensors file that describes itself.

The weights of every part are under the part's name ("backbone.", "vae.", "text.", "vision."). The
metadata entry "pellucid" is a JSON object: the class and config of every part, the tokenizer, the
schedule, the prediction, the text encoding ("reading"), the defaults, and the words that the model has
learned ("lexicon"), if they are known.
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
from pellucid.cascade import SuperResolution
from pellucid.checkpoints import families
from pellucid.checkpoints.assembly import Part, build, same_names
from pellucid.checkpoints.contents import MODEL_FIELDS, Contents
from pellucid.checkpoints.metadata import dataclass_from, json_entry
from pellucid.checkpoints.weights import CheckpointSource
from pellucid.checkpoints.writing import Read, gather
from pellucid.checkpoints.writing import write as write_file
from pellucid.clip import TextTower, VisionTower
from pellucid.lexicon import Lexicon
from pellucid.model import Defaults, Model, TextEncoding
from pellucid.safetensors_header import CheckpointError
from pellucid.schedule import Schedule
from pellucid.tiny_vae import TinyVAE
from pellucid.tokenizer import Tokenizer
from pellucid.vae import VAE

ENTRY = "pellucid"
VERSION = 1
LONGEST = 200  # letters of another library's message, which may quote the file
FIELDS = ("name", "prediction", "parts", "schedule", "defaults", "tokenizer")
REQUIRED = ("backbone", "vae", "text")
OPTIONAL = ("text_2", "vision", "tiny_vae", "upscaler")


def matches(source: CheckpointSource) -> bool:
    """Whether it is a safetensors file with Pellucid's metadata."""
    return ENTRY in source.metadata


def examine(source: CheckpointSource, prediction: str | None = None) -> Contents:
    """What a file holds; `prediction` None is what the file says. Raises CheckpointError."""
    path, facts = source.path, json_entry(source, ENTRY, VERSION, FIELDS)
    parts = {
        name: Part(module, source.weights, same_names(module, f"{name}."))
        for name, module in _modules(path, facts["parts"]).items()
    }
    encoding = dataclass_from(path, "reading", TextEncoding, facts.get("reading", {}))
    vae = typing.cast(VAE, parts["vae"].module).config
    try:
        tokenizer = Tokenizer.from_json(json.dumps(facts["tokenizer"]))
        words = facts.get("lexicon")
        lexicon = None if words is None else Lexicon.from_json(words)
    except ValueError as error:
        reason = str(error).split("\n")[0][:LONGEST]
        raise CheckpointError(f"{path}: {reason}") from error
    return Contents(
        path=path,
        form="native",
        name=str(facts["name"]),
        title=_title(facts, parts, encoding),
        parts=parts,
        tokenizer=tokenizer,
        text_encoding=encoding,
        schedule=dataclass_from(path, "schedule", Schedule, facts["schedule"]),
        prediction=str(facts["prediction"]) if prediction is None else prediction,
        defaults=dataclass_from(path, "defaults", Defaults, facts["defaults"]),
        usual_vae=vae,
        vae_prefix="vae.",
        lexicon=lexicon,
        facts=_extra_facts(parts, lexicon),
    )


def _modules(path: Path, parts: Any) -> dict[str, nn.Module]:
    """The networks on the meta device."""
    if not isinstance(parts, dict) or not all(isinstance(part, dict) for part in parts.values()):
        raise CheckpointError(f"{path}: 'parts' in its metadata is not an object of objects")
    if missing := [part for part in REQUIRED if part not in parts]:
        raise CheckpointError(f"{path} has no {', '.join(missing)}; a model needs them")
    if unknown := sorted(parts.keys() - {*REQUIRED, *OPTIONAL}):
        known = ", ".join((*REQUIRED, *OPTIONAL))
        raise CheckpointError(f"{path} has a part {unknown[0]!r}; known are {known}")
    return {part: _build(path, part, entry) for part, entry in parts.items()}


def _title(facts: Mapping[str, Any], parts: Mapping[str, Part], encoding: TextEncoding) -> str:
    """The family, if the file was made from a published model; else our own."""
    backbone: Any = parts["backbone"].module
    towers = [parts[name].module for name in ("text", "text_2") if name in parts]
    texts = [tower.config for tower in towers if isinstance(tower, TextTower)]
    family = families.of_configs(backbone.config, texts) if encoding.pads else None
    try:
        if family is not None:
            return family.title_of(backbone.config)
    except CheckpointError:  # made from one, but its U-Net takes something else
        pass
    return f"Pellucid's own, backbone {facts['parts']['backbone'].get('kind')}"


def _extra_facts(parts: Mapping[str, Part], lexicon: Lexicon | None) -> dict[str, Any]:
    """What only some files of this format have."""
    facts: dict[str, Any] = {}
    if "upscaler" in parts:
        factor = typing.cast(SuperResolution, parts["upscaler"].module).config.factor
        facts["upscaler"] = f"makes width and height {factor} times as large"
    if lexicon is not None:
        facts["things it draws"] = [entry.names[0] for entry in lexicon.entries if entry.names]
        facts["other words"] = list(lexicon.words)
    return facts


def write(
    model: Model,
    path: Path,
    dtype: torch.dtype | None = None,
    read: Read | None = None,
    about: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Write `model` to `path`, whole or not at all; `dtype` None keeps the weights as they are.
    Nothing is left out. read: as in `gather`. about: further metadata.

    Raises CheckpointError: a weight that is not finite (or no longer is, as float16), a folder that
    does not exist, a full disk.
    """
    modules: dict[str, nn.Module] = {
        name: part
        for name in (*REQUIRED, *OPTIONAL)
        if (part := getattr(model, MODEL_FIELDS.get(name, name))) is not None
    }
    parts = {part: (module, same_names(module, f"{part}.")) for part, module in modules.items()}
    weights = gather(path, parts, dtype, read)
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
    if model.lexicon is not None:
        facts["lexicon"] = model.lexicon.to_json()
    entry = {ENTRY: json.dumps(facts, ensure_ascii=False)}
    write_file(path, weights, entry | dict(about or {}))
    return ()


def _config_of(module: nn.Module) -> Any:
    config = getattr(module, "config", None)
    if not dataclasses.is_dataclass(config):
        raise CheckpointError(
            f"{type(module).__name__} has no config dataclass, so a file cannot describe it"
        )
    return config


def _kinds(part: str) -> dict[str, type[nn.Module]]:
    """The classes that a part may have, by their names in files.

    The name of a backbone is that of its file in backbones/: the class there that has a config.
    """
    fixed: dict[str, dict[str, type[nn.Module]]] = {
        "vae": {"vae": VAE},
        "text": {"clip_text": TextTower},
        "text_2": {"clip_text": TextTower},
        "vision": {"clip_vision": VisionTower},
        "tiny_vae": {"tiny_vae": TinyVAE},
        "upscaler": {"upscaler": SuperResolution},
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

"""diffusers' layout: a folder with model_index.json, and in it one folder for each part.

The parts describe themselves in their config.json, and their parameters have the names that they
have here. Further parts, such as a safety checker, are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pellucid.checkpoints import backbones, configs, families, tokenizer_files
from pellucid.checkpoints.assembly import Part, Unfilled, same_names
from pellucid.checkpoints.backbones import Backbone
from pellucid.checkpoints.contents import Configs, Contents
from pellucid.checkpoints.families import Family
from pellucid.checkpoints.json_config import JsonConfig
from pellucid.checkpoints.key_names import clip_locations
from pellucid.checkpoints.vae_files import CLASS as VAE_CLASS
from pellucid.checkpoints.vae_files import config_of, weights_in_folder
from pellucid.checkpoints.weight_files import STEMS, weights_of
from pellucid.checkpoints.weights import CheckpointSource, open_weights
from pellucid.checkpoints.writing import check_has_place, extras_of, gather, same_when_read
from pellucid.checkpoints.writing import write as write_file
from pellucid.clip import TextConfig, TextTower
from pellucid.files import new_folder
from pellucid.model import Model
from pellucid.safetensors_header import CheckpointError
from pellucid.schedule import Schedule
from pellucid.tokenizer import Tokenizer
from pellucid.vae import VAE

INDEX = "model_index.json"
WRITES_FOLDER = True
TEXTS = ("text_encoder", "text_encoder_2")
FIELDS = ("text", "text_2")
UNUSED_TEXT = ("position_ids", "logit_scale")  # transformers leaves them in a tower's file
# The release of diffusers whose layout is written; its pipeline for inpainting asks for it.
VERSION = "0.30.0"


@dataclass(frozen=True)
class DiffusersFolder:
    """What a folder holds, as its configs show.

    texts: the folders of the text towers. trailing: its steps begin at the noisiest time. others:
    entries of the index that are not used.
    """

    configs: Configs
    backbone: Backbone
    texts: tuple[str, ...]
    tokenizer: Tokenizer
    trailing: bool
    others: tuple[str, ...]


def matches(source: CheckpointSource) -> bool:
    """Whether it is a folder with a model_index.json."""
    return (source.path / INDEX).is_file()


def examine(source: CheckpointSource, prediction: str | None = None) -> Contents:
    """What a folder holds; `prediction` None is what its scheduler's config says.

    Raises CheckpointError: a part or a config that is missing or not supported.
    """
    path = source.path
    folder = _read_configs(path, prediction)
    networks = folder.configs.build(path)
    weights = open_weights(weights_of(path / folder.backbone.folder))
    parts = {"backbone": Part(networks["backbone"], weights, same_names(networks["backbone"]))}
    unused = list[str]()
    if isinstance(vae := networks.get("vae"), VAE):
        parts["vae"] = weights_in_folder(path / "vae", vae)
    for name, text in zip(FIELDS, folder.texts, strict=False):
        tower = networks[name]
        weights = open_weights(weights_of(path / text))
        level = any(key.startswith("text_model.") for key in weights)
        parts[name] = Part(tower, weights, clip_locations(same_names(tower), level=level))
        projected = folder.configs.texts[name].projection is not None
        idle = UNUSED_TEXT if projected else (*UNUSED_TEXT, "text_projection.weight")
        unused += [key for key in weights if key.endswith(idle)]
    defaults = folder.configs.family.defaults_for(folder.configs.prediction)
    return Contents.of(
        path,
        folder.configs,
        parts=parts,
        form="diffusers",
        name=path.resolve().name,
        tokenizer=folder.tokenizer,
        defaults=replace(defaults, spacing="trailing") if folder.trailing else defaults,
        vae_place=f"a folder vae of {VAE_CLASS}",
        unused=tuple(unused),
        facts={"unused parts": list(folder.others)},
    )


# ---------------------------------------------------------------- configs


def _read_configs(path: Path, prediction: str | None = None) -> DiffusersFolder:
    """What the folder `path` holds, without looking for its weights. Raises CheckpointError."""
    index = JsonConfig.open(path / INDEX)
    entries = {
        name: value[1]
        for name, value in index.values.items()
        if isinstance(value, list) and len(value) == 2 and isinstance(value[1], str)
    }
    kind = _backbone(path, entries)
    texts = {folder: _text(path, folder, entries[folder]) for folder in TEXTS if folder in entries}
    if not texts:
        raise CheckpointError(f"{path} has no text encoder; a model needs one")
    settings = JsonConfig.open(path / kind.folder / "config.json")
    settings.fixed({"_class_name": kind.class_name})
    config = kind.read(settings, list(texts.values()))
    has_vae = entries.get("vae") == VAE_CLASS and (path / "vae").exists()
    family = families.of_configs(config, texts.values())
    if family is None:
        raise CheckpointError(
            f"{path}: no known family has a {kind.title} and {len(texts)} text encoders"
        )
    try:
        family.use_of(config)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    schedule, predicted, trailing = _schedule(path, entries.get("scheduler"), family)
    tokenizer, pads = _tokenizer(path, list(texts), family)
    encoding = family.encoding_for(config, list(texts.values()), diffusers=True)
    zero_empty = index.flag("force_zeros_for_empty_prompt", encoding.zero_empty)
    read = Configs(
        family=family,
        backbone=config,
        vae=config_of(path / "vae") if has_vae else None,
        texts=dict(zip(FIELDS, texts.values(), strict=False)),
        text_encoding=replace(encoding, pads=pads, zero_empty=zero_empty),
        schedule=schedule,
        prediction=prediction or predicted,
    )
    read.check(path)
    used = {kind.folder, "scheduler", *TEXTS, "tokenizer", "tokenizer_2"}
    used |= {"vae"} if has_vae else set()
    others = tuple(entry for entry in entries if entry not in used)
    return DiffusersFolder(read, kind, tuple(texts), tokenizer, trailing, others)


def _backbone(path: Path, entries: Mapping[str, str]) -> Backbone:
    for kind in backbones.known():
        if entries.get(kind.folder) == kind.class_name:
            return kind
    known = ", ".join(f"{kind.folder} of {kind.class_name}" for kind in backbones.known())
    has = ", ".join(f"{folder} of {name}" for folder, name in entries.items())
    raise CheckpointError(f"{path} has no known backbone ({known}); it has {has or 'nothing'}")


def _text(path: Path, folder: str, name: str) -> TextConfig:
    if name not in configs.TEXT_CLASSES:
        raise CheckpointError(
            f"{path}: its {folder} is {name[:80]}; known are {', '.join(configs.TEXT_CLASSES)}"
        )
    settings = JsonConfig.open(path / folder / "config.json")
    return configs.read_text(settings, configs.TEXT_CLASSES[name])


def _schedule(
    path: Path, scheduler: str | None, family: Family
) -> tuple[Schedule, str | None, bool]:
    """The schedule, the prediction if it is known, and whether steps begin at the noisiest time."""
    if scheduler is not None and scheduler not in configs.SCHEDULERS:
        known = ", ".join(configs.SCHEDULERS)
        raise CheckpointError(f"{path}: its scheduler is {scheduler[:80]!r}; known are {known}")
    file = path / "scheduler" / "scheduler_config.json"
    if not file.exists():
        return family.schedule, family.prediction or None, False
    settings = JsonConfig.open(file)
    schedule, prediction = configs.read_schedule(settings)
    return schedule, prediction, settings.get("timestep_spacing") == "trailing"


def _tokenizer(
    path: Path, texts: Sequence[str], family: Family
) -> tuple[Tokenizer, tuple[int, ...]]:
    """The towers' tokenizer, CLIP's own if the folder has none, and the padding of each tower."""
    folders = [path / text.replace("text_encoder", "tokenizer") for text in texts]
    for folder in folders:
        tokenizer_files.check_config(folder)
    read = [tokenizer_files.read(folder) for folder in folders]
    stored = [each for each in read if each is not None] or [tokenizer_files.clip_tokenizer()]
    tokenizer, others = stored[0], stored[1:]
    if any(not _same(tokenizer, other) for other in others):
        raise CheckpointError(f"{path}: its text encoders have different vocabularies")
    given = [tokenizer_files.padding(folder, tokenizer) for folder in folders]
    pads = zip(given, family.text_encoding.pads, strict=True)
    return tokenizer, tuple(usual if pad is None else pad for pad, usual in pads)


def _same(one: Tokenizer, other: Tokenizer) -> bool:
    return one.words == other.words and (one.bpe is other.bpe or one.table() == other.table())


# ---------------------------------------------------------------- writing


def write(model: Model, path: Path, dtype: torch.dtype | None = None) -> tuple[str, ...]:
    """Write `model` to the folder `path`, whole or not at all. Returns what was left out, in words.

    dtype: None keeps the weights as they are. Raises CheckpointError for a model that the layout
    has no place for, and for one that would be read as something else.
    """
    if path.exists() and not (path / INDEX).is_file():
        raise CheckpointError(f"{path} exists and is not such a folder; it was left alone")
    kind = backbones.of_config(model.config)
    if kind is None:
        known = ", ".join(kind.class_name for kind in backbones.known())
        raise CheckpointError(
            f"{path} was not written: diffusers' layout is for {known}, and the backbone is a "
            f"{type(model.backbone).__name__}"
        )
    check_has_place(path, "diffusers' layout", model, tokenizer=True)
    family, towers = families.nearest_to(model), list(model.towers.values())
    if family is None:
        raise CheckpointError(
            f"{path} was not written: no known family has a {kind.title} and {len(towers)} text "
            "encoders"
        )
    texts, left_out = _texts(model, family, towers)
    parts: dict[str, nn.Module] = {kind.folder: model.backbone, "vae": model.vae, **texts}
    with new_folder(path, CheckpointError) as folder:
        try:
            _write_configs(folder, model, kind, family, texts)
            _check_is_read(path, _read_configs(folder).configs, model, texts.values())
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(folder), str(path))) from error
        for part, network in parts.items():
            stem = STEMS[1] if part in TEXTS else STEMS[0]
            weights = gather(path, {part: (network, same_names(network))}, dtype)
            file = folder / part / f"{stem}.safetensors"
            write_file(file, weights, {"format": "pt"})
    return (*left_out, *extras_of(model))


def _texts(
    model: Model, family: Family, towers: Sequence[TextTower]
) -> tuple[dict[str, TextTower], list[str]]:
    """The text towers by folder, as diffusers' pipelines use them, and what that leaves out, in words.

    Where they read a tower's last layer, it is stored without the layers that are not used (SD2).
    """
    config, encoding = model.backbone.config, model.text_encoding
    pooled = getattr(config, "pooled_dim", 0) > 0
    read = family.encoding_for(config, [tower.config for tower in towers], diffusers=True)
    texts, left_out = {}, []
    for place, tower in zip(family.towers, towers, strict=True):
        projected = pooled and (tower is towers[-1] or encoding.pooled == "all")
        layers = tower.config.layers
        if not projected and encoding.final_norm and read.layer == -1:
            layers += encoding.layer + 1
        short = texts[place.folder] = _shortened(tower, layers, projected)
        if layers != tower.config.layers:
            left_out.append(
                f"the layers after layer {layers} of {place.folder}, which are not used"
            )
        if short.config.projection != tower.config.projection:
            left_out.append(f"the projection of {place.folder}, which is not used")
    return texts, left_out


def _shortened(tower: TextTower, layers: int, projected: bool) -> TextTower:
    """The tower's first layers, and its projection if `projected`, with the same weights."""
    config = replace(
        tower.config, layers=layers, projection=tower.config.projection if projected else None
    )
    if config == tower.config:
        return tower
    with torch.device("meta"), Unfilled():
        short = TextTower(config)
    kept = {name: tower.state_dict()[name] for name in short.state_dict()}
    short.load_state_dict(kept, assign=True, strict=True)
    return short.eval()


def _write_configs(
    folder: Path, model: Model, kind: Backbone, family: Family, texts: Mapping[str, TextTower]
) -> None:
    """All of a folder but the weights."""
    pixels = model.defaults.width
    schedule = configs.write_schedule(model.schedule, model.prediction)
    if schedule is None:
        raise CheckpointError(
            f"{folder} was not written: diffusers has no schedule {model.schedule.name!r} with the "
            f"prediction {model.prediction!r}"
        )
    written = {
        kind.folder: kind.write(model.backbone.config, pixels // model.vae.config.downsample),
        "vae": configs.write_vae(model.vae.config, pixels),
    }
    pads = model.text_encoding.pads or (model.tokenizer.pad,) * len(texts)
    for (text, tower), pad in zip(texts.items(), pads, strict=True):
        written[text] = configs.write_text(tower.config, model.tokenizer.bos, pad)
        place = folder / text.replace("text_encoder", "tokenizer")
        tokenizer_files.write(place, model.tokenizer, pad)
    for part, config in written.items():
        (folder / part).mkdir()
        _write_json(folder / part / "config.json", config)
    (folder / "scheduler").mkdir()
    _write_json(folder / "scheduler" / "scheduler_config.json", schedule)
    index = _index(model, kind, family, texts, str(schedule["_class_name"]))
    _write_json(folder / INDEX, index)


def _index(
    model: Model, kind: Backbone, family: Family, texts: Mapping[str, TextTower], scheduler: str
) -> dict[str, Any]:
    """model_index.json: diffusers' and transformers' classes of the parts."""
    use = family.use_of(model.backbone.config).pipeline or family.use
    entries: dict[str, Any] = {
        "_class_name": f"{family.pipeline}{use}Pipeline",
        "_diffusers_version": VERSION,
        kind.folder: ["diffusers", kind.class_name],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", scheduler],
    }
    for text in TEXTS if TEXTS[1] in texts else TEXTS[:1]:
        tower, tokenizer = texts.get(text), text.replace("text_encoder", "tokenizer")
        entries |= {text: [None, None], tokenizer: [None, None]}
        if tower is not None:
            projected = tower.config.projection is not None
            name = next(k for k, known in configs.TEXT_CLASSES.items() if known == projected)
            entries[text] = ["transformers", name]
            entries[tokenizer] = ["transformers", "CLIPTokenizer"]
    entries |= family.index
    if "force_zeros_for_empty_prompt" in entries:
        entries["force_zeros_for_empty_prompt"] = model.text_encoding.zero_empty
    return entries


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _check_is_read(path: Path, read: Configs, model: Model, towers: Iterable[TextTower]) -> None:
    """Check that the written configs are read as this model. Raises CheckpointError."""
    encoding = model.text_encoding
    if read.text_encoding.layer == -1 and encoding.final_norm:  # later layers were left out
        left_out = encoding.left_out - (encoding.layer + 1)
        encoding = replace(encoding, layer=-1, left_out=left_out)
    pairs = read.compared(model, dict(zip(FIELDS, towers, strict=False)), encoding)
    same_when_read(path, "diffusers' layout", pairs)

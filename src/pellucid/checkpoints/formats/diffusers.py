"""diffusers' layout: a folder with model_index.json, and under it one folder for each part.

The parts say what they are in their config.json, and their parameters have the names that they have
here. Further parts, such as a safety checker, are left alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pellucid.backbones.unet import UNetConfig
from pellucid.checkpoints import (
    configs,
    description,
    families,
    key_names,
    pipelines,
    tokenizer_files,
    vae_files,
)
from pellucid.checkpoints.assembly import (
    Part,
    Unfilled,
    assemble,
    build,
    check_has_place,
    check_tokenizer,
    compare,
    extras_of,
    gather,
    new_folder,
    same_names,
    same_when_read,
    write_file,
)
from pellucid.checkpoints.configs import Settings
from pellucid.checkpoints.families import SD2, Family
from pellucid.checkpoints.header import CheckpointError, UnknownPrediction
from pellucid.checkpoints.pipelines import BACKBONES, TEXTS, Kind
from pellucid.checkpoints.variants import STEMS, weights_of
from pellucid.checkpoints.weights import Weights, open_weights
from pellucid.clip import TextConfig, TextTower
from pellucid.diffusion import PREDICTIONS
from pellucid.model import Defaults, Model, TextEncoding
from pellucid.plugins import choose
from pellucid.schedule import Schedule
from pellucid.tokenizer import Tokenizer
from pellucid.vae import VAE, VAEConfig

INDEX = "model_index.json"
UNUSED_TEXT = ("position_ids", "logit_scale")


@dataclass(frozen=True)
class Found:
    """What a folder holds, as far as its configs tell; configs by the names of their folders."""

    path: Path
    kind: Kind
    backbone: Any
    vae: VAEConfig | None  # None: it has none
    texts: Mapping[str, TextConfig]
    tokenizer: Tokenizer
    family: Family
    text_encoding: TextEncoding
    schedule: Schedule
    prediction: str | None  # None: it can't be known
    trailing: bool  # its steps are to begin at the noisiest time
    others: tuple[str, ...]  # entries of the index that are not used
    title: str


def matches(path: Path) -> bool:
    """Whether `path` is a folder with a model_index.json."""
    return (path / INDEX).is_file()


def read(
    path: Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = torch.float32,
    prediction: str | None = None,
    vae: Path | None = None,
) -> Model:
    """The model in the folder `path`; `prediction` None is what its scheduler's config says.

    vae: the file or folder of an autoencoder that it gets instead of its own.
    Raises CheckpointError: a part or a config that is missing or is none that is known, keys that
    are missing, unknown or of the wrong shape, a prediction that can't be known.
    """
    found = examine(path, prediction)
    if found.prediction is None:
        silent = "has no scheduler/scheduler_config.json to say what it predicts"
        raise UnknownPrediction(path, found.title, silent)
    if vae is None and found.vae is None:
        raise CheckpointError(
            f"{path} is {found.title} without its autoencoder (a folder vae of {vae_files.KIND}): "
            f"{vae_files.GIVE}"
        )
    for config in found.texts.values():
        check_tokenizer(path, found.tokenizer, config)
    parts, unused = _parts(found, vae)
    assemble(path, parts, device, dtype, unused)
    texts = [part.module for name, part in parts.items() if name in TEXTS]
    text, text_2 = texts[0], texts[1] if len(texts) > 1 else None
    autoencoder = parts["vae"].module
    assert isinstance(autoencoder, VAE) and isinstance(text, TextTower)
    assert text_2 is None or isinstance(text_2, TextTower)
    return Model(
        backbone=parts[found.kind.folder].module,
        vae=autoencoder,
        text=text,
        tokenizer=found.tokenizer,
        schedule=found.schedule,
        prediction=found.prediction,
        name=path.resolve().name,
        text_2=text_2,
        text_encoding=found.text_encoding,
        defaults=_defaults(found),
    )


def describe(path: Path, prediction: str | None = None) -> dict[str, Any]:
    """What `pellucid info` says of a folder, without reading the weights."""
    found = examine(path, prediction)
    parts, unused = _parts(found)
    compare(path, parts, unused)
    names = {found.kind.folder: "backbone", **dict(zip(TEXTS, ("text", "text_2"), strict=True))}
    facts = description.model(
        form="diffusers",
        family=found.title,
        channels=found.backbone.out_channels,
        parts={names.get(name, name): part for name, part in parts.items()},
        prediction=found.prediction,
        schedule=found.schedule,
        defaults=_defaults(found),
        tokenizer=found.tokenizer,
        unused=unused,
    )
    return facts | {"unused parts": list(found.others)}


def _defaults(found: Found) -> Defaults:
    usual = found.family.defaults(found.prediction or "eps")
    return replace(usual, spacing="trailing") if found.trailing else usual


# ---------------------------------------------------------------- what a folder holds


def examine(path: Path, prediction: str | None = None) -> Found:
    """What the folder `path` holds, from its configs. Raises CheckpointError."""
    index = Settings.open(path / INDEX)
    entries = {
        name: value[1]
        for name, value in index.values.items()
        if isinstance(value, list) and len(value) == 2 and isinstance(value[1], str)
    }
    kind, name = _kind(path, entries)
    texts = {folder: _text(path, folder, entries[folder]) for folder in TEXTS if folder in entries}
    if not texts:
        raise CheckpointError(f"{path} has no text encoder; a model needs one")
    config = kind.config(_settings(path, kind.folder, name), list(texts.values()))
    whole = entries.get("vae") == vae_files.KIND and (path / "vae").exists()
    vae = vae_files.config_of(path / "vae") if whole else None
    family = kind.family(config, texts)
    try:
        title = pipelines.title(family, config)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    schedule, told, trailing = _schedule(path, family)
    told = told if prediction is None else prediction
    if told is not None:
        choose(told, PREDICTIONS, "prediction")
    tokenizer, pads = _tokenizer(path, list(texts), family)
    used = {kind.folder, "scheduler", *TEXTS, "tokenizer", "tokenizer_2"}
    used |= {"vae"} if whole else set()
    found = Found(
        path=path,
        kind=kind,
        backbone=config,
        vae=vae,
        texts=texts,
        tokenizer=tokenizer,
        family=family,
        text_encoding=_reading(index, family, texts, pads),
        schedule=schedule,
        prediction=told,
        trailing=trailing,
        others=tuple(entry for entry in entries if entry not in used),
        title=title,
    )
    _check(found)
    return found


def _kind(path: Path, entries: Mapping[str, str]) -> tuple[Kind, str]:
    for name, kind in BACKBONES.items():
        if entries.get(kind.folder) == name:
            return kind, name
    known = ", ".join(f"{kind.folder} of {name}" for name, kind in BACKBONES.items())
    has = ", ".join(f"{folder} of {name}" for folder, name in entries.items())
    raise CheckpointError(f"{path} has no backbone that is known ({known}); it has {has or 'none'}")


def _settings(path: Path, folder: str, kind: str) -> Settings:
    settings = Settings.open(path / folder / "config.json")
    settings.fixed({"_class_name": kind})
    return settings


def _text(path: Path, folder: str, name: str) -> TextConfig:
    if name not in configs.TEXT_CLASSES:
        raise CheckpointError(
            f"{path}: its {folder} is {name[:80]}; known are {', '.join(configs.TEXT_CLASSES)}"
        )
    settings = Settings.open(path / folder / "config.json")
    return configs.read_text(settings, configs.TEXT_CLASSES[name])


def _schedule(path: Path, family: Family) -> tuple[Schedule, str | None, bool]:
    """The schedule, what is predicted if that is known, and whether steps begin at its end."""
    file = path / "scheduler" / "scheduler_config.json"
    if not file.exists():
        return family.schedule, family.prediction or None, False
    settings = Settings.open(file)
    schedule, prediction = configs.read_schedule(settings)
    return schedule, prediction, settings.get("timestep_spacing") == "trailing"


def _tokenizer(
    path: Path, texts: Sequence[str], family: Family
) -> tuple[Tokenizer, tuple[int, ...]]:
    """The towers' tokenizer, CLIP's own if the folder has none, and the padding of each tower."""
    folders = [path / text.replace("text_encoder", "tokenizer") for text in texts]
    there = {content: folder for folder in folders if (content := tokenizer_files.content(folder))}
    stored = [tokenizer_files.read(folder) for folder in there.values()]
    tokenizer = stored[0] if stored else None
    tokenizer = families.clip_tokenizer() if tokenizer is None else tokenizer
    if any(other is not None and other.table() != tokenizer.table() for other in stored[1:]):
        raise CheckpointError(f"{path}: its text encoders have different vocabularies")
    told = [tokenizer_files.padding(folder, tokenizer) for folder in folders]
    pads = zip(told, family.text_encoding.pads, strict=True)
    return tokenizer, tuple(usual if pad is None else pad for pad, usual in pads)


def _reading(
    index: Settings, family: Family, texts: Mapping[str, TextConfig], pads: tuple[int, ...]
) -> TextEncoding:
    """How diffusers' pipelines read the towers: those of SD1 and SD2 by their last layer.

    That of SD2 is stored without the layer that it does not use.
    """
    usual = family.text_encoding
    if family is SD2:
        left_out = families.sd2_left_out(texts["text_encoder"])
        usual = replace(usual, layer=-1, left_out=left_out)
    zero = index.flag("force_zeros_for_empty_prompt", usual.zero_empty)
    return replace(usual, pads=pads, zero_empty=zero)


def _check(found: Found) -> None:
    """The parts fit each other."""
    path, channels = found.path, found.backbone.out_channels
    if found.vae is not None and channels != found.vae.latent_channels:
        raise CheckpointError(
            f"{path}: its {found.kind.title} makes {channels} channels, its autoencoder takes "
            f"{found.vae.latent_channels}"
        )
    width = sum(tower.width for tower in found.texts.values())
    if isinstance(found.backbone, UNetConfig) and found.backbone.cross_attention_dim != width:
        raise CheckpointError(
            f"{path}: its U-Net sees texts of width {found.backbone.cross_attention_dim}, its text "
            f"encoders make {width}"
        )


# ---------------------------------------------------------------- weights


def _parts(found: Found, vae: Path | None = None) -> tuple[dict[str, Part], list[str]]:
    """The networks, on the meta device, and their weights; and the keys that are not needed.

    vae: as in `read`.
    """
    path, folder = found.path, found.kind.folder
    backbone = build(path, found.kind.title, found.kind.network, found.backbone)
    weights = open_weights(weights_of(path / folder))
    parts, unused = {folder: Part(backbone, weights, same_names(backbone))}, list[str]()
    if vae is not None:
        channels, usual = found.backbone.out_channels, found.family.vae
        parts["vae"], unused = vae_files.instead(vae, channels, found.vae, usual)
    elif found.vae is not None:
        parts["vae"] = vae_files.of_folder(path / "vae", found.vae)
    for folder, config in found.texts.items():
        tower = build(path, "text tower", TextTower, config)
        weights = open_weights(weights_of(path / folder))
        level = any(key.startswith("text_model.") for key in weights)
        parts[folder] = Part(tower, weights, key_names.clip_places(same_names(tower), level=level))
        unused += _unused_text(weights, config)
    return parts, unused


def _unused_text(weights: Weights, config: TextConfig) -> list[str]:
    """What transformers leaves in the file of a text tower."""
    names = (
        UNUSED_TEXT if config.projection is not None else (*UNUSED_TEXT, "text_projection.weight")
    )
    return [key for key in weights if key.endswith(names)]


# ---------------------------------------------------------------- writing


def write(model: Model, path: Path, dtype: torch.dtype | None = None) -> tuple[str, ...]:
    """Write `model` to the folder `path`, whole or not at all; what was left out, in words.

    dtype: None keeps the weights as they are. Raises CheckpointError for a model that the layout
    has no place for, and for one that would be read as something else.
    """
    if path.exists() and not matches(path):
        raise CheckpointError(f"{path} is there already and is no such folder; it was left alone")
    name = next((n for n, k in BACKBONES.items() if type(model.backbone) is k.network), None)
    if name is None:
        raise CheckpointError(
            f"{path} was not written: diffusers' layout is for {', '.join(BACKBONES)}, and the "
            f"backbone is a {type(model.backbone).__name__}"
        )
    check_has_place(path, "diffusers' layout", model, tokenizer=True)
    towers, left_out = towers_of(model, BACKBONES[name])
    family = BACKBONES[name].family(
        model.backbone.config, {folder: tower.config for folder, tower in towers.items()}
    )
    parts: dict[str, nn.Module] = {BACKBONES[name].folder: model.backbone, "vae": model.vae}
    parts |= towers
    with new_folder(path) as folder:
        try:
            _write_configs(folder, model, name, family, towers)
            _would_be_read(path, examine(folder), model, towers)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(folder), str(path))) from error
        for part, network in parts.items():
            stem = STEMS[1] if part in TEXTS else STEMS[0]
            weights = gather(path, {part: (network, same_names(network))}, dtype)
            write_file(folder / part / f"{stem}.safetensors", weights, {"format": "pt"})
    return left_out


def towers_of(model: Model, kind: Kind) -> tuple[dict[str, TextTower], tuple[str, ...]]:
    """The text towers by their folders, as diffusers' pipelines use them, and what that leaves out.

    They read a tower's last layer, so that of SD2 is stored without the one that it does not use.
    """
    refiner = model.text_2 is None and getattr(model.backbone.config, "pooled_dim", 0) > 0
    folders = TEXTS[1:] if refiner else TEXTS
    towers = [tower for tower in (model.text, model.text_2) if tower is not None]
    last = len(towers) - 1 if refiner or len(towers) > 1 else None
    result, left_out = {}, []
    for number, (folder, tower) in enumerate(zip(folders, towers, strict=False)):
        projected = number == last or model.text_encoding.pooled == "all"
        layers = tower.config.layers
        if not projected and model.text_encoding.final_norm:
            layers += model.text_encoding.layer + 1
        result[folder] = shortened(tower, layers, projected)
        if layers != tower.config.layers:
            left_out.append(f"the layers behind layer {layers} of {folder}, which are not used")
        if result[folder].config.projection != tower.config.projection:
            left_out.append(f"the projection of {folder}, which is not used")
    return result, (*left_out, *extras_of(model))


def shortened(tower: TextTower, layers: int, projected: bool) -> TextTower:
    """The tower's first layers, and its projection if it is wanted, with the same weights."""
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
    folder: Path, model: Model, name: str, family: Family, towers: Mapping[str, TextTower]
) -> None:
    """All of a folder but the weights."""
    kind, pixels = BACKBONES[name], model.defaults.width
    schedule = configs.write_schedule(model.schedule, model.prediction)
    if schedule is None:
        raise CheckpointError(
            f"{folder} was not written: diffusers has no schedule {model.schedule.name!r} with the "
            f"prediction {model.prediction!r}"
        )
    written = {
        kind.folder: kind.written(model.backbone.config, pixels // model.vae.config.downsample),
        "vae": configs.write_vae(model.vae.config, pixels),
    }
    pads = model.text_encoding.pads or (model.tokenizer.pad,) * len(towers)
    for (text, tower), pad in zip(towers.items(), pads, strict=True):
        written[text] = configs.write_text(tower.config, model.tokenizer.bos, pad)
        tokenizer_files.write(
            folder / text.replace("text_encoder", "tokenizer"), model.tokenizer, pad
        )
    for part, config in written.items():
        (folder / part).mkdir()
        _write_json(folder / part / "config.json", config)
    (folder / "scheduler").mkdir()
    _write_json(folder / "scheduler" / "scheduler_config.json", schedule)
    index = pipelines.index(model, name, family, towers, str(schedule["_class_name"]))
    _write_json(folder / INDEX, index)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _would_be_read(path: Path, found: Found, model: Model, towers: Mapping[str, TextTower]) -> None:
    reading = model.text_encoding
    if found.text_encoding.layer == -1 and reading.final_norm:  # the layers behind it were left out
        left_out = reading.left_out - (reading.layer + 1)
        reading = replace(reading, layer=-1, left_out=left_out)
    pairs: list[tuple[str, Any, Any]] = [
        (f"this {found.kind.title}", model.backbone.config, found.backbone),
        ("this autoencoder", model.vae.config, found.vae),
        *(
            ("this text encoder", tower.config, found.texts.get(folder))
            for folder, tower in towers.items()
        ),
        ("this reading of the text encoders", reading, found.text_encoding),
        ("this schedule", model.schedule, found.schedule),
        ("the prediction", model.prediction, found.prediction),
    ]
    for what, has, read in pairs:
        same_when_read(path, "diffusers' layout", what, has, read)

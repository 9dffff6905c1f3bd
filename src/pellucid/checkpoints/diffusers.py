"""diffusers' layout: a folder with model_index.json, and under it one folder for each part.

The parts say what they are in their config.json, and their parameters have the names that they have
here. Further parts, such as a safety checker, are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pellucid.backbones.unet import UNet, UNetConfig
from pellucid.checkpoints import CheckpointError, _configs, _families, _keys
from pellucid.checkpoints._assemble import (
    Part,
    Place,
    assemble,
    build,
    check_tokenizer,
    compare,
    same_names,
)
from pellucid.checkpoints._configs import Settings
from pellucid.checkpoints._families import REFINER, SD1, SD2, SDXL_BASE, Family
from pellucid.checkpoints._weights import Weights, open_weights
from pellucid.clip import TextConfig, TextTower
from pellucid.diffusion import PREDICTIONS
from pellucid.model import Model, Reading
from pellucid.plugins import choose
from pellucid.schedule import Schedule
from pellucid.tokenizer import Tokenizer
from pellucid.vae import VAE, VAEConfig

INDEX = "model_index.json"
TEXTS = ("text_encoder", "text_encoder_2")
# Names of the weights in a part's folder, without variant and ending: diffusers', transformers'.
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
VARIANTS = ("fp16", "bf16")  # before any other, where there are only variants
UNUSED_TEXT = ("position_ids", "logit_scale")


def unet_family(unet: UNetConfig, texts: Mapping[str, TextConfig]) -> Family:
    """Of which family a U-Net with these text towers is."""
    if len(texts) == 2:
        return SDXL_BASE
    if "text_encoder_2" in texts or unet.pooled_dim > 0:
        return REFINER
    return SD1 if texts["text_encoder"].activation == "quick_gelu" else SD2


@dataclass(frozen=True)
class Kind:
    """A kind of backbone in diffusers' layout, under the name of diffusers' class.

    folder: its folder, and its entry in model_index.json. config: its config.json, and the configs
    of the text towers in order, -> its config here. family: which family it and its towers, by
    their folders, make.
    """

    folder: str
    title: str
    network: type[nn.Module]
    config: Callable[[Settings, Sequence[TextConfig]], Any]
    family: Callable[[Any, Mapping[str, TextConfig]], Family]


BACKBONES: Mapping[str, Kind] = {
    "UNet2DConditionModel": Kind("unet", "U-Net", UNet, _configs.read_unet, unet_family),
}


@dataclass(frozen=True)
class Found:
    """What a folder holds, as far as its configs tell; configs by the names of their folders."""

    path: Path
    kind: Kind
    backbone: Any
    vae: VAEConfig
    texts: Mapping[str, TextConfig]
    family: Family
    reading: Reading
    schedule: Schedule
    prediction: str | None  # None: it can't be known
    trailing: bool  # its steps are to begin at the noisiest time
    others: tuple[str, ...]  # entries of the index that are not used

    @property
    def title(self) -> str:
        if isinstance(self.backbone, UNetConfig):
            return _families.variant(self.family, self.backbone.in_channels)
        return self.family.title


def matches(path: Path) -> bool:
    """Whether `path` is a folder with a model_index.json."""
    return (path / INDEX).is_file()


def read(
    path: Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = torch.float32,
    prediction: str | None = None,
) -> Model:
    """The model in the folder `path`; `prediction` None is what its scheduler's config says.

    Raises CheckpointError: a part or a config that is missing or is none that is known, keys that
    are missing, unknown or of the wrong shape, a prediction that can't be known.
    """
    found = examine(path, prediction)
    if found.prediction is None:
        raise CheckpointError(
            f"{path} is {found.title}, and has no scheduler/scheduler_config.json to say what it "
            "predicts: give --prediction eps (the 512 pixel models) or --prediction v (the 768 "
            "pixel models)"
        )
    tokenizer = read_tokenizer(path)
    for config in found.texts.values():
        check_tokenizer(path, tokenizer, config)
    parts, unused = _parts(found)
    assemble(path, parts, device, dtype, unused)
    texts = [part.module for name, part in parts.items() if name in TEXTS]
    vae, text, text_2 = parts["vae"].module, texts[0], texts[1] if len(texts) > 1 else None
    assert isinstance(vae, VAE) and isinstance(text, TextTower)
    assert text_2 is None or isinstance(text_2, TextTower)
    defaults = found.family.defaults(found.prediction)
    return Model(
        backbone=parts[found.kind.folder].module,
        vae=vae,
        text=text,
        tokenizer=tokenizer,
        schedule=found.schedule,
        prediction=found.prediction,
        name=path.resolve().name,
        text_2=text_2,
        reading=found.reading,
        defaults=replace(defaults, spacing="trailing") if found.trailing else defaults,
    )


def describe(path: Path, prediction: str | None = None) -> dict[str, Any]:
    """What `pellucid info` says of a folder, without reading the weights."""
    found = examine(path, prediction)
    parts, unused = _parts(found)
    compare(path, parts, unused)
    types: dict[str, int] = {}
    for part in parts.values():
        for stored in part.weights.values():
            name = str(stored.dtype).removeprefix("torch.")
            types[name] = types.get(name, 0) + 1
    names = {found.kind.folder: "backbone", "text_encoder": "text", "text_encoder_2": "text_2"}
    return {
        "format": "diffusers",
        "family": found.title,
        "parameters": {
            names.get(name, name): sum(p.numel() for p in part.module.parameters())
            for name, part in parts.items()
        },
        "types": types,
        "prediction": found.prediction or "not in the folder: give --prediction eps or v",
        "unused keys": unused,
        "unused parts": list(found.others),
    }


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
    if entries.get("vae") != "AutoencoderKL":
        raise CheckpointError(
            f"{path}: its autoencoder is {entries.get('vae', 'missing')}; AutoencoderKL is wanted"
        )
    texts = {folder: _text(path, folder, entries[folder]) for folder in TEXTS if folder in entries}
    if not texts:
        raise CheckpointError(f"{path} has no text encoder; a model needs one")
    config = kind.config(_settings(path, kind.folder, name), list(texts.values()))
    vae = _configs.read_vae(_settings(path, "vae", "AutoencoderKL"))
    family = kind.family(config, texts)
    schedule, told, trailing = _schedule(path, family)
    told = told if prediction is None else prediction
    if told is not None:
        choose(told, PREDICTIONS, "prediction")
    used = {kind.folder, "vae", "scheduler", *TEXTS, "tokenizer", "tokenizer_2"}
    found = Found(
        path=path,
        kind=kind,
        backbone=config,
        vae=vae,
        texts=texts,
        family=family,
        reading=_reading(path, index, family),
        schedule=schedule,
        prediction=told,
        trailing=trailing,
        others=tuple(entry for entry in entries if entry not in used),
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
    if name not in _configs.TEXT_CLASSES:
        raise CheckpointError(
            f"{path}: its {folder} is {name[:80]}; known are {', '.join(_configs.TEXT_CLASSES)}"
        )
    settings = Settings.open(path / folder / "config.json")
    return _configs.read_text(settings, _configs.TEXT_CLASSES[name])


def _schedule(path: Path, family: Family) -> tuple[Schedule, str | None, bool]:
    """The schedule, what is predicted if that is known, and whether steps begin at its end."""
    file = path / "scheduler" / "scheduler_config.json"
    if not file.exists():
        return family.schedule, family.prediction or None, False
    settings = Settings.open(file)
    schedule, prediction = _configs.read_schedule(settings)
    return schedule, prediction, settings.get("timestep_spacing") == "trailing"


def _reading(path: Path, index: Settings, family: Family) -> Reading:
    reading = family.reading
    if family is SD2:
        # Its tower is stored without the last layer, which SD2 does not use.
        reading = replace(reading, layer=-1)
    return replace(
        reading, zero_empty=index.flag("force_zeros_for_empty_prompt", reading.zero_empty)
    )


def _check(found: Found) -> None:
    """The parts fit each other."""
    path, channels = found.path, getattr(found.backbone, "out_channels", None)
    if channels not in (None, found.vae.latent_channels):
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
    assert found.title  # whose channels are known


# ---------------------------------------------------------------- weights


def _parts(found: Found) -> tuple[dict[str, Part], list[str]]:
    """The networks, on the meta device, and their weights; and the keys that are not needed."""
    path = found.path
    networks: dict[str, nn.Module] = {
        found.kind.folder: build(path, found.kind.title, found.kind.network, found.backbone),
        "vae": build(path, "VAE", VAE, found.vae),
    }
    for folder, config in found.texts.items():
        networks[folder] = build(path, "text tower", TextTower, config)
    parts, unused = {}, list[str]()
    for folder, network in networks.items():
        weights = open_weights(weights_of(path / folder))
        places = same_names(network)
        if isinstance(network, VAE):
            modern = {_keys.modern(key): value for key, value in weights.items()}
            weights = replace(weights, stored=modern)
            levels = _keys.vae_places(places, len(found.vae.block_out_channels))
            places = {name: Place(name, levels[name].layout) for name in places}
        elif isinstance(network, TextTower):
            level = any(key.startswith("text_model.") for key in weights)
            places = _keys.clip_places(places, level=level)
            unused += _unused_text(weights, found.texts[folder])
        parts[folder] = Part(network, weights, places)
    return parts, unused


def _unused_text(weights: Weights, config: TextConfig) -> list[str]:
    """What transformers leaves in the file of a text tower."""
    names = (
        UNUSED_TEXT if config.projection is not None else (*UNUSED_TEXT, "text_projection.weight")
    )
    return [key for key in weights if key.endswith(names)]


def weights_of(folder: Path) -> Path:
    """The file of weights in a part's folder, or the index of several.

    safetensors before pickles, the plain name before a variant. Raises CheckpointError if there is
    none.
    """
    for ending in ("safetensors", "bin"):
        found = [(_variant(path.name, ending), path) for path in _files(folder)]
        known = [(variant, path) for variant, path in found if variant is not None]
        if known:
            order = ["", *VARIANTS]
            return min(
                known,
                key=lambda pair: (
                    order.index(pair[0]) if pair[0] in order else len(order),
                    pair[1].name,
                ),
            )[1]
    raise CheckpointError(
        f"{folder} has no weights; {STEMS[0]}.safetensors or {STEMS[1]}.safetensors is wanted"
    )


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


# ---------------------------------------------------------------- the tokenizer


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer that is stored with the model; CLIP's own if none is."""
    for name in ("tokenizer", "tokenizer_2"):
        vocab, merges = path / name / "vocab.json", path / name / "merges.txt"
        if vocab.is_file() and merges.is_file():
            try:
                return Tokenizer.from_files(vocab, merges)
            except ValueError as error:
                raise CheckpointError(str(error)) from error
    return _families.clip_tokenizer()

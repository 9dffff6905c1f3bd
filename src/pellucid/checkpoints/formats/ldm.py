"""The original layout: one file with a U-Net, an autoencoder and text towers, under their prefixes.

Latent diffusion (Rombach et al. 2022) named the parameters; SD1, SD2, SDXL and its refiner are
published so, and most of what people have made of them. The file does not say what it is: that is
told from its keys and shapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pellucid.backbones.unet import UNet, UNetConfig
from pellucid.checkpoints import description, families, key_names, vae_files
from pellucid.checkpoints.assembly import (
    Part,
    Place,
    assemble,
    build,
    check_has_place,
    check_tokenizer,
    compare,
    extras_of,
    gather,
    same_when_read,
    write_file,
)
from pellucid.checkpoints.families import REFINER, SD1, SD2, SDXL_BASE, Family
from pellucid.checkpoints.header import CheckpointError, UnknownPrediction, first_keys, read_header
from pellucid.checkpoints.weights import Stored, Weights, is_index, is_pickle, open_weights
from pellucid.clip import TextConfig, TextTower
from pellucid.diffusion import PREDICTIONS
from pellucid.model import Model, TextEncoding
from pellucid.plugins import choose
from pellucid.schedule import Schedule
from pellucid.vae import VAE, VAEConfig

UNET = "model.diffusion_model."
EMA = "model_ema.diffusion_model"
TEXTS: Mapping[str, tuple[str, ...]] = {
    "sd1": ("cond_stage_model.transformer.",),
    "sd2": ("cond_stage_model.model.",),
    "sdxl": ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."),
    "sdxl_refiner": ("conditioner.embedders.0.model.",),
}
CONTEXTS = {768: SD1, 1024: SD2, 2048: SDXL_BASE, 1280: REFINER}

# What trainers and tools leave in a file beside the weights; nothing that is needed for drawing.
UNUSED = re.compile(
    r"model_ema\.|first_stage_model\.(loss|model_ema|discriminator)\.|embedding_manager\.|"
    r"(cond_stage_model|conditioner)\..*(position_ids|logit_scale|attn_mask)$|"
    r"(cond_stage_model|conditioner\.embedders\.0)\.transformer\.text_projection(\.weight)?$|"
    r"(cond_stage_model|conditioner\.embedders\.\d)\.model\.visual\.|"
    r"(betas|(sqrt_|log_)?(one_minus_)?alphas_cumprod(_prev)?|sqrt_recipm?1?_alphas_cumprod|"
    r"posterior_(variance|log_variance_clipped|mean_coef[12])|lvlb_weights|logvar|scale_factor|"
    r"denoiser\.sigmas|v_pred|ztsnr)$"
)
MARKS = ("v_pred", "ztsnr")  # empty tensors, which say what the network predicts
YAML_V = re.compile(r"""^\s*parameterization\s*:\s*["']?(\w+)""", re.MULTILINE)


@dataclass(frozen=True)
class Found:
    """What a file holds, as far as its header tells."""

    weights: Weights
    stored: Mapping[str, Stored]  # by the names that are used below
    family: Family
    unet: UNetConfig
    vae: VAEConfig | None  # None: it has none
    texts: tuple[TextConfig, ...]
    text_encoding: TextEncoding
    schedule: Schedule
    prediction: str | None  # None: it can't be known
    averaged: bool  # the U-Net is there only as the average that training kept
    unused: tuple[str, ...]

    @property
    def title(self) -> str:
        return families.variant(self.family, self.unet.in_channels)


def matches(path: Path) -> bool:
    """Whether `path` is one file (or an index of several) in the original layout, or a pickle."""
    if not path.is_file():
        return False
    if is_pickle(path):
        return True
    try:
        keys = open_weights(path) if is_index(path) else read_header(path)
    except CheckpointError:
        return False
    heads = (UNET, EMA, vae_files.PREFIXES[0], "cond_stage_model.", "conditioner.")
    return any(key.removeprefix(vae_files.NEST).startswith(heads) for key in keys)


def read(
    path: Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = torch.float32,
    prediction: str | None = None,
    vae: Path | None = None,
) -> Model:
    """The model in `path`.

    prediction: what it predicts, "eps" or "v", where the file does not say so (SD2). vae: the file
    or folder of an autoencoder that it gets instead of its own.
    Raises CheckpointError: parts that are missing, keys that are missing, unknown or of the wrong
    shape, a prediction that can't be known.
    """
    found = examine(path, prediction)
    if vae is None and found.vae is None:
        raise CheckpointError(
            f"{path} is {found.title} without its autoencoder (first_stage_model.*), as some merges "
            f"are: {vae_files.GIVE}"
        )
    parts, unused = _parts(path, found, vae)
    if found.prediction is None:
        compare(path, parts, unused)
        raise UnknownPrediction(path, found.title, "its weights do not say what they predict")
    assemble(path, parts, device, dtype, unused)
    texts = [parts[name].module for name in ("text", "text_2") if name in parts]
    text, text_2 = texts[0], texts[1] if len(texts) > 1 else None
    tokenizer = families.clip_tokenizer()
    for config in found.texts:
        check_tokenizer(path, tokenizer, config)
    autoencoder = parts["vae"].module
    assert isinstance(autoencoder, VAE) and isinstance(text, TextTower)
    assert text_2 is None or isinstance(text_2, TextTower)
    return Model(
        backbone=parts["backbone"].module,
        vae=autoencoder,
        text=text,
        tokenizer=tokenizer,
        schedule=found.schedule,
        prediction=found.prediction,
        name=Path(path.name.removesuffix(".index.json")).stem,
        text_2=text_2,
        text_encoding=found.text_encoding,
        defaults=found.family.defaults(found.prediction),
    )


def describe(path: Path, prediction: str | None = None) -> dict[str, Any]:
    """What `pellucid info` says of a file, from its header alone."""
    found = examine(path, prediction)
    parts, unused = _parts(path, found)
    compare(path, parts, unused)
    facts = description.model(
        form="ldm" + (" (pickle)" if found.weights.pickled else ""),
        family=found.title,
        channels=found.unet.out_channels,
        parts=parts,
        prediction=found.prediction,
        schedule=found.schedule,
        defaults=found.family.defaults(found.prediction or "eps"),
        tokenizer=families.clip_tokenizer(),
        unused=found.unused,
    )
    # The U-Net may be there only as the average that training kept.
    return facts | {"averaged": found.averaged}


# ---------------------------------------------------------------- what a file holds


def examine(path: Path, prediction: str | None = None) -> Found:
    """What `path` holds, from keys and shapes. Raises CheckpointError if that is no whole model."""
    weights = open_weights(path)
    stored = {key.removeprefix(vae_files.NEST): value for key, value in weights.items()}
    if len(stored) != len(weights):
        raise CheckpointError(f"{path} has keys twice, with and without {vae_files.NEST!r}")
    stored, averaged = _without_dots(stored)
    shapes = {key: value.shape for key, value in stored.items()}
    family = _family(path, weights, shapes)
    prefix = vae_files.prefix_of(shapes)
    texts = _under(shapes)
    try:
        unet = families.unet_config(vae_files.under(shapes, UNET), family)
        inside = vae_files.under(shapes, prefix) if prefix else {}
        vae = families.vae_config(inside, family.vae) if inside else None
        towers = tuple(_tower(texts[start]) for start in TEXTS[family.name] if start in texts)
        families.variant(family, unet.in_channels)
    except (CheckpointError, ValueError, TypeError, IndexError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (KeyError, StopIteration) as error:
        raise CheckpointError(
            f"{path} is {family.title} with keys missing: {' '.join(map(str, error.args))}"
        ) from error
    _check(path, family, unet, vae, towers)
    told = _prediction(path, family, unet, weights, stored) if prediction is None else prediction
    if told is not None:
        choose(told, [kind for kind in PREDICTIONS if kind != "flow"], "prediction")
    reading = families.sd2_reading(towers[0]) if family is SD2 else family.text_encoding
    zero_snr = told == "v" and "ztsnr" in stored
    heard = MARKS if told == "v" else ()
    unused = tuple(key for key in stored if UNUSED.match(key) and key not in heard)
    return Found(
        weights=weights,
        stored=stored,
        family=family,
        unet=unet,
        vae=vae,
        texts=towers,
        text_encoding=reading,
        schedule=replace(family.schedule, zero_terminal_snr=zero_snr),
        prediction=told,
        averaged=averaged,
        unused=unused,
    )


def _without_dots(stored: Mapping[str, Stored]) -> tuple[dict[str, Stored], bool]:
    """Where the U-Net is there only as training's running average, that under the plain names."""
    if any(key.startswith(UNET) for key in stored) or not any(k.startswith(EMA) for k in stored):
        return dict(stored), False
    renamed = {}
    for key, value in stored.items():
        plain = key_names.dotted(key.removeprefix(EMA)) if key.startswith(EMA) else None
        renamed[key if plain is None else UNET + plain] = value
    return renamed, True


def _under(shapes: families.Shapes) -> dict[str, dict[str, tuple[int, ...]]]:
    """The text towers that are there, by prefix."""
    starts = dict.fromkeys(start for starts in TEXTS.values() for start in starts)
    return {start: inside for start in starts if (inside := vae_files.under(shapes, start))}


def _family(path: Path, weights: Weights, shapes: families.Shapes) -> Family:
    if any(key.startswith(f"{UNET}joint_blocks.") for key in shapes):
        raise CheckpointError(
            f"{path} is Stable Diffusion 3 as a single file; its diffusers folder can be read"
        )
    if not any(key.startswith(UNET) for key in shapes):
        what = families.what_is(shapes)
        if what is not None:
            raise CheckpointError(f"{path} is {families.not_a_model(what)}")
        start = " is a pickle (torch.save), and" if weights.pickled else ":"
        raise CheckpointError(
            f"{path}{start} its keys are no model's; they begin with {first_keys(shapes)}"
        )
    if {"edm_mean", "edm_std", "edm_vpred.sigma_max"} & shapes.keys():
        raise CheckpointError(
            f"{path} was trained with EDM's noise levels (Playground 2.5, CosXL), which are not read"
        )
    if any(key.startswith("conditioner.embedders.1.") for key in shapes):
        return _complete(path, SDXL_BASE, shapes)
    for family in (REFINER, SDXL_BASE, SD2, SD1):
        if any(key.startswith(TEXTS[family.name][0]) for key in shapes):
            return _complete(path, family, shapes)
    seen = next((s for k, s in shapes.items() if k.endswith("attn2.to_k.weight")), ())
    family_seen = CONTEXTS.get(seen[-1]) if seen else None
    title = "a U-Net of an unknown family" if family_seen is None else family_seen.title
    raise CheckpointError(
        f"{path} is {title} without its text encoder (cond_stage_model.* or conditioner.*), as some "
        "merges are; a whole checkpoint is wanted"
    )


def _complete(path: Path, family: Family, shapes: families.Shapes) -> Family:
    for start in TEXTS[family.name]:
        if not any(key.startswith(start) for key in shapes):
            raise CheckpointError(
                f"{path} is {family.title} without its text encoder {start}*; a whole checkpoint "
                "is wanted"
            )
    return family


def _tower(shapes: families.Shapes) -> TextConfig:
    if any(key.startswith("transformer.resblocks.") for key in shapes):
        return families.open_clip_config(shapes)
    return families.clip_config(_leveled(shapes))


def _leveled(shapes: families.Shapes) -> dict[str, tuple[int, ...]]:
    """Hugging Face's names with the level "text_model." that the oldest files do not have."""
    if any(key.startswith("text_model.") for key in shapes):
        return dict(shapes)
    return {f"text_model.{key}": shape for key, shape in shapes.items()}


def _check(
    path: Path,
    family: Family,
    unet: UNetConfig,
    vae: VAEConfig | None,
    towers: tuple[TextConfig, ...],
) -> None:
    """The parts of a file fit each other."""
    if vae is not None and unet.out_channels != vae.latent_channels:
        raise CheckpointError(
            f"{path}: its U-Net makes {unet.out_channels} channels, its autoencoder takes "
            f"{vae.latent_channels}"
        )
    width = sum(tower.width for tower in towers)
    if unet.cross_attention_dim != width:
        raise CheckpointError(
            f"{path}: its U-Net sees texts of width {unet.cross_attention_dim}, its text encoders "
            f"make {width}; {family.title} has {_published(family)}"
        )
    if unet.pooled_dim > 0 and unet.pooled_dim != towers[-1].projection:
        raise CheckpointError(
            f"{path}: its U-Net takes pooled texts of width {unet.pooled_dim}, its text encoder "
            f"makes {towers[-1].projection}"
        )


def _published(family: Family) -> int:
    assert family.unet is not None
    return family.unet.cross_attention_dim


def _prediction(
    path: Path,
    family: Family,
    unet: UNetConfig,
    weights: Weights,
    stored: Mapping[str, Stored],
) -> str | None:
    """What the file, or the config beside it, says that the network predicts."""
    if "v_pred" in stored:
        return "v"
    said = weights.metadata.get("modelspec.prediction_type", "")  # Stability's ModelSpec
    if said in ("v", "epsilon"):
        return "v" if said == "v" else "eps"
    config = path.with_suffix(".yaml")
    try:
        text = config.read_text("utf-8") if config.is_file() else ""
    except (OSError, ValueError):
        text = ""
    if found := YAML_V.search(text):
        return {"v": "v", "eps": "eps", "x0": "x0"}.get(found[1])
    if "ldm.models.diffusion" in text:  # whose own default it is
        return "eps"
    # All inpainting models of SD2 predict the noise.
    return family.prediction or ("eps" if unet.in_channels == 9 else None)


def _parts(
    path: Path, found: Found, vae: Path | None = None
) -> tuple[dict[str, Part], tuple[str, ...]]:
    """The networks, on the meta device, and where the file has their parameters; and the keys that
    are not needed. vae: as in `read`."""
    networks: dict[str, nn.Module] = {"backbone": build(path, "U-Net", UNet, found.unet)}
    if vae is None and found.vae is not None:
        networks["vae"] = build(path, "VAE", VAE, found.vae)
    for name, config in zip(("text", "text_2"), found.texts, strict=False):
        networks[name] = build(path, "text tower", TextTower, config)
    prefix = vae_files.prefix_of(found.stored) or vae_files.PREFIXES[0]
    level = any(key.startswith(f"{TEXTS['sd1'][0]}text_model.") for key in found.stored)
    places = _places(path, networks, found.family, prefix, level or found.family is not SD1)
    parts = {name: Part(network, found.stored, places[name]) for name, network in networks.items()}
    unused = (*found.unused, *MARKS)
    if vae is not None:
        parts["vae"], more = vae_files.instead(
            vae, found.unet.out_channels, found.vae, found.family.vae
        )
        unused += (*more, *(key for key in found.stored if key.startswith(prefix)))
    return parts, unused


def _places(
    path: Path,
    networks: Mapping[str, nn.Module],
    family: Family,
    vae: str = vae_files.PREFIXES[0],
    level: bool = True,
) -> dict[str, dict[str, Place]]:
    places = {}
    try:
        for name, network in networks.items():
            names = network.state_dict()
            if isinstance(network, UNet):
                places[name] = key_names.unet_places(names, network.config, UNET)
            elif isinstance(network, VAE):
                levels = len(network.config.block_out_channels)
                places[name] = key_names.vae_places(names, levels, vae)
            else:
                prefix = TEXTS[family.name][0 if name == "text" else 1]
                if prefix.endswith("transformer."):
                    places[name] = key_names.clip_places(names, prefix, level)
                else:
                    places[name] = key_names.open_clip_places(names, prefix)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return places


# ---------------------------------------------------------------- writing


def write(model: Model, path: Path, dtype: torch.dtype | None = None) -> tuple[str, ...]:
    """Write `model` to `path`; `dtype` None keeps the weights as they are. What was left out.

    Raises CheckpointError for a model that the layout has no place for, and for one that would be
    read as something else, because what the file does not say is the family's.
    """
    path = Path(path)
    family = family_of(path, model)
    check_has_place(path, "the original layout", model, tokenizer=False)
    networks: dict[str, nn.Module] = {
        "backbone": model.backbone,
        "vae": model.vae,
        "text": model.text,
    }
    if model.text_2 is not None:
        networks["text_2"] = model.text_2
    places = _places(path, networks, family)
    weights = gather(path, {name: (networks[name], places[name]) for name in networks}, dtype)
    _would_be_read(path, model, family, {key: tuple(w.shape) for key, w in weights.items()})
    if model.prediction == "v":
        weights["v_pred"] = torch.tensor([])
        if model.schedule.zero_terminal_snr:
            weights["ztsnr"] = torch.tensor([])
    metadata = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": model.name,
        "modelspec.prediction_type": "v" if model.prediction == "v" else "epsilon",
    }
    write_file(path, weights, metadata)
    return extras_of(model)


def family_of(path: Path, model: Model) -> Family:
    """The family that `model` is of. Raises CheckpointError if the layout has no place for it."""
    if not isinstance(model.backbone, UNet):
        raise CheckpointError(
            f"{path} was not written: the original layout is for U-Nets, and the backbone is a "
            f"{type(model.backbone).__name__}"
        )
    if model.text_2 is not None:
        return SDXL_BASE
    if model.text.config.activation == "quick_gelu":
        return SD1
    return REFINER if model.backbone.config.pooled_dim > 0 else SD2


def _would_be_read(
    path: Path, model: Model, family: Family, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    assert isinstance(model.backbone, UNet)
    texts = _under(shapes)
    starts = TEXTS[family.name]
    towers = [model.text] if model.text_2 is None else [model.text, model.text_2]
    try:
        read_unet = families.unet_config(vae_files.under(shapes, UNET), family)
        read_vae = families.vae_config(vae_files.under(shapes, vae_files.PREFIXES[0]), family.vae)
        read_texts = [_tower(texts[start]) for start in starts]
        families.variant(family, read_unet.in_channels)
    except (CheckpointError, KeyError, ValueError, StopIteration) as error:
        raise CheckpointError(
            f"{path} was not written: {model.name} has no place in it: {error}"
        ) from error
    reading = families.sd2_reading(read_texts[0]) if family is SD2 else family.text_encoding
    zero_snr = model.prediction == "v" and model.schedule.zero_terminal_snr
    schedule = replace(family.schedule, zero_terminal_snr=zero_snr)
    said = model.prediction if model.prediction in ("eps", "v") else "eps"
    pairs: list[tuple[str, Any, Any]] = [
        ("this U-Net", model.backbone.config, read_unet),
        ("this autoencoder", model.vae.config, read_vae),
        *(
            ("this text encoder", tower.config, read)
            for tower, read in zip(towers, read_texts, strict=True)
        ),
        ("this reading of the text encoders", model.text_encoding, reading),
        ("this schedule", model.schedule, schedule),
        ("the prediction", model.prediction, said),
    ]
    for what, has, read in pairs:
        same_when_read(path, "the original layout", what, has, read)

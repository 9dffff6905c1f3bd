"""The original layout: one file with a U-Net, an autoencoder and text towers, under their prefixes.

Latent diffusion (Rombach et al. 2022) named the parameters; SD1, SD2, SDXL and its refiner are
published so, and most models derived from them. The file does not say what it is: its keys and
shapes show that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from pellucid.backbones.unet import UNet, UNetConfig
from pellucid.checkpoints import families, tokenizer_files
from pellucid.checkpoints.assembly import Location, Part
from pellucid.checkpoints.contents import Configs, Contents
from pellucid.checkpoints.families import OPEN_CLIP, Family, Tower, Traits
from pellucid.checkpoints.key_names import (
    EMA_PREFIX,
    NEST,
    UNET_PREFIX,
    VAE_PREFIXES,
    clip_locations,
    dotted,
    open_clip_locations,
    prefix_of,
    unet_locations,
    vae_locations,
)
from pellucid.checkpoints.shapes import (
    Shapes,
    text_config,
    under,
    unet_config,
    vae_config,
)
from pellucid.checkpoints.weights import CheckpointSource, Stored, Weights
from pellucid.checkpoints.writing import (
    EMPTY,
    Read,
    check_has_place,
    extras_of,
    gather,
    same_when_read,
)
from pellucid.checkpoints.writing import write as write_file
from pellucid.clip import TextTower
from pellucid.diffusion import PREDICTIONS
from pellucid.files import read_text
from pellucid.model import Model
from pellucid.plugins import choose
from pellucid.safetensors_header import CheckpointError
from pellucid.vae import VAE

# What trainers and tools leave in a file next to the weights, and drawing does not need.
UNUSED = re.compile(
    r"model_ema\.|first_stage_model\.(loss|model_ema|discriminator)\.|embedding_manager\.|"
    r"(cond_stage_model|conditioner)\..*(position_ids|logit_scale|attn_mask)$|"
    r"(cond_stage_model|conditioner\.embedders\.0)\.transformer\.text_projection(\.weight)?$|"
    r"(cond_stage_model|conditioner\.embedders\.\d)\.model\.visual\.|"
    r"(betas|(sqrt_|log_)?(one_minus_)?alphas_cumprod(_prev)?|sqrt_recipm?1?_alphas_cumprod|"
    r"posterior_(variance|log_variance_clipped|mean_coef[12])|lvlb_weights|logvar|scale_factor|"
    r"denoiser\.sigmas|v_pred|ztsnr)$"
)
MARKS = ("v_pred", "ztsnr")  # empty tensors, which mean v prediction, and zero terminal SNR
YAML_COMMENT = re.compile(r"(^|\s)#.*")
# What the configs of latent diffusion, and of its successor SGM, call the prediction and the noise
# levels -> the prediction. All other scalings and discretizers have other noise levels.
YAML_WORDS: Mapping[re.Pattern[str], Mapping[str, str | None]] = {
    re.compile(r"\bdiscretizer\.(\w+)"): {"LegacyDDPMDiscretization": None},
    re.compile(r"\bdenoiser_scaling\.(\w+)"): {"VScaling": "v", "EpsScaling": "eps"},
    re.compile(r"""\bparameterization["']?\s*:\s*["']?(\w+)"""): {
        "v": "v",
        "eps": "eps",
        "x0": "x0",
    },
}
MODELSPEC = "modelspec.prediction_type"
# Its values in Stability's ModelSpec, and as diffusers and trainers write them.
SPECIFIED = {"epsilon": "eps", "eps": "eps", "v": "v", "v_prediction": "v", "sample": "x0"}
TEXTS = ("text", "text_2")


def matches(source: CheckpointSource) -> bool:
    """Whether it is one file (or an index of several) with a U-Net under the original prefix."""
    heads = (UNET_PREFIX, EMA_PREFIX)
    return any(key.removeprefix(NEST).startswith(heads) for key in source.keys)


def examine(source: CheckpointSource, prediction: str | None = None) -> Contents:
    """What a file holds, by its keys and shapes.

    prediction: what the network predicts, if the file does not say so (SD2).
    Raises CheckpointError: parts that are missing, another model.
    """
    path, weights = source.path, source.weights
    stored = {key.removeprefix(NEST): value for key, value in weights.items()}
    if len(stored) != len(weights):
        raise CheckpointError(f"{path} has keys twice, with and without {NEST!r}")
    stored, averaged = _without_dots(stored)
    shapes = {key: value.shape for key, value in stored.items()}
    configs = _configs(path, _family(path, shapes), shapes)
    configs.check(path)
    for tower, text in zip(configs.family.towers, configs.texts.values(), strict=True):
        if text.activation != tower.config.activation:
            raise CheckpointError(
                f"{path}: its text encoder {tower.prefix}* has OpenCLIP's names, for the activation "
                f"{text.activation}; {configs.family.title} has {tower.config.activation}"
            )
    prediction = prediction or _prediction(path, configs, weights)
    if prediction is not None:
        choose(prediction, [kind for kind in PREDICTIONS if kind != "flow"], "prediction")
    zero_snr = prediction == "v" and "ztsnr" in stored
    schedule = replace(configs.family.schedule, zero_terminal_snr=zero_snr)
    configs = replace(configs, prediction=prediction, schedule=schedule)
    if prediction == "v":
        stored = {key: value for key, value in stored.items() if key not in MARKS}
    networks = configs.build(path)
    prefix = prefix_of(stored, VAE_PREFIXES) or VAE_PREFIXES[0]
    locations = _locations(path, networks, configs.family, prefix, stored)
    return Contents.of(
        path,
        configs,
        parts={name: Part(networks[name], stored, locations[name]) for name in networks},
        form="ldm" + (" (pickle)" if weights.pickled else ""),
        name=Path(path.name.removesuffix(".index.json")).stem,
        tokenizer=tokenizer_files.clip_tokenizer(),
        vae_place=f"{VAE_PREFIXES[0]}*",
        vae_prefix=prefix,
        unused=tuple(key for key in stored if UNUSED.match(key)),
        facts={"averaged": averaged},  # the U-Net is there only as the average that training kept
    )


def _without_dots(stored: Mapping[str, Stored]) -> tuple[dict[str, Stored], bool]:
    """If the U-Net is there only as training's running average, that one under the plain names."""
    if any(key.startswith(UNET_PREFIX) for key in stored):
        return dict(stored), False
    renamed = {}
    for key, value in stored.items():
        plain = dotted(key.removeprefix(EMA_PREFIX)) if key.startswith(EMA_PREFIX) else None
        renamed[key if plain is None else UNET_PREFIX + plain] = value
    return renamed, True


def _configs(path: Path, family: Family, shapes: Shapes) -> Configs:
    """The configs of the parts. Raises CheckpointError."""
    prefix = prefix_of(shapes, VAE_PREFIXES)
    try:
        unet = unet_config(under(shapes, UNET_PREFIX), family.backbone)
        vae = vae_config(under(shapes, prefix), family.vae) if prefix else None
        texts = [
            text_config(under(shapes, _prefix(shapes, tower) or tower.prefix), tower.config)
            for tower in family.towers
        ]
        family.use_of(unet)
    except (CheckpointError, ValueError, TypeError, IndexError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (KeyError, StopIteration) as error:
        raise CheckpointError(
            f"{path} is {family.title} with keys missing: {' '.join(map(str, error.args))}"
        ) from error
    encoding = family.encoding_for(unet, texts)
    named = dict(zip(TEXTS, texts, strict=False))
    return Configs(family, unet, vae, named, encoding, family.schedule, family.prediction or None)


def _family(path: Path, shapes: Shapes) -> Family:
    """The family of a file. Raises CheckpointError for one that is not supported or not complete."""
    if any(key.startswith(f"{UNET_PREFIX}joint_blocks.") for key in shapes):
        raise CheckpointError(
            f"{path} is Stable Diffusion 3 as a single file; its diffusers folder can be read"
        )
    if {"edm_mean", "edm_std", "edm_vpred.sigma_max"} & shapes.keys():
        raise CheckpointError(
            f"{path} was trained with EDM's noise levels (Playground 2.5, CosXL), which are not "
            "supported"
        )
    known = [family for family in families.known().values() if family.towers[0].prefix]
    towers = {tower.prefix: tower for family in known for tower in family.towers}.values()
    stems = {tower.prefixes[0].rsplit(".", 2)[0] for tower in towers if _prefix(shapes, tower)}
    context = next((s[-1] for k, s in shapes.items() if s and k.endswith("attn2.to_k.weight")), 0)
    if not stems:
        seen = families.by_context(UNetConfig, context)
        raise CheckpointError(
            f"{path} is {'a U-Net of an unknown family' if seen is None else seen.title} without "
            "its text encoder (cond_stage_model.* or conditioner.*), as some merges are; expected a "
            "whole checkpoint"
        )
    projections = (s for k, s in shapes.items() if k.endswith("1.proj_in.weight"))
    traits = Traits(
        pooled=f"{UNET_PREFIX}label_emb.0.0.weight" in shapes,
        context=context,
        linear=len(next(projections, ())) == 2,
        levels=1 + sum(k.startswith(UNET_PREFIX) and k.endswith(".0.op.weight") for k in shapes),
        towers=len(stems),
        activations=(),  # the U-Net decides, and the towers must agree with it
        latent_channels=next(iter(shapes.get(f"{UNET_PREFIX}out.2.weight", ())), 0),
    )
    family = families.closest(traits, known, partial(_has_backbone, shapes))
    assert family is not None
    if missing := [tower.prefix for tower in family.towers if not _prefix(shapes, tower)]:
        raise CheckpointError(
            f"{path} is {family.title} without its text encoder {missing[0]}*; expected a whole "
            "checkpoint"
        )
    return family


def _has_backbone(shapes: Shapes, family: Family) -> bool:
    """Whether the U-Net is exactly the published one of a family."""
    try:
        config = unet_config(under(shapes, UNET_PREFIX), family.backbone)
    except (ValueError, KeyError, IndexError, StopIteration):  # reported when the configs are read
        return False
    return families.same_backbone(config, family)


def _prefix(keys: Iterable[str], tower: Tower) -> str | None:
    """The prefix of a text tower's keys in a file; None if it is not there."""
    return prefix_of(keys, tower.prefixes)


def _prediction(path: Path, configs: Configs, weights: Weights) -> str | None:
    """What the network predicts according to the file, or to the config next to it.

    The config counts more than the metadata: trainers write those, and people put a config there.
    Raises CheckpointError for a config with a prediction or noise levels that are not supported.
    """
    if "v_pred" in weights or f"{NEST}v_pred" in weights:
        return "v"
    config = path.with_suffix(".yaml")
    text = YAML_COMMENT.sub("", _config(config)) if config.is_file() else ""
    said = None
    for pattern, meanings in YAML_WORDS.items():
        for name in pattern.findall(text):
            if name not in meanings:
                raise CheckpointError(
                    f"{config} names {name[:80]!r}, which is not supported; known are "
                    f"{', '.join(meanings)}"
                )
            said = meanings[name] or said
    named = weights.metadata.get(MODELSPEC, "").strip().lower()
    if said is None and named:
        if named not in SPECIFIED:
            raise CheckpointError(
                f"{path}: its metadata say {MODELSPEC} {named[:80]!r}, which is not supported; known "
                f"are {', '.join(SPECIFIED)}"
            )
        said = SPECIFIED[named]
    if said is not None:
        return said
    if "ldm.models.diffusion" in text:  # whose own default it is
        return "eps"
    # All inpainting models of SD2 predict the noise.
    inpainting = configs.family.use_of(configs.backbone).title == "inpainting"
    return configs.family.prediction or ("eps" if inpainting else None)


def _config(path: Path) -> str:
    """The text of a config next to a file. Raises CheckpointError if it cannot be read."""
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}, the config of the model, cannot be read: {error}"
        ) from error


def _locations(
    path: Path,
    networks: Mapping[str, nn.Module],
    family: Family,
    vae: str = VAE_PREFIXES[0],
    keys: Mapping[str, Stored] | None = None,
) -> dict[str, dict[str, Location]]:
    """Where the parameters of each network are; keys: those of a file that is read."""
    locations = {}
    try:
        for name, network in networks.items():
            names = network.state_dict()
            if isinstance(network, UNet):
                locations[name] = unet_locations(names, network.config, UNET_PREFIX)
            elif isinstance(network, VAE):
                levels = len(network.config.block_out_channels)
                locations[name] = vae_locations(names, levels, vae)
            else:
                tower = family.towers[TEXTS.index(name)]
                prefix = _prefix(keys or (), tower) or tower.prefix
                if prefix.endswith(OPEN_CLIP):
                    locations[name] = open_clip_locations(names, prefix)
                else:
                    level = keys is None or bool(prefix_of(keys, (f"{prefix}text_model.",)))
                    locations[name] = clip_locations(names, prefix, level)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return locations


# ---------------------------------------------------------------- writing


def write(
    model: Model,
    path: Path,
    dtype: torch.dtype | None = None,
    read: Read | None = None,
    about: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Write `model` to `path`; `dtype` None keeps the weights as they are. Returns what was left out.

    read: as in `gather`. about: further metadata.
    Raises CheckpointError for a model that the layout has no place for, and for one that would be
    read as something else, because what the file does not say is the family's.
    """
    if not holds(model):
        raise CheckpointError(
            f"{path} was not written: the original layout is for U-Nets, and the backbone is a "
            f"{type(model.backbone).__name__}"
        )
    check_has_place(path, "the original layout", model, tokenizer=False)
    family, towers = families.nearest_to(model), model.towers
    assert family is not None  # some family has a U-Net and as many towers
    networks: dict[str, nn.Module] = {"backbone": model.backbone, "vae": model.vae, **towers}
    locations = _locations(path, networks, family)
    located = {name: (networks[name], locations[name]) for name in networks}
    weights = gather(path, located, dtype, read)
    _check_is_read(path, model, towers, family, {k: w.shape for k, w in weights.items()})
    if model.prediction == "v":
        weights["v_pred"] = EMPTY
        if model.schedule.zero_terminal_snr:
            weights["ztsnr"] = EMPTY
    metadata = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": model.name,
        "modelspec.prediction_type": "v" if model.prediction == "v" else "epsilon",
    }
    write_file(path, weights, metadata | dict(about or {}))
    return extras_of(model)


def holds(model: Model) -> bool:
    """Whether the layout is for models with this kind of backbone."""
    return isinstance(model.backbone, UNet)


def _check_is_read(
    path: Path, model: Model, towers: Mapping[str, TextTower], family: Family, shapes: Shapes
) -> None:
    """Check that a file with these shapes would be read as this model. Raises CheckpointError."""
    try:
        configs = _configs(path, family, shapes)
    except CheckpointError as error:
        raise CheckpointError(
            f"{path} was not written: {model.name} does not fit: {error}"
        ) from error
    prediction = model.prediction if model.prediction in ("eps", "v") else "eps"
    zero_snr = prediction == "v" and model.schedule.zero_terminal_snr
    schedule = replace(family.schedule, zero_terminal_snr=zero_snr)
    read = replace(configs, prediction=prediction, schedule=schedule)
    pairs = read.compared(model, towers, model.text_encoding)
    same_when_read(path, "the original layout", pairs)

"""Which classes of diffusers and transformers make a model: what model_index.json lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from pellucid.backbones.mmdit import MMDiT
from pellucid.backbones.unet import UNet, UNetConfig
from pellucid.checkpoints import configs, mmdit_config
from pellucid.checkpoints.configs import Settings
from pellucid.checkpoints.families import REFINER, SD1, SD2, SD3, SDXL_BASE, Family, variant
from pellucid.clip import TextConfig, TextTower
from pellucid.model import Model, TextEncoding

TEXTS = ("text_encoder", "text_encoder_2")


def unet_family(unet: UNetConfig, texts: Mapping[str, TextConfig]) -> Family:
    """Of which family a U-Net with these text towers is."""
    if len(texts) == 2:
        return SDXL_BASE
    if "text_encoder_2" in texts or unet.pooled_dim > 0:
        return REFINER
    return SD1 if texts["text_encoder"].activation == "quick_gelu" else SD2


def title(family: Family, backbone: Any) -> str:
    """The family's, and what this backbone is for. CheckpointError if that is not known."""
    if not isinstance(backbone, UNetConfig):
        return family.title
    return variant(family, backbone.in_channels)


@dataclass(frozen=True)
class Kind:
    """A kind of backbone in diffusers' layout, under the name of diffusers' class.

    folder: its folder, and its entry in model_index.json. config: its config.json, and the configs
    of the text towers in order, -> its config here. written: its config here, and a side of the
    latents that it draws by default, -> config.json. family: which family it and its towers, by
    their folders, make.
    """

    folder: str
    title: str
    network: type[nn.Module]
    config: Callable[[Settings, Sequence[TextConfig]], Any]
    written: Callable[[Any, int], dict[str, Any]]
    family: Callable[[Any, Mapping[str, TextConfig]], Family]


BACKBONES: Mapping[str, Kind] = {
    "UNet2DConditionModel": Kind(
        "unet", "U-Net", UNet, configs.read_unet, configs.write_unet, unet_family
    ),
    "SD3Transformer2DModel": Kind(
        "transformer", "MMDiT", MMDiT, mmdit_config.read, mmdit_config.write, mmdit_config.family
    ),
}


def family_of(
    backbone: nn.Module, texts: Sequence[TextConfig], reading: TextEncoding
) -> Family | None:
    """That of Stable Diffusion which a model of these parts is of; None for any other model, which
    leaves to its tokenizer what rows are filled up with."""
    kind = next((kind for kind in BACKBONES.values() if type(backbone) is kind.network), None)
    if kind is None or not reading.pads:
        return None
    return kind.family(backbone.config, dict(zip(TEXTS, texts, strict=False)))


# diffusers' names of pipelines are these, what the network is for, and "Pipeline".
PIPELINES = {
    SD1.name: "StableDiffusion",
    SD2.name: "StableDiffusion",
    SDXL_BASE.name: "StableDiffusionXL",
    REFINER.name: "StableDiffusionXL",
    SD3.name: "StableDiffusion3",
}
USES = {4: "", 9: "Inpaint", 8: "InstructPix2Pix"}  # by the channels that a U-Net sees
# The release of diffusers whose layout is written; its pipeline for inpainting asks for it.
VERSION = "0.30.0"


def index(
    model: Model, name: str, family: Family, towers: Mapping[str, TextTower], scheduler: str
) -> dict[str, Any]:
    use = USES.get(getattr(model.backbone.config, "in_channels", 4), "")
    if family is REFINER:
        use = use or "Img2Img"
    entries: dict[str, Any] = {
        "_class_name": f"{PIPELINES[family.name]}{use}Pipeline",
        "_diffusers_version": VERSION,
        BACKBONES[name].folder: ["diffusers", name],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", scheduler],
    }
    for text in TEXTS[: len(TEXTS) if "text_encoder_2" in towers else 1]:
        tower, tokenizer = towers.get(text), text.replace("text_encoder", "tokenizer")
        projected = tower is not None and tower.config.projection is not None
        kind = next(k for k, known in configs.TEXT_CLASSES.items() if known == projected)
        entries[text] = [None, None] if tower is None else ["transformers", kind]
        entries[tokenizer] = [None, None] if tower is None else ["transformers", "CLIPTokenizer"]
    if family in (SDXL_BASE, REFINER):
        entries["force_zeros_for_empty_prompt"] = model.text_encoding.zero_empty
        if family is REFINER:
            entries["requires_aesthetics_score"] = True
    elif family.name == SD3.name:
        entries |= {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}  # T5's
    else:
        entries |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
        entries["requires_safety_checker"] = False
    return entries

"""The families of published models: what a file of weights does not say about itself. One file each.

Everything that shows in the shapes of the weights (widths, levels, depths, channels) is derived from
them, so a model of any size loads. All else is in the family's `FAMILY`, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

from pellucid import plugins
from pellucid.backbones.unet import UNetConfig
from pellucid.clip import TextConfig
from pellucid.model import Defaults, LatentSpace, Model, TextEncoding
from pellucid.safetensors_header import CheckpointError
from pellucid.schedule import Schedule
from pellucid.vae import VAEConfig

OPEN_CLIP, HUGGING_FACE = "model.", "transformer."  # how the prefix of a text tower ends


class Tower(NamedTuple):
    """A text tower: its published shape, its prefix in a single file ("": the family is not read from
    single files), its folder in diffusers' layout."""

    config: TextConfig
    prefix: str
    folder: str

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The published prefix, and the one for the other names: converted files have a tower under
        `OPEN_CLIP` with OpenCLIP's names, or under `HUGGING_FACE` with transformers'."""
        stem = self.prefix.removesuffix(OPEN_CLIP).removesuffix(HUGGING_FACE)
        other = HUGGING_FACE if self.prefix.endswith(OPEN_CLIP) else OPEN_CLIP
        return (self.prefix, stem + other) if self.prefix else ()


class Use(NamedTuple):
    """What a U-Net is for that takes more than the latents; pipeline: as in diffusers' class names."""

    title: str = ""
    pipeline: str = ""


class Traits(NamedTuple):
    """What distinguishes families with the same kind of backbone, the most important first.

    context: the width of the texts that the backbone takes. linear: whether its transformers begin with
    a linear layer. levels: of the U-Net. towers: how many text towers there are. activations: theirs.
    """

    pooled: bool
    context: int
    linear: bool
    levels: int
    towers: int
    activations: tuple[str, ...]
    latent_channels: int


@dataclass(frozen=True)
class Family:
    """What all models of a family share.

    title: its name, for people.
    backbone: the published config. Its class and the `Traits` of all parts recognize the family.
    towers: the text towers, in the order of `Model`'s fields text and text_2.
    text_encoding: how prompts are encoded. A width > 0 becomes that of the backbone's context.
    vae: the published autoencoder; its scale and shift hold for files that do not say theirs.
    defaults: preset name -> settings; the first is the usual one.
    variant_of: the stem of the family's file that this one has the `Traits` of. Its models are only
        those with exactly its published backbone; all others are the original's (`closest`).
    prediction: what the network predicts; "" if that differs and single files do not say it.
    schedule: the noise schedule, for files that do not say theirs.
    defaults_of: prediction -> name in `defaults`, where that is not the usual one.
    latents: how to show the latents without the full autoencoder.
    adapt_encoding: (text_encoding, configs of the towers, is it diffusers' layout) -> the encoding of
        one file, for families whose files differ.
    pipeline: the beginning of diffusers' pipeline class. use: what it is for, if not text to image.
    index: further entries of model_index.json.
    lora_versions: how ss_base_model_version or modelspec.architecture begin in its LoRAs' metadata.
    lora_keys: pieces of keys that only its LoRAs have.
    """

    title: str
    backbone: Any
    towers: tuple[Tower, ...]
    text_encoding: TextEncoding
    vae: VAEConfig
    defaults: Mapping[str, Defaults]
    variant_of: str = ""
    prediction: str = "eps"
    schedule: Schedule = field(default_factory=Schedule)
    defaults_of: Mapping[str, str] = field(default_factory=dict)
    latents: LatentSpace = field(default_factory=LatentSpace)
    adapt_encoding: Callable[[TextEncoding, Sequence[TextConfig], bool], TextEncoding] | None = None
    pipeline: str = "StableDiffusion"
    use: str = ""
    index: Mapping[str, Any] = field(default_factory=dict)
    lora_versions: tuple[str, ...] = ()
    lora_keys: tuple[str, ...] = ()

    @property
    def traits(self) -> Traits:
        """Those of the published models."""
        return traits_of(self.backbone, [tower.config for tower in self.towers])

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the published text towers."""
        return tuple(tower.config.width for tower in self.towers)

    def defaults_for(self, prediction: str | None) -> Defaults:
        """The settings that suit a model with this prediction; None: one that is not known."""
        usual = next(iter(self.defaults))
        return self.defaults[self.defaults_of.get(prediction or "", usual)]

    def encoding_for(
        self, backbone: Any, texts: Sequence[TextConfig], diffusers: bool = False
    ) -> TextEncoding:
        """How the original code, or diffusers' pipelines, encode prompts with these parts."""
        encoding = self.text_encoding
        if self.adapt_encoding is not None:
            encoding = self.adapt_encoding(encoding, texts, diffusers)
        return replace(encoding, width=backbone.cross_attention_dim) if encoding.width else encoding

    def use_of(self, backbone: Any) -> Use:
        """What a backbone with this config is for. Raises CheckpointError if that is not known."""
        if not isinstance(backbone, UNetConfig):
            return Use()
        own = self.vae.latent_channels
        uses = {
            own: Use(),
            2 * own + 1: Use("inpainting", "Inpaint"),  # a mask, and the masked latents
            2 * own: Use("pix2pix", "InstructPix2Pix"),  # the picture's latents
        }
        if backbone.in_channels not in uses:
            known = ", ".join(f"{channels} {use.title}".strip() for channels, use in uses.items())
            raise CheckpointError(
                f"its U-Net takes {backbone.in_channels} channels; known are {known} (depth and "
                "upscaling models are not supported)"
            )
        return uses[backbone.in_channels]

    def title_of(self, backbone: Any) -> str:
        """The title, and what a backbone with this config is for. Raises CheckpointError."""
        return f"{self.title} {self.use_of(backbone).title}".strip()


def known() -> dict[str, Family]:
    """Every family: the stem of its file -> its `FAMILY`; variants come after all originals.

    ValueError: two families with the same traits, of which none says that it is a variant.
    """
    found = {name: module.FAMILY for name, module in plugins.discover(__name__).items()}
    originals: dict[tuple[type, Traits], str] = {}
    for name, family in found.items():
        if family.variant_of and family.variant_of not in found:
            raise ValueError(
                f"variant_of of family {name!r} must be one of {', '.join(found)}, got "
                f"{family.variant_of!r}"
            )
        if family.variant_of:
            continue
        other = originals.setdefault((type(family.backbone), family.traits), name)
        if other != name:
            raise ValueError(
                f"the families {other!r} and {name!r} have the same traits; one of them must be a "
                "variant_of the other, or be a preset"
            )
    return dict(sorted(found.items(), key=lambda item: bool(item[1].variant_of)))


def traits_of(backbone: Any, texts: Iterable[TextConfig]) -> Traits:
    """The traits of a model with these configs."""
    activations = tuple(text.activation for text in texts)
    return Traits(
        getattr(backbone, "pooled_dim", 0) > 0,
        backbone.cross_attention_dim,
        getattr(backbone, "use_linear_projection", False),
        len(getattr(backbone, "block_out_channels", ())),
        len(activations),
        activations,
        backbone.out_channels,
    )


def closest(
    traits: Traits, among: Iterable[Family], is_exact: Callable[[Family], bool]
) -> Family | None:
    """The family that a model with these traits belongs to; None among none.

    The most traits decide, the first ones first. Between equals, a family whose published backbone
    the model has exactly (`is_exact`) wins, then an original before its variants (the order of
    `known`).
    """

    def agreement(family: Family) -> list[bool]:
        return [own == other for own, other in zip(family.traits, traits, strict=True)]

    among = list(among)
    best = max(map(agreement, among), default=[])
    equal = [family for family in among if agreement(family) == best]
    if len(equal) < 2:
        return next(iter(equal), None)
    return next(filter(is_exact, equal), equal[0])


def same_backbone(config: Any, family: Family) -> bool:
    """Whether a backbone has the published config. A U-Net may take further channels."""
    published = family.backbone
    if isinstance(config, UNetConfig) and isinstance(published, UNetConfig):
        published = replace(published, in_channels=config.in_channels)
    return bool(config == published)


def of_configs(backbone: Any, texts: Iterable[TextConfig]) -> Family | None:
    """The family that is closest to a model with these configs; None if none has such a backbone and
    as many text towers."""
    texts = list(texts)
    same = [
        family
        for family in known().values()
        if type(family.backbone) is type(backbone) and len(family.towers) == len(texts)
    ]
    if not same:  # a network of another kind, which has no traits to compare
        return None
    return closest(traits_of(backbone, texts), same, partial(same_backbone, backbone))


def of_model(model: Model) -> Family | None:
    """The published family that a model belongs to, perhaps with smaller networks.

    None for any other model: its text encoding leaves the padding to its tokenizer.
    """
    return nearest_to(model) if model.text_encoding.pads else None


def nearest_to(model: Model) -> Family | None:
    """As `of_configs`, of the configs of a model, whatever its text encoding."""
    return of_configs(model.config, [tower.config for tower in model.towers.values()])


def by_context(kind: type, width: int) -> Family | None:
    """The family whose published backbone, of this config class, takes texts of this width."""
    same = [family for family in known().values() if family.traits.context == width]
    return next((family for family in same if type(family.backbone) is kind), None)


def latent_space(vae: VAEConfig) -> LatentSpace:
    """What is known of the latents of an autoencoder with this config."""
    space = (vae.latent_channels, vae.scaling_factor)
    for family in known().values():
        if (family.vae.latent_channels, family.vae.scaling_factor) == space:
            return family.latents
    return LatentSpace()

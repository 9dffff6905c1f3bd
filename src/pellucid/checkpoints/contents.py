"""What a checkpoint holds, as its headers and configs show; no weight is read for it.

Every format describes a checkpoint as `Contents`; loading and describing it start from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import torch

from pellucid.backbones.unet import UNetConfig
from pellucid.checkpoints import backbones, families
from pellucid.checkpoints.assembly import Part, build, compare, fill, memory_of, size
from pellucid.checkpoints.families import Family
from pellucid.checkpoints.vae_files import replacement
from pellucid.clip import TextConfig, TextTower
from pellucid.lexicon import Lexicon
from pellucid.model import Defaults, Model, TextEncoding
from pellucid.progress import stage
from pellucid.runtime.devices import HOME, Read, read_again_by, take_turns
from pellucid.runtime.memory import Alternative, fits_at_once, said_of
from pellucid.runtime.precision import dtype_of
from pellucid.safetensors_header import CheckpointError, UnknownPrediction
from pellucid.schedule import Schedule
from pellucid.tokenizer import Tokenizer
from pellucid.vae import VAE, VAEConfig

Turns: TypeAlias = 'bool | Literal["text"]'
"""Whether the parts of a model are read in their turns where memory is too short for all at once.
"text": large text towers on a CPU always are, which is for a single picture."""
LARGE = 2**28
"""Bytes of such a text tower."""
IN_TURNS = {"backbone", "vae", "text", "text_2"}
"""The parts that may take turns; a model with others is small, and uses several at once."""


MODEL_FIELDS = {"upscaler": "second_stage"}
"""Parts whose field of `Model` has another name than they have in files."""


@dataclass(frozen=True)
class Configs:
    """The configs of a published model's parts, before any network is built.

    vae: None if it has none. texts: "text" and "text_2", as in `Model`. prediction: None if it is
    not known.
    """

    family: Family
    backbone: Any
    vae: VAEConfig | None
    texts: Mapping[str, TextConfig]
    text_encoding: TextEncoding
    schedule: Schedule
    prediction: str | None

    def check(self, path: Path) -> None:
        """Check that the parts fit each other. Raises CheckpointError."""
        config, name = self.backbone, self._backbone().title
        if self.vae is not None and config.out_channels != self.vae.latent_channels:
            raise CheckpointError(
                f"{path}: its {name} makes {config.out_channels} channels, its autoencoder takes "
                f"{self.vae.latent_channels}"
            )
        if not isinstance(config, UNetConfig):
            return
        width = sum(text.width for text in self.texts.values())
        if config.cross_attention_dim != width:
            raise CheckpointError(
                f"{path}: its U-Net takes texts of width {config.cross_attention_dim}, its text "
                f"encoders make {width}; {self.family.title} has "
                f"{self.family.backbone.cross_attention_dim}"
            )
        pooled = [text.projection for text in self.texts.values()][-1]
        if config.pooled_dim > 0 and config.pooled_dim != pooled:
            raise CheckpointError(
                f"{path}: its U-Net takes pooled texts of width {config.pooled_dim}, its text "
                f"encoder makes {pooled}"
            )

    def _backbone(self) -> backbones.Backbone:
        kind = backbones.of_config(self.backbone)
        assert kind is not None
        return kind

    def build(self, path: Path) -> dict[str, torch.nn.Module]:
        """The networks on the meta device, under the names of `Model`'s fields."""
        kind = self._backbone()
        networks: dict[str, torch.nn.Module] = {
            "backbone": build(path, kind.title, kind.network, self.backbone)
        }
        if self.vae is not None:
            networks["vae"] = build(path, "VAE", VAE, self.vae)
        for name, config in self.texts.items():
            networks[name] = build(path, "text tower", TextTower, config)
        return networks

    def compared(
        self, model: Model, towers: Mapping[str, TextTower], encoding: TextEncoding
    ) -> Iterator[tuple[str, Any, Any]]:
        """For `writing.same_when_read`: what a model has, with these towers and this encoding, and
        what would be read."""
        yield f"this {self._backbone().title}", model.backbone.config, self.backbone
        yield "this autoencoder", model.vae.config, self.vae
        for name, tower in towers.items():
            yield "this text encoder", tower.config, self.texts.get(name)
        yield "this text encoding", encoding, self.text_encoding
        yield "this schedule", model.schedule, self.schedule
        yield "the prediction", model.prediction, self.prediction


@dataclass(frozen=True)
class Contents:
    """A checkpoint that can be loaded, but for its weights.

    title: what it is, in words. parts: name of a field of `Model` -> the network and where its
    weights are; "vae" may be missing. prediction: None if it is not known. usual_vae: whose scale of
    the latents a replaced autoencoder has that does not say its own. vae_place: where its autoencoder
    should be, for messages. vae_prefix: of the autoencoder's keys, if they share a file with others.
    unused: keys that are not needed. lexicon: as in `Model`. facts: what only this format can say.
    """

    path: Path
    form: str
    name: str
    title: str
    parts: Mapping[str, Part]
    tokenizer: Tokenizer
    text_encoding: TextEncoding
    schedule: Schedule
    prediction: str | None
    defaults: Defaults
    usual_vae: VAEConfig
    vae_place: str = ""
    vae_prefix: str = ""
    unused: tuple[str, ...] = ()
    lexicon: Lexicon | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, path: Path, configs: Configs, *, parts: Mapping[str, Part], **values: Any
    ) -> Contents:
        """Those of a published model; values: the other fields."""
        prediction, family = configs.prediction, configs.family
        return cls(
            path=path,
            title=family.title_of(configs.backbone),
            parts=parts,
            text_encoding=configs.text_encoding,
            schedule=configs.schedule,
            prediction=prediction,
            usual_vae=family.vae,
            **{"defaults": family.defaults_for(prediction)} | values,
        )

    @property
    def latent_channels(self) -> int:
        """How many channels the backbone makes."""
        channels: int = cast(Any, self.parts["backbone"].module.config).out_channels
        return channels

    @property
    def vae(self) -> VAEConfig | None:
        """The config of the autoencoder; None if there is none."""
        return cast(VAE, self.parts["vae"].module).config if "vae" in self.parts else None

    def with_vae(self, path: Path) -> Contents:
        """With the autoencoder in a file or folder in place of the own one.

        Raises CheckpointError for one with other latents.
        """
        part, unused = replacement(path, self.latent_channels, self.vae, self.usual_vae)
        own = [key for key in self.parts["backbone"].weights if key.startswith(self.vae_prefix)]
        unused = [*self.unused, *unused, *(own if self.vae_prefix else ())]
        return replace(self, parts={**self.parts, "vae": part}, unused=tuple(unused))

    def check(self) -> None:
        """Check that all weights are there and fit. Raises CheckpointError."""
        compare(self.path, self.parts, self.unused)

    def read(
        self,
        device: str | torch.device,
        dtype: torch.dtype | None,
        text_dtype: torch.dtype | None = None,
        in_turns: Turns = False,
    ) -> Model:
        """The model, with its weights; text_dtype: that of the text towers, None: as the others.

        Where the parts do not fit on a GPU at once, only the backbone is there, and the others follow
        when it is their turn (`runtime.devices.bring`). in_turns: on a CPU too, where each is read in
        its turn; see `Turns`. Raises CheckpointError, UnknownPrediction, DoesNotFit.
        """
        vae = self.vae
        if vae is None:
            raise CheckpointError(
                f"{self.path} is {self.title} without its autoencoder ({self.vae_place}): vae must "
                "be given, a file or folder that has one"
            )
        self._check_tokenizer()
        self.check()
        if self.prediction is None:
            raise UnknownPrediction(self.path, self.title)
        texts = ("text", "text_2") if text_dtype is not None else ()
        types = {name: text_dtype if name in texts else dtype for name in self.parts}
        places = self._places(torch.device(device), types, in_turns)
        for name in self.parts.keys() - places.keys():
            self.parts[name].module.to(types[name])
            take_turns(self.parts[name].module, self._reader(self.parts[name]))
        now = {name: self.parts[name] for name in places}
        with stage(f"loading {self.path.name}", sum(map(size, now.values()))) as loading:
            for name, part in now.items():
                with _told(self.path.name, part, types[name]):
                    fill(part, places[name], types[name], loading)
                if places[name] == HOME and types[name] is not None:
                    read_again_by(part.module, self._reader(part))
        modules: dict[str, Any] = {
            MODEL_FIELDS.get(name, name): part.module for name, part in self.parts.items()
        }
        return Model(
            **modules,
            tokenizer=self.tokenizer,
            schedule=self.schedule,
            prediction=self.prediction,
            name=self.name,
            text_encoding=self.text_encoding,
            lexicon=self.lexicon,
            defaults=self.defaults,
            latents=families.latent_space(vae),
        )

    def _places(
        self, device: torch.device, types: Mapping[str, torch.dtype | None], in_turns: Turns
    ) -> dict[str, torch.device]:
        """Where each part goes at first; the others are read in their turn. types: the number type of
        each. Raises DoesNotFit."""
        needed = {n: memory_of(part, device, types[n]) for n, part in self.parts.items()}
        most = types["backbone"] or next(iter(self.parts["backbone"].weights.values())).dtype
        work = None
        if in_turns and self.parts.keys() <= IN_TURNS and None not in types.values():
            vae = cast(VAE, self.parts["vae"].module)
            work = vae.working_bytes(self.defaults.width, self.defaults.height)
        alternatives = self._alternatives(device, most)
        if fits_at_once(self.path.name, needed, most, device, work, alternatives):
            later = set[str]()
            if in_turns == "text" and work is not None and device == HOME:
                later = {n for n, size in needed.items() if n.startswith("text") and size >= LARGE}
            return dict.fromkeys(self.parts.keys() - later, device)
        if device == HOME:
            return {}
        return {name: device if name == "backbone" else HOME for name in self.parts}

    def _alternatives(self, device: torch.device, dtype: torch.dtype) -> Iterator[Alternative]:
        """What may need less memory: another number type, above all the file's own, which a CPU reads
        from the file as it computes; and a CPU."""
        own = next(iter(self.parts["backbone"].weights.values())).dtype
        for kind in dict.fromkeys((torch.bfloat16, own)):
            if kind != dtype:
                needed = {n: memory_of(part, device, kind) for n, part in self.parts.items()}
                yield Alternative(f"{{dtype}} {str(kind).removeprefix('torch.')}", device, needed)
        if device.type != HOME.type:
            needed = {n: memory_of(part, HOME, dtype) for n, part in self.parts.items()}
            yield Alternative("{device} cpu", HOME, needed)

    def _reader(self, part: Part) -> Read:
        """What reads a part again, whenever its turn comes."""
        name, weights, locations = self.path.name, part.weights, part.locations

        def read(module: torch.nn.Module) -> None:
            again = Part(module, weights, locations)
            with (
                stage(f"loading {name}", size(again)) as loading,
                _told(name, again, dtype_of(module)),
            ):
                fill(again, HOME, dtype_of(module), loading)

        return read

    def _check_tokenizer(self) -> None:
        """Every tower has a row for every piece, and a position for every token of a row."""
        tokenizer = self.tokenizer
        for name in {"text", "text_2"} & self.parts.keys():
            text = cast(TextTower, self.parts[name].module).config
            if (
                tokenizer.vocab_size > text.vocab_size
                or tokenizer.context_length > text.context_length
            ):
                raise CheckpointError(
                    f"{self.path}: its tokenizer ({tokenizer.vocab_size} pieces, rows of "
                    f"{tokenizer.context_length}) does not fit its text tower ({text.vocab_size} "
                    f"pieces, rows of {text.context_length})"
                )


def _told(name: str, part: Part, dtype: torch.dtype | None) -> AbstractContextManager[None]:
    """Turns out-of-memory while a part is read into DoesNotFit."""
    kind = next(iter(part.weights.values())).dtype if dtype is None else dtype
    return said_of(name, size(part) * kind.itemsize, kind)

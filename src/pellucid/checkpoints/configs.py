"""The config files of diffusers and transformers: config.json -> a config here, and back.

A value that is read must be of its type and within bounds. What diffusers' networks can vary and
ours cannot must be as ours do it. Any other key is refused unless it is empty, because it may say
that the network is another one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pellucid.backbones.unet import SIZE_WIDTH, UNetConfig
from pellucid.checkpoints.families import EOS
from pellucid.checkpoints.header import CheckpointError
from pellucid.clip import TextConfig
from pellucid.schedule import Schedule
from pellucid.vae import VAEConfig

JSON_BYTES = 2**20
MOST = 2**20  # no width and no count of anything in a model is larger

Value = TypeVar("Value")


class Settings:
    """The JSON object in a file, asked key by key. CheckpointError names the file and the key."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path, self.values = path, values
        self.known: set[str] = set()

    @classmethod
    def open(cls, path: Path, most: int = JSON_BYTES) -> Settings:
        """Raises CheckpointError if `path` is no file of at most so many bytes with a JSON object in
        it."""
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise CheckpointError(f"{path} is not a file; a config is wanted")
        try:
            with path.open("rb") as file:
                text = file.read(most + 1)
            values = json.loads(text) if len(text) <= most else None
        except FileNotFoundError as error:
            raise CheckpointError(f"{path} does not exist") from error
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
        if len(text) > most:
            raise CheckpointError(f"{path} has more than {most} bytes, too many for a config")
        if not isinstance(values, dict):
            raise CheckpointError(f"{path} is not a JSON object")
        return cls(path, values)

    def refused(self, key: str, wanted: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: {key} is {str(self.values.get(key))[:80]!r}; {wanted} is wanted"
        )

    def get(self, key: str) -> Any:
        """The value, None if there is none."""
        self.known.add(key)
        return self.values.get(key)

    def whole(self, key: str, default: int, least: int = 1) -> int:
        value = self.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MOST:
            raise self.refused(key, f"a whole number from {least} to {MOST}")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.get(key)
        value = default if value is None else value
        known = isinstance(value, int | float) and not isinstance(value, bool)
        if not known or abs(value) > MOST or not math.isfinite(value):
            raise self.refused(key, "a number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.refused(key, "true or false")
        return value

    def word(self, key: str, default: str, meanings: Mapping[str, Value]) -> Value:
        """What the word under `key` means."""
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, str) or value not in meanings:
            raise self.refused(key, f"one of {', '.join(meanings)}")
        return meanings[value]

    def words(
        self, key: str, default: Sequence[str], meanings: Mapping[str, Value]
    ) -> tuple[Value, ...]:
        value = self.get(key)
        value = list(default) if value is None else value
        if not isinstance(value, list) or not all(isinstance(w, str) for w in value):
            raise self.refused(key, "a list of names")
        if unknown := [word for word in value if word not in meanings]:
            raise CheckpointError(
                f"{self.path}: {key} has {unknown[0][:80]!r}; known are {', '.join(meanings)}"
            )
        return tuple(meanings[word] for word in value)

    def wholes(self, key: str, default: int | Sequence[int], levels: int = 0) -> tuple[int, ...]:
        """A list of numbers, one for each level; a single number is the same at all `levels`."""
        value = self.get(key)
        value = default if value is None else value
        if levels > 0 and isinstance(value, int):
            value = [value] * levels
        numbers = isinstance(value, list | tuple) and all(
            isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= MOST
            for side in value
        )
        if not numbers or not value or (levels > 0 and len(value) != levels):
            count = f"{levels} " if levels > 0 else ""
            raise self.refused(key, f"a list of {count}whole numbers from 1 to {MOST}")
        return tuple(value)

    def fixed(self, values: Mapping[str, Any]) -> None:
        """These keys, where they are there, have these values; false, null and 0 are the same."""
        for key, wanted in values.items():
            value = self.get(key)
            if key in self.values and value != wanted and (value or wanted):
                raise self.refused(key, f"{wanted!r}, as in Stable Diffusion,")

    def finish(self, idle: Sequence[str] = ()) -> None:
        """Nothing is said that was not asked for, but in `idle` keys and diffusers' own notes."""
        for key, value in self.values.items():
            note = key.startswith("_") or key in idle or key in self.known
            if not note and value not in (None, False):
                raise CheckpointError(
                    f"{self.path}: {key} is {str(value)[:80]!r}, a setting that is not known here"
                )


# ---------------------------------------------------------------- the U-Net

DOWN = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}  # with attention to the text, or not
UP = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}
UNET_FIXED = {
    "act_fn": "silu",
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}
UNET_IDLE = ("addition_embed_type_num_heads", "dropout", "sample_size", "upcast_attention")


def read_unet(settings: Settings, texts: Sequence[TextConfig]) -> UNetConfig:
    """UNet2DConditionModel's config; `texts` are the towers beside it."""
    at_level = settings.wholes("block_out_channels", (320, 640, 1280, 1280))
    levels = len(at_level)
    crossed = settings.words(
        "down_block_types", [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"], DOWN
    )
    back = settings.words("up_block_types", ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3], UP)
    if len(crossed) != levels or back != crossed[::-1]:
        raise settings.refused(
            "up_block_types", "down_block_types from its end, one for each level,"
        )
    layers = settings.wholes("layers_per_block", 2, levels)
    if len(set(layers)) > 1:
        raise settings.refused("layers_per_block", "the same number at every level")
    depths = settings.wholes("transformer_layers_per_block", 1, levels)
    settings.fixed(UNET_FIXED)
    pooled, count = _added(settings, texts)
    config = UNetConfig(
        in_channels=settings.whole("in_channels", 4),
        out_channels=settings.whole("out_channels", 4),
        block_out_channels=at_level,
        layers_per_block=layers[0],
        transformer_layers=tuple(d if c else 0 for d, c in zip(depths, crossed, strict=True)),
        mid_transformer_layers=depths[-1],
        # The name is a mistake of diffusers that stayed: these are numbers of heads.
        heads=settings.wholes("attention_head_dim", 8, levels),
        cross_attention_dim=settings.whole("cross_attention_dim", 1280),
        use_linear_projection=settings.flag("use_linear_projection", False),
        norm_groups=settings.whole("norm_num_groups", 32),
        norm_eps=settings.number("norm_eps", 1e-5),
        pooled_dim=pooled,
        size_conditions=pooled > 0,
        size_count=count,
    )
    settings.finish(UNET_IDLE)
    return config


def _added(settings: Settings, texts: Sequence[TextConfig]) -> tuple[int, int]:
    """The width of the pooled text that joins the time, and how many sizes stand beside it."""
    if settings.word("addition_embed_type", "", {"": False, "text_time": True}):
        width = settings.whole("projection_class_embeddings_input_dim", 2816)
        settings.fixed({"addition_time_embed_dim": SIZE_WIDTH})
        pooled = (texts[-1].projection or 0) if texts else 0
        count, over = divmod(width - pooled, SIZE_WIDTH)
        if pooled > 0 and over == 0 and count in (5, 6):
            return pooled, count
        raise settings.refused(
            "projection_class_embeddings_input_dim",
            f"5 or 6 times {SIZE_WIDTH} and the {pooled} of the text encoder",
        )
    settings.fixed({"projection_class_embeddings_input_dim": None, "addition_time_embed_dim": None})
    return 0, 6


def write_unet(config: UNetConfig, latents: int) -> dict[str, Any]:
    """config.json of UNet2DConditionModel; `latents`: a side of what it draws by default."""
    crossed = [depth > 0 for depth in config.transformer_layers]
    sized = config.size_conditions
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": latents,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": list(config.block_out_channels),
        "layers_per_block": config.layers_per_block,
        "down_block_types": [next(k for k, v in DOWN.items() if v == c) for c in crossed],
        "up_block_types": [next(k for k, v in UP.items() if v == c) for c in crossed[::-1]],
        "transformer_layers_per_block": [
            depth if depth > 0 else config.mid_transformer_layers
            for depth in config.transformer_layers
        ],
        "attention_head_dim": list(config.heads),
        "cross_attention_dim": config.cross_attention_dim,
        "use_linear_projection": config.use_linear_projection,
        "norm_num_groups": config.norm_groups,
        "norm_eps": config.norm_eps,
        "addition_embed_type": "text_time" if sized else None,
        "addition_time_embed_dim": SIZE_WIDTH if sized else None,
        "projection_class_embeddings_input_dim": (
            config.pooled_dim + config.size_count * SIZE_WIDTH if sized else None
        ),
    } | {key: value for key, value in UNET_FIXED.items() if value is not None}


def class_of(folder: Path) -> str | None:
    """Of which class of diffusers a folder with a config.json holds a network; None: of none."""
    try:
        name = Settings.open(folder / "config.json").get("_class_name")
    except CheckpointError:
        return None
    return name if isinstance(name, str) else None


# ---------------------------------------------------------------- the autoencoder

VAE_FIXED = {"act_fn": "silu", "latents_mean": None, "latents_std": None}


def read_vae(settings: Settings) -> VAEConfig:
    """AutoencoderKL's config."""
    at_level = settings.wholes("block_out_channels", (64,))
    levels = len(at_level)
    kinds = {"DownEncoderBlock2D": True, "UpDecoderBlock2D": True}
    down = settings.words("down_block_types", ["DownEncoderBlock2D"], kinds)
    up = settings.words("up_block_types", ["UpDecoderBlock2D"], kinds)
    if len(down) != levels or len(up) != levels:
        raise settings.refused("down_block_types", f"one for each of {levels} levels")
    settings.fixed(VAE_FIXED)
    channels = settings.whole("in_channels", 3)
    settings.fixed({"out_channels": channels})
    quant = settings.flag("use_quant_conv", True)
    if settings.flag("use_post_quant_conv", True) != quant:
        raise settings.refused("use_post_quant_conv", "what use_quant_conv is")
    config = VAEConfig(
        in_channels=channels,
        latent_channels=settings.whole("latent_channels", 4),
        block_out_channels=at_level,
        layers_per_block=settings.whole("layers_per_block", 1),
        norm_groups=settings.whole("norm_num_groups", 32),
        scaling_factor=settings.number("scaling_factor", 0.18215),
        shift_factor=settings.number("shift_factor", 0.0),
        use_quant_conv=quant,
        mid_attention=settings.flag("mid_block_add_attention", True),
    )
    if config.scaling_factor == 0:
        raise settings.refused("scaling_factor", "a number that is not 0")
    settings.finish(("force_upcast", "sample_size"))
    return config


def write_vae(config: VAEConfig, pixels: int) -> dict[str, Any]:
    """config.json of AutoencoderKL; `pixels`: a side of the model's pictures."""
    levels = len(config.block_out_channels)
    return {
        "_class_name": "AutoencoderKL",
        "sample_size": pixels,
        "act_fn": "silu",
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "block_out_channels": list(config.block_out_channels),
        "layers_per_block": config.layers_per_block,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "latent_channels": config.latent_channels,
        "norm_num_groups": config.norm_groups,
        "scaling_factor": config.scaling_factor,
        "shift_factor": config.shift_factor if config.shift_factor != 0 else None,
        "use_quant_conv": config.use_quant_conv,
        "use_post_quant_conv": config.use_quant_conv,
        "mid_block_add_attention": config.mid_attention,
    }


# ---------------------------------------------------------------- text towers

OLD_EOS = 2  # what transformers wrote for the largest number of the vocabulary, which is eos
TEXT_CLASSES = {"CLIPTextModel": False, "CLIPTextModelWithProjection": True}


def read_text(settings: Settings, projected: bool) -> TextConfig:
    """The config of CLIPTextModel, or `projected` of CLIPTextModelWithProjection."""
    eos = settings.whole("eos_token_id", EOS, 0)
    projection = settings.whole("projection_dim", 512)
    return TextConfig(
        vocab_size=settings.whole("vocab_size", 49408),
        context_length=settings.whole("max_position_embeddings", 77),
        width=settings.whole("hidden_size", 512),
        layers=settings.whole("num_hidden_layers", 12),
        heads=settings.whole("num_attention_heads", 8),
        mlp_width=settings.whole("intermediate_size", 2048),
        activation=settings.word(
            "hidden_act", "quick_gelu", {"gelu": "gelu", "quick_gelu": "quick_gelu"}
        ),
        projection=projection if projected else None,
        eos=EOS if eos == OLD_EOS else eos,
        norm_eps=settings.number("layer_norm_eps", 1e-5),
    )


def write_text(config: TextConfig, bos: int, pad: int) -> dict[str, Any]:
    """config.json of CLIPTextModel, or of CLIPTextModelWithProjection."""
    projected = config.projection is not None
    name = next(name for name, known in TEXT_CLASSES.items() if known == projected)
    return {
        "architectures": [name],
        "model_type": "clip_text_model",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "hidden_act": config.activation,
        "projection_dim": config.projection if projected else config.width,
        "layer_norm_eps": config.norm_eps,
        "bos_token_id": bos,
        "eos_token_id": config.eos,
        "pad_token_id": pad,
    }


# ---------------------------------------------------------------- schedule and prediction

BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
PREDICTED = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
FLOW = "FlowMatchEulerDiscreteScheduler"


def read_schedule(settings: Settings) -> tuple[Schedule, str]:
    """The schedule, and what the network predicts, from scheduler_config.json.

    Which sampler and spacing of the steps it names is a default of theirs; here a request says so.
    """
    times = settings.whole("num_train_timesteps", 1000, 2)
    if settings.get("_class_name") == FLOW:
        if settings.flag("use_dynamic_shifting", False):
            raise settings.refused("use_dynamic_shifting", "false")
        return _schedule(
            settings, name="flow", T=times, shift=settings.number("shift", 1.0)
        ), "flow"
    settings.fixed({"trained_betas": None})
    name = settings.word("beta_schedule", "linear", BETAS)
    prediction = settings.word("prediction_type", "epsilon", PREDICTED)
    schedule = _schedule(
        settings,
        name=name,
        T=times,
        beta_start=settings.number("beta_start", 0.0001),
        beta_end=settings.number("beta_end", 0.02),
        zero_terminal_snr=settings.flag("rescale_betas_zero_snr", False),
    )
    return schedule, prediction


def _schedule(settings: Settings, **values: Any) -> Schedule:
    try:
        return Schedule(**values)
    except ValueError as error:
        raise CheckpointError(f"{settings.path}: {error}") from error


def write_schedule(schedule: Schedule, prediction: str) -> dict[str, Any] | None:
    """scheduler_config.json; None if diffusers has no such schedule or prediction."""
    times = schedule.T
    if schedule.name == "flow" and prediction == "flow":
        return {"_class_name": FLOW, "num_train_timesteps": times, "shift": schedule.shift}
    betas = next((k for k, v in BETAS.items() if v == schedule.name), None)
    predicted = next((k for k, v in PREDICTED.items() if v == prediction), None)
    if betas is None or predicted is None:
        return None
    zero = schedule.zero_terminal_snr
    return {
        "_class_name": "EulerDiscreteScheduler",
        "num_train_timesteps": times,
        "beta_schedule": betas,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "prediction_type": predicted,
        "rescale_betas_zero_snr": zero,
        # Without the last time a schedule that ends in pure noise would not begin there.
        "timestep_spacing": "trailing" if zero else "leading",
        # For samplers that a person puts in its place: the times 1, 51, ... of the original code,
        # whose last step ends at time 0.
        "steps_offset": 1,
        "set_alpha_to_one": False,
        "clip_sample": False,
        "skip_prk_steps": True,
    }

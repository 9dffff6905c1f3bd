"""What a file of weights is, by its keys: a model, or one of the other things that people share."""

from __future__ import annotations

import re
from collections.abc import Iterable

LORA = "a LoRA"
EMBEDDING = "a textual-inversion embedding"
VAE_ALONE = "a VAE alone"
TINY_VAE = "a tiny autoencoder (TAESD) alone"

UPSCALER = "an upscaler (ESRGAN)"

_PATTERNS: tuple[tuple[str, str], ...] = (
    (
        r"(lora_(unet|te\d?|transformer)_|.*\.(lora_[AB]|lora_down|lora_up)\.)",
        LORA,
    ),
    (r".*\.(hada_w1_a|lokr_w1(_a)?)$", LORA),
    (r".*(_lora|\.lora|\.lora_linear_layer)\.(down|up)\.weight$", LORA),
    (r"(unet|text_encoder):\d+:(up|down)$", LORA),
    (r"(em[bp]_params|clip_l|clip_g|string_to_param|<.*>)$", EMBEDDING),
    (r"(control_model\.|controlnet_cond_embedding\.|input_hint_block\.)", "a ControlNet"),
    (r"(model\.diffusion_model\.)?joint_blocks\.", "Stable Diffusion 3 as a single file"),
    (r"(model\.diffusion_model\.)?double_blocks\.", "a Flux model"),
    (r".*motion_modules\.", "a motion module (AnimateDiff)"),
    (r"lora_controlnet$", "a Control-LoRA"),
    (r"(image_proj|ip_adapter)\.", "an IP-Adapter"),
    (r"(adapter\.)?body\.\d+\.(block1|in_conv|resnets)\.", "a T2I-Adapter"),
    (r"model\.diffusion_model\.input_blocks\.", "a model"),
    (r"backbone\.", "a file of Pellucid's own layout"),
    (r"(first_stage_model\.|vae\.|)(encoder\.down|decoder\.up)", VAE_ALONE),
    (r"(encoder\.layers|decoder\.layers)\.\d+\.", TINY_VAE),
    (r"\d+\.(conv\.\d+\.)?(weight|bias)$", TINY_VAE),
    (r"(params(_ema)?\.)?(body\.0\.rdb1\.|RRDB_trunk\.0\.|model\.1\.sub\.0\.RDB1)", UPSCALER),
    (
        r"((diffusion_model|unet)\.)?(down_blocks|up_blocks|mid_block|input_blocks)\.",
        "a U-Net alone",
    ),
    (r"(text_model\.|transformer\.resblocks\.)", "a text encoder alone"),
)
# What can be used together with a model, and the name of that parameter.
_PARAMETERS = {LORA: "lora", EMBEDDING: "embedding", VAE_ALONE: "vae", TINY_VAE: "tiny_vae"}


def what_is(keys: Iterable[str]) -> str | None:
    """What a file with these keys is, for a message; None if they show nothing known."""
    names = list(keys)
    for pattern, kind in _PATTERNS:
        if any(re.match(pattern, name) for name in names):
            return kind
    return None


def not_a_model(what: str) -> str:
    """For the message about a file that is `what`."""
    hint = f"; use it together with a model, as {_PARAMETERS[what]}" if what in _PARAMETERS else ""
    return f"{what}, not a model{hint}"

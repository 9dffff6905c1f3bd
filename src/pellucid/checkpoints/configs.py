"""config.json and scheduler_config.json of diffusers and transformers: read, and written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pellucid.checkpoints.json_config import AVERAGING, JsonConfig
from pellucid.clip import SD1_TEXT, TextConfig
from pellucid.safetensors_header import CheckpointError
from pellucid.schedule import Schedule
from pellucid.vae import VAEConfig

# ---------------------------------------------------------------- the autoencoder

VAE_FIXED = {"act_fn": "silu", "latents_mean": None, "latents_std": None}


def read_vae(settings: JsonConfig) -> VAEConfig:
    """AutoencoderKL's config."""
    at_level = settings.wholes("block_out_channels", (64,))
    levels = len(at_level)
    kinds = {"DownEncoderBlock2D": True, "UpDecoderBlock2D": True}
    down = settings.words("down_block_types", ["DownEncoderBlock2D"], kinds)
    up = settings.words("up_block_types", ["UpDecoderBlock2D"], kinds)
    if len(down) != levels or len(up) != levels:
        raise settings.refused(
            "down_block_types", f"a list with one entry for each of {levels} levels"
        )
    settings.fixed(VAE_FIXED)
    channels = settings.whole("in_channels", 3)
    settings.fixed({"out_channels": channels})
    quant = settings.flag("use_quant_conv", True)
    if settings.flag("use_post_quant_conv", True) != quant:
        raise settings.refused("use_post_quant_conv", "the same as use_quant_conv")
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
    settings.finish(("force_upcast", "sample_size", *AVERAGING))
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

OLD_EOS = 2  # transformers once wrote this for eos, the largest number of the vocabulary
TEXT_CLASSES = {"CLIPTextModel": False, "CLIPTextModelWithProjection": True}
TEXT_FIXED = {
    "add_cross_attention": False,
    "chunk_size_feed_forward": 0,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "model_type": "clip_text_model",
    "position_embedding_type": "absolute",
    "pruned_heads": {},
}
# What transformers writes, and a text tower does not use: for training, for other tasks, for texts
# that are generated, and the numbers of tokens, which the tokenizer has.
TEXT_IDLE = (
    *("attention_dropout", "bos_token_id", "diversity_penalty", "dropout", "dtype"),
    *("encoder_no_repeat_ngram_size", "gradient_checkpointing", "id2label", "initializer_factor"),
    *("initializer_range", "label2id", "length_penalty", "max_length", "min_length"),
    *("no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences"),
    *("output_attentions", "output_hidden_states", "pad_token_id", "repetition_penalty"),
    *("return_dict", "temperature", "tie_word_embeddings", "top_k", "top_p", "torch_dtype"),
    *("torchscript", "transformers_version", "typical_p", "use_cache", *AVERAGING),
)


def read_text(settings: JsonConfig, projected: bool) -> TextConfig:
    """The config of CLIPTextModel, or `projected` of CLIPTextModelWithProjection."""
    eos = settings.whole("eos_token_id", SD1_TEXT.eos, 0)
    projection = settings.whole("projection_dim", 512)
    settings.fixed(TEXT_FIXED)
    settings.words("architectures", (), dict.fromkeys((*TEXT_CLASSES, "CLIPModel")))
    config = TextConfig(
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
        eos=SD1_TEXT.eos if eos == OLD_EOS else eos,
        norm_eps=settings.number("layer_norm_eps", 1e-5),
    )
    settings.finish(TEXT_IDLE)
    return config


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
FLOW_PREDICTED = {"flow_prediction": "flow"}
FLOW = "FlowMatchEulerDiscreteScheduler"
DDPM_BETAS, SD_BETAS = ("linear", 0.0001, 0.02), ("linear", 0.00085, 0.012)
# The classes of schedulers that can be read -> their own defaults for the betas. None: flow matching.
# Classes without betas, such as EDM's, have noise levels of another kind.
SCHEDULERS: Mapping[str, tuple[str, float, float] | None] = {
    **dict.fromkeys((FLOW, "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler")),
    **dict.fromkeys(("HeunDiscreteScheduler", "DPMSolverSDEScheduler"), SD_BETAS),
    **dict.fromkeys(("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"), SD_BETAS),
    **dict.fromkeys(("LCMScheduler", "TCDScheduler"), ("scaled_linear", *SD_BETAS[1:])),
    **dict.fromkeys(
        (
            *("DDIMScheduler", "DDIMInverseScheduler", "DDIMParallelScheduler"),
            *("DDPMScheduler", "DDPMParallelScheduler", "PNDMScheduler", "LMSDiscreteScheduler"),
            *("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"),
            *("DPMSolverMultistepScheduler", "DPMSolverMultistepInverseScheduler"),
            *("DPMSolverSinglestepScheduler", "DEISMultistepScheduler", "SASolverScheduler"),
            "UniPCMultistepScheduler",
        ),
        DDPM_BETAS,
    ),
}
# What would change the noise levels, or what the network predicts.
SCHEDULE_FIXED = {
    "invert_sigmas": False,
    "predict_epsilon": True,
    "scale_factors": None,
    "shift_terminal": None,
    "thresholding": False,  # clips estimates (Saharia et al. 2022), which suits pixels only
    "sigma_max": None,
    "sigma_min": None,
    "timestep_scaling": 10.0,
    "timestep_type": "discrete",
    "trained_betas": None,
    "use_dynamic_shifting": False,
}
# What chooses a sampler, its options and the spacing of its steps; here a request chooses them.
SCHEDULE_IDLE = (
    *("algorithm_type", "base_image_seq_len", "base_shift", "clip_sample", "clip_sample_range"),
    *("corrector_order", "disable_corrector", "dynamic_thresholding_ratio", "euler_at_final"),
    *("final_sigmas_type", "interpolation_type", "lambda_min_clipped", "lower_order_final"),
    *("max_image_seq_len", "max_shift", "noise_sampler_seed", "original_inference_steps"),
    *("predict_x0", "predictor_order", "sample_max_value", "set_alpha_to_one"),
    *("set_alpha_to_zero", "skip_prk_steps", "solver_order", "solver_p", "solver_type"),
    *("steps_offset", "stochastic_sampling", "tau_func", "tensor_format"),
    *("time_shift_type", "timestep_spacing", "upscale_mode", "use_beta_sigmas"),
    *("use_exponential_sigmas", "use_karras_sigmas", "use_lu_lambdas"),
)
VARIANCES = ("", "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")  # not learned


def read_schedule(settings: JsonConfig) -> tuple[Schedule, str]:
    """The schedule, and what the network predicts, from scheduler_config.json.

    The sampler and the spacing of the steps that it names are not read; here a request names them.
    Raises CheckpointError for a class, an option or a formulation that is not known.
    """
    betas = settings.word("_class_name", "", SCHEDULERS)
    times = settings.whole("num_train_timesteps", 1000, 2)
    settings.fixed(SCHEDULE_FIXED)
    for name in ("beta_schedule", "beta_start", "beta_end"):
        if name in settings.values and settings.values[name] is None and betas is not None:
            raise settings.refused(name, "given")  # diffusers has no meaning for null either
    settings.word("variance_type", "", dict.fromkeys(VARIANCES))
    if betas is None or settings.flag("use_flow_sigmas", False):
        key = "shift" if betas is None else "flow_shift"
        usual = "flow_prediction" if betas is None else "epsilon"
        prediction = settings.word("prediction_type", usual, FLOW_PREDICTED)
        known = ("beta_schedule", "beta_start", "beta_end", "rescale_betas_zero_snr")
        schedule = _schedule(settings, name="flow", T=times, shift=settings.number(key, 1.0))
        settings.finish((*SCHEDULE_IDLE, *(known if betas else ())))
        return schedule, prediction
    prediction = settings.word("prediction_type", "epsilon", PREDICTED)
    schedule = _schedule(
        settings,
        name=settings.word("beta_schedule", betas[0], BETAS),
        T=times,
        beta_start=settings.number("beta_start", betas[1]),
        beta_end=settings.number("beta_end", betas[2]),
        zero_terminal_snr=settings.flag("rescale_betas_zero_snr", False),
    )
    settings.finish((*SCHEDULE_IDLE, "flow_shift"))
    return schedule, prediction


def _schedule(settings: JsonConfig, **values: Any) -> Schedule:
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
        # A schedule that ends in pure noise must start at its last time.
        "timestep_spacing": "trailing" if zero else "leading",
        # For other samplers: the times 1, 51, ... of the original code, whose last step ends at 0.
        "steps_offset": 1,
        "set_alpha_to_one": False,
        "clip_sample": False,
        "skip_prk_steps": True,
    }

"""What configs and keys say of a model is compared with what is supported, and never guessed."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from inputs import (
    SHORT,
    change_json,
    copy_folder,
    quietly,
    read_weights,
    replace_weights,
    write_json,
)
from safetensors.torch import save_file

import references
from pellucid import checkpoints
from pellucid.checkpoints import configs
from pellucid.checkpoints.json_config import JsonConfig
from pellucid.model import Model
from pellucid.pipeline import generate
from pellucid.request import Request
from references import model_of

SCHEDULER = "scheduler/scheduler_config.json"
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.fixture
def folder(sd1_folder: Path, tmp_path: Path) -> Path:
    """A thin Stable Diffusion 1 as a folder of diffusers', to be changed."""
    return copy_folder(sd1_folder, tmp_path / "model")


def refusal(folder: Path) -> str:
    """What `describe` and `load` both say of a folder that is refused."""
    with pytest.raises(checkpoints.CheckpointError) as described:
        checkpoints.describe(folder)
    with pytest.raises(checkpoints.CheckpointError) as loaded:
        checkpoints.load(folder)
    assert str(described.value) == str(loaded.value)
    return str(loaded.value)


# ---------------------------------------------------------------- 1: schedulers


@pytest.mark.parametrize(
    "name",
    ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "CMStochasticIterativeScheduler"],
)
def test_scheduler_without_betas_is_refused_by_name(name: str, folder: Path) -> None:
    """Case 1: CosXL and Playground 2.5 use EDM's noise levels, which are no betas."""
    diffusers = pytest.importorskip("diffusers")
    quietly(quietly(getattr(diffusers, name)).save_pretrained, folder / "scheduler")
    assert name in refusal(folder)


@pytest.mark.parametrize(
    "name", ["SomebodysNewScheduler", "FlowUniPCMultistepScheduler", "CogVideoXDDIMScheduler", ""]
)
def test_unknown_scheduler_class_is_refused_by_name(name: str, folder: Path) -> None:
    """Case 1: a class that is not known is not DDPM, even where its betas look familiar."""
    write_json(folder / SCHEDULER, {"_class_name": name, "num_train_timesteps": 1000, **BETAS})
    message = refusal(folder)
    assert (name or "_class_name") in message and "scheduler_config.json" in message


@pytest.mark.parametrize("name", ["beta_schedule", "beta_start", "beta_end"])
def test_null_is_no_default(name: str, folder: Path) -> None:
    """Case 1: diffusers has no meaning for it either."""
    change_json(folder / SCHEDULER, **{name: None})
    assert name in refusal(folder)


def test_scheduler_without_class_is_refused(folder: Path) -> None:
    """Case 1: an empty config says nothing, so nothing follows from it."""
    write_json(folder / SCHEDULER, {})
    assert "_class_name" in refusal(folder)


FLOWS: dict[str, tuple[str, dict[str, Any], float]] = {
    "UniPC": (
        "UniPCMultistepScheduler",
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
        3.0,
    ),
    "DPM++": (
        "DPMSolverMultistepScheduler",
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 2.5},
        2.5,
    ),
    "Heun": ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}, 3.0),
    "Euler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, 3.0),
}


@pytest.mark.parametrize("kind", FLOWS)
def test_flow_matching_is_read_as_flow(kind: str, folder: Path) -> None:
    """Case 1: sigma = shift s / (1 + (shift - 1) s) in all of diffusers' flow-matching schedulers."""
    diffusers = pytest.importorskip("diffusers")
    name, options, shift = FLOWS[kind]
    scheduler = quietly(getattr(diffusers, name), **options)
    quietly(scheduler.save_pretrained, folder / "scheduler")
    facts = checkpoints.describe(folder)
    assert facts["prediction"] == "flow"
    assert (facts["schedule"]["name"], facts["schedule"]["shift"]) == ("flow", shift)
    model = checkpoints.load(folder)
    assert (model.prediction, model.schedule.shift) == ("flow", shift)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("use_dynamic_shifting", True),  # of flow matching; the shift would depend on the size
        ("invert_sigmas", True),
    ],
)
def test_options_of_flow_matching(option: str, value: object, folder: Path) -> None:
    """Case 1: what would change the levels or the steps of a flow is refused by name."""
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, option: value}
    write_json(folder / SCHEDULER, flow)
    assert option in refusal(folder)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("trained_betas", [0.001, 0.002]),
        ("beta_schedule", "sigmoid"),
        ("prediction_type", "flow_prediction"),  # without use_flow_sigmas: no such thing
        ("snr_shift_scale", 3.0),
        ("sigma_data", 0.5),
        ("schedule_of_somebody", "cosine"),
    ],
)
def test_unknown_option_of_a_scheduler_is_refused_by_name(
    option: str, value: object, folder: Path
) -> None:
    """Case 1: an option that is not known may say that the noise is another one."""
    change_json(folder / SCHEDULER, **{option: value})
    assert option in refusal(folder)


KNOWN = (
    *("DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LMSDiscreteScheduler"),
    *("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"),
    *("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "LCMScheduler", "TCDScheduler"),
    *("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DEISMultistepScheduler"),
    *("UniPCMultistepScheduler", "DDIMInverseScheduler"),
)


@pytest.mark.parametrize("name", KNOWN)
def test_schedulers_of_published_models_are_read(name: str, folder: Path) -> None:
    """Case 1: every class with these betas, with all the options that diffusers writes."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = quietly(getattr(diffusers, name), **BETAS, prediction_type="v_prediction")
    quietly(scheduler.save_pretrained, folder / "scheduler")
    facts = checkpoints.describe(folder)
    assert facts["prediction"] == "v" and facts["schedule"]["name"] == "scaled_linear"
    assert facts["schedule"]["beta_end"] == 0.012


@pytest.mark.parametrize("size", [True, False])
def test_karras_and_spacing_in_a_config_are_no_fault(size: bool, folder: Path) -> None:
    """Case 1: what only chooses the steps is a default of theirs, and refuses nothing."""
    change_json(folder / SCHEDULER, use_karras_sigmas=size, timestep_spacing="leading")
    assert checkpoints.describe(folder)["schedule"]["name"] == "scaled_linear"


@pytest.mark.parametrize(
    ("file", "option", "value"),
    [
        ("text_encoder/config.json", "hidden_act", "gelu_new"),
        ("text_encoder/config.json", "model_type", "chinese_clip_text_model"),
        ("text_encoder/config.json", "architectures", ["BertModel"]),
        ("text_encoder/config.json", "position_embedding_type", "relative_key"),
        ("tokenizer/tokenizer_config.json", "tokenizer_class", "T5Tokenizer"),
        ("tokenizer/tokenizer_config.json", "tokenizer_class", "BertTokenizer"),
        ("vae/config.json", "_class_name", "AutoencoderDC"),
        ("vae/config.json", "latents_mean", [0.1, 0.2, 0.3, 0.4]),
        ("vae/config.json", "norm_type", "spatial"),
        ("unet/config.json", "_class_name", "UNet3DConditionModel"),
        ("unet/config.json", "time_cond_proj_dim", 256),
        ("unet/config.json", "something_new", 3),
    ],
)
def test_unknown_settings_of_the_other_configs(
    file: str, option: str, value: object, folder: Path
) -> None:
    """Case 1: the same for the text encoder, the tokenizer, the autoencoder and the U-Net."""
    change_json(folder / file, **{option: value})
    message = refusal(folder)
    named = value if isinstance(value, str) and option == "_class_name" else option
    assert str(named) in message and Path(file).parent.name in message


def test_settings_that_change_no_picture_are_read(folder: Path) -> None:
    """Case 1: what transformers writes beside, such as dropout and names, refuses nothing."""
    beside = {"attention_dropout": 0.0, "initializer_factor": 1.0, "dtype": "float16"}
    beside |= {
        "initializer_range": 0.02,
        "torch_dtype": "float32",
        "transformers_version": "4.25.1",
    }
    beside |= {"use_cache": True, "output_attentions": False, "return_dict": True}
    change_json(folder / "text_encoder/config.json", **beside)
    marks = {"add_prefix_space": False, "errors": "replace", "name_or_path": "x", "special": None}
    marks |= {"clean_up_tokenization_spaces": True, "do_lower_case": True}
    change_json(folder / "tokenizer/tokenizer_config.json", **marks)
    assert checkpoints.load(folder).text.config.width == 64


def all_options(kind: Any) -> dict[str, Any]:
    """What diffusers or transformers write for a class with its own defaults."""
    parameters = inspect.signature(kind.__init__).parameters.values()
    default = {p.name: p.default for p in parameters if p.default is not p.empty}
    return json.loads(json.dumps(default))  # type: ignore[no-any-return]


def test_every_option_of_every_known_scheduler_is_known() -> None:
    """Case 1: the allow-list has all that the installed diffusers writes for these classes."""
    diffusers = pytest.importorskip("diffusers")
    for name in configs.SCHEDULERS:
        options = all_options(getattr(diffusers, name))
        schedule, prediction = configs.read_schedule(
            JsonConfig(Path(name), {**options, "_class_name": name})
        )
        assert (schedule.name, prediction) in (
            *(("linear", "eps"), ("scaled_linear", "eps"), ("flow", "flow")),
        )
        if "beta_end" in options:
            assert (schedule.beta_start, schedule.beta_end) == (
                options["beta_start"],
                options["beta_end"],
            )
        # A config that leaves the betas out means the class's own.
        assert configs.read_schedule(JsonConfig(Path(name), {"_class_name": name}))[0] == schedule


PUBLISHED_SCHEDULERS = (  # SD1.4, 2.1, XL turbo, SVD's without its noise levels, SD3
    {"_class_name": "PNDMScheduler", "_diffusers_version": "0.7.0.dev0", "clip_sample": False}
    | {"skip_prk_steps": True, "steps_offset": 1, "set_alpha_to_one": False},
    {"_class_name": "DDIMScheduler", "set_alpha_to_one": False, "steps_offset": 1}
    | {"prediction_type": "v_prediction", "clip_sample": False, "skip_prk_steps": True},
    {"_class_name": "EulerAncestralDiscreteScheduler", "interpolation_type": "linear"}
    | {"sample_max_value": 1.0, "timestep_spacing": "trailing", "use_karras_sigmas": False},
    {"_class_name": "DDPMScheduler", "variance_type": "fixed_small", "tensor_format": "pt"}
    | {"predict_epsilon": True},
)


@pytest.mark.parametrize("config", PUBLISHED_SCHEDULERS)
def test_published_schedulers_are_read(config: dict[str, Any], folder: Path) -> None:
    """Case 1: as in the folders that people have, of all versions of diffusers."""
    write_json(folder / SCHEDULER, {**BETAS, "num_train_timesteps": 1000, **config})
    assert checkpoints.describe(folder)["schedule"]["beta_start"] == 0.00085


@pytest.mark.parametrize(
    "options",
    [
        {"sigma_min": 0.002, "sigma_max": 700.0},  # of Stable Video Diffusion
        {"timestep_type": "continuous"},
        {"predict_epsilon": False},
        {"variance_type": "learned_range"},
        {"use_flow_sigmas": True, "prediction_type": "epsilon"},
        {"shift_terminal": 0.1},
        {"thresholding": True},
    ],
)
def test_formulations_that_are_not_supported(options: dict[str, Any], folder: Path) -> None:
    """Case 1: other noise levels and other outputs of the network, under known classes."""
    change_json(folder / SCHEDULER, **options)
    assert any(name in refusal(folder) for name in options)


def test_scheduler_of_the_index_is_compared_too(folder: Path) -> None:
    """Case 1: the class in model_index.json is the one that diffusers uses."""
    change_json(folder / "model_index.json", scheduler=["diffusers", "EDMEulerScheduler"])
    (folder / SCHEDULER).unlink()
    assert "EDMEulerScheduler" in refusal(folder)


def test_every_setting_of_transformers_is_known(folder: Path) -> None:
    """Case 1: all of CLIPTextConfig's fields, of transformers 5 and of 4.16, which wrote more."""
    transformers = pytest.importorskip("transformers")
    path = folder / "text_encoder/config.json"
    written = json.loads(path.read_text())
    old = {"add_cross_attention": False, "bad_words_ids": None, "chunk_size_feed_forward": 0}
    old |= {"diversity_penalty": 0.0, "do_sample": False, "early_stopping": False, "max_length": 20}
    old |= {"encoder_no_repeat_ngram_size": 0, "is_decoder": False, "length_penalty": 1.0}
    old |= {"min_length": 0, "no_repeat_ngram_size": 0, "num_beam_groups": 1, "num_beams": 1}
    old |= {"num_return_sequences": 1, "output_scores": False, "prefix": None, "pruned_heads": {}}
    old |= {"repetition_penalty": 1.0, "temperature": 1.0, "tie_word_embeddings": True, "top_k": 50}
    old |= {"top_p": 1.0, "torchscript": False, "typical_p": 1.0, "use_bfloat16": False}
    full = json.loads(json.dumps(transformers.CLIPTextConfig().to_dict()))
    write_json(path, {**full, **old, "dropout": 0.0, "torch_dtype": "float16", **written})
    assert checkpoints.describe(folder)["family"] == "Stable Diffusion 1"


def test_tokenizers_that_transformers_writes(folder: Path) -> None:
    """Case 1: with its parts as objects (4.20), with added_tokens_decoder (4.40), and of today."""
    transformers = pytest.importorskip("transformers")
    mark = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    start = {"__type": "AddedToken", "content": "<|startoftext|>", **mark}
    path = folder / "tokenizer/tokenizer_config.json"
    change_json(path, bos_token=start, special_tokens_map_file="./special_tokens_map.json")
    change_json(path, added_tokens_decoder={"49406": {**start, "special": True}})
    change_json(path, name_or_path="openai/clip-vit-large-patch14", errors="replace")
    assert checkpoints.describe(folder)["family"] == "Stable Diffusion 1"
    made = quietly(transformers.CLIPTokenizer.from_pretrained, folder / "tokenizer")
    quietly(made.save_pretrained, folder / "tokenizer")
    assert checkpoints.describe(folder)["family"] == "Stable Diffusion 1"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("type", "WordPiece"),
        ("type", "Unigram"),
        ("end_of_word_suffix", ""),
        ("dropout", 0.1),
        ("something_new", "x"),
    ],
)
def test_other_vocabularies_are_refused(option: str, value: object, folder: Path) -> None:
    """Case 1: tokenizer.json alone, of CLIP's kind, and of others (GPT-2's has no suffix)."""
    transformers = pytest.importorskip("transformers")
    made = quietly(transformers.CLIPTokenizer.from_pretrained, folder / "tokenizer")
    quietly(made.save_pretrained, folder / "tokenizer")
    for name in ("vocab.json", "merges.txt"):
        (folder / "tokenizer" / name).unlink(missing_ok=True)
    assert checkpoints.describe(folder)["family"] == "Stable Diffusion 1"
    path = folder / "tokenizer/tokenizer.json"
    content = json.loads(path.read_text("utf-8"))
    change_json(path, model={**content["model"], option: value})
    assert option in refusal(folder)


# ---------------------------------------------------------------- 4: SGM's words for v

SGM = """model:
  target: sgm.models.diffusion.DiffusionEngine
  params:
    scale_factor: 0.13025
    disable_first_stage_autocast: True
    denoiser_config:
      target: sgm.modules.diffusionmodules.denoiser.DiscreteDenoiser
      params:
        num_idx: 1000
        {key}:
          target: sgm.modules.diffusionmodules.denoiser_scaling.{scaling}
"""
FLAT = (
    "model: {{params: {{denoiser_config: {{params: "
    "{{{key}: {{target: sgm.modules.diffusionmodules.denoiser_scaling.{scaling}}}}}}}}}}}\n"
)


def described(source: Path, folder: Path, text: str) -> dict[str, Any]:
    path = folder / "model.safetensors"
    path.hardlink_to(source)
    path.with_suffix(".yaml").write_text(text)
    return checkpoints.describe(path)


@pytest.mark.parametrize(
    "text", [SGM, FLAT, SGM.replace("\n", "\r\n")], ids=["sgm", "flow", "crlf"]
)
@pytest.mark.parametrize("key", ["denoiser_scaling", "scaling_config"])
def test_v_prediction_in_the_words_of_sgm(
    text: str, key: str, sdxl_file: Path, tmp_path: Path
) -> None:
    """Case 4: `generative-models` says v by the class of its scaling, under either key."""
    told = text.format(key=key, scaling="VScaling")
    assert described(sdxl_file, tmp_path, told)["prediction"] == "v"


def test_eps_in_the_words_of_sgm(sdxl_file: Path, tmp_path: Path) -> None:
    """Case 4: EpsScaling, and VScaling in a comment."""
    told = SGM.format(key="scaling_config", scaling="EpsScaling  # not VScaling")
    assert described(sdxl_file, tmp_path, told)["prediction"] == "eps"


@pytest.mark.parametrize("scaling", ["EDMScaling", "VScalingWithEDMcNoise", "SomebodysScaling"])
def test_other_scalings_of_sgm_are_refused_by_name(
    scaling: str, sdxl_file: Path, tmp_path: Path
) -> None:
    """Case 4: CosXL's and Stable Video's scalings are of EDM's noise levels."""
    with pytest.raises(checkpoints.CheckpointError, match=scaling):
        described(sdxl_file, tmp_path, SGM.format(key="scaling_config", scaling=scaling))


@pytest.mark.parametrize("code", ["utf-16", "utf-8-sig"])
def test_a_config_in_the_encodings_of_windows(
    code: str, sd2_files: tuple[Path, Path], tmp_path: Path
) -> None:
    """Case 4: PowerShell writes UTF-16; an encoding that is not known is refused, not left out."""
    path = tmp_path / "model.safetensors"
    path.hardlink_to(sd2_files[0])
    config = path.with_suffix(".yaml")
    config.write_bytes('params:\n  parameterization: "v"\n'.encode(code))
    assert checkpoints.describe(path)["prediction"] == "v"
    config.write_bytes(b"# caf\xe9\n")
    with pytest.raises(checkpoints.CheckpointError, match=r"model\.yaml.* UTF-8"):
        checkpoints.describe(path)


@pytest.mark.parametrize(
    ("said", "read"), [("v", "v"), ("V_Prediction", "v"), ("epsilon", "eps"), ("flow", None)]
)
def test_the_prediction_in_the_metadata(
    said: str, read: str | None, sd2_files: tuple[Path, Path], tmp_path: Path
) -> None:
    """Case 4: Stability's ModelSpec; a value that is not known is refused by name."""
    path = tmp_path / "model.safetensors"
    weights = {k: w for k, w in read_weights(sd2_files[0]).items() if k != "v_pred"}
    save_file(weights, path, {"modelspec.prediction_type": said})
    if read is not None:
        assert checkpoints.describe(path)["prediction"] == read
        return
    with pytest.raises(checkpoints.CheckpointError, match="prediction_type 'flow'"):
        checkpoints.describe(path)


# ---------------------------------------------------------------- 13: the family


def picture(model: Model) -> torch.Tensor:
    request = Request(prompt="a fox", seed=3, steps=1, width=64, height=64)
    *_, last = generate(model, request)
    return last.x


@pytest.fixture(scope="module")
def sd2_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Stable Diffusion 2 with the published context of 1024: with OpenCLIP's names, and as
    diffusers' scripts write it from a text encoder that transformers 5 saved."""
    folder = tmp_path_factory.mktemp("sd2")
    usual = references.TEXTS["sd2"]
    references.TEXTS["sd2"] = (replace(usual[0], width=1024, heads=16, layers=2),)
    try:
        model = model_of("sd2", "eps", vocabulary=49408, cross_attention_dim=1024)
    finally:
        references.TEXTS["sd2"] = usual
    original, converted = folder / "original.safetensors", folder / "converted.safetensors"
    checkpoints.save(model, original, torch.float16, to="ldm")
    weights = read_weights(original)
    towers = {key for key in weights if key.startswith("cond_stage_model.")}
    kept = {key: value for key, value in weights.items() if key not in towers}
    for name, value in model.text.state_dict().items():
        # diffusers stores the tower without the last layer, which Stable Diffusion 2 does not use.
        if "layers.1." not in name and not name.startswith("text_projection"):
            plain = name.removeprefix("text_model.")
            kept[f"cond_stage_model.transformer.{plain}"] = value.half().contiguous()
    save_file(kept, converted)
    return original, converted


@pytest.mark.parametrize("level", ["", "text_model."])
def test_sd2_from_the_scripts_of_diffusers(
    level: str, sd2_files: tuple[Path, Path], tmp_path: Path
) -> None:
    """Case 13: the U-Net's context of 1024 is Stable Diffusion 2, whatever the tower's keys are."""
    original, converted = sd2_files
    if level:
        weights = read_weights(converted)
        start = "cond_stage_model.transformer."
        named = {key.replace(start, start + level): value for key, value in weights.items()}
        converted = tmp_path / "named.safetensors"
        save_file(named, converted)
    assert checkpoints.describe(original)["family"] == "Stable Diffusion 2"
    assert checkpoints.describe(converted)["family"] == "Stable Diffusion 2"
    with pytest.raises(checkpoints.UnknownPrediction):
        checkpoints.load(converted)
    if not level:
        want, got = (picture(checkpoints.load(path, prediction="v")) for path in sd2_files)
        assert float((want - got).abs().max() / want.abs().max()) < 1e-3


@pytest.mark.parametrize("tower", [0, 1, 2])
def test_sdxl_from_the_scripts_of_diffusers(tower: int, sdxl_file: Path, tmp_path: Path) -> None:
    """Case 13: the level `text_model.` is optional in SDXL's first tower too (tower 1: it is there).

    Tower 2: the OpenCLIP tower with Hugging Face's names, as some merges have it.
    """
    weights = read_weights(sdxl_file)
    start = "conditioner.embedders.0.transformer."
    if tower == 0:
        weights = {k.replace(f"{start}text_model.", start): v for k, v in weights.items()}
    elif tower == 2:
        towers = checkpoints.load(sdxl_file).text_2
        assert towers is not None
        second = "conditioner.embedders.1."
        weights = {k: v for k, v in weights.items() if not k.startswith(second)}
        for name, value in towers.state_dict().items():
            weights[f"{second}transformer.{name}"] = value.half().contiguous()
    path = tmp_path / "converted.safetensors"
    save_file(weights, path)
    assert checkpoints.describe(path)["family"] == "Stable Diffusion XL"
    want, got = checkpoints.load(sdxl_file), checkpoints.load(path)
    for mine, other in ((want.text, got.text), (want.text_2, got.text_2)):
        assert mine is not None and other is not None and mine.config == other.config
        assert all(torch.equal(v, other.state_dict()[k]) for k, v in mine.state_dict().items())


def test_tower_of_another_family_is_refused(sd2_files: tuple[Path, Path], tmp_path: Path) -> None:
    """Case 13: what does not agree with the U-Net's shape is refused, and both are named."""
    weights = read_weights(sd2_files[0])
    for key in weights:  # the U-Net's context becomes that of Stable Diffusion 1
        if ".attn2.to_k." in key or ".attn2.to_v." in key:
            weights[key] = weights[key][:, :768].contiguous()
    path = tmp_path / "mixed.safetensors"
    save_file(weights, path)
    with pytest.raises(checkpoints.CheckpointError, match=r"768.*1024|1024.*768"):
        checkpoints.load(path, prediction="eps")


# ---------------------------------------------------------------- 23: diffusers' EMAModel

EMA = ("decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step")
EMA += ("use_ema_warmup",)


@pytest.mark.parametrize("warm", [False, True])
def test_config_of_an_ema_unet(warm: bool, folder: Path) -> None:
    """Case 23: EMAModel.save_pretrained puts the settings of its averaging into the U-Net's config."""
    diffusers = pytest.importorskip("diffusers")
    training = pytest.importorskip("diffusers.training_utils")
    unet = references.their_unet(replace(references.UNETS["sd1"], **SHORT))
    unet.load_state_dict(checkpoints.load(folder).backbone.state_dict())
    options: dict[str, Any] = (
        {"use_ema_warmup": True, "power": 0.75, "min_decay": 0.5} if warm else {}
    )
    kind = diffusers.UNet2DConditionModel
    average = training.EMAModel(
        unet.parameters(), model_cls=kind, model_config=unet.config, **options
    )
    average.step(unet.parameters())
    for file in (folder / "unet").iterdir():
        file.unlink()
    quietly(average.save_pretrained, folder / "unet")
    assert set(EMA) <= json.loads((folder / "unet/config.json").read_text()).keys()
    assert checkpoints.load(folder).backbone.config.block_out_channels == (32, 64)


def test_ema_settings_hide_nothing_else(folder: Path) -> None:
    """Case 23: beside these seven keys, one that is not known is still refused."""
    change_json(folder / "unet/config.json", decay=0.999, power=2 / 3, power_of_three=3)
    assert "power_of_three" in refusal(folder)


def test_ema_weights_in_half_precision(folder: Path) -> None:
    """Case 23: an average that was saved at step 0, before anything was averaged."""
    path = folder / "unet/config.json"
    change_json(path, decay=0.9999, optimization_step=0, min_decay=0.0, update_after_step=0)
    file = next((folder / "unet").glob("*.safetensors"))
    replace_weights(file, {k: v.half() for k, v in read_weights(file).items()})
    assert checkpoints.describe(folder)["family"] == "Stable Diffusion 1"

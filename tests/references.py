"""Models in the shapes of the published families, but thin: ours, and the same in real diffusers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from torch import Tensor, nn

from pellucid.backbones.mmdit import MMDiT, MMDiTConfig
from pellucid.backbones.unet import SD15, SD21, SDXL, UNet, UNetConfig
from pellucid.checkpoints import families, tokenizer_files
from pellucid.clip import SD1_TEXT, SD2_TEXT, SDXL_TEXT, TextConfig, TextTower
from pellucid.diffusion import Conditioning, Denoiser
from pellucid.guidance import GuidedDenoiser, Parts
from pellucid.model import Model
from pellucid.tiny_vae import TinyVAEConfig
from pellucid.tokenizer import CLIP_MERGES, Tokenizer
from pellucid.train.recipe import Recipe
from pellucid.vae import VAE, VAEConfig

FAMILIES = families.known()

# Published shapes that the program recognizes by the weights alone.
SD35_MEDIUM = MMDiTConfig(max_patches=384, qk_norm=True, dual_attention_layers=tuple(range(13)))
SD35_LARGE = MMDiTConfig(layers=38, heads=38, qk_norm=True)
TAESD, TAESD3 = TinyVAEConfig(), TinyVAEConfig(latent_channels=16)

# The families' shapes, thinner; all that differs between them is kept.
VAE_TINY = {"block_out_channels": (32, 32, 64), "layers_per_block": 1}
TEXT_L = replace(SD1_TEXT, vocab_size=520, width=64, layers=2, heads=1, mlp_width=96)
TEXT_H = replace(SD2_TEXT, vocab_size=520, width=64, layers=3, heads=1, mlp_width=96, projection=48)
TEXT_G = replace(
    SDXL_TEXT, vocab_size=520, width=128, layers=3, heads=2, mlp_width=96, projection=80
)
UNETS = {
    "sd1": replace(SD15, block_out_channels=(32, 64, 96, 96), cross_attention_dim=64),
    "sd2": replace(
        SD21,
        block_out_channels=(64, 64, 64, 128),
        layers_per_block=1,
        heads=(1, 1, 1, 2),
        cross_attention_dim=64,
    ),
    "sdxl": replace(
        SDXL,
        block_out_channels=(64, 64, 128),
        layers_per_block=1,
        transformer_layers=(0, 2, 3),
        mid_transformer_layers=3,
        heads=(1, 1, 2),
        cross_attention_dim=192,
        pooled_dim=80,
    ),
    "sdxl_refiner": replace(
        FAMILIES["sdxl_refiner"].backbone,
        block_out_channels=(64, 64, 64, 128),
        layers_per_block=1,
        transformer_layers=(0, 2, 2, 0),
        mid_transformer_layers=2,
        heads=(1, 1, 1, 2),
        cross_attention_dim=128,
        pooled_dim=80,
    ),
}
TEXTS = {
    "sd1": (TEXT_L,),
    "sd2": (TEXT_H,),
    "sdxl": (TEXT_L, TEXT_G),
    "sdxl_refiner": (TEXT_G,),
}
NAMES = tuple(UNETS)


def model_of(name: str, prediction: str | None = None, vocabulary: int = 520, **unet: Any) -> Model:
    """A model of a family, thin and random; `unet` are fields of its U-Net's config."""
    torch.manual_seed(1)
    family = FAMILIES[name]
    texts = [replace(text, vocab_size=vocabulary) for text in TEXTS[name]]
    parts: list[nn.Module] = [
        UNet(replace(UNETS[name], **unet)),
        VAE(replace(family.vae, **VAE_TINY)),
        *(TextTower(text) for text in texts),
    ]
    with torch.no_grad():
        for part in parts:
            for key, parameter in part.state_dict().items():
                if "embedding.weight" not in key:  # norms and biases that are not ones and zeros
                    parameter += 0.03 * torch.randn(parameter.shape)
            part.eval()
    prediction = prediction or family.prediction or "eps"
    return Model(
        parts[0],
        parts[1],  # type: ignore[arg-type]
        parts[2],  # type: ignore[arg-type]
        tokenizer_files.clip_tokenizer(),
        family.schedule,
        prediction,
        "tiny",
        text_2=parts[3] if len(parts) > 3 else None,  # type: ignore[arg-type]
        text_encoding=family.text_encoding,
        defaults=family.defaults_for(prediction),
    )


def draw_small(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Models of a family draw 64x64 by default; in the published size attention takes seconds."""
    defaults: Any = FAMILIES[name].defaults
    for preset, usual in defaults.items():
        monkeypatch.setitem(defaults, preset, replace(usual, width=64, height=64))


def thin_recipe(recipe: Recipe) -> Recipe:
    """The recipe with thin networks: what the loops do with them does not depend on their widths."""
    tower: dict[str, Any] = {
        "width": 32,
        "heads": 2,
        "layers": 1,
        "mlp_width": 32,
        "projection": 32,
    }
    return replace(
        recipe,
        vae=replace(recipe.vae, block_out_channels=(16, 16)),
        text=replace(recipe.text, **tower),
        vision=replace(recipe.vision, **tower),
    )


def parts_of(model: Model) -> dict[str, nn.Module]:
    parts = {name: getattr(model, name) for name in ("backbone", "vae", "text", "text_2")}
    return {name: part for name, part in parts.items() if part is not None}


def assert_same(model: Model, other: Model) -> None:
    for name, part in parts_of(model).items():
        again = getattr(other, name)
        assert again.config == part.config
        expected, got = part.state_dict(), again.state_dict()
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[key], expected[key]) for key in expected)
        assert not again.training
    assert (other.text_2 is None) == (model.text_2 is None)
    for name in ("text_encoding", "schedule", "prediction", "defaults"):
        assert getattr(other, name) == getattr(model, name)


def make_lora(model: Model, path: Path, seed: int = 0, strange: bool = False) -> Path:
    """A LoRA of all that attends in a model, with kohya's keys; strange: and of something else."""
    draw = torch.Generator().manual_seed(seed)
    weights = {}
    for part, start in (("backbone", "lora_unet_"), ("text", "lora_te_")):
        for name, module in getattr(model, part).named_modules():
            if isinstance(module, nn.Linear) and "attn" in name:
                key = start + name.replace(".", "_")
                sides = module.weight.shape
                weights[f"{key}.lora_down.weight"] = torch.randn(2, sides[1], generator=draw)
                weights[f"{key}.lora_up.weight"] = torch.randn(sides[0], 2, generator=draw)
    if strange:
        weights |= {f"lora_unet_x.lora_{end}.weight": torch.ones(2, 2) for end in ("down", "up")}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path)
    return path


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def asked(model: Model, batch: int = 2, side: int = 8, length: int = 7) -> tuple[Any, ...]:
    """What a network gets."""
    config: Any = model.backbone.config
    pooled = noise(batch, config.pooled_dim, seed=2) if config.pooled_dim else None
    sizes = noise(batch, getattr(config, "size_count", 0), seed=3).abs() * 100
    tokens = noise(batch, length, config.cross_attention_dim, seed=1)
    x = noise(batch, config.in_channels, side, side)
    return x, torch.linspace(900, 20, batch), Conditioning(tokens, pooled, sizes)


def of_family(name: str) -> Model:
    if name != "sd3":
        return model_of(name)
    thin = replace(
        SD35_MEDIUM, layers=3, heads=2, head_width=16, cross_attention_dim=24, pooled_dim=20,
        max_patches=16, sample_size=16, dual_attention_layers=(0,),
    )  # fmt: skip
    return replace(model_of("sd1"), backbone=MMDiT(thin).eval())


def close(a: Tensor, b: Tensor) -> None:
    assert float((a - b).abs().max() / b.abs().max()) < 1e-4


def their_unet(config: UNetConfig) -> Any:
    diffusers = pytest.importorskip("diffusers")
    crossed = [depth > 0 for depth in config.transformer_layers]
    sized = config.size_conditions
    return diffusers.UNet2DConditionModel(
        in_channels=config.in_channels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        down_block_types=[("CrossAttnDownBlock2D" if c else "DownBlock2D") for c in crossed],
        up_block_types=[("CrossAttnUpBlock2D" if c else "UpBlock2D") for c in crossed[::-1]],
        transformer_layers_per_block=[
            d if d > 0 else config.mid_transformer_layers for d in config.transformer_layers
        ],
        attention_head_dim=config.heads,
        cross_attention_dim=config.cross_attention_dim,
        use_linear_projection=config.use_linear_projection,
        addition_embed_type="text_time" if sized else None,
        addition_time_embed_dim=256 if sized else None,
        projection_class_embeddings_input_dim=(
            config.pooled_dim + config.size_count * 256 if sized else None
        ),
    ).eval()


def their_vae(config: VAEConfig) -> Any:
    diffusers = pytest.importorskip("diffusers")
    levels = len(config.block_out_channels)
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        scaling_factor=config.scaling_factor,
    ).eval()


def their_text(config: TextConfig, projected: bool, eos: int = 99) -> Any:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPTextConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.mlp_width,
        hidden_act=config.activation,
        projection_dim=config.projection or 512,
        bos_token_id=7,
        eos_token_id=eos,
    )
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return kind(theirs).eval()


# ---------------------------------------------------------------- whole folders of diffusers

PIPELINES = {
    "sd1": "StableDiffusionPipeline",
    "sd2": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sdxl_refiner": "StableDiffusionXLImg2ImgPipeline",
}


def small_vocabulary(folder: Path) -> Path:
    """A few pieces of CLIP's, with its numbers, in the two files that transformers reads."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "re", "red</w>"]
    numbers = {piece: i for i, piece in enumerate(pieces)}
    numbers |= {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    (folder / "vocab.json").write_text(json.dumps(numbers))
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    return folder


def their_tokenizer(pad: str) -> Any:
    """transformers' tokenizer with CLIP's whole vocabulary; SD1 pads with eos, OpenCLIP with "!"."""
    transformers = pytest.importorskip("transformers")
    lines = CLIP_MERGES.read_text("utf-8").split("\n")[:-1]
    return transformers.CLIPTokenizer(
        vocab=Tokenizer.clip().bpe.get_vocab(),
        merges=[tuple(line.split(" ")) for line in lines],
        pad_token=pad,
        model_max_length=77,
    )


def shake(network: Any) -> Any:
    """Weights as after training: no norm is one, no bias zero."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "embedding.weight" not in name:
                parameter += 0.03 * torch.randn(parameter.shape)
    return network.eval()


def their_pipeline(name: str, vocabulary: Path, prediction: str = "epsilon", **unet: Any) -> Any:
    """diffusers' pipeline of a family, thin and random, with the tokenizer in `vocabulary`.

    SD2's tower is what diffusers stores of it, without the last layer and the projection.
    """
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(2)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(str(vocabulary), model_max_length=77)
    # SD2 and the second tower of SDXL pad with the token 0.
    padded = transformers.CLIPTokenizer.from_pretrained(
        str(vocabulary), model_max_length=77, pad_token="!"
    )
    towers = []
    for config in (replace(config, vocab_size=49408) for config in TEXTS[name]):
        projected = name.startswith("sdxl") and config.projection is not None
        towers.append(shake(their_text(config, projected, tokenizer.eos_token_id)))
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
        prediction_type=prediction,
    )
    parts: dict[str, Any] = {
        "unet": shake(their_unet(replace(UNETS[name], **unet))),
        "vae": shake(their_vae(replace(FAMILIES[name].vae, **VAE_TINY))),
        "scheduler": scheduler,
    }
    if name in ("sd1", "sd2"):
        parts |= {"text_encoder": towers[0], "tokenizer": tokenizer if name == "sd1" else padded}
        parts |= {"safety_checker": None, "feature_extractor": None}
    elif name == "sdxl":
        parts |= {"text_encoder": towers[0], "tokenizer": tokenizer}
        parts |= {"text_encoder_2": towers[1], "tokenizer_2": padded, "add_watermarker": False}
    else:
        parts |= {"text_encoder": None, "tokenizer": None}
        parts |= {"text_encoder_2": towers[0], "tokenizer_2": padded, "add_watermarker": False}
        parts |= {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False}
    return getattr(diffusers, PIPELINES[name])(**parts)


def unguided(denoise: Denoiser) -> GuidedDenoiser:
    """A denoiser that nothing guides, for what takes one that is guided."""
    return lambda x, level: Parts(*[denoise(x, level)] * 3)

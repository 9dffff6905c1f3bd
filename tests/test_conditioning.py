"""What the network is told, against diffusers and transformers, and against plain statements."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pellucid.backbones.unet import UNet, UNetConfig
from pellucid.clip import SD1_TEXT, SD2_TEXT, SDXL_TEXT, TextConfig, TextTower
from pellucid.conditioning import (
    StepConditioning,
    Token,
    chunked,
    conditioning_schedule,
    emphasized,
    encode_captions,
    encode_prompts,
)
from pellucid.model import Model, TextEncoding
from pellucid.request import Request, resolve
from pellucid.runtime import Runtime
from pellucid.schedule import Schedule
from pellucid.tokenizer import Tokenizer
from pellucid.vae import VAE, VAEConfig
from references import FAMILIES, their_tokenizer

CLIP = Tokenizer.clip()
L = replace(SD1_TEXT, width=32, heads=2, mlp_width=48)
H = replace(SD2_TEXT, width=32, heads=2, mlp_width=48, projection=24)
G = replace(SDXL_TEXT, width=40, heads=2, mlp_width=48, projection=24)
TOWERS = {
    "sd1": (L,),
    "sd2": (H,),
    "sdxl": (L, G),
    "sdxl_refiner": (G,),
    "sd3": (replace(L, projection=16), G),
}
SIZES = {"sdxl": 6, "sdxl_refiner": 5}
PROMPT, NEGATIVE = "a photo of an astronaut, riding a horse", "blurry, dark"


def theirs_of(config: TextConfig) -> Any:
    """A tower of transformers with random weights, norms and biases too."""
    kind = "CLIPTextModelWithProjection" if config.projection else "CLIPTextModel"
    tower = getattr(transformers, kind)(
        transformers.CLIPTextConfig(
            vocab_size=config.vocab_size,
            max_position_embeddings=config.context_length,
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.mlp_width,
            hidden_act=config.activation,
            projection_dim=config.projection or 512,
            bos_token_id=49406,
            eos_token_id=49407,
            pad_token_id=0,
        )
    ).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    if not hasattr(tower, "text_model"):  # what it is in transformers 5 diffusers looks for in it
        object.__setattr__(tower, "text_model", tower)
    return tower


def ours_of(theirs: Any, config: TextConfig) -> TextTower:
    ours = TextTower(config).eval()
    weights = {
        key if key.startswith("text_") else f"text_model.{key}": value
        for key, value in theirs.state_dict().items()
    }
    ours.load_state_dict(weights)
    return ours


@pytest.fixture(scope="module")
def models() -> dict[str, tuple[Model, list[Any]]]:
    """Of each family a model whose backbone is tiny, and its towers in transformers."""
    vae = VAE(VAEConfig(block_out_channels=(8, 8), layers_per_block=1, norm_groups=4))
    made = {}
    different = {config for configs in TOWERS.values() for config in configs}
    all_theirs = {config: theirs_of(config) for config in different}
    all_ours = {config: ours_of(all_theirs[config], config) for config in different}
    for name, configs in TOWERS.items():
        reading = FAMILIES[name].text_encoding
        theirs, ours = ([towers[c] for c in configs] for towers in (all_theirs, all_ours))
        unet = UNetConfig(
            block_out_channels=(8, 8),
            layers_per_block=1,
            transformer_layers=(0, 1),
            heads=(2, 2),
            cross_attention_dim=sum(config.width for config in configs),
            norm_groups=4,
            pooled_dim=24 if name in SIZES else 0,
            size_conditions=name in SIZES,
            size_count=SIZES.get(name, 6),
        )
        model = Model(
            UNet(unet), vae, ours[0], CLIP, Schedule(), "eps", name, text_encoding=reading
        )
        made[name] = (replace(model, text_2=ours[1] if len(ours) > 1 else None), theirs)
    return made


@pytest.fixture(scope="module")
def tokenizers() -> list[Any]:
    """transformers' tokenizers of CLIP's vocabulary: padded as SD1's, and as OpenCLIP's towers'."""
    return [their_tokenizer(pad) for pad in ("<|endoftext|>", "!")]


def only(model: Model, **fields: Any) -> StepConditioning:
    """What a run of one step is told."""
    (step,) = conditioning_schedule(
        Runtime(model), resolve(model, Request.model_validate({"guidance": 7.0} | fields)), 1
    )
    return step


def close(ours: Tensor | None, theirs: Tensor) -> bool:
    assert ours is not None and ours.shape == theirs.shape
    return bool((ours - theirs).abs().max() <= 1e-4 * theirs.abs().max())


# ---------------------------------------------------------------- diffusers


def small_unet(width: int, sizes: int = 0) -> Any:
    extra = {}
    if sizes:
        extra = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 24 + 8 * sizes,
        }
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=2,
        norm_num_groups=4,
        **extra,
    )


def small_vae() -> Any:
    return diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2)


@pytest.mark.parametrize(("name", "pad"), [("sd1", 0), ("sd2", 1)])
def test_sd1_and_sd2_equal_diffusers(models: Any, tokenizers: Any, name: str, pad: int) -> None:
    model, (tower,) = models[name]
    pipe = diffusers.StableDiffusionPipeline(
        vae=small_vae(),
        text_encoder=tower,
        tokenizer=tokenizers[pad],
        unet=small_unet(tower.config.hidden_size),
        scheduler=diffusers.EulerDiscreteScheduler(steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    # SD2's folders of diffusers leave the last layer out; here it is there, and is passed over.
    own_skip = None if name == "sd1" else 1
    # diffusers counts what it leaves out: 0 is the last layer, 1 the one before.
    for skip, ours_skip in ((own_skip, None), (0, 1), (1, 2), (2, 3)):
        step = only(model, prompt=PROMPT, negative_prompt=NEGATIVE, clip_skip=ours_skip)
        assert step.uncond is not None
        for mine, text in ((step.conds[0][0], PROMPT), (step.uncond, NEGATIVE)):
            # Of a negative prompt diffusers skips no layer, so it is read as a prompt.
            expected, _ = pipe.encode_prompt(text, "cpu", 1, False, clip_skip=skip)
            assert close(mine.tokens, expected)
    assert step.at_size(model, 512, 640) == step  # it is not asked for


@pytest.mark.parametrize("negative", [None, NEGATIVE])
def test_sdxl_equals_diffusers(models: Any, tokenizers: Any, negative: str | None) -> None:
    model, (tower, tower_2) = models["sdxl"]
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=small_vae(),
        text_encoder=tower,
        text_encoder_2=tower_2,
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=small_unet(72, 6),
        scheduler=diffusers.EulerDiscreteScheduler(steps_offset=1),
        add_watermarker=False,
    )
    cond, uncond, pooled, unpooled = pipe.encode_prompt(
        PROMPT, device="cpu", negative_prompt=negative
    )
    step = only(model, prompt=PROMPT, negative_prompt=negative or "").at_size(model, 1024, 768)
    mine = step.conds[0][0]
    assert step.uncond is not None and mine.tokens.shape == (1, 77, 72)
    assert close(mine.tokens, cond) and close(mine.pooled, pooled)
    assert close(step.uncond.tokens, uncond) and close(step.uncond.pooled, unpooled)
    assert bool(uncond.any()) is (negative is not None)
    sizes = pipe._get_add_time_ids((768, 1024), (0, 0), (768, 1024), torch.float32, 24)
    assert mine.sizes is not None and torch.equal(mine.sizes, sizes)
    assert step.uncond.sizes is not None and torch.equal(step.uncond.sizes, sizes)
    for skip in (1, 2, 3):  # diffusers counts from the last but one, the default
        skipped, _, same, _ = pipe.encode_prompt(PROMPT, device="cpu", clip_skip=skip - 2)
        mine = only(model, prompt=PROMPT, clip_skip=skip).conds[0][0]
        assert close(mine.tokens, skipped) and close(mine.pooled, same)
        assert torch.equal(same, pooled)


def layers_of(tower: Any, ids: Tensor) -> list[Tensor]:
    """What each of its layers hands on, before any norm."""
    looked: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(
            lambda *args: looked.append(args[2] if torch.is_tensor(args[2]) else args[2][0])
        )
        for layer in tower.text_model.encoder.layers
    ]
    tower(ids)
    for hook in hooks:
        hook.remove()
    return looked


@pytest.mark.parametrize("skip", [1, 2, 3])
@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
@torch.no_grad()
def test_clip_skip_counts_hidden_states(models: Any, tokenizers: Any, name: str, skip: int) -> None:
    """hidden_states[-n] of each tower, and but for SDXL the final layer norm over it."""
    model, towers = models[name]
    expected = []
    for config, tower, pad in zip(TOWERS[name], towers, model.text_encoding.pads, strict=True):
        tokenizer = tokenizers[1 if pad == 0 else 0]
        row = tokenizer(PROMPT, padding="max_length", max_length=77, return_tensors="pt")
        inside, looked = tower.text_model, layers_of(tower, row.input_ids)
        assert len(looked) == config.layers
        layer = looked[-skip]
        expected.append(layer if name == "sdxl" else inside.final_layer_norm(layer))
    mine = only(model, prompt=PROMPT, clip_skip=skip).conds[0][0].tokens
    assert close(mine, torch.cat(expected, dim=-1))


def test_the_refiner_equals_diffusers(models: Any, tokenizers: Any) -> None:
    model, (tower,) = models["sdxl_refiner"]
    pipe = diffusers.StableDiffusionXLImg2ImgPipeline(
        vae=small_vae(),
        text_encoder=None,
        text_encoder_2=tower,
        tokenizer=None,
        tokenizer_2=tokenizers[1],
        unet=small_unet(40, 5),
        scheduler=diffusers.EulerDiscreteScheduler(steps_offset=1),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )
    cond, uncond, pooled, unpooled = pipe.encode_prompt(PROMPT, device="cpu", negative_prompt="")
    size = (768, 1024)
    sizes = pipe._get_add_time_ids(
        size, (0, 0), size, 6.0, 2.5, size, (0, 0), size, torch.float32, 24
    )
    step = only(model, prompt=PROMPT).at_size(model, 1024, 768)
    mine = step.conds[0][0]
    assert step.uncond is not None
    assert close(mine.tokens, cond) and close(mine.pooled, pooled)
    assert close(step.uncond.tokens, uncond) and close(step.uncond.pooled, unpooled)
    assert close(mine.sizes, sizes[0]) and close(step.uncond.sizes, sizes[1])


def test_sd3_without_t5_equals_diffusers(models: Any, tokenizers: Any) -> None:
    model, (tower, tower_2) = models["sd3"]
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=1,
            joint_attention_dim=4096,
            caption_projection_dim=8,
            pooled_projection_dim=40,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=small_vae(),
        text_encoder=tower,
        tokenizer=tokenizers[0],
        text_encoder_2=tower_2,
        tokenizer_2=tokenizers[1],
        text_encoder_3=None,
        tokenizer_3=None,
    )
    cond, uncond, pooled, unpooled = pipe.encode_prompt(
        PROMPT, None, None, device="cpu", negative_prompt=NEGATIVE
    )
    step = only(model, prompt=PROMPT, negative_prompt=NEGATIVE)
    mine = step.conds[0][0]
    assert step.uncond is not None and mine.tokens.shape == (1, 77 + 256, 4096)
    assert close(mine.tokens, cond) and close(mine.pooled, pooled)
    assert close(step.uncond.tokens, uncond) and close(step.uncond.pooled, unpooled)


# ---------------------------------------------------------------- the sum of the words


def test_pooled_with_the_words(model: Model) -> None:
    """Beside CLIP's vector stands the sum of the words' own, of all chunks, each with its weight."""
    ours = replace(model, text_encoding=TextEncoding(pooled="words"))
    row = ours.text.text_model.embeddings.token_embedding.weight
    prompt = "a red apple a rabbit a red rabbit"  # more than a row
    numbers = ours.tokenizer.encode(prompt)
    assert len(numbers) > ours.tokenizer.context_length - 2
    wanted = torch.stack([row[number] for number in numbers]).sum(0)
    heavy = 3 * row[ours.tokenizer.encode("rabbit")].sum(0) + row[ours.tokenizer.encode("a")].sum(0)

    def unit(x: Tensor) -> Tensor:
        return (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()

    for text, total in ((prompt, wanted), ("a (rabbit:3)", heavy), ("", torch.zeros_like(wanted))):
        told_now, plain = (
            encode_prompts(Runtime(ours), [text]).pooled,
            encode_prompts(Runtime(model), [text]).pooled,
        )
        assert told_now is not None and plain is not None
        assert torch.equal(told_now[:, : plain.shape[1]], plain)
        assert torch.allclose(told_now[0, plain.shape[1] :], unit(total), atol=1e-5)


def test_trained_as_it_is_read(model: Model) -> None:
    ours = replace(model, text_encoding=TextEncoding(pooled="words"))
    captions = ["a rabbit", "a", ""]
    trained, used = (
        encode_captions(ours.text, ours.tokenizer, captions, words=True),
        encode_prompts(Runtime(ours), captions),
    )
    assert trained.pooled is not None and used.pooled is not None
    assert torch.allclose(trained.pooled, used.pooled) and torch.equal(trained.tokens, used.tokens)


# ---------------------------------------------------------------- chunks


def words(count: int, comma_at: int | None = None) -> str:
    """So many tokens, a word each, one of which may be a comma."""
    return " ".join("," if i == comma_at else "cat" for i in range(count))


@pytest.mark.parametrize(
    ("prompt", "sizes"),
    [
        ("", [0]),
        (words(75), [75]),
        (words(76), [75, 1]),
        (words(200), [75, 75, 50]),
        (words(80, 74), [75, 5]),  # it ends with the comma
        (words(80, 55), [56, 24]),  # among the last twenty
        (words(80, 54), [75, 5]),
        (words(76, 75), [75, 1]),  # a comma goes to the next chunk as any token
        (words(76, 60), [61, 15]),
        (words(75, 60), [75]),
        ("cat BREAK cat", [1, 1]),
        ("cat BREAK", [1]),
        ("BREAK cat", [0, 1]),
        (f"{words(75)} BREAK cat", [75, 1]),
        (f"({words(40)}:1.2) {words(40)}", [75, 5]),
    ],
)
def test_chunks(prompt: str, sizes: list[int]) -> None:
    assert [len(chunk) for chunk in chunked(CLIP, prompt)] == sizes


def test_tokens_of_chunks() -> None:
    ((cat, comma, dog),) = chunked(CLIP, "a cat, (dog:1.5)"[2:])
    assert cat == Token(CLIP.encode("cat")[0], "cat", 1.0)
    assert (comma.text, dog.text, dog.weight) == (",", "dog", 1.5)


def test_smaller_rows_reach_back_less() -> None:
    """A third of 75 tokens, a third of 20."""
    small = Tokenizer.clip(context_length=27)
    assert [len(chunk) for chunk in chunked(small, words(26, 19))] == [20, 6]
    assert [len(chunk) for chunk in chunked(small, words(26, 18))] == [25, 1]


def test_a_word_of_several_vectors_is_not_cut() -> None:
    own = Tokenizer.clip(context_length=9).with_words({"<frog>": (60000, 60001, 60002)})
    assert [len(c) for c in chunked(own, "a b c d <frog> e")] == [7, 1]
    assert [len(c) for c in chunked(own, "a b c d e <frog> f")] == [5, 4]
    assert [len(c) for c in chunked(own, "a b c d e f <frog> <frog>")] == [6, 6]
    long = own.with_words({"<toad>": range(60003, 60013)})
    assert [len(c) for c in chunked(long, "a <toad>")] == [1, 7, 3]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["cat", ",", "a b", "BREAK", "(x:2)"]), max_size=80))
def test_no_token_is_lost(parts: list[str]) -> None:
    prompt = " ".join(parts)
    small = Tokenizer.clip(context_length=9)
    flat = [token for chunk in chunked(small, prompt) for token in chunk]
    plain = prompt.replace("BREAK", " ").replace("(x:2)", " x ")
    assert [token.id for token in flat] == small.encode(plain)
    assert all(len(chunk) <= 7 for chunk in chunked(small, prompt))
    assert [token.weight for token in flat] == [1 + (token.text == "x") for token in flat]


def plain_sd1(tower: Any, rows: list[list[int]], weights: list[list[float]]) -> Tensor:
    """Each row alone through transformers' tower, weighted, its mean restored; (1, 77 rows, D)."""
    out = []
    for numbers, own in zip(rows, weights, strict=True):
        row = [49406, *numbers] + [49407] * (76 - len(numbers))
        with torch.no_grad():
            hidden = tower(torch.tensor([row])).last_hidden_state[0]
        before = hidden.mean()
        for place, weight in enumerate(own, start=1):
            hidden[place] *= weight
        out.append(hidden * before / hidden.mean())
    return torch.cat(out)[None]


def test_a_long_weighted_prompt_is_what_it_says(models: Any) -> None:
    model, (tower,) = models["sd1"]
    cat, dog, red = (CLIP.encode(word)[0] for word in ("cat", "dog", "red"))
    cats = " ".join(["cat"] * 70)
    step = only(
        model,
        prompt=f"(dog:0.5) {cats} [red] cat cat cat ((dog)) red BREAK dog",
        negative_prompt="(red:1.3)",
    )
    rows = [[dog, *[cat] * 70, red, cat, cat, cat], [dog, red], [dog]]
    weights = [[0.5, *[1.0] * 70, 1 / 1.1, 1.0, 1.0, 1.0], [1.21, 1.0], [1.0]]
    cond, weight = step.conds[0]
    assert weight == 1.0
    assert close(cond.tokens, plain_sd1(tower, rows, weights))
    # The negative prompt is as long, with empty chunks.
    assert step.uncond is not None
    assert close(step.uncond.tokens, plain_sd1(tower, [[red], [], []], [[1.3], [], []]))
    bare = only(model, prompt="(red:2)", emphasis="no_norm").conds[0][0].tokens
    one = only(model, prompt="red").conds[0][0].tokens
    twice = one.clone()
    twice[:, 1] *= 2
    assert close(bare, twice)


def test_two_towers_read_the_same_chunks(models: Any) -> None:
    """Weights do not change SDXL's mean by default; the pooled text is of the first chunk."""
    model, _ = models["sdxl"]
    first, second = (only(model, prompt=p).conds[0][0] for p in ("red cat", "dog"))
    both = only(model, prompt="red (cat:1.5) BREAK (dog:1.5)").conds[0][0]
    wanted = torch.cat([first.tokens, second.tokens], dim=1)
    wanted[:, [2, 78]] *= 1.5
    assert close(both.tokens, wanted)
    assert first.pooled is not None and close(both.pooled, first.pooled)


def test_a_mean_of_zero_stays() -> None:
    hidden = torch.tensor([[[1.0, -1.0], [2.0, -2.0]]])
    twice = emphasized(hidden, torch.tensor([[1.0, 2.0]]), "original")
    assert twice.tolist() == [[[1.0, -1.0], [4.0, -4.0]]]


# ---------------------------------------------------------------- steps, sums and errors


def test_what_each_step_is_told(models: Any) -> None:
    model, _ = models["sd1"]
    fields = {"prompt": "[cat:dog:1] AND red:-0.5", "negative_prompt": "[blue::2]", "guidance": 5}
    request = resolve(model, Request.model_validate(fields))
    steps = conditioning_schedule(Runtime(model), request, 3)
    for step, own, against in zip(steps, ("cat", "dog", "dog"), ("blue", "blue", ""), strict=True):
        (one, w1), (two, w2) = step.conds
        assert (w1, w2) == (1.0, -0.5) and step.uncond is not None
        for mine, text in ((one, own), (two, "red"), (step.uncond, against)):
            assert close(mine.tokens, encode_prompts(Runtime(model), [text]).tokens)


def test_what_mixed_prompts_are_told(models: Any) -> None:
    model, _ = models["sd1"]
    mixed = only(model, prompt="cat AND dog:0.5", mix=[("red", 3.0)])
    assert [weight for _, weight in mixed.conds] == [0.25, 0.125, 0.75]
    assert mixed.uncond is not None
    halves = only(model, prompt="cat", mix=[("red", 1.0)], guidance=1.0)
    assert halves.uncond is None
    assert only(model, prompt="cat AND red", guidance=1.0).uncond is not None
    one = only(model, prompt="cat", mix=[("red", 3.0)], mix_by="embedding").conds
    own, other = (encode_prompts(Runtime(model), [text]).tokens for text in ("cat", "red"))
    assert len(one) == 1 and close(one[0][0].tokens, own / 4 + other * 3 / 4)


def test_loras_are_no_text(models: Any) -> None:
    model, _ = models["sd1"]
    with_tag = only(model, prompt="cat<lora:paint:0.5>").conds[0][0].tokens
    assert torch.equal(with_tag, only(model, prompt="cat").conds[0][0].tokens)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "a (cat:inf)"}, "the weight of 'cat' must be from -100 to 100, got inf"),
        ({"negative_prompt": "(cat:nan)"}, "the weight of 'cat' must be from -100 to 100, got nan"),
        ({"prompt": "(" * 60 + "cat"}, "the weight of 'cat' must be from -100 to 100, got 304"),
        ({"prompt": "cat:1000 AND dog"}, "the weight of 'cat' must be from -100 to 100, got 1000"),
        (
            {"prompt": "cat", "clip_skip": 13},
            "clip_skip must be from 1 to 12, got 13: .* sd1 has 12 layers",
        ),
        ({"prompt": "<lora:>"}, "names no LoRA"),
    ],
)
def test_bad_input(models: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        only(models["sd1"][0], **fields)


def test_half_precision(models: Any) -> None:
    """The towers' numbers may be of less precision than the mean of many of them."""
    model, _ = models["sd1"]
    half = replace(model, text=ours_in_half(model.text))
    exact = only(model, prompt="a (cat:1.4)").conds[0][0].tokens
    near = only(half, prompt="a (cat:1.4)").conds[0][0].tokens
    assert (near - exact).abs().max() < 0.1 * exact.abs().max()


def ours_in_half(tower: nn.Module) -> Any:
    copied = TextTower(L).eval()
    copied.load_state_dict(tower.state_dict())
    return copied.bfloat16()

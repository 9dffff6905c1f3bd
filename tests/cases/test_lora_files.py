"""LoRAs and embeddings as trainers write them: what is in the file counts, all of it."""

from __future__ import annotations

import copy
import functools
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from inputs import (
    SHORT,
    change_json,
    effect,
    embedding_png,
    noisy,
    quietly,
    read_weights,
    replace_weights,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import references
from pellucid import checkpoints
from pellucid.checkpoints.embedding_files import words_in
from pellucid.model import Model
from references import make_lora, model_of, noise

QUERY = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"  # (32, 32) in the thin model
QUERY_WEIGHT = "backbone.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"


@pytest.fixture(scope="module")
def thin() -> Model:
    """Stable Diffusion 1, thin and short, with a small vocabulary."""
    return model_of("sd1", **SHORT)


def same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert torch.allclose(got[name], value, rtol=1e-4, atol=1e-5), name


# ---------------------------------------------------------------- 2: rank and alpha


def lokr(path: Path, alpha: float | None, **metadata: str) -> tuple[Path, Tensor]:
    """A LoKr of whole factors for one layer, and its change at scale 1."""
    first, second = noise(4, 4), noise(8, 8, seed=1)
    weights = {f"lora_unet_{QUERY}.lokr_w1": first, f"lora_unet_{QUERY}.lokr_w2": second}
    if alpha is not None:
        weights[f"lora_unet_{QUERY}.alpha"] = torch.tensor(alpha)
    save_file(weights, path, metadata)
    return path, torch.kron(first, second)


LYCORIS = {"ss_network_module": "lycoris.kohya", "ss_network_args": json.dumps({"algo": "lokr"})}


@pytest.mark.parametrize(
    ("alpha", "metadata", "scale"),
    [
        (1.0, {"ss_network_dim": "32"}, 1 / 32),
        (16.0, {"ss_network_dim": "64", **LYCORIS}, 1 / 4),
        (32.0, {"ss_network_dim": "32"}, 1.0),
        # Without a rank LyCORIS and ComfyUI leave the change as it is.
        (1.0, {}, 1.0),
        (1.0, {"ss_network_dim": "Dynamic"}, 1.0),
        (None, {"ss_network_dim": "32"}, 1.0),
    ],
)
def test_rank_of_whole_factors_is_in_the_metadata(
    alpha: float | None, metadata: dict[str, str], scale: float, thin: Model, tmp_path: Path
) -> None:
    """Case 2: LoKr with both factors whole has no rank in its shapes."""
    path, change = lokr(tmp_path / "lokr.safetensors", alpha, **metadata)
    same(effect(thin, path), {QUERY_WEIGHT: scale * change})


@pytest.mark.parametrize("rank", [8, None])
def test_rank_of_whole_factors_of_a_convolution(
    rank: int | None, thin: Model, tmp_path: Path
) -> None:
    """Case 2: LyCORIS has another rank for convolutions, if its arguments say so."""
    first, second = noise(4, 4), noise(8, 8, 3, 3, seed=1)
    key = "lora_unet_down_blocks_0_resnets_0_conv1"
    weights = {f"{key}.lokr_w1": first, f"{key}.lokr_w2": second, f"{key}.alpha": torch.tensor(1.0)}
    arguments = {"algo": "lokr"} | ({} if rank is None else {"conv_dim": str(rank)})
    metadata = {"ss_network_dim": "32", "ss_network_args": json.dumps(arguments)}
    path = tmp_path / "lokr.safetensors"
    save_file(weights, path, metadata)
    change = torch.kron(first, second.flatten(1)).reshape(32, 32, 3, 3) / (rank or 32)
    same(effect(thin, path), {"backbone.down_blocks.0.resnets.0.conv1.weight": change})


def test_rank_in_the_shapes_counts_more_than_metadata(thin: Model, tmp_path: Path) -> None:
    """Case 2: a resized LoRA has another rank than its metadata say."""
    down, up = noise(4, 32), noise(32, 4, seed=1)
    key = f"lora_unet_{QUERY}"
    weights = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
    weights[f"{key}.alpha"] = torch.tensor(2.0)
    save_file(weights, tmp_path / "resized.safetensors", {"ss_network_dim": "128"})
    got = effect(thin, tmp_path / "resized.safetensors")
    same(got, {QUERY_WEIGHT: 0.5 * up @ down})


# ---------------------------------------------------------------- PEFT itself is the reference


@pytest.fixture(scope="module")
def peft() -> Any:
    pytest.importorskip("transformers")
    return quietly(pytest.importorskip, "peft")


@functools.cache
def _their_network(part: str) -> nn.Module:
    if part == "backbone":
        config = replace(references.UNETS["sd1"], **SHORT)
        return quietly(references.their_unet, config)  # type: ignore[no-any-return]
    return quietly(references.their_text, references.TEXT_L, False)  # type: ignore[no-any-return]


def their_network(model: Model, part: str) -> nn.Module:
    """The same network of diffusers or transformers, with the same weights."""
    network = copy.deepcopy(_their_network(part))
    ours = getattr(model, "backbone" if part == "backbone" else "text").state_dict()
    weights = {name.removeprefix("text_model."): value for name, value in ours.items()}
    network.load_state_dict({name: weights[name].clone() for name in network.state_dict()})
    return network


Adapter = tuple[Path, dict[str, Tensor]]


def adapter(peft: Any, model: Model, config: Any, folder: Path, part: str = "backbone") -> Adapter:
    """An adapter with random weights as PEFT saves it, and what PEFT makes of the file."""
    made = quietly(peft.get_peft_model, their_network(model, part), config)
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    quietly(made.save_pretrained, folder)
    network = their_network(model, part)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    opened = quietly(peft.PeftModel.from_pretrained, network, folder)
    after = quietly(opened.merge_and_unload).state_dict()
    prefix = "backbone." if part == "backbone" else "text.text_model."
    changes = {prefix + k: after[k] - v for k, v in before.items() if not torch.equal(after[k], v)}
    return folder / "adapter_model.safetensors", changes


def used_or_refused(model: Model, made: Adapter, field: str) -> None:
    """A field of an adapter is used as PEFT does, or it is refused by its name."""
    path, want = made
    try:
        got = effect(model, path)
    except checkpoints.CheckpointError as error:
        assert field in str(error)
        return
    same(got, want)


PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("LoraConfig", {"r": 4, "lora_alpha": 8}),
    "rslora": ("LoraConfig", {"r": 4, "lora_alpha": 8, "use_rslora": True}),
    "lokr": ("LoKrConfig", {"r": 4, "alpha": 8}),  # of such layers both factors are whole
    "lokr thin": ("LoKrConfig", {"r": 2, "alpha": 8, "decompose_both": True}),
    "loha": ("LoHaConfig", {"r": 4, "alpha": 8}),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_alpha_and_rank_of_peft(kind: str, peft: Any, thin: Model, tmp_path: Path) -> None:
    """Case 2: r = 4 and alpha = 8 in adapter_config.json are the scale 2."""
    name, options = PLAIN[kind]
    config = getattr(peft, name)(target_modules=["to_q", "to_v"], **options)
    path, want = adapter(peft, thin, config, tmp_path)
    assert want
    same(effect(thin, path), want)


@pytest.mark.parametrize("name", ["default", "frida", "default_0"])
def test_the_name_of_an_adapter_in_its_keys(
    name: str, peft: Any, thin: Model, tmp_path: Path
) -> None:
    """Case 2: the keys of PEFT's modules themselves, as scripts save them, have its name."""
    kind, options = PLAIN["lora"]
    config = getattr(peft, kind)(target_modules=["to_q", "to_v"], use_dora=True, **options)
    path, want = adapter(peft, thin, config, tmp_path)
    renamed = {
        re.sub(r"(lora_[AB]|lora_magnitude_vector)", rf"\1.{name}", key): tensor
        for key, tensor in read_weights(path).items()
    }
    replace_weights(path, renamed)
    same(effect(thin, path), want)


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
@pytest.mark.parametrize("level", ["", "text_model."])
def test_text_adapters_of_peft(
    kind: str, level: str, peft: Any, thin: Model, tmp_path: Path
) -> None:
    """Case 2: `base_model.model.[text_model.]encoder.` is the text tower."""
    name, options = PLAIN[kind]
    config = getattr(peft, name)(target_modules=["q_proj", "fc1"], **options)
    path, want = adapter(peft, thin, config, tmp_path, "text")
    start = "base_model.model."
    weights = load_file(path)
    assert all(key.startswith(f"{start}encoder.") for key in weights)
    save_file({key.replace(start, start + level): value for key, value in weights.items()}, path)
    same(effect(thin, path), want)


def test_text_adapter_of_sdxl_s_second_tower_is_not_put_on_the_first(
    peft: Any, thin: Model, tmp_path: Path
) -> None:
    """Case 2: keys that begin with `base_model.model.text_model.` but fit no tower are refused."""
    network = quietly(references.their_text, references.TEXT_G, True)
    config = peft.LoraConfig(r=4, target_modules=["q_proj"])
    quietly(quietly(peft.get_peft_model, network, config).save_pretrained, tmp_path)
    with pytest.raises(checkpoints.CheckpointError):
        effect(thin, tmp_path / "adapter_model.safetensors")


# ---------------------------------------------------------------- 14: every field of the config

PATTERNS: tuple[dict[str, Any], ...] = (
    # The first that matches counts, so that the order of the two is the meaning.
    {"alpha_pattern": {"attn2.to_k": 3, "to_k": 16}, "target_modules": ["to_k", "to_q"]},
    {"alpha_pattern": {"to_k": 16, "attn2.to_k": 3}, "target_modules": ["to_k", "to_q"]},
    {"rank_pattern": {"attn2.to_k": 2, "to_k": 8}, "target_modules": ["to_k", "to_q"]},
    {
        "rank_pattern": {r"down_blocks\.\d+\.attentions\.0\..*to_q": 2},
        "alpha_pattern": {r"^up_blocks.*attn[12]\.to_q": 5},
        "target_modules": ["to_q"],
    },
    {"alpha_pattern": {"mid_block.*": 12, "o_q": 7}, "target_modules": ["to_q"]},
)


@pytest.mark.parametrize("number", range(len(PATTERNS)))
@pytest.mark.parametrize("kind", ["lora", "lokr"])
def test_patterns_of_peft(kind: str, number: int, peft: Any, thin: Model, tmp_path: Path) -> None:
    """Case 14: alpha_pattern and rank_pattern are regular expressions, as in PEFT itself."""
    name, options = PLAIN[kind]
    config = getattr(peft, name)(**options, **PATTERNS[number])
    path, want = adapter(peft, thin, config, tmp_path)
    same(effect(thin, path), want)


FIELDS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora_bias": ("lora_B.bias", {"lora_bias": True, "target_modules": ["to_out.0"]}),
    "bias": ("bias", {"bias": "lora_only", "target_modules": ["to_out.0"]}),
    "all biases": ("bias", {"bias": "all", "target_modules": ["to_q"]}),
    "modules_to_save": (
        "modules_to_save",
        {"modules_to_save": ["conv_out"], "target_modules": ["to_q"]},
    ),
    "dora": ("use_dora", {"use_dora": True, "target_modules": ["to_q"]}),
    "pissa": ("init_lora_weights", {"init_lora_weights": "pissa", "target_modules": ["to_q"]}),
    "olora": ("init_lora_weights", {"init_lora_weights": "olora", "target_modules": ["to_q"]}),
}


@pytest.mark.parametrize("kind", FIELDS)
def test_fields_of_peft(kind: str, peft: Any, thin: Model, tmp_path: Path) -> None:
    """Case 14: what a field adds is used, or the file is refused with the field's name."""
    field, options = FIELDS[kind]
    config = peft.LoraConfig(r=4, lora_alpha=8, **options)
    used_or_refused(thin, adapter(peft, thin, config, tmp_path), field)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layer_replication", [[0, 2], [1, 2]]),
        ("use_qalora", True),
        ("alora_invocation_tokens", [5, 6]),
        ("peft_type", "SOMETHING_NEW"),
        ("use_dora", True),  # and the file has no magnitudes
        ("rank", 8),
        ("rank_pattern", {"to_q": 2}),
        ("scale_by_the_moon", 3),
    ],
)
def test_unknown_fields_of_peft_are_refused_by_name(
    field: str, value: object, peft: Any, thin: Model, tmp_path: Path
) -> None:
    """Case 14: a field that is not known, or changes what the weights mean, is not ignored."""
    config = peft.LoraConfig(r=4, target_modules=["to_q"])
    path, _ = adapter(peft, thin, config, tmp_path)
    change_json(tmp_path / "adapter_config.json", **{"r" if field == "rank" else field: value})
    with pytest.raises(checkpoints.CheckpointError, match=field.removesuffix("_pattern")):
        effect(thin, path)


def test_config_in_the_metadata_of_diffusers(peft: Any, thin: Model, tmp_path: Path) -> None:
    """Case 14: diffusers keeps the same config in the file's metadata, `unet.` before each field."""
    options = {"lora_alpha": 8, "alpha_pattern": {"attn2.to_k": 3, "to_k": 16}}
    config = peft.LoraConfig(r=4, target_modules=["to_k"], **options)
    path, want = adapter(peft, thin, config, tmp_path)
    said = json.loads((tmp_path / "adapter_config.json").read_text())
    weights = {k.replace("base_model.model.", "unet."): v for k, v in load_file(path).items()}
    (tmp_path / "adapter_config.json").unlink()
    metadata = json.dumps({f"unet.{name}": value for name, value in said.items()})
    path = tmp_path / "pytorch_lora_weights.safetensors"
    save_file(weights, path, {"format": "pt", "lora_adapter_metadata": metadata})
    same(effect(thin, path), want)


@pytest.mark.parametrize("pattern", ["(a+)+", "(.*)*x", ".*.*.*.*.*x", "(", "[", "a{2,3}{4}"])
def test_patterns_that_would_take_for_ever(
    pattern: str, thin: Model, tmp_path: Path, within: Any
) -> None:
    """Case 14: patterns are from a file, and must neither stop the program nor break it."""
    path = make_lora(thin, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "alpha_pattern": {pattern: 3}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with within(20), pytest.raises(checkpoints.CheckpointError, match="alpha_pattern"):
        effect(thin, path)


def test_a_bias_of_peft_without_its_config(peft: Any, thin: Model, tmp_path: Path) -> None:
    """Case 14: lora_B.bias is used where the keys alone show it; alpha is then the rank."""
    options = {"lora_bias": True, "target_modules": ["to_out.0"]}
    config = peft.LoraConfig(r=4, lora_alpha=4, **options)
    path, want = adapter(peft, thin, config, tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    assert any(name.endswith(".bias") for name in want)
    same(effect(thin, path), want)


# ---------------------------------------------------------------- 24: one change that does not fit


@pytest.fixture(scope="module")
def inpainting() -> Model:
    """The same model for inpainting: its U-Net takes nine channels."""
    return model_of("sd1", in_channels=9, **SHORT)


def with_conv_in(path: Path, channels: int, whole: bool = False) -> Tensor:
    """A LoCon of one layer and of conv_in, whose change is returned."""
    weights = {f"lora_unet_{QUERY}.lora_down.weight": noise(2, 32)}
    weights[f"lora_unet_{QUERY}.lora_up.weight"] = noise(32, 2, seed=1)
    if whole:
        change = noise(32, channels, 3, 3, seed=2)
        weights["lora_unet_conv_in.diff"] = change
    else:
        down, up = noise(2, channels, 3, 3, seed=2), noise(32, 2, 1, 1, seed=3)
        weights["lora_unet_conv_in.lora_down.weight"] = down
        weights["lora_unet_conv_in.lora_up.weight"] = up
        change = (up.flatten(1) @ down.flatten(1)).reshape(32, channels, 3, 3)
    save_file(weights, path)
    return change


@pytest.mark.parametrize("whole", [False, True])
def test_locon_on_an_inpainting_model(whole: bool, inpainting: Model, tmp_path: Path) -> None:
    """Case 24: the five channels that the LoRA does not know keep their weights (A1111 and ComfyUI
    pad the change with zeros)."""
    path = tmp_path / "locon.safetensors"
    change = with_conv_in(path, 4, whole)
    got = effect(inpainting, path)
    assert got.keys() == {"backbone.conv_in.weight", QUERY_WEIGHT}
    padded = torch.cat([change, torch.zeros(32, 5, 3, 3)], 1)
    assert torch.allclose(got["backbone.conv_in.weight"], padded, atol=1e-5)


def test_inpainting_lora_on_a_usual_model(thin: Model, tmp_path: Path) -> None:
    """Case 24: the other way round, what does not fit is left out and the rest is used."""
    path = tmp_path / "locon.safetensors"
    with_conv_in(path, 9)
    assert QUERY_WEIGHT in effect(thin, path)


@pytest.mark.parametrize("shape", [(2, 48), (2, 32, 3, 3), (2,)])
def test_one_change_of_another_shape(
    shape: tuple[int, ...], thin: Model, tmp_path: Path, call: Any, sd1_file: Path
) -> None:
    """Case 24: one change that does not fit never refuses the whole file; it is named."""
    path = make_lora(thin, tmp_path / "mixed.safetensors")
    key = f"lora_unet_{QUERY}.lora_down.weight"
    save_file(load_file(path) | {key: noise(*shape)}, path)
    got = effect(thin, path)
    assert QUERY_WEIGHT not in got and len(got) > 20
    status, out, err = call("lora", path, "--model", sd1_file, "--json")
    assert status == 0, err
    assert QUERY in json.dumps(json.loads(out)["keys left out"])


def test_lora_of_which_nothing_fits_is_refused(thin: Model, tmp_path: Path) -> None:
    """Case 24: then it is for another model."""
    path = tmp_path / "other.safetensors"
    key = f"lora_unet_{QUERY}"
    weights = {f"{key}.lora_down.weight": noise(2, 48), f"{key}.lora_up.weight": noise(48, 2)}
    save_file(weights, path)
    with pytest.raises(checkpoints.CheckpointError, match=r"48"):
        effect(thin, path)


# ---------------------------------------------------------------- 25: words inside of a LoRA

Draw = Callable[..., bytes]


@pytest.fixture
def pixels(call: Any, model_file: Path, tmp_path: Path) -> Draw:
    """The pixels of a picture of the tiny model, by the command line."""

    def draw(prompt: str, *options: object) -> bytes:
        out = tmp_path / f"drawn-{len(list(tmp_path.iterdir()))}.png"
        common = ("--model", model_file, "--seed", 1)
        status, _, err = call("generate", prompt, *common, *options, "--out", out)
        assert status == 0, err
        with Image.open(out) as picture:
            return picture.tobytes()

    return draw


def bundle(path: Path, lora: Path, key: str, vectors: Tensor) -> Path:
    save_file(load_file(lora) | {key: vectors}, path)
    return path


@pytest.mark.parametrize("key", ["string_to_param.*", "emb_params", "clip_l"])
def test_bundled_embeddings(key: str, model: Model, tmp_path: Path, pixels: Draw) -> None:
    """Case 25: `bundle_emb.NAME.*` (A1111's `extensions-builtin/Lora/networks.py`) is the word NAME
    as long as the LoRA is on."""
    lora = make_lora(model, tmp_path / "ink.safetensors")
    vectors = noise(2, 16, seed=7)
    save_file({"emb_params": vectors}, tmp_path / "frida.safetensors")
    bundled = bundle(tmp_path / "bundled.safetensors", lora, f"bundle_emb.frida.{key}", vectors)
    want = pixels("a frida", "--lora", lora, "--embedding", tmp_path / "frida.safetensors")
    assert want != pixels("a frida", "--lora", lora)
    assert want == pixels("a frida", "--lora", bundled)
    assert want == pixels("a Frida <lora:bundled:1>", "--lora-folder", tmp_path)


def test_a_bundled_word_is_gone_without_its_lora(
    model: Model, tmp_path: Path, pixels: Draw
) -> None:
    """Case 25: a word counts however much its LoRA counts, and only with it."""
    lora = make_lora(model, tmp_path / "ink.safetensors")
    key = "bundle_emb.frida.emb_params"
    first = bundle(tmp_path / "first.safetensors", lora, key, noise(1, 16, seed=7))
    on = pixels("a frida", "--lora", f"{first}:0.5")
    assert on != pixels("a frida", "--lora", f"{lora}:0.5")
    assert pixels("a frida") == pixels("a frida", "--lora", f"{lora}:0")


def test_words_of_cloneofsimo(model: Model, tmp_path: Path, pixels: Draw) -> None:
    """Case 25: `<s1>` and `<s2>` of cloneofsimo's files, which the metadata mark as "<embed>"."""
    text = "text_encoder"
    weights: dict[str, Tensor] = {}
    for number in range(4):  # q, k, v and out of one layer
        weights[f"{text}:{number}:up"] = noise(16, 4, seed=number)
        weights[f"{text}:{number}:down"] = 0.1 * noise(4, 16, seed=20 + number)
    metadata = {text: json.dumps(["CLIPAttention"])}
    metadata |= {f"{text}:{number}:rank": "4" for number in range(4)}
    plain = tmp_path / "plain.safetensors"
    save_file(weights, plain, metadata)
    weights |= {"<s1>": noise(16, seed=40), "<s2>": noise(16, seed=41)}
    words = {"<s1>": "<embed>", "<s2>": "<embed>"}
    with_words = tmp_path / "words.safetensors"
    save_file(weights, with_words, metadata | words)
    for word in words:
        save_file({word: weights[word]}, tmp_path / f"{word[1:3]}.safetensors")
    separate = (
        "--embedding",
        tmp_path / "s1.safetensors",
        "--embedding",
        tmp_path / "s2.safetensors",
    )
    want = pixels("a photo of <s1><s2>", "--lora", plain, *separate)
    assert want != pixels("a photo of <s1><s2>", "--lora", plain)
    assert want == pixels("a photo of <s1><s2>", "--lora", with_words)


def test_words_of_a_lora_are_told(model: Model, tmp_path: Path, call: Any) -> None:
    """Case 25: `pellucid lora` says which words a file brings."""
    lora = make_lora(model, tmp_path / "ink.safetensors")
    key = "bundle_emb.frida.string_to_param.*"
    path = bundle(tmp_path / "bundled.safetensors", lora, key, noise(1, 16))
    facts = json.loads(call("lora", path, "--json")[1])
    assert "frida" in json.dumps({k: v for k, v in facts.items() if "of no LoRA" not in k})


def test_bundled_words_for_another_model_are_left_out(
    model: Model, model_file: Path, tmp_path: Path, call: Any
) -> None:
    """Case 25: the LoRA is used all the same, and the word is named."""
    lora = make_lora(model, tmp_path / "ink.safetensors")
    path = bundle(tmp_path / "b.safetensors", lora, "bundle_emb.frida.clip_g", noise(1, 48))
    options = ("--model", model_file, "--lora", path, "--out", tmp_path / "x.png")
    status, _, err = call("generate", "a frida", *options)
    assert status == 0 and "bundle_emb.frida.clip_g" in err


def test_one_lora_twice_brings_its_words_once(model: Model, tmp_path: Path, pixels: Draw) -> None:
    """Case 25: the same file as an option and in the prompt."""
    lora = make_lora(model, tmp_path / "ink.safetensors")
    key = "bundle_emb.frida.emb_params"
    path = bundle(tmp_path / "twice.safetensors", lora, key, noise(1, 16, seed=7))
    both = pixels("a frida <lora:twice:0.5>", "--lora", f"{path}:0.5", "--lora-folder", tmp_path)
    assert both != pixels("a frida", "--lora", f"{lora}:0.5")


# ---------------------------------------------------------------- 16: embeddings in two files


@pytest.fixture
def halves(tmp_path: Path) -> dict[str, Path]:
    """The vectors of `<frida>` for both towers of SDXL, as `textual_inversion_sdxl.py` writes them."""
    first, second = noise(1, 64, seed=1), noise(1, 128, seed=2)
    files = {
        "learned_embeds": {"<frida>": first},
        "learned_embeds_2": {"<frida>": second},
        "frida": {"clip_l": first, "clip_g": second},
    }
    for name, content in files.items():
        save_file(content, tmp_path / f"{name}.safetensors")
    return {name: tmp_path / f"{name}.safetensors" for name in files}


@pytest.mark.parametrize("order", [1, -1])
def test_embedding_in_two_files(
    order: int, halves: dict[str, Path], ids: Any, sdxl_file: Path
) -> None:
    """Case 16: one word in two files, each for one tower of SDXL, in any order."""
    files = [halves["learned_embeds"], halves["learned_embeds_2"]][::order]
    options = [word for file in files for word in ("--embedding", file)]
    assert ids("a <frida>", *options, model=sdxl_file) == [320, 49408]


def test_embedding_in_two_files_draws_as_one_file_does(
    halves: dict[str, Path], call: Any, sdxl_file: Path, tmp_path: Path
) -> None:
    """Case 16: each tower gets its own vectors."""
    shutil.copy(halves["frida"], tmp_path / "zweig.safetensors")
    drawn = []
    two = ("--embedding", halves["learned_embeds"], "--embedding", halves["learned_embeds_2"])
    for prompt, files in (
        ("a <frida>", two),
        ("a zweig", ("--embedding", tmp_path / "zweig.safetensors")),
    ):
        out = tmp_path / f"{len(drawn)}.png"
        common = ("--model", sdxl_file, "--seed", 1, "--steps", 1, "--size", 64)
        status, _, err = call("generate", prompt, *common, *files, "--out", out)
        assert status == 0, err
        drawn.append(Image.open(out).tobytes())
    assert drawn[0] == drawn[1]


def test_half_of_an_embedding_is_refused(
    halves: dict[str, Path], refused: Any, sdxl_file: Path
) -> None:
    """Case 16: one of the two alone is named, with the width that is missing."""
    options = ("--model", sdxl_file, "--embedding", halves["learned_embeds_2"])
    assert "64" in refused("tokens", "a <frida>", *options)
    twice = (*options, "--embedding", halves["learned_embeds_2"])
    assert "<frida>" in refused("tokens", "a <frida>", *twice)


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize("key", ["emp_params", "emb_params"])
def test_embedding_of_onetrainer(key: str, ending: str, ids: Any, tmp_path: Path) -> None:
    """Case 16: OneTrainer's `emp_params` (its spelling) is the file's name, not a word."""
    path = tmp_path / f"frida.{ending}"
    if ending == "pt":
        torch.save({key: noise(2, 64)}, path)
    else:
        save_file({key: noise(2, 64)}, path)
    assert ids("a frida", "--embedding", path) == [320, 49408, 49409]
    assert 49408 not in ids(f"a {key}", "--embedding", path)


def test_an_embedding_converted_from_a1111_s(ids: Any, tmp_path: Path) -> None:
    """Case 16: A1111's "*" stands for the file's name in a safetensors file, too."""
    save_file({"*": noise(2, 64)}, tmp_path / "frida.safetensors")
    assert ids("a frida", "--embedding", tmp_path / "frida.safetensors") == [320, 49408, 49409]


@pytest.mark.parametrize(
    ("key", "other"),
    [("emp_params", "emp_params_out"), ("clip_l", "clip_l_out"), ("clip_l", "clip_h")],
)
def test_no_vectors_of_an_embedding_are_left_out(
    key: str, other: str, refused: Any, sd1_file: Path, tmp_path: Path
) -> None:
    """Case 16: OneTrainer's output embeddings, and vectors for an unknown encoder, are named."""
    path = tmp_path / "frida.safetensors"
    save_file({key: noise(2, 64), other: noise(2, 64)}, path)
    assert other in refused("tokens", "a frida", "--model", sd1_file, "--embedding", path)


FRIDA = {"name": "frida", "step": 100, "string_to_token": {"*": 265}}
VECTORS = {"*": {"TORCHTENSOR": [[0.25] * 64, [-0.5] * 64]}}


@pytest.mark.parametrize("how", ["text", "pixels"])
def test_an_embedding_in_a_picture(how: str, ids: Any, call: Any, tmp_path: Path) -> None:
    """A1111 shares embeddings as pictures; the word is the one inside, not the file's name."""
    path = embedding_png(tmp_path / "shared.png", FRIDA | {"string_to_param": VECTORS}, how)
    assert ids("a frida", "--embedding", path) == [320, 49408, 49409]
    ((word, vectors),) = words_in(path)
    assert word == "frida" and vectors["text"][:, 0].tolist() == [0.25, -0.5]
    status, out, _ = call("info", path)
    assert status == 0 and "frida 2 of width 64" in out


@pytest.mark.parametrize("how", ["text", "pixels"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "not an object"),
        (FRIDA, "string_to_param"),
        (FRIDA | {"string_to_param": {}}, "string_to_param"),
        (FRIDA | {"string_to_param": {"*": {"TORCHTENSOR": [[1.0], [1.0, 2.0]]}}}, "damaged"),
        (FRIDA | {"string_to_param": {"*": {"TORCHTENSOR": [[None] * 64]}}}, "damaged"),
        (FRIDA | {"string_to_param": {"*": {"TORCHTENSOR": [[10**400] * 64]}}}, "damaged"),
    ],
)
def test_a_damaged_embedding_in_a_picture(
    content: Any, said: str, how: str, refused: Any, sd1_file: Path, tmp_path: Path
) -> None:
    path = embedding_png(tmp_path / "frida.png", content, how)
    options = ("--model", sd1_file, "--embedding", path)
    assert said in refused("tokens", "a frida", *options)


@pytest.mark.parametrize("how", ["text", "pixels"])
def test_an_embedding_in_a_picture_by_name(
    how: str, ids: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the folder of embeddings, by its word or its file's name; other pictures are previews."""
    folder = tmp_path / "embeddings"
    folder.mkdir()
    monkeypatch.setenv("PELLUCID_EMBEDDINGS", str(folder))
    embedding_png(folder / "shared.PNG", FRIDA | {"string_to_param": VECTORS}, how)
    save_file({"emb_params": noise(1, 64)}, folder / "cat.safetensors")
    for name in ("cat.preview.png", "dog.png"):
        noisy().save(folder / name)
    embedding_png(folder / "cat.png", FRIDA | {"string_to_param": VECTORS}, how)  # a preview too
    assert ids("a frida") == [320, 49408, 49409]
    assert ids("a cat") == [320, 49408]
    assert 49408 not in ids("a dog")


def test_a_picture_without_an_embedding(refused: Any, sd1_file: Path, tmp_path: Path) -> None:
    noisy().save(tmp_path / "frida.png")
    options = ("--model", sd1_file, "--embedding", tmp_path / "frida.png")
    assert "picture without an embedding" in refused("tokens", "a frida", *options)


# ---------------------------------------------------------------- 28: LoRAs by folder and name


@pytest.fixture
def shelf(model: Model, tmp_path: Path) -> Path:
    """Two LoRAs of one name in two folders, and one outside."""
    for seed, name in enumerate(("loras/a/ink", "loras/b/ink", "loras/b/deep/tone", "outside")):
        make_lora(model, tmp_path / f"{name}.safetensors", seed=seed)
    return tmp_path / "loras"


def test_loras_of_one_name_in_two_folders(shelf: Path, pixels: Draw) -> None:
    """Case 28: `<lora:folder/name:1>`, with either slash, and with the ending."""
    each = {
        name: pixels("a cat", "--lora", shelf / f"{name}.safetensors")
        for name in ("a/ink", "b/ink")
    }
    assert each["a/ink"] != each["b/ink"]
    for written, name in (
        ("a/ink", "a/ink"),
        ("b/ink", "b/ink"),
        (r"b\ink", "b/ink"),
        ("a/ink.safetensors", "a/ink"),
    ):
        assert pixels(f"a cat <lora:{written}:1>", "--lora-folder", shelf) == each[name]


def test_a_name_alone_is_still_enough(
    shelf: Path, pixels: Draw, refused: Any, model_file: Path
) -> None:
    """Case 28: a name that is there once needs no folder; one that is there twice names both."""
    want = pixels("a cat", "--lora", shelf / "b/deep/tone.safetensors")
    for written in ("tone", "deep/tone", "b/deep/tone"):
        assert pixels(f"a cat <lora:{written}:1>", "--lora-folder", shelf) == want
    said = refused("generate", "<lora:ink:1>", "--model", model_file, "--lora-folder", shelf)
    assert "a/ink" in said and "b/ink" in said


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "{}/outside"])
def test_a_name_never_leaves_the_folder(
    name: str, shelf: Path, refused: Any, model_file: Path
) -> None:
    """Case 28: prompts come from pictures too."""
    written = name.format(shelf.parent)
    said = refused("generate", f"<lora:{written}:1>", "--model", model_file, "--lora-folder", shelf)
    assert "outside" in said


# ---------------------------------------------------------------- 29: other adapters of PEFT

OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "OFT": ("OFTConfig", {"r": 0, "oft_block_size": 4}),
    "VeRA": ("VeraConfig", {"r": 4}),
    "IA3": ("IA3Config", {"feedforward_modules": []}),
    "BOFT": ("BOFTConfig", {}),
    "AdaLoRA": ("AdaLoraConfig", {"r": 4, "total_step": 10}),
    "HRA": ("HRAConfig", {}),
    "FourierFT": ("FourierFTConfig", {"n_frequency": 10}),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_adapters_of_peft_are_named(
    kind: str, peft: Any, thin: Model, tmp_path: Path, call: Any
) -> None:
    """Case 29: they are read as PEFT does, or named; with their config and without it."""
    name, options = OTHERS[kind]
    config = quietly(getattr(peft, name), target_modules=["attn1.to_q"], **options)
    path, want = adapter(peft, thin, config, tmp_path)
    for _ in range(2):
        try:
            same(effect(thin, path), want)
        except checkpoints.CheckpointError as error:
            said = str(error).replace(str(path), "")
            assert re.search(rf"\b{kind}\b", said, re.IGNORECASE), said  # and not in a key
        path = path.rename(tmp_path / "renamed.safetensors")
        (tmp_path / "adapter_config.json").unlink(missing_ok=True)

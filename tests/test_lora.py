"""LoRAs: every way of writing a change against its formula, files against diffusers and PEFT."""

from __future__ import annotations

import contextlib
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pellucid import checkpoints
from pellucid.backbones.unet import SD15, SDXL, UNet
from pellucid.checkpoints import CheckpointError, describe_lora, key_names, load_lora, save_lora
from pellucid.checkpoints.lora import file as lora_file
from pellucid.checkpoints.lora import names as lora_names
from pellucid.clip import SD1_TEXT, SDXL_TEXT, TextTower
from pellucid.diffusion import Conditioning
from pellucid.lora import attach
from pellucid.model import Model
from pellucid.schedule import Schedule
from pellucid.tokenizer import Tokenizer
from pellucid.vae import VAE, VAEConfig
from references import their_text, their_unet

TEXT_L = replace(SD1_TEXT, vocab_size=270, width=32, layers=2, heads=2, mlp_width=48)
TEXT_G = replace(
    SDXL_TEXT, vocab_size=270, width=48, layers=2, heads=2, mlp_width=64, projection=40
)
UNETS = {
    "sd1": replace(
        SD15,
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=1,
        heads=(4,) * 4,
        cross_attention_dim=32,
    ),
    "sdxl": replace(
        SDXL,
        block_out_channels=(32, 32, 64),
        transformer_layers=(0, 1, 2),
        mid_transformer_layers=2,
        heads=(1, 1, 2),
        cross_attention_dim=80,
        pooled_dim=40,
    ),
}
NAMES = tuple(UNETS)


def noise(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def model_of(name: str) -> Model:
    torch.manual_seed(1)
    unet = UNet(UNETS[name])
    text, text_2 = TextTower(TEXT_L), TextTower(TEXT_G) if name == "sdxl" else None
    vae = VAE(VAEConfig(block_out_channels=(8, 8), layers_per_block=1, norm_groups=4))
    for part in (unet, vae, text, text_2):
        if part is not None:
            part.eval().requires_grad_(False)
    tokenizer = Tokenizer.train(["a red apple"], 270, context_length=77)
    return Model(unet, vae, text, tokenizer, Schedule(), "eps", f"tiny {name}", text_2=text_2)


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    return {name: model_of(name) for name in NAMES}


def looked(model: Model) -> dict[str, Tensor]:
    """What the parts give for fixed inputs."""
    config = model.backbone.config
    sizes = torch.tensor([[512.0, 768, 0, 16, 1024, 1024]]) if config.size_conditions else None
    pooled = noise(1, config.pooled_dim, seed=3) if config.pooled_dim > 0 else None
    cond = Conditioning(noise(1, 7, config.cross_attention_dim, seed=4), pooled, sizes)
    ids = torch.tensor([[1, 40, 50, 60, 61, 5]])
    out = {"backbone": model.backbone(noise(1, 4, 8, 8), torch.tensor([333.0]), cond)}
    for part in ("text", "text_2"):
        tower = getattr(model, part)
        if tower is not None:
            out[part] = tower(ids).hidden
    return out


def targets(model: Model, kind: str) -> dict[str, dict[str, nn.Module]]:
    """part -> module name -> module: the usual ones ("attention") or all that can be ("all")."""
    found: dict[str, dict[str, nn.Module]] = {}
    for part in ("backbone", "text", "text_2"):
        network = getattr(model, part)
        if network is None:
            continue
        found[part] = {
            name: module
            for name, module in network.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d)
            and (kind == "all" or "attentions" in name or "self_attn" in name or ".mlp." in name)
        }
    return found


def kohya_name(model: Model, part: str, module: str) -> str:
    if part != "backbone":
        start = "te" if model.text_2 is None else {"text": "te1", "text_2": "te2"}[part]
        return f"lora_{start}_{module.replace('.', '_')}"
    if model.text_2 is not None:
        assert isinstance(model.backbone, UNet)
        place = key_names.unet_locations([f"{module}.weight"], model.backbone.config)
        module = place[f"{module}.weight"].key.removesuffix(".weight")
    return f"lora_unet_{module.replace('.', '_')}"


def factors(module: nn.Module, seed: int, rank: int = 3) -> tuple[Tensor, Tensor]:
    weight = module.weight
    down = noise(rank, *weight.shape[1:], seed=seed, scale=0.3)
    up = noise(weight.shape[0], rank, *[1] * (weight.ndim - 2), seed=seed + 1, scale=0.3)
    return down, up


def kohya(model: Model, kind: str = "attention", alpha: float | None = 1.5) -> dict[str, Tensor]:
    weights = {}
    for part, modules in targets(model, kind).items():
        for seed, (name, module) in enumerate(modules.items()):
            key = kohya_name(model, part, name)
            weights[f"{key}.lora_down.weight"], weights[f"{key}.lora_up.weight"] = factors(
                module, seed
            )
            if alpha is not None:
                weights[f"{key}.alpha"] = torch.tensor(alpha)
    return weights


def written(folder: Path, weights: Mapping[str, Tensor], metadata: Any = None) -> Path:
    path = folder / "style.safetensors"
    save_file({k: v.contiguous() for k, v in weights.items()}, path, metadata)
    return path


def near(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> None:
    assert float((a - b).abs().max()) <= tolerance * float(b.abs().max())


# ---------------------------------------------------------------- the formulas, said plainly


def loops(up: Tensor, down: Tensor) -> Tensor:
    """up @ down, number by number."""
    out = torch.zeros(up.shape[0], down.shape[1])
    for o in range(up.shape[0]):
        for i in range(down.shape[1]):
            for r in range(up.shape[1]):
                out[o, i] += up[o, r] * down[r, i]
    return out


def tucker(a: Tensor, core: Tensor, b: Tensor) -> Tensor:
    """a (out, r), core (r, s, h, w), b (s, in), number by number."""
    out = torch.zeros(a.shape[0], b.shape[1], *core.shape[2:])
    for r in range(core.shape[0]):
        for s in range(core.shape[1]):
            for o in range(a.shape[0]):
                for i in range(b.shape[1]):
                    out[o, i] += a[o, r] * core[r, s] * b[s, i]
    return out


class OneLayer(nn.Module):
    """Stands in a part's place where only one layer matters."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer


def change_from(
    tmp_path: Path, model: Model, layer: nn.Module, tensors: Mapping[str, Tensor]
) -> Tensor:
    """What a file with these tensors adds to the layer's weight."""
    one = replace(model, backbone=OneLayer(layer.requires_grad_(False)), text_2=None)
    path = written(tmp_path, {f"lora_unet_layer.{name}": t for name, t in tensors.items()})
    lora = load_lora(path, one)
    assert lora.unmatched == ()
    return lora.changes["backbone"]["layer.weight"].of(layer.weight)


LINEAR: Callable[[], nn.Module] = lambda: nn.Linear(6, 8)  # noqa: E731
CONV: Callable[[], nn.Module] = lambda: nn.Conv2d(6, 8, 3)  # noqa: E731
POINT: Callable[[], nn.Module] = lambda: nn.Conv2d(6, 8, 1)  # noqa: E731
ALPHA = torch.tensor(6.0)  # of rank 3: twice


def cases() -> Iterator[Any]:
    up, down = noise(8, 3, seed=1), noise(3, 6, seed=2)
    yield pytest.param(LINEAR, {"lora_up.weight": up, "lora_down.weight": down}, loops(up, down),
                       id="no alpha means that alpha is the rank")  # fmt: skip
    both = {"lora_up.weight": up, "lora_down.weight": down, "alpha": ALPHA}
    yield pytest.param(LINEAR, both, 2 * loops(up, down), id="alpha")
    yield pytest.param(POINT, both, 2 * loops(up, down)[:, :, None, None], id="linear on conv 1x1")
    point = both | {k: v[:, :, None, None] for k, v in both.items() if k != "alpha"}
    yield pytest.param(LINEAR, point, 2 * loops(up, down), id="conv 1x1 on linear")
    kernel = noise(3, 6, 3, 3, seed=3)
    wanted = torch.stack(
        [torch.stack([loops(up, kernel[:, :, y, x]) for x in range(3)], -1) for y in range(3)], -2
    )
    yield pytest.param(CONV, {"lora_up.weight": up[:, :, None, None], "lora_down.weight": kernel},
                       wanted, id="LoCon")  # fmt: skip
    core = noise(3, 3, 3, 3, seed=4)
    yield pytest.param(CONV, point | {"lora_mid.weight": core}, 2 * tucker(up, core, down),
                       id="LoCon with a core")  # fmt: skip
    up2, down2 = noise(8, 3, seed=5), noise(3, 6, seed=6)
    hada = {"hada_w1_a": up, "hada_w1_b": down, "hada_w2_a": up2, "hada_w2_b": down2}
    yield pytest.param(LINEAR, hada | {"alpha": ALPHA}, 2 * loops(up, down) * loops(up2, down2),
                       id="LoHa")  # fmt: skip
    core2 = noise(3, 3, 3, 3, seed=7)
    turned = hada | {"hada_w1_a": up.T, "hada_w2_a": up2.T, "hada_t1": core, "hada_t2": core2}
    both_cores = tucker(up, core, down) * tucker(up2, core2, down2)
    yield pytest.param(CONV, turned | {"alpha": ALPHA}, 2 * both_cores, id="LoHa with cores")
    w1, w2 = noise(4, 3, seed=8), noise(2, 2, seed=9)
    yield pytest.param(LINEAR, {"lokr_w1": w1, "lokr_w2": w2, "alpha": ALPHA}, kron(w1, w2),
                       id="LoKr whole: alpha does not count")  # fmt: skip
    a1, b1, a2, b2 = (noise(*s, seed=i) for i, s in enumerate([(4, 3), (3, 3), (2, 3), (3, 2)]))
    yield pytest.param(LINEAR, {"lokr_w1": w1, "lokr_w2_a": a2, "lokr_w2_b": b2, "alpha": ALPHA},
                       2 * kron(w1, loops(a2, b2)), id="LoKr, second in two")  # fmt: skip
    yield pytest.param(LINEAR, {"lokr_w1_a": a1, "lokr_w1_b": b1, "lokr_w2": w2, "alpha": ALPHA},
                       2 * kron(loops(a1, b1), w2), id="LoKr, first in two")  # fmt: skip
    b2k = noise(3, 2, 3, 3, seed=10)
    w2k = torch.einsum("or,rihw->oihw", a2, b2k)
    yield pytest.param(CONV, {"lokr_w1": w1, "lokr_w2_a": a2, "lokr_w2_b": b2k}, kron(w1, w2k),
                       id="LoKr on a convolution")  # fmt: skip
    yield pytest.param(CONV, {"lokr_w1": w1, "lokr_w2_a": a2, "lokr_w2_b": b2k.flatten(1)},
                       kron(w1, w2k), id="LoKr on a convolution, flat")  # fmt: skip
    yield pytest.param(CONV, {"lokr_w1": w1, "lokr_w2_a": a2.T, "lokr_w2_b": b2, "lokr_t2": core},
                       kron(w1, tucker(a2, core, b2)), id="LoKr with a core")  # fmt: skip
    diff = noise(8, 6, 3, 3, seed=11)
    yield pytest.param(CONV, {"diff": diff, "alpha": ALPHA}, diff, id="full")


def kron(w1: Tensor, w2: Tensor) -> Tensor:
    """Kronecker's product, number by number; of a convolution in the first two sides."""
    out = torch.zeros(w1.shape[0] * w2.shape[0], w1.shape[1] * w2.shape[1], *w2.shape[2:])
    for i in range(w1.shape[0]):
        for j in range(w1.shape[1]):
            for k in range(w2.shape[0]):
                for m in range(w2.shape[1]):
                    out[i * w2.shape[0] + k, j * w2.shape[1] + m] = w1[i, j] * w2[k, m]
    return out


@pytest.mark.parametrize(("layer", "tensors", "wanted"), list(cases()))
def test_the_formulas(
    layer: Any, tensors: Any, wanted: Tensor, models: dict[str, Model], tmp_path: Path
) -> None:
    got = change_from(tmp_path, models["sd1"], layer(), tensors)
    assert torch.allclose(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ["of every output", "of every input"])
@pytest.mark.parametrize("conv", [False, True])
def test_dora_gives_the_columns_their_lengths(
    side: str, conv: bool, models: dict[str, Model], tmp_path: Path
) -> None:
    layer = CONV() if conv else LINEAR()
    down, up = factors(layer, seed=1)
    weight = layer.weight.detach()
    delta = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    moved = weight + delta
    count = 8 if side == "of every output" else 6
    lengths = noise(count, seed=5).abs() + 1
    axis = 0 if side == "of every output" else 1
    wanted = moved.clone()
    for i in range(count):
        piece = moved.select(axis, i)
        wanted.select(axis, i).copy_(lengths[i] * piece / math.sqrt(float((piece**2).sum())))
    shape = [1] * weight.ndim
    shape[axis] = count
    tensors = {"lora_down.weight": down, "lora_up.weight": up, "dora_scale": lengths.view(shape)}
    got = change_from(tmp_path, models["sd1"], layer, tensors)
    assert torch.allclose(weight + got, wanted, atol=1e-5)


def test_a_bias_and_a_norm_are_changed_too(models: dict[str, Model], tmp_path: Path) -> None:
    model = models["sd1"]
    unet = model.backbone
    weights = {
        "lora_unet_conv_out.diff_b": noise(4, seed=1),
        "lora_unet_conv_norm_out.w_norm": noise(32, seed=2),
        "lora_unet_conv_norm_out.b_norm": noise(32, seed=3),
    }
    lora = load_lora(written(tmp_path, weights), model)
    changed = attach(model, [(lora, 0.5, 0.0)]).backbone.state_dict()
    for name, key in (
        ("conv_out.bias", "lora_unet_conv_out.diff_b"),
        ("conv_norm_out.weight", "lora_unet_conv_norm_out.w_norm"),
        ("conv_norm_out.bias", "lora_unet_conv_norm_out.b_norm"),
    ):
        before = unet.state_dict()[name]
        assert torch.equal(changed.pop(name), before + 0.5 * weights[key])
    assert all(torch.equal(value, unet.state_dict()[name]) for name, value in changed.items())


# ---------------------------------------------------------------- on and off


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@torch.no_grad()
def test_live_and_merged_are_equal_and_the_model_is_as_it_was(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    model = model_of("sd1")
    for part in (model.backbone, model.text):
        part.to(dtype)
    before = {
        part: {k: v.clone() for k, v in getattr(model, part).state_dict().items()}
        for part in ("backbone", "text")
    }
    lora = load_lora(written(tmp_path, kohya(model, "all")), model)
    merged, live = (attach(model, [(lora, 0.7, 0.3)], live=live) for live in (False, True))
    x = noise(1, 4, 8, 8).to(dtype)
    cond = Conditioning(noise(1, 7, 32, seed=4).to(dtype), None, None)
    t = torch.tensor([333.0])
    outs = [m.backbone(x, t, cond) for m in (model, merged, live)]
    assert torch.equal(outs[1], outs[2])
    assert not torch.allclose(outs[0], outs[1], rtol=1e-2)
    ids = torch.tensor([[1, 40, 50]])
    assert torch.equal(merged.text(ids).hidden, live.text(ids).hidden)
    weight = merged.backbone.state_dict()["conv_in.weight"]
    assert weight.dtype == dtype
    change = lora.changes["backbone"]["conv_in.weight"].of(before["backbone"]["conv_in.weight"])
    assert torch.equal(
        weight, (before["backbone"]["conv_in.weight"].float() + 0.7 * change).to(dtype)
    )
    merged.backbone.float().to("meta")  # what is done to it later does not reach the model
    for part, weights in before.items():
        now = getattr(model, part).state_dict()
        assert now.keys() == weights.keys()
        assert all(torch.equal(now[k], v) and now[k].dtype == v.dtype for k, v in weights.items())
    assert torch.equal(model.backbone(x, t, cond), outs[0])


def test_several_at_once_each_with_its_weights(models: dict[str, Model], tmp_path: Path) -> None:
    model = models["sd1"]
    loras, one = [], kohya(model)
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        other = {k: v if k.endswith("alpha") else number * v.roll(number) for k, v in one.items()}
        loras.append(load_lora(written(folder, other), model))
    both = attach(model, [(loras[0], 0.5, 0.25), (loras[1], -0.2, 0.0)])
    for part, weights in (("backbone", (0.5, -0.2)), ("text", (0.25, 0.0))):
        network = getattr(model, part)
        for name in loras[0].changes[part]:
            old = network.get_parameter(name)
            wanted = old + sum(
                w * lora.changes[part][name].of(old) for w, lora in zip(weights, loras, strict=True)
            )
            got = getattr(both, part).get_parameter(name)
            assert torch.allclose(got, wanted, atol=1e-6), name
    unchanged = attach(model, [(loras[0], 0.0, 0.0)])
    assert unchanged.backbone is model.backbone and unchanged.text is model.text


def test_what_is_not_changed_is_not_copied(models: dict[str, Model], tmp_path: Path) -> None:
    model = models["sd1"]
    changed = attach(model, [(load_lora(written(tmp_path, kohya(model)), model), 1.0, 1.0)])
    here, there = model.backbone.state_dict(), changed.backbone.state_dict()
    assert here["conv_in.weight"].data_ptr() == there["conv_in.weight"].data_ptr()
    name = "mid_block.attentions.0.proj_in.weight"
    assert here[name].data_ptr() != there[name].data_ptr()


@torch.no_grad()
def test_a_model_with_a_lora_is_saved_like_any_other(
    models: dict[str, Model], tmp_path: Path
) -> None:
    model = models["sd1"]
    changed = attach(model, [(load_lora(written(tmp_path, kohya(model)), model), 1.0, 1.0)])
    checkpoints.save(changed, tmp_path / "merged.safetensors")
    again = checkpoints.load(tmp_path / "merged.safetensors")
    for part in ("backbone", "text"):
        given, read = (getattr(m, part).state_dict() for m in (changed, again))
        assert given.keys() == read.keys()
        assert all(torch.equal(given[key], read[key]) for key in given)


# ---------------------------------------------------------------- against diffusers and PEFT


def their_pipe(model: Model) -> Any:
    """diffusers' pipeline with the same weights."""
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    sized = model.text_2 is not None
    parts: dict[str, Any] = {"unet": their_unet(model.backbone.config)}
    parts["unet"].load_state_dict(model.backbone.state_dict())
    for name, tower in (("text_encoder", model.text), ("text_encoder_2", model.text_2)):
        if tower is not None:
            text = their_text(tower.config, tower.config.projection is not None)
            level = any(key.startswith("text_model.") for key in text.state_dict())
            text.load_state_dict(
                {
                    key if level else key.removeprefix("text_model."): value
                    for key, value in tower.state_dict().items()
                }
            )
            parts[name] = text
    kind = diffusers.StableDiffusionXLPipeline if sized else diffusers.StableDiffusionPipeline
    rest: dict[str, Any] = {"tokenizer_2": None} if sized else {"safety_checker": None}
    if not sized:
        rest |= {"feature_extractor": None, "requires_safety_checker": False}
    scheduler = diffusers.DDIMScheduler(steps_offset=1, clip_sample=False)
    return kind(vae=None, tokenizer=None, scheduler=scheduler, **parts, **rest)


@torch.no_grad()
def their_looks(pipe: Any, model: Model) -> dict[str, Tensor]:
    """The same as `looked`, of diffusers' parts."""
    config = model.backbone.config
    more = None
    if config.size_conditions:
        sizes = torch.tensor([[512.0, 768, 0, 16, 1024, 1024]])
        more = {"text_embeds": noise(1, config.pooled_dim, seed=3), "time_ids": sizes}
    tokens = noise(1, 7, config.cross_attention_dim, seed=4)
    out = {
        "backbone": pipe.unet(
            noise(1, 4, 8, 8), 333, tokens, added_cond_kwargs=more, return_dict=False
        )[0]
    }
    ids = torch.tensor([[1, 40, 50, 60, 61, 5]])
    for part, name in (("text", "text_encoder"), ("text_2", "text_encoder_2")):
        tower = getattr(pipe, name, None)
        if tower is not None:
            out[part] = tower(ids).last_hidden_state
    return out


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_kohya_equals_diffusers(name: str, models: dict[str, Model], tmp_path: Path) -> None:
    model = models[name]
    path = written(tmp_path, kohya(model))
    pipe = their_pipe(model)
    for part, value in their_looks(pipe, model).items():
        near(looked(model)[part], value)
    pipe.load_lora_weights(str(path))
    lora = load_lora(path, model)
    assert lora.unmatched == ()
    ours, theirs = looked(attach(model, [(lora, 1.0, 1.0)])), their_looks(pipe, model)
    for part, value in theirs.items():
        assert not torch.allclose(value, looked(model)[part], rtol=0.1)
        near(ours[part], value)


def renamed(weights: Mapping[str, Tensor], form: str, model: Model) -> dict[str, Tensor]:
    """kohya's keys of the attention's layers as diffusers had them."""
    ends = {
        "peft": ("lora_A.weight", "lora_B.weight"),
        "lora": ("lora.down.weight", "lora.up.weight"),
        "processor": ("_lora.down.weight", "_lora.up.weight"),
    }[form]
    out = {}
    for part, modules in targets(model, "attention").items():
        start = {"backbone": "unet", "text": "text_encoder", "text_2": "text_encoder_2"}[part]
        for name in modules:
            key = kohya_name(model, part, name)
            for end, theirs in zip(("lora_down", "lora_up"), ends, strict=True):
                if form != "processor":
                    if part != "backbone" and form == "lora":
                        theirs = theirs.replace("lora", "lora_linear_layer")
                    out[f"{start}.{name}.{theirs}"] = weights[f"{key}.{end}.weight"]
                elif part == "backbone" and (".attn1." in name or ".attn2." in name):
                    block, _, layer = name.removesuffix(".0").rpartition(".")
                    out[f"{start}.{block}.processor.{layer}{theirs}"] = weights[
                        f"{key}.{end}.weight"
                    ]
    return out


@pytest.mark.parametrize("form", ["peft", "lora", "processor"])
@torch.no_grad()
def test_all_that_diffusers_ever_wrote(form: str, models: dict[str, Model], tmp_path: Path) -> None:
    model = models["sd1"]
    weights = renamed(kohya(model, alpha=None), form, model)
    path = written(tmp_path, weights)
    pipe = their_pipe(model)
    pipe.load_lora_weights(str(path))
    lora = load_lora(path, model)
    assert lora.unmatched == ()
    near(
        looked(attach(model, [(lora, 1.0, 1.0)]))["backbone"], their_looks(pipe, model)["backbone"]
    )


@pytest.mark.parametrize("dora", [False, True])
@torch.no_grad()
def test_what_diffusers_writes_now(dora: bool, models: dict[str, Model], tmp_path: Path) -> None:
    """PEFT's adapter, its alpha in the metadata, through diffusers' own file."""
    model = models["sdxl"]
    pipe = their_pipe(model)
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    layers = ["to_q", "to_k", "to_out.0", "proj_in", "ff.net.2"] + ([] if dora else ["conv1"])
    config = LoraConfig(
        r=3,
        lora_alpha=6,
        target_modules=layers,
        init_lora_weights=False,
        use_dora=dora,
        alpha_pattern={} if dora else {"attn1.to_q": 1.5},
    )
    pipe.unet.add_adapter(config)
    text = LoraConfig(r=2, lora_alpha=1, target_modules=["q_proj", "fc1"], init_lora_weights=False)
    pipe.text_encoder.add_adapter(text)
    pipe.text_encoder_2.add_adapter(text)
    for number, parameter in enumerate(pipe.unet.parameters()):
        if parameter.requires_grad:  # the adapters
            parameter += noise(*parameter.shape, seed=number, scale=0.1)
    theirs = their_looks(pipe, model)
    told = {"unet": config, "text_encoder": text, "text_encoder_2": text}
    pipe.save_lora_weights(
        tmp_path,
        **{
            f"{name}_lora_layers": convert_state_dict_to_diffusers(
                get_peft_model_state_dict(getattr(pipe, name))
            )
            for name in told
        },
        **{f"{name}_lora_adapter_metadata": config.to_dict() for name, config in told.items()},
    )
    lora = load_lora(tmp_path / "pytorch_lora_weights.safetensors", model)
    assert lora.unmatched == ()
    ours = looked(attach(model, [(lora, 1.0, 1.0)]))
    for part, value in theirs.items():
        assert not torch.allclose(value, looked(model)[part], rtol=0.1)
        near(ours[part], value)


@pytest.mark.parametrize("kind", ["LoHa", "LoKr"])
@torch.no_grad()
def test_what_peft_writes_of_lycoris(kind: str, models: dict[str, Model], tmp_path: Path) -> None:
    """A folder of PEFT's, its alpha in adapter_config.json."""
    model = models["sd1"]
    peft = pytest.importorskip("peft")
    pipe = their_pipe(model)
    config = getattr(peft, f"{kind}Config")(
        r=3, alpha=6, target_modules=["to_q", "proj_in", "ff.net.2", "conv1"], init_weights=False
    )
    adapted = peft.get_peft_model(pipe.unet, config)
    adapted.save_pretrained(tmp_path)
    lora = load_lora(tmp_path / "adapter_model.safetensors", model)
    assert lora.unmatched == ()
    assert {change.kind for change in lora.changes["backbone"].values()} == {kind}
    near(
        looked(attach(model, [(lora, 1.0, 1.0)]))["backbone"], their_looks(pipe, model)["backbone"]
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_lora_is_written_as_it_was_read(
    name: str, models: dict[str, Model], tmp_path: Path
) -> None:
    weights = kohya(models[name], "all")
    lora = load_lora(written(tmp_path, weights), models[name])
    save_lora(lora, models[name], tmp_path / "again.safetensors", {"ss_network_dim": "3"})
    again = load_file(tmp_path / "again.safetensors")
    assert again.keys() == weights.keys()
    assert all(torch.allclose(again[key], weights[key]) for key in weights)
    with pytest.raises(CheckpointError, match="is not a folder"):
        save_lora(lora, models[name], tmp_path / "nowhere" / "x.safetensors")


# ---------------------------------------------------------------- by number


def counted(network: nn.Module, classes: set[str], kinds: tuple[type, ...]) -> list[str]:
    """The order in which cloneofsimo's trainer met the modules (`_find_modules_v2`)."""
    return [
        f"{name}.{inner}"
        for name, ancestor in network.named_modules()
        if type(ancestor).__name__ in classes
        for inner, module in ancestor.named_modules()
        if isinstance(module, kinds)
    ]


def old_order(names: list[str]) -> list[str]:
    """diffusers' blocks had the feed-forward between their two attentions until 0.16."""
    rank = {"attn1": 0, "ff": 1, "attn2": 2}
    blocks = list(dict.fromkeys(name.rsplit(".attn1", 1)[0] for name in names if ".attn1" in name))
    place = {block: i for i, block in enumerate(blocks)}

    def key(name: str) -> tuple[int, int]:
        block = next(b for b in blocks if name.startswith(f"{b}."))
        return place[block], rank[name.removeprefix(f"{block}.").split(".")[0]]

    return sorted(names, key=key)


@pytest.mark.parametrize("classes", [{"Attention", "GEGLU"}, {"ResnetBlock2D", "Attention"}])
@pytest.mark.parametrize("old", [False, True])
def test_numbered_modules(
    classes: set[str], old: bool, models: dict[str, Model], tmp_path: Path
) -> None:
    model = models["sd1"]
    pipe = their_pipe(model)
    extended = "ResnetBlock2D" in classes
    kinds = (nn.Linear, nn.Conv2d) if extended else (nn.Linear,)
    order = {
        "unet": counted(pipe.unet, classes, kinds),
        "text_encoder": counted(pipe.text_encoder, {"CLIPAttention"}, (nn.Linear,)),
    }
    if old and not extended:
        order["unet"] = old_order(order["unet"])
    weights: dict[str, Tensor] = {}
    wanted: dict[str, dict[str, tuple[Tensor, Tensor]]] = {"backbone": {}, "text": {}}
    for part, names in order.items():
        ours = "backbone" if part == "unet" else "text"
        for i, name in enumerate(names):
            if part == "text_encoder" and not name.startswith("text_model."):
                name = f"text_model.{name}"
            down, up = factors(getattr(model, ours).get_submodule(name), seed=i)
            weights |= {f"{part}:{i}:up": up, f"{part}:{i}:down": down}
            wanted[ours][f"{name}.weight"] = (up, down)
    embedding = noise(32)
    metadata = {
        "unet": json.dumps(sorted(classes)),
        "text_encoder": '["CLIPAttention"]',
        "<frog>": "<embed>",
    }
    lora = load_lora(written(tmp_path, weights | {"<frog>": embedding}, metadata), model)
    assert lora.unmatched == () and lora.words.keys() == {"<frog>"}
    for part, changes in wanted.items():
        assert lora.changes[part].keys() == changes.keys()
        for name, (up, down) in changes.items():
            matrix = lora.changes[part][name].matrices[0]
            assert torch.equal(matrix.a, up) and matrix.b is not None
            assert torch.equal(matrix.b, down)


# ---------------------------------------------------------------- names


# As they stand in published LoRAs for SDXL, and diffusers' name of the same module.
SDXL_NAMES = {
    "input_blocks_1_0_in_layers_2": "down_blocks.0.resnets.0.conv1",
    "input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
    "input_blocks_7_0_skip_connection": "down_blocks.2.resnets.0.conv_shortcut",
    "input_blocks_4_1_transformer_blocks_0_attn1_to_out_0": (
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
    ),
    "input_blocks_8_1_transformer_blocks_1_ff_net_0_proj": (
        "down_blocks.2.attentions.1.transformer_blocks.1.ff.net.0.proj"
    ),
    "middle_block_1_proj_in": "mid_block.attentions.0.proj_in",
    "middle_block_2_emb_layers_1": "mid_block.resnets.1.time_emb_proj",
    "output_blocks_0_1_proj_out": "up_blocks.0.attentions.0.proj_out",
    "output_blocks_2_2_conv": "up_blocks.0.upsamplers.0.conv",
    "output_blocks_5_1_transformer_blocks_0_attn2_to_k": (
        "up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_k"
    ),
    "output_blocks_8_0_out_layers_3": "up_blocks.2.resnets.2.conv2",
    "label_emb_0_2": "add_embedding.linear_2",
    "time_embed_0": "time_embedding.linear_1",
    "out_2": "conv_out",
}


def test_names_of_sdxl(models: dict[str, Model]) -> None:
    names = lora_names.Names(models["sdxl"])
    for flat, module in SDXL_NAMES.items():
        assert names.find(f"lora_unet_{flat}") == ("backbone", module)
    assert names.find("lora_te2_text_model_encoder_layers_1_mlp_fc2") == (
        "text_2",
        "text_model.encoder.layers.1.mlp.fc2",
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_module_is_found_under_its_flat_name(name: str, models: dict[str, Model]) -> None:
    model = models[name]
    names = lora_names.Names(model)
    for part, modules in targets(model, "all").items():
        for module in modules:
            assert names.find(kohya_name(model, part, module)) == (part, module)


# How many modules kohya's trainer says that it changes ("create LoRA for U-Net: 192 modules").
PUBLISHED = {
    "sd1": (SD15, SD1_TEXT, None, {"backbone": 192, "text": 72}),
    "sdxl": (SDXL, SD1_TEXT, SDXL_TEXT, {"backbone": 722, "text": 72, "text_2": 192}),
}


@pytest.mark.parametrize("name", NAMES)
def test_the_published_sizes(name: str, models: dict[str, Model]) -> None:
    unet, text, text_2, counts = PUBLISHED[name]
    with torch.device("meta"):
        real = replace(
            models[name],
            backbone=UNet(unet),
            text=TextTower(text),
            text_2=None if text_2 is None else TextTower(text_2),
        )
    names = lora_names.Names(real)
    for part, modules in targets(real, "attention").items():
        found = {names.find(kohya_name(real, part, module)) for module in modules}
        assert found == {(part, module) for module in modules}
        assert len(found) == counts[part]


def test_the_small_model_takes_its_own_names(model: Model, tmp_path: Path) -> None:
    weights = {}
    modules = {
        "backbone": "mid_block.attentions.0.proj_in",
        "text": "text_model.encoder.layers.0.mlp.fc1",
    }
    for start, (part, name) in zip(("lora_unet_", "text_encoder."), modules.items(), strict=True):
        down, up = factors(getattr(model, part).get_submodule(name), seed=1)
        key = start + (name if start.endswith(".") else name.replace(".", "_"))
        weights |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
    lora = load_lora(written(tmp_path, weights), model)
    assert {part: list(changes) for part, changes in lora.changes.items()} == {
        part: [f"{name}.weight"] for part, name in modules.items()
    }


# ---------------------------------------------------------------- what does not fit


def test_what_did_not_match_is_listed(models: dict[str, Model], tmp_path: Path) -> None:
    model = models["sd1"]
    weights = kohya(model)
    strange = {
        "lora_unet_a_new_block.lora_down.weight": noise(3, 8),
        "lora_unet_a_new_block.lora_up.weight": noise(8, 3),
        "lora_unet_conv_in.oft_blocks": noise(2, 2),
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.diff_b": noise(32),
    }
    lora = load_lora(written(tmp_path, weights | strange), model)
    assert sorted(lora.unmatched) == sorted(strange)
    assert sum(map(len, lora.changes.values())) == len(weights) / 3


@pytest.mark.parametrize(
    ("width", "metadata", "title"),
    [
        (2048, None, "Stable Diffusion XL"),
        (1024, None, "Stable Diffusion 2"),
        (768, None, "Stable Diffusion 1"),
        (999, {"ss_base_model_version": "sdxl_base_v1-0"}, "Stable Diffusion XL"),
        (999, {"modelspec.architecture": "flux-1-dev/lora"}, "Flux"),
    ],
)
def test_a_lora_for_another_family_is_named(
    width: int, metadata: Any, title: str, models: dict[str, Model], tmp_path: Path
) -> None:
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    weights = {f"{key}.lora_down.weight": noise(3, width), f"{key}.lora_up.weight": noise(64, 3)}
    with pytest.raises(CheckpointError) as error:
        load_lora(written(tmp_path, weights, metadata), models["sd1"])
    assert f"this LoRA is for {title}, the model is tiny sd1" in str(error.value)


def test_the_published_families_are_known(models: dict[str, Model], tmp_path: Path) -> None:
    model = models["sd1"]
    with torch.device("meta"):
        real = replace(model, backbone=UNet(SD15))
    weights = {
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": noise(
            3, 2048
        ),
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight": noise(
            1280, 3
        ),
    }
    with pytest.raises(
        CheckpointError, match=r"is for Stable Diffusion XL, the model is Stable D.* 1$"
    ):
        load_lora(written(tmp_path, weights), real)


def change_one(key: str, value: Tensor | None) -> Callable[[dict[str, Tensor]], None]:
    def change(weights: dict[str, Tensor]) -> None:
        if value is None:
            del weights[key]
        else:
            weights[key] = value

    return change


LAYER = "lora_unet_mid_block_attentions_0_proj_in"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_one(f"{LAYER}.lora_up.weight", None), "is incomplete: .* and no up"),
        (change_one(f"{LAYER}.lora_up.weight", noise(64, 2)), "have the ranks 2, 3"),
        (change_one(f"{LAYER}.lora_up.weight", torch.tensor(1.0)), "expected numbers"),
        (change_one(f"{LAYER}.lora_up.weight", torch.ones(64, 3).int()), "int32 of the shape"),
        (change_one(f"{LAYER}.lora_up.weight", torch.zeros(0, 3)), "expected numbers"),
        (change_one(f"{LAYER}.alpha", torch.tensor([1.0, 2.0])), "must be one finite number"),
        (change_one(f"{LAYER}.alpha", torch.tensor(math.nan)), "must be one finite number"),
        (change_one(f"{LAYER}.dora_scale", torch.ones(7)), "fits no side"),
        (change_one(f"{LAYER}.hada_w1_a", torch.ones(7, 3)), "next to a LoRA"),
        (
            change_one("unet.mid_block.attentions.0.proj_in.lora_A.weight", noise(3, 64)),
            "incomplete",
        ),
        (change_one(f"{LAYER}.lora_A.weight", noise(3, 64)), "have the same meaning"),
    ],
)
def test_damaged_ones(change: Any, message: str, models: dict[str, Model], tmp_path: Path) -> None:
    weights = kohya(models["sd1"])
    change(weights)
    with pytest.raises(CheckpointError, match=message):
        load_lora(written(tmp_path, weights), models["sd1"])


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e38])
def test_numbers_that_are_not_finite(bad: float, models: dict[str, Model], tmp_path: Path) -> None:
    weights = kohya(models["sd1"])
    weights[f"{LAYER}.lora_up.weight"] = torch.full((64, 3, 1, 1), bad)
    lora = load_lora(written(tmp_path, weights), models["sd1"])
    for live in (False, True):
        with pytest.raises(ValueError, match=r"proj_in.weight not finite in float32"):
            attach(models["sd1"], [(lora, 100.0, 1.0)], live=live)


def test_files_that_are_no_lora(
    model: Model, model_file: Path, models: dict[str, Model], tmp_path: Path
) -> None:
    path = written(tmp_path, kohya(models["sd1"]))
    whole = path.read_bytes()
    for size in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"empty|truncated|not a safetensors file"):
            load_lora(path, models["sd1"])
    with pytest.raises(CheckpointError, match="is a whole model, not a LoRA: its keys begin with"):
        load_lora(model_file, model)
    with pytest.raises(CheckpointError, match=r"is not a LoRA: its keys begin with a, b$"):
        load_lora(written(tmp_path, {"a": noise(1), "b": noise(1)}), model)
    for end, kind in (("oft_blocks", "OFT"), ("a1.weight", "GLoRA"), ("on_input", "IA3")):
        other = {f"lora_unet_x.{end}": noise(2, 2), "lora_unet_x.alpha": torch.tensor(1.0)}
        with pytest.raises(
            CheckpointError, match=f"of the kind {kind}, which is not supported; supported are"
        ):
            load_lora(written(tmp_path, other), model)
    with pytest.raises(CheckpointError, match="embedding, not a LoRA"):
        load_lora(written(tmp_path, {"emb_params": noise(2, 32)}), model)
    with pytest.raises(CheckpointError, match="not a file"):
        load_lora(tmp_path, model)
    with pytest.raises(CheckpointError, match="config is not JSON"):
        broken = {"lora_adapter_metadata": "{"}
        load_lora(written(tmp_path, kohya(models["sd1"]), broken), models["sd1"])


STRANGE_SHAPES = ((), (0,), (3,), (64, 3), (3, 64), (3, 3, 3, 3), (64, 64, 1, 1), (1, 2, 3))
STRANGE_TYPES = (torch.float32, torch.float16, torch.float8_e4m3fn, torch.int32, torch.uint8)
STRANGE_METADATA = (
    {"lora_adapter_metadata": '{"unet.lora_alpha": "x", "unet.alpha_pattern": 3}'},
    {"lora_adapter_metadata": "[" * 5000, "ss_tag_frequency": '{"a": 3}'},
    {"unet": "[3]", "ss_tag_frequency": "["},
)


@pytest.mark.parametrize("seed", range(60))
def test_no_file_is_more_than_an_error(seed: int, models: dict[str, Model], tmp_path: Path) -> None:
    """Whatever is in a file, it is a LoRA or there is a sentence that says why not."""
    draw = random.Random(seed)
    model = models["sd1"]
    weights = dict(draw.sample(sorted(kohya(model).items()), 12))
    modules = [key.split(".")[0] for key in weights]
    for end in draw.sample(sorted(lora_file._ENDS), 4):
        shape, kind = draw.choice(STRANGE_SHAPES), draw.choice(STRANGE_TYPES)
        weights[draw.choice(modules) + end] = torch.ones(shape).to(kind)
    path = written(tmp_path, weights, draw.choice((None, *STRANGE_METADATA)))
    if seed % 3 == 0:
        data = bytearray(path.read_bytes())
        for _ in range(draw.randint(1, 8)):
            data[draw.randrange(3000)] = draw.randrange(256)
        path.write_bytes(data)
    with contextlib.suppress(CheckpointError):
        describe_lora(path)
    with contextlib.suppress(ValueError):
        attach(model, [(load_lora(path, model), 1.0, 1.0)])


# ---------------------------------------------------------------- what a file says


def test_described(models: dict[str, Model], tmp_path: Path) -> None:
    tags = {"10_frog": {"a frog": 7, "green": 9}, "20_pond": {"a frog": 4}}
    metadata = {
        "ss_tag_frequency": json.dumps(tags),
        "ss_base_model_version": "sd_v1",
        "ss_network_dim": "3",
        "modelspec.trigger_phrase": "frogstyle",
    }
    facts = describe_lora(written(tmp_path, kohya(models["sd1"]), metadata))
    assert facts["family"] == "Stable Diffusion 1"
    assert facts["ranks"] == [3] and facts["trigger words"] == ["frogstyle"]
    assert facts["commonest tags"] == ["a frog", "green"]
    assert facts["kinds"] == {"LoRA": sum(facts["modules"].values())}
    assert facts["modules"]["text encoder"] == 12

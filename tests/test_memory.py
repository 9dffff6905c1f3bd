"""Memory and number types: nothing is larger than it has to be, and no picture is black."""

from __future__ import annotations

import copy
import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pellucid import checkpoints, tiling
from pellucid import nn as blocks
from pellucid.diffusion import Conditioning
from pellucid.images.latent_file import load_latents, save_latents
from pellucid.images.metadata import read_metadata
from pellucid.model import Model
from pellucid.nn import Downsample, ResidualBlock, Upsample, attend
from pellucid.pipeline import generate
from pellucid.preview import pictures
from pellucid.request import Request
from pellucid.runtime import Runtime, devices, precision
from pellucid.runtime.devices import bring, choose_device, free_memory, in_the_way, weight_bytes
from pellucid.runtime.precision import Float32Fallback, NotFinite, choose_dtype, dtype_of, finite
from pellucid.vae import SD_VAE, VAE

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Peak(TorchDispatchMode):
    """The most bytes of tensors made inside that were there at one time, and the largest one."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.most = self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **({} if kwargs is None else kwargs))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves(args) if isinstance(t, Tensor)}
        for tensor in tree_leaves(out):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            key = storage.data_ptr()
            if key in self.live or key in given:
                continue
            self.live[key] = storage.nbytes()
            weakref.finalize(storage, self.live.pop, key, None)
            self.largest = max(self.largest, storage.nbytes())
            self.most = max(self.most, sum(self.live.values()))
        return out


def test_peak_is_measured() -> None:
    with Peak() as peak:
        for _ in range(3):
            a = torch.zeros(1000)
            b = a + 1
            del a, b
    assert (peak.largest, peak.most) == (4000, 8000)


# ---------------------------------------------------------------- attention


@pytest.fixture
def no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device without a kernel that avoids the map, and little memory."""
    monkeypatch.setattr(blocks, "avoids_map", lambda q, k, v: False)
    monkeypatch.setattr(blocks, "MAP_BYTES", 3 * 4 * 50 * 7)  # 7 queries of 100 * 3 maps


@pytest.mark.usefixtures("no_kernel")
@pytest.mark.parametrize("recorded", [False, True])
def test_slices_are_the_whole(recorded: bool) -> None:
    q, k, v = noise(1, 3, 50, 8), noise(1, 3, 50, 8, seed=1), noise(1, 3, 50, 8, seed=2)
    maps: list[Tensor] = []
    out = attend(q, k, v, maps if recorded else None)
    expected = F.scaled_dot_product_attention(q, k, v)
    assert float((out - expected).abs().max()) < 1e-6
    if recorded:
        assert len(maps) == 1
        assert float((maps[0] @ v - expected).abs().max()) < 1e-6


@pytest.mark.usefixtures("no_kernel")
def test_a_slice_may_be_one_query() -> None:
    q, k, v = noise(2, 60, 5, 4), noise(2, 60, 90, 4, seed=1), noise(2, 60, 90, 4, seed=2)
    torch.testing.assert_close(attend(q, k, v), F.scaled_dot_product_attention(q, k, v))


@pytest.mark.usefixtures("no_kernel")
def test_no_slice_is_larger_than_the_budget() -> None:
    q, k, v = (noise(1, 3, 50, 2, seed=i) for i in range(3))
    with Peak() as peak:
        attend(q, k, v)
    assert peak.largest <= blocks.MAP_BYTES < 3 * 50 * 50 * 4


@pytest.mark.parametrize(
    ("heads", "tokens", "width"),
    [(8, 1500, 40), (1, 3000, 512)],
    ids=["unet", "autoencoder"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_cpu_forms_no_map(heads: int, tokens: int, width: int, dtype: torch.dtype) -> None:
    """The heads and widths of Stable Diffusion, with fewer tokens."""
    q, k, v = (noise(1, heads, tokens, width, seed=i).to(dtype) for i in range(3))
    with Peak() as peak:
        attend(q, k, v)
    assert peak.largest < heads * tokens * tokens * q.element_size() / 4


def test_bfloat16_with_gradients_forms_the_map_while_it_is_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    q, k, v = (noise(1, 2, 64, 8, seed=i).bfloat16() for i in range(3))
    q.requires_grad_()
    with Peak() as peak:
        attend(q, k, v)
    assert peak.largest == 2 * 64 * 64 * 2
    monkeypatch.setattr(blocks, "MAP_BYTES", 2 * 64 * 64)
    with Peak() as peak:
        attend(q, k, v)
    assert peak.largest < 2 * 64 * 64 * 2


# ---------------------------------------------------------------- tiling


@pytest.mark.parametrize("tile_size", [1, 40, 48, 10_000])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@torch.no_grad()
def test_layers_in_tiles(tile_size: int, last: bool) -> None:
    x = noise(2, 8, 10, 12).double()
    if last:
        x = x.to(memory_format=torch.channels_last)
    pieces = tiling.split(x, tile_size)
    same, wider = ResidualBlock(8, 8, 0, 4, 1e-6), ResidualBlock(8, 16, 0, 4, 1e-6)
    up, down = Upsample(8), Downsample(8, symmetric=False)
    for layer in (same, wider, up, down):
        layer.double()
        for parameter in layer.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    for got, expected in (
        (tiling.residual(pieces, same), same(x)),
        (tiling.residual(tiling.compute(tiling.residual(pieces, same)), wider), wider(same(x))),
        (tiling.residual(tiling.residual(pieces, same), wider), wider(same(x))),
        (tiling.upsample(pieces, up), up(x, (20, 24))),
        (tiling.downsample(pieces, down), down(x)),
        (tiling.downsample(tiling.upsample(pieces, up), down), down(up(x, (20, 24)))),
        (tiling.norm_silu(pieces, same.norm1), F.silu(same.norm1(x))),
    ):
        torch.testing.assert_close(tiling.join(got), expected, rtol=0, atol=1e-12)
        assert tiling.join(got).is_contiguous(memory_format=torch.channels_last) or not last


@torch.no_grad()
def test_tiles_of_half_precision_have_norms_in_float32() -> None:
    norm = nn.GroupNorm(2, 8).half()
    x = (1000 + noise(1, 8, 12, 12)).half()  # the squares are beyond float16
    got = tiling.join(tiling.norm_silu(tiling.split(x, 24), norm))
    assert got.dtype == torch.float16
    expected = F.silu(F.group_norm(x.float(), 2))
    torch.testing.assert_close(got.float(), expected, rtol=0, atol=2e-3)


@torch.no_grad()
def test_tiles_need_less_memory() -> None:
    """SD's autoencoder at an eighth of its width: half of what it needs whole, or less."""
    vae = VAE(replace(SD_VAE, block_out_channels=(16, 32, 64, 64), norm_groups=8))
    vae.to(memory_format=torch.channels_last)
    z = noise(1, 4, 32, 32)
    pixels = vae.decode(z)  # all that is made once is made now
    for run, given in ((vae.decode, z), (vae.encode, pixels)):
        peaks = []
        for tile_size in (None, 1024):
            with Peak() as peak:
                run(given, tile_size)
            peaks.append(peak.most)
        assert peaks[1] < 0.6 * peaks[0]
        assert peaks[0] < vae.working_bytes(256, 256)


# ---------------------------------------------------------------- devices


def test_devices_that_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == CPU
    with pytest.raises(ValueError, match=r"auto, cpu, got 'cuda'; .*(CPU alone|no GPU)$"):
        choose_device("cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto").type == "mps"
    assert choose_device("auto", best=("cuda",)) == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    for name in ("cuda:2", "tpu", "", "CPU"):
        with pytest.raises(ValueError, match="cpu, cuda, cuda:0, cuda:1, mps"):
            choose_device(name)


def test_free_memory() -> None:
    free = free_memory(CPU)
    assert free is None or 2**20 < free < 2**50
    assert free_memory(torch.device("meta")) is None


class Machine:
    """A pretended GPU with so many bytes: parts are on it by name, and moves are noted."""

    def __init__(self, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.size = size
        self.here: list[Part] = []
        self.moves: list[tuple[str, str]] = []
        monkeypatch.setattr(devices, "free_memory", self.free)
        monkeypatch.setattr(devices, "device_of", lambda part: CUDA if part in self.here else CPU)
        monkeypatch.setattr(devices, "empty_cache", lambda device: None)

    def free(self, device: torch.device) -> int:
        assert device == CUDA
        return self.size - sum(weight_bytes(part) for part in self.here)


class Part(nn.Module):
    """So many bytes of weights."""

    def __init__(self, name: str, size: int, machine: Machine) -> None:
        super().__init__()
        self.name, self.machine = name, machine
        self.register_buffer("weight", torch.zeros(size, dtype=torch.uint8))

    def to(self, device: torch.device) -> Part:  # type: ignore[override]
        here = self.machine.here
        if (device == CUDA) != (self in here):
            self.machine.moves.append((self.name, device.type))
            here.append(self) if device == CUDA else here.remove(self)
        assert self.machine.free(CUDA) >= 0
        return self


def test_parts_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(100, monkeypatch)
    text, unet, vae = (
        Part(name, size, machine) for name, size in (("text", 20), ("unet", 60), ("vae", 10))
    )
    parts = [text, unet, vae]
    bring(text, parts, CUDA)
    bring(unet, parts, CUDA)
    assert machine.moves == [("text", "cuda"), ("unet", "cuda")]
    # 20 are free, 10 + 25 are needed: the text tower is enough.
    assert bring(vae, parts, CUDA, work=25) == [text]
    assert machine.moves[2:] == [("text", "cpu"), ("vae", "cuda")]
    # 30 are free of 90: only the network is enough.
    assert bring(vae, parts, CUDA, work=80) == [unet]
    # All that there is goes if nothing is enough, and what asked comes all the same.
    bring(text, parts, CUDA)
    assert bring(unet, parts, CUDA, work=1000) == [text, vae]
    assert machine.here == [unet]


def test_nothing_moves_without_need(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(100, monkeypatch)
    a, b = Part("a", 30, machine), Part("b", 60, machine)
    for _ in range(2):
        assert bring(a, [a, b], CUDA, work=10) == bring(b, [a, b], CUDA, work=10) == []
    assert machine.moves == [("a", "cuda"), ("b", "cuda")]
    monkeypatch.setattr(devices, "free_memory", lambda device: None)  # not known: trust
    assert bring(a, [a, b], CUDA, work=10**6) == []
    assert bring(a, [a, b], CPU, work=10**6) == []
    assert len(machine.moves) == 2


def test_a_device_without_a_number_is_any_of_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(100, monkeypatch)
    a, b = Part("a", 60, machine), Part("b", 60, machine)
    machine.here = [b]
    assert devices.is_on(b, torch.device("cuda"))
    assert devices.is_on(b, CUDA)
    assert not devices.is_on(b, torch.device("cuda:1"))
    assert not devices.is_on(a, torch.device("cuda"))


def test_who_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(100, monkeypatch)
    small, middle, large = (Part(str(size), size, machine) for size in (5, 10, 20))
    for missing, going in ((3, small), (5, small), (6, middle), (15, large), (50, large)):
        assert in_the_way([large, small, middle], missing) is going


# ---------------------------------------------------------------- number types


@pytest.mark.parametrize(
    ("device", "file", "bfloat16", "wanted"),
    [
        ("cpu", torch.float16, True, torch.bfloat16),
        ("cpu", torch.float32, False, torch.float32),
        ("cuda", torch.float16, True, torch.float16),
        ("cuda", torch.bfloat16, True, torch.bfloat16),
        ("cuda", torch.float32, True, torch.bfloat16),
        ("cuda", torch.float32, False, torch.float16),
        ("cuda", torch.bfloat16, False, torch.float16),
        ("mps", torch.float32, False, torch.float16),
    ],
)
def test_rule_of_number_types(
    device: str,
    file: torch.dtype,
    bfloat16: bool,
    wanted: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bfloat16)
    monkeypatch.setattr(precision, "native_bfloat16", lambda: bfloat16)
    choice = choose_dtype(torch.device(device), "auto", file)
    assert choice.dtype == wanted
    assert str(choice).startswith(f"{device}, {str(wanted)[6:]}: ")
    asked = choose_dtype(torch.device(device), "float32", file)
    assert (asked.dtype, asked.why) == (torch.float32, "as requested")
    with pytest.raises(
        ValueError, match="dtype must be one of auto, float32, float16, bfloat16, got 'half'"
    ):
        choose_dtype(torch.device(device), "half", file)


class Overflowing(nn.Module):
    """Beyond 65504 in the middle, and back: the autoencoder of SDXL in small."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.up.weight.data.fill_(1e4)
        self.down.weight.data.fill_(1e-4)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_overflow_goes_over_to_float32(dtype: torch.dtype) -> None:
    part, x = Overflowing(), noise(1, 3, 8, 8) + 3
    expected = part(x)
    part.to(dtype)

    def run() -> Tensor:
        return part(x.to(precision.dtype_of(part)))

    out, warning = finite("the decoder", part, run)
    torch.testing.assert_close(out, expected, rtol=2e-3, atol=1e-2)
    if dtype == torch.float32:
        assert warning is None
    else:
        assert warning == (
            "the decoder gave numbers that are not finite in float16; it runs in float32"
        )
    # It stays so, and is not told again.
    assert precision.dtype_of(part) == torch.float32
    assert finite("the decoder", part, run)[1] is None


def test_what_is_not_finite_in_float32_is_an_error_with_the_latents() -> None:
    part, x = Overflowing().half(), noise(1, 3, 8, 8)
    x[0, 0, 0, 0] = float("nan")
    with pytest.raises(NotFinite, match="the decoder gave numbers that are not finite") as error:
        finite("the decoder", part, lambda: part(x.to(precision.dtype_of(part))), x)
    assert error.value.latents is x
    assert isinstance(error.value, ValueError)


def test_a_text_tower_that_overflows_is_run_in_float32(model: Model) -> None:
    """What lies between two layers is too large for float16, and what comes out of them is not."""
    model = copy.deepcopy(model)
    for layer in model.text.text_model.encoder.layers:
        layer.mlp.fc1.bias.data += 60000
        layer.mlp.fc1.weight.data *= 1e4
        layer.mlp.fc2.weight.data *= 1e-4
    request = Request(prompt="a red apple", seed=1, steps=1)
    *_, expected = generate(model, request)
    assert expected.warnings == ()
    for part in (model.backbone, model.vae, model.text):
        part.half()
    *_, done = generate(model, request)
    assert done.warnings == (
        "the text tower gave numbers that are not finite in float16; it runs in float32",
    )
    assert dtype_of(model.text) == torch.float32 and dtype_of(model.backbone) == torch.float16
    torch.testing.assert_close(done.x.float(), expected.x, rtol=0.02, atol=0.02)

    model.text.text_model.final_layer_norm.bias.data[0] = torch.nan
    with pytest.raises(NotFinite, match=r"the text tower .*, in float32 too"):
        list(generate(model, request))


class Shouting(nn.Module):
    """A network that overflows in float16, and keeps what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(4e4), requires_grad=False)

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        self.told = cond
        assert x.dtype == cond.tokens.dtype == self.scale.dtype
        return x * self.scale * 2 / self.scale


def test_a_network_that_falls_back_to_float32() -> None:
    network = Shouting().half()
    fallback = Float32Fallback(network, "the U-Net")
    x, t = torch.ones(1, 4, 2, 2, dtype=torch.float16), torch.zeros(1)
    sizes = torch.tensor([[1080.0, 1080, 0, 0, 1080, 1081]])
    cond = Conditioning(torch.ones(1, 3, 5).half(), torch.ones(1, 5).half(), sizes)
    for _ in range(2):
        torch.testing.assert_close(fallback(x, t, cond), torch.full((1, 4, 2, 2), 2.0))
        assert network.told.sizes is sizes
    assert len(fallback.warnings) == 1
    assert "the U-Net" in fallback.warnings[0]


# ---------------------------------------------------------------- latents that are kept


def test_kept_latents_are_decoded_by_the_command(
    model: Model,
    model_file: Path,
    tmp_path: Path,
    call: Any,
) -> None:
    latents = noise(2, 4, 8, 8)
    path = tmp_path / "a-rabbit.latents.safetensors"
    requests = json.dumps([{"prompt": "a rabbit"}, {"prompt": "a frog"}])
    save_latents(path, latents, {"requests": requests})
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    again, about = load_latents(path)
    assert torch.equal(again, latents)
    assert about == {"requests": requests}

    out = tmp_path / "out"
    status, paths, _ = call("decode", path, "--model", model_file, "--out", out)
    assert status == 0
    written = [Path(line) for line in paths.split()]
    assert written == [out / "a-rabbit.png", out / "a-rabbit-2.png"]
    for i, (file, expected) in enumerate(
        zip(written, pictures(Runtime(model), latents), strict=True)
    ):
        assert Image.open(file).tobytes() == expected.tobytes()
        found = read_metadata(file).request
        assert found is not None
        assert found["prompt"] == ("a rabbit", "a frog")[i]
        assert (found["model"], found["model_file"]) == ("tiny", str(model_file))


def test_latents_that_say_nothing_of_themselves(
    model_file: Path, tmp_path: Path, call: Any, refused: Any
) -> None:
    path = tmp_path / "some.latents.safetensors"
    words = ("decode", path, "--model", model_file, "--out", tmp_path)
    save_latents(path, noise(2, 4, 8, 8), {})
    assert call(*words)[0] == 0
    assert read_metadata(tmp_path / "some.png").request is None
    for said, message in (
        ("{", "is not valid JSON"),
        ("[" * 9999, "is not valid JSON"),
        ("[{}]", "does not have one request for each of its 2 latents"),
        ("[1, 2]", "does not have one request for each of its 2 latents"),
    ):
        save_latents(path, noise(2, 4, 8, 8), {"requests": said})
        assert message in refused(*words)


def test_latents_are_kept_when_the_decoder_fails(
    model: Model,
    model_file: Path,
    tmp_path: Path,
    call: Any,
    refused: Any,
) -> None:
    broken = replace(model, vae=copy.deepcopy(model.vae))
    broken.vae.decoder.conv_out.weight.data[:] = 3e38  # finite in the file, not in the picture
    file, sound = tmp_path / "broken.safetensors", tmp_path / "sound.safetensors"
    checkpoints.save(broken, file)
    save_file(model.vae.state_dict(), sound)
    words = (
        "--prediction",
        "v",
        "--count",
        2,
        "--steps",
        1,
        "--out",
        tmp_path,
        "--exact",
    )  # as decode
    told = refused("generate", "a rabbit", "--model", file, "--seed", 3, *words)
    kept = tmp_path / "a-rabbit-3.latents.safetensors"
    assert str(kept) in told and "pellucid decode" in told
    latents, about = load_latents(kept)
    assert latents.shape == (2, 4, 8, 8) and latents.isfinite().all()
    requests = json.loads(about["requests"])
    assert [request["seed"] for request in requests] == [3, 4]
    assert all(request["model_file"] == str(file) for request in requests)
    assert all(request["prediction"] == "v" and request["steps"] == 1 for request in requests)
    # The latents name their model, whose decoder fails again, and a sound one is named.
    assert refused("decode", kept, "--out", tmp_path).startswith("pellucid: the decoder gave")
    status, out, err = call("decode", kept, "--vae", sound, "--out", tmp_path)
    assert (status, err) == (0, "")
    expected = call("generate", "a rabbit", "--model", model_file, "--seed", 3, *words)[1]
    for mine, theirs in zip(out.split(), expected.split(), strict=True):
        assert Image.open(mine).tobytes() == Image.open(theirs).tobytes()
        record = read_metadata(Path(mine)).request
        assert record is not None
        assert (record["vae"], record["model_file"]) == (str(sound), str(file))
    # With them in hand --like makes the same again.
    words = ("generate", "--exact", "--like", out.split()[0], "--out", tmp_path / "again.png")
    assert call(*words)[0] == 0
    again = Image.open(tmp_path / "again.png")
    assert again.tobytes() == Image.open(out.split()[0]).tobytes()
    file.unlink()
    assert f"was made with --model {file}, which does not exist here; looked for it as" in refused(
        "decode", kept
    )


@pytest.mark.parametrize("content", [b"", b"no safetensors", None, "other"])
def test_other_files_are_no_latents(content: bytes | str | None, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    if content is None:
        save_latents(path, noise(4), {})
    elif isinstance(content, str):
        save_file({"latents": noise(1, 4, 2, 2)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a file of latents"):
        load_latents(path)
    for absent in (tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match="is not a file of latents: there is no such file"):
            load_latents(absent)

"""The tiny autoencoder: equal to diffusers' AutoencoderTiny, from every layout on disk."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from pellucid import checkpoints, preview
from pellucid.checkpoints import CheckpointError
from pellucid.checkpoints.tiny_vae_files import expected as expected_file
from pellucid.model import Model
from pellucid.pipeline import generate
from pellucid.request import Request
from pellucid.tiny_vae import TinyVAE, TinyVAEConfig
from pellucid.vae import SD_VAE
from references import TAESD, TAESD3

THIN = {config.latent_channels: replace(config, width=8) for config in (TAESD, TAESD3)}


def reference(config: TinyVAEConfig):
    diffusers = pytest.importorskip("diffusers")
    return diffusers.AutoencoderTiny(
        latent_channels=config.latent_channels,
        encoder_block_out_channels=(config.width,) * 4,
        decoder_block_out_channels=(config.width,) * 4,
    ).eval()


@pytest.fixture(scope="module", params=THIN)
def pair(request: pytest.FixtureRequest) -> tuple[TinyVAE, torch.nn.Module]:
    """Ours and theirs, with the same random weights."""
    torch.manual_seed(0)
    theirs, ours = reference(THIN[request.param]), TinyVAE(THIN[request.param])
    for parameter in theirs.parameters():
        parameter.data *= 1.5  # so that the input still tells at the output
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours.eval(), theirs


def weights(pair: tuple[TinyVAE, torch.nn.Module]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in pair[1].state_dict().items()}


def original(weights: dict[str, Tensor], half: str) -> dict[str, Tensor]:
    """The weights as TAESD's own files name them: a sequence, in whose decoder a clamp is first."""
    first = 1 if half == "decoder" else 0
    found = {}
    for name, tensor in weights.items():
        if name.startswith(half):
            number, rest = name.removeprefix(f"{half}.layers.").split(".", 1)
            found[f"{int(number) + first}.{rest}"] = tensor
    return found


@pytest.mark.parametrize("size", [(8, 8), (5, 12)], ids=["square", "wide"])
@torch.no_grad()
def test_equals_diffusers(pair, size: tuple[int, int]) -> None:
    ours, theirs = pair
    latents = 2 * torch.randn(2, ours.config.latent_channels, *size)
    pixels = torch.rand(2, 3, 8 * size[0], 8 * size[1]) * 2 - 1
    for mine, expected in (
        (ours.to_pixels(latents), theirs.decode(latents).sample),
        (ours.to_latents(pixels), theirs.encode(pixels).latents),
    ):
        assert expected.std() > 1e-3
        assert float((mine - expected).abs().max() / expected.abs().max()) < 1e-5


def test_published_size_and_names() -> None:
    with torch.device("meta"):
        for config, count in ((TAESD, 2_445_063), (TAESD3, 2_458_899)):
            ours, theirs = TinyVAE(config), reference(config)
            shapes = {name: p.shape for name, p in ours.state_dict().items()}
            assert shapes == {name: p.shape for name, p in theirs.state_dict().items()}
            assert sum(p.numel() for p in ours.parameters()) == count


@torch.no_grad()
def test_the_originals_clamp_is_at_the_decoders_input(pair) -> None:
    ours, _ = pair
    latents = torch.randn(1, ours.config.latent_channels, 4, 4)
    far, farther = ours.to_pixels(50 * latents.sign()), ours.to_pixels(500 * latents.sign())
    assert torch.equal(far, farther)


# ---------------------------------------------------------------- on disk


@torch.no_grad()
def test_every_layout_gives_the_same(pair, tmp_path: Path) -> None:
    ours, theirs = pair
    stored = weights(pair)
    halves = {half: original(stored, half) for half in ("encoder", "decoder")}
    save_file(stored, tmp_path / "diffusers.safetensors")
    save_file(halves["decoder"], tmp_path / "taesd_decoder.safetensors")
    save_file(halves["encoder"], tmp_path / "taesd_encoder.safetensors")
    torch.save(halves["decoder"], tmp_path / "taesd_decoder.pth")
    theirs.save_pretrained(tmp_path / "folder")
    for prefix in ("", "taesd_"):
        both = {f"{prefix}{h}.{key}": t for h, half in halves.items() for key, t in half.items()}
        if prefix:
            both |= {"vae_scale": torch.tensor(0.18215), "vae_shift": torch.tensor(0.0)}
        save_file(both, tmp_path / f"{prefix}both.safetensors")
    channels = ours.config.latent_channels
    latents, pixels = torch.randn(1, channels, 3, 4), torch.rand(1, 3, 16, 24)
    read = 0
    for path in tmp_path.iterdir():
        tiny = checkpoints.load_tiny_vae(path)
        if "encoder" not in path.name:
            assert torch.equal(tiny.to_pixels(latents), ours.to_pixels(latents)), path
        if "decoder" not in path.name:
            assert torch.equal(tiny.to_latents(pixels), ours.to_latents(pixels)), path
        told = checkpoints.describe(path if path.is_file() else next(path.glob("*.safetensors")))
        by_diffusers = path.name.removesuffix(".safetensors") in ("diffusers", "folder")
        assert told["kind"] == "a tiny autoencoder (TAESD) alone"
        assert told["format"] == ("diffusers" if by_diffusers else "TAESD")
        assert told["latents"].startswith(f"{channels} channels, 1/8 of")
        read += 1
    assert read == 7


@torch.no_grad()
def test_the_folder_that_is_published(
    pair, model_file: Path, tmp_path: Path, call: Any, refused: Any
) -> None:
    """A config.json and the weights, maybe as float16; a config of another network is refused."""
    theirs = pair[1]
    channels = pair[0].config.latent_channels
    folder, half = tmp_path / "taesd", tmp_path / "half"
    theirs.save_pretrained(folder)
    copy.deepcopy(theirs).half().save_pretrained(half, variant="fp16")
    latents, pixels = torch.randn(1, channels, 3, 4), torch.rand(1, 3, 16, 24)
    tiny = checkpoints.load_tiny_vae(folder)
    assert torch.equal(tiny.to_pixels(latents), theirs.decode(latents).sample)
    assert torch.equal(tiny.to_latents(pixels), theirs.encode(pixels).latents)
    told = checkpoints.describe(folder)
    assert (told["kind"], told["format"]) == ("a tiny autoencoder (TAESD) alone", "diffusers")
    assert (told["halves"], told["types"]) == ("encoder, decoder", {"float32": 134})
    assert checkpoints.describe(half)["types"] == {"float16": 134}
    assert checkpoints.load_tiny_vae(half).decoder is not None
    words = ("generate", "a rabbit", "--model", model_file, "--decoder", "tiny", "--seed", 5)
    status = call(*words, "--tiny-vae", folder, "--out", tmp_path / "one.png")[0]
    if channels == 4:
        single = folder / "diffusion_pytorch_model.safetensors"
        assert status == 0
        assert call(*words, "--tiny-vae", single, "--out", tmp_path / "two.png")[0] == 0
        with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "two.png") as two:
            assert one.size == (64, 64) and one.tobytes() == two.tobytes()
    config = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"act_fn": "gelu"}, "act_fn is 'gelu'"),
        ({"scaling_factor": 0.5}, "scaling_factor is '0.5'"),
        ({"num_decoder_blocks": [2, 2, 2, 1]}, "num_decoder_blocks is"),
        ({"rope": 3}, "not a known setting"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        assert message in refused("info", folder)
        assert message in refused(*words, "--tiny-vae", folder)
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        checkpoints.load_tiny_vae(tmp_path)


def test_halves_say_what_they_lack(pair, tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    save_file(original(weights(pair), "encoder"), path)
    tiny = checkpoints.load_tiny_vae(path)
    assert checkpoints.describe(path)["halves"] == "encoder"
    with pytest.raises(ValueError, match="an encoder alone and cannot decode"):
        tiny.to_pixels(torch.zeros(1, 4, 2, 2))
    with pytest.raises(ValueError, match="12 wide and 8 high; both must be multiples of 8"):
        tiny.to_latents(torch.zeros(1, 3, 8, 12))
    save_file(original(weights(pair), "decoder"), path)
    with pytest.raises(ValueError, match="a decoder alone and cannot encode"):
        checkpoints.load_tiny_vae(path).to_latents(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="both are off"):
        TinyVAEConfig(encoder=False, decoder=False)


def test_wrong_files_are_named(pair, tmp_path: Path, model_file: Path) -> None:
    path = tmp_path / "taesd_decoder.safetensors"
    with pytest.raises(CheckpointError, match="does not exist; expected a tiny autoencoder for 4"):
        checkpoints.load_tiny_vae(path, of=SD_VAE)
    with pytest.raises(CheckpointError, match="of a known kind: its keys begin with backbone"):
        checkpoints.load_tiny_vae(model_file)
    stored = original(weights(pair), "decoder")
    other = replace(SD_VAE, latent_channels=5)
    save_file(stored, path)
    with pytest.raises(CheckpointError, match="latent channels, and the model has 5"):
        checkpoints.load_tiny_vae(path, of=other)
    save_file({key: t for key, t in stored.items() if not key.startswith("9.")}, path)
    with pytest.raises(CheckpointError, match=r"missing: 9\.conv\.0\.weight"):
        checkpoints.load_tiny_vae(path)
    save_file({"3.weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="not a tiny autoencoder of a known kind"):
        checkpoints.load_tiny_vae(path)
    save_file({"1.weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="not a tiny autoencoder of a known kind"):
        checkpoints.load_tiny_vae(path)
    save_file(original(weights(pair), "encoder"), path)
    same = replace(SD_VAE, latent_channels=pair[0].config.latent_channels)
    with pytest.raises(CheckpointError, match="is the encoder alone; expected a tiny"):
        checkpoints.load_tiny_vae(path, of=same)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match="truncated"):
        checkpoints.load_tiny_vae(path)


# ---------------------------------------------------------------- in a model


@pytest.fixture
def with_tiny(model: Model) -> Model:
    """The tests' model, whose latents are halves of its pictures' sides, has a tiny decoder."""
    return replace(model, tiny_vae=TinyVAE(replace(THIN[4], encoder=False)).eval())


def last(model: Model, request: Request):
    *_, progress = generate(model, request)
    return progress


def test_a_request_can_ask_for_it(with_tiny: Model) -> None:
    request = Request(prompt="a rabbit", seed=3)
    plain = last(with_tiny, request)
    tiny = last(with_tiny, request.model_copy(update={"decoder": "tiny"}))
    assert torch.equal(plain.x, tiny.x)
    assert with_tiny.tiny_vae is not None and tiny.images is not None
    with torch.no_grad():
        pixels = with_tiny.tiny_vae.to_pixels(tiny.x)
    assert tiny.images[0].size == (64, 64) == tuple(pixels.shape[:1:-1])
    assert tiny.request.alone(0).record()["decoder"] == "tiny"
    assert "decoder" not in plain.request.alone(0).record()


def test_native_file_carries_it(with_tiny: Model, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    checkpoints.save(with_tiny, path)
    read = checkpoints.load(path)
    assert read.tiny_vae is not None and with_tiny.tiny_vae is not None
    assert read.tiny_vae.config == with_tiny.tiny_vae.config
    expected = with_tiny.tiny_vae.state_dict()
    assert all(torch.equal(t, expected[name]) for name, t in read.tiny_vae.state_dict().items())


def test_one_beside_the_model_is_found(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "taesd_decoder.safetensors"
    assert checkpoints.tiny_vae_of(model, tmp_path / "model.safetensors") is None
    stored = TinyVAE(THIN[4]).state_dict()
    save_file(original(stored, "decoder"), path)
    assert expected_file(model.vae.config).endswith("taesd_decoder.safetensors")
    for place in (tmp_path / "model.safetensors", tmp_path):
        found = checkpoints.tiny_vae_of(model, place)
        assert found is not None and found.decoder is not None
        assert torch.equal(found.decoder.layers[0].weight, stored["decoder.layers.0.weight"])


# ---------------------------------------------------------------- the command line


@pytest.fixture
def shelf(tmp_path: Path, model_file: Path) -> Path:
    """A folder with the tests' model and a tiny decoder of its latents beside it."""
    (tmp_path / "model.safetensors").write_bytes(model_file.read_bytes())
    save_file(
        original(TinyVAE(THIN[4]).state_dict(), "decoder"), tmp_path / "taesd_decoder.safetensors"
    )
    return tmp_path


@pytest.mark.parametrize("beside", [True, False])
def test_decoder_tiny(
    beside: bool, shelf: Path, call: Any, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preview, "QUICK_PARAMETERS", 0)
    tiny = shelf / "taesd_decoder.safetensors"
    words = ["generate", "a rabbit", "--seed", 5, "--model", shelf / "model.safetensors"]
    words += ["--out", shelf / "out", "--decoder", "tiny", "--film"]
    if not beside:
        tiny = tiny.rename(shelf / "another.safetensors")
        told = "must be next to the model or given as tiny_vae, such as taesd_decoder.safetensors"
        assert told in refused(*words)
        words += ["--tiny-vae", tiny]
    status, out, _ = call(*words)
    assert status == 0
    picture, strip, _ = map(Path, out.split())
    with Image.open(picture) as image, Image.open(strip) as film:
        assert image.size == (64, 64)  # the tests' own decoder gives 16
        assert film.height > 128
    assert "a tiny autoencoder (TAESD) alone" in call("info", tiny)[1]


def test_wrong_tiny_vae_is_told(shelf: Path, refused: Any) -> None:
    words = ("generate", "a rabbit", "--model", shelf / "model.safetensors", "--out", shelf / "out")
    for more, message in (
        (
            ("--tiny-vae", shelf / "none.safetensors"),
            "does not exist; expected a file, or a name in",
        ),
        (("--tiny-vae", shelf / "model.safetensors"), "is not a tiny autoencoder"),
        (("--preview", "linaer"), "nearest first: linear"),
        (("--decoder", "small"), "--decoder must be one of vae, tiny, got 'small'"),
    ):
        assert message in refused(*words, *more)
    assert not (shelf / "out").exists()

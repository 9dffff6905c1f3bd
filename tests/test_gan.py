"""The GAN: networks, losses, remedies; training that goes on where it was; its file; the command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from pellucid import checkpoints, gan
from pellucid.checkpoints import CheckpointError
from pellucid.checkpoints.weights import open_weights
from pellucid.data.emoji import STYLES, Concept, EmojiArt
from pellucid.gan import GAN, Discriminator, GANConfig, Generator
from pellucid.images.metadata import read_metadata
from pellucid.recipes.emoji import RECIPE
from pellucid.safetensors_header import read_header
from pellucid.train import gan as train_gan
from pellucid.train import loop
from pellucid.train.gan import GANOptions, GANTrainer, update

SMALL = GANConfig(size=28, latent=8, generator_width=4, discriminator_width=4)
CLASSES = ("red apple", "rabbit", "rocket")


# ---------------------------------------------------------------- networks


@pytest.mark.parametrize("size", gan.LEVELS)
@pytest.mark.parametrize("classes", [(), CLASSES])
def test_shapes_and_range(size: int, classes: tuple[str, ...]) -> None:
    config = dataclasses.replace(SMALL, size=size, classes=classes)
    labels = torch.tensor([0, 1, 2]) if classes else None
    pixels = Generator(config)(torch.randn(3, 8), labels)
    assert pixels.shape == (3, 3, size, size) and pixels.abs().max() <= 1
    assert Discriminator(config)(pixels, labels).shape == (3,)


@pytest.mark.parametrize(
    ("levels", "kernel", "sides"),
    [
        (0, 4, (28, 14, 7)),
        (1, 4, (28, 14)),
        (4, 4, (28, 14, 7, 3, 1)),
        (4, 5, (28, 14, 7, 4, 2)),
    ],
)
def test_levels(levels: int, kernel: int, sides: tuple[int, ...]) -> None:
    config = dataclasses.replace(SMALL, levels=levels, kernel=kernel)
    assert config.sides == sides
    pixels = Generator(config)(torch.randn(3, 8))
    assert pixels.shape == (3, 3, 28, 28)
    network = Discriminator(config)
    assert network(pixels).shape == (3,)
    assert network.layers(pixels).shape[2:] == (sides[-1], sides[-1])


def test_a_class_counts() -> None:
    config = dataclasses.replace(SMALL, classes=CLASSES)
    generator, discriminator = Generator(config).eval(), Discriminator(config).eval()
    z = torch.randn(1, 8).expand(2, -1)
    two = torch.tensor([0, 1])
    a, b = generator(z, two)
    assert not torch.equal(a, b)
    same = torch.stack([a, a])
    scores = discriminator(same, two)
    assert scores[0] != scores[1]
    for network, inputs in ((generator, z), (discriminator, same)):
        with pytest.raises(ValueError, match="labels of shape"):
            network(inputs)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"size": 48}, "size must be one of 28, 32, 64 pixels, got 48"),
        ({"latent": 0}, "latent must be at least 1, got 0"),
        ({"pack": 0}, "pack must be at least 1, got 0"),
        ({"generator_width": -1}, "generator_width must be at least 1, got -1"),
        ({"norm": "bach"}, "nearest first: batch"),
        ({"classes": ("a", "a")}, "twice"),
        ({"levels": 5}, r"levels must be 1 to 4, .*, got 5"),
        ({"levels": -1}, r"levels must be 1 to 4, .*, got -1"),
        ({"kernel": 3}, r"kernel must be one of \(4, 5\), got 3"),
    ],
)
def test_configs_that_make_no_gan(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(SMALL, **change)


def test_batch_norm_is_torchs() -> None:
    own, reference = gan.BatchNorm(5), nn.BatchNorm2d(5)
    for _ in range(3):
        x = torch.randn(4, 5, 3, 3) * 2 + 1
        assert torch.allclose(own(x), reference(x))
    assert torch.allclose(own.eval()(x), reference.eval()(x))


# ---------------------------------------------------------------- losses and remedies


def test_losses_are_cross_entropies() -> None:
    real, fake = torch.randn(6), torch.randn(6)
    ones, zeros = torch.ones(6), torch.zeros(6)
    entropy = F.binary_cross_entropy_with_logits
    wanted = entropy(real, ones) + entropy(fake, zeros)
    assert torch.allclose(gan.discriminator_loss(real, fake), wanted)
    assert torch.allclose(gan.generator_loss(fake), entropy(fake, ones))


def test_the_generators_loss_does_not_saturate() -> None:
    """Where the forgery is found out for sure, log(1 - D) is flat and -log D is steep."""
    fake = torch.tensor([-20.0], requires_grad=True)
    gan.generator_loss(fake).backward()
    assert fake.grad is not None and fake.grad.item() == pytest.approx(-1, abs=1e-6)


def test_r1_of_a_linear_discriminator() -> None:
    weights = torch.randn(3, 28, 28, requires_grad=True)

    def judge(pixels: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        return (pixels * weights).sum(dim=(1, 2, 3))

    penalty = gan.r1_penalty(judge, torch.randn(4, 3, 28, 28))
    assert torch.allclose(penalty, 0.5 * weights.square().sum())
    penalty.backward()
    assert weights.grad is not None and torch.allclose(weights.grad, weights.detach())


def test_spectral_norm_bounds_each_layer() -> None:
    network = Discriminator(dataclasses.replace(SMALL, norm="spectral"))
    for _ in range(50):  # the singular value is found by power iteration, one step each time
        network(torch.randn(2, 3, 28, 28))
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == 3
    for layer in layers:
        largest = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
        assert largest.item() == pytest.approx(1, abs=0.05)
    assert not any(isinstance(m, gan.BatchNorm) for m in network.modules())


def test_minibatch_std_tells_how_much_a_batch_differs() -> None:
    features = torch.randn(1, 4, 7, 7)
    same = gan.minibatch_std(features.expand(8, -1, -1, -1))
    differing = gan.minibatch_std(torch.randn(4000, 4, 7, 7))
    assert same.shape == (8, 5, 7, 7) and same[:, 4].max() < 1e-3
    assert differing[:, 4].mean().item() == pytest.approx(1, abs=0.02)


def test_packing_judges_neighbours_together() -> None:
    pixels = torch.arange(4.0).view(4, 1, 1, 1).expand(-1, 3, 28, 28)
    joined = gan.packed(pixels, 2)
    assert joined.shape == (2, 6, 28, 28)
    assert joined[0, :, 0, 0].tolist() == [0, 0, 0, 1, 1, 1]
    network = Discriminator(dataclasses.replace(SMALL, pack=2, classes=CLASSES))
    assert network(pixels, torch.tensor([0, 1, 2, 0])).shape == (2,)
    with pytest.raises(ValueError, match="batch must be a multiple of pack, 2, got 3"):
        gan.packed(pixels[:3], 2)


def test_one_update_moves_both_and_says_how_it_went() -> None:
    trainer = GANTrainer(Generator(SMALL), Discriminator(SMALL), 8, 1e-3)
    before = [p.detach().clone() for n in (trainer.generator, trainer.discriminator)
              for p in n.parameters()]  # fmt: skip
    figures = update(trainer, torch.randn(8, 3, 28, 28), None, torch.Generator().manual_seed(0))
    after = [p for n in (trainer.generator, trainer.discriminator) for p in n.parameters()]
    assert sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True)) >= len(after) - 1
    assert set(figures) == {"generator", "discriminator", "real", "fake"}
    assert all(0 <= figures[name] <= 1 for name in ("real", "fake"))
    assert all(p.requires_grad for p in trainer.discriminator.parameters())


def test_accuracies() -> None:
    real, made = gan.accuracies(torch.tensor([1.0, -1, 2, 3]), torch.tensor([-1.0, 1]))
    assert (real.item(), made.item()) == (0.75, 0.5)


# ---------------------------------------------------------------- drawing


def test_a_picture_depends_on_its_seed_alone() -> None:
    generator = Generator(SMALL).eval()
    many = gan.sample(generator, [5, 6, 7])
    assert torch.allclose(many[1], gan.sample(generator, [6])[0], atol=1e-6)
    assert not torch.allclose(many[0], many[1])


def test_the_class_of_a_prompt() -> None:
    config = dataclasses.replace(SMALL, classes=CLASSES)
    assert gan.class_of(config, " Red Apple") == 0
    assert gan.class_of(config, "a rocket") == gan.class_of(config, "The rocket") == 2
    assert gan.class_of(SMALL, "anything") is None
    with pytest.raises(ValueError, match=r"'a rockett'.*has 3, nearest first: rocket"):
        gan.class_of(config, "a rockett")


# ---------------------------------------------------------------- the file


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GAN with classes on disk."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("gan") / "gan.safetensors"
    generator = Generator(dataclasses.replace(SMALL, classes=CLASSES))
    generator(torch.randn(4, 8), torch.tensor([0, 1, 2, 0]))  # so that averages are not the first
    checkpoints.save_gan(GAN(generator.eval(), "three things"), path)
    return path


@pytest.fixture(scope="module")
def unconditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gan") / "any.safetensors"
    checkpoints.save_gan(GAN(Generator(SMALL).eval(), "anything"), path)
    return path


def test_there_and_back(trained: Path, tmp_path: Path) -> None:
    loaded = checkpoints.load_gan(trained)
    assert loaded.name == "three things" and not loaded.generator.training
    assert loaded.generator.config == dataclasses.replace(SMALL, classes=CLASSES)
    again = tmp_path / "again.safetensors"
    checkpoints.save_gan(loaded, again)
    assert again.read_bytes() == trained.read_bytes()
    described = checkpoints.describe(trained)
    assert described["classes"] == list(CLASSES)


def test_a_gan_is_no_diffusion_model_and_the_reverse(trained: Path, model_file: Path) -> None:
    with pytest.raises(CheckpointError, match="is a GAN, which draws in one step"):
        checkpoints.load(trained)
    with pytest.raises(CheckpointError, match="is not a GAN; expected a file that `pellucid"):
        checkpoints.load_gan(model_file)
    assert checkpoints.holds_gan(trained) and not checkpoints.holds_gan(model_file)


def rewritten(path: Path, target: Path, drop: str = "", **facts: Any) -> Path:
    """The same file without a key, or with other metadata."""
    told = read_header(path)["__metadata__"]["pellucid_gan"]
    kept = {key: value for key, value in load_file(path).items() if key != drop}
    save_file(kept, target, {"pellucid_gan": json.dumps(json.loads(told) | facts)})
    return target


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"drop": "project.bias"}, "1 missing: project.bias"),
        ({"version": 2}, "format version 2"),
        ({"config": {"size": 50}}, "size must be one of 28, 32, 64 pixels, got 50"),
        ({"config": {"breadth": 3}}, "unknown field 'breadth'"),
        ({"config": []}, "not a JSON object"),
        ({"config": {"generator_width": 8}}, "wrong shape"),
    ],
)
def test_damaged_files(
    changes: dict[str, Any], sentence: str, trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        checkpoints.load_gan(rewritten(trained, tmp_path / "x.safetensors", **changes))


def test_a_length_that_looks_like_a_pickle(trained: Path, tmp_path: Path) -> None:
    """A safetensors file begins with the length of its header, which may be 0x0480 or 0x0280."""
    for length in (0x0280, 0x0480):
        path = tmp_path / f"{length}.safetensors"
        save_file({"x": torch.zeros(1)}, path, {"note": ""})
        short = int.from_bytes(path.read_bytes()[:8], "little")
        save_file({"x": torch.zeros(1)}, path, {"note": "a" * (length - short)})
        assert int.from_bytes(path.read_bytes()[:8], "little") == length
        assert list(open_weights(path)) == ["x"]


# ---------------------------------------------------------------- training


@pytest.fixture(scope="module")
def art(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    concepts = [Concept("", (name,)) for name in CLASSES]
    path = tmp_path_factory.mktemp("art") / "art.npz"
    EmojiArt(concepts, rng.integers(0, 255, (3, len(STYLES), 32, 32, 4), dtype=np.uint8)).save(path)
    return path


def run(art: Path, out: Path, **fields: Any) -> dict[str, Any]:
    """The whole state that a short run leaves."""
    options = GANOptions(
        art, out, steps=4, batch=4, size=28, latent=8, width=4, discriminator_width=4,
        save_every=2, sample_every=0, device="cpu",
    )  # fmt: skip
    train_gan.train(dataclasses.replace(options, **fields), RECIPE)
    return torch.load(out / "state.pt", weights_only=True)


def test_a_killed_run_goes_on_bit_for_bit(art: Path, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"conditional": True, "norm": "spectral", "r1": 1.0}
    whole = run(art, tmp_path / "whole", **fields)
    kept = loop.save_state

    def stop_after_the_first(path: Path, state: dict[str, Any]) -> None:
        kept(path, state)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save_state", stop_after_the_first)
        with pytest.raises(KeyboardInterrupt):
            run(art, tmp_path / "cut", **fields)
    assert torch.load(tmp_path / "cut" / "state.pt", weights_only=True)["step"] == 2
    resumed = run(art, tmp_path / "cut", resume=True, **fields)
    for part in ("generator", "discriminator", "ema"):
        assert all(torch.equal(v, resumed[part][k]) for k, v in whole[part].items()), part
    files = [(tmp_path / name / "gan.safetensors").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]


def test_sheets_of_samples_do_not_disturb_the_training(art: Path, tmp_path: Path) -> None:
    with_them = run(art, tmp_path / "with", sample_every=3)
    without = run(art, tmp_path / "without")
    assert all(torch.equal(v, without["generator"][k]) for k, v in with_them["generator"].items())
    names = sorted(p.name for p in (tmp_path / "with" / "samples").iterdir())
    assert names == ["000003.png", "000004.png"]
    with Image.open(tmp_path / "with" / "samples" / names[0]) as sheet:
        assert sheet.width >= 6 * 28
    assert not (tmp_path / "without" / "samples").exists()


def test_a_folder_and_its_classes(tmp_path: Path) -> None:
    for color in ("red", "blue"):
        (tmp_path / "mine" / color).mkdir(parents=True)
        Image.new("RGB", (40, 30), color).save(tmp_path / "mine" / color / "a.png")
    run(Path("absent"), tmp_path / "out", data=str(tmp_path / "mine"), conditional=True, pack=2)
    config = checkpoints.load_gan(tmp_path / "out" / "gan.safetensors").generator.config
    assert config.classes == ("blue", "red") and config.pack == 2


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"r1": 10.0}, "norm is 'batch'"),
        ({"r1": -1.0}, "r1 must be at least 0, got -1"),
        ({"batch": 3, "pack": 2}, "multiple of pack, 2"),
        ({"batch": 1}, "at least twice"),
        ({"size": 30}, "size must be one of 28, 32, 64 pixels, got 30"),
        ({"art": Path("absent.npz")}, "pellucid data emoji"),
    ],
)
def test_options_that_do_not_go(
    fields: dict[str, Any], sentence: str, art: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=sentence):
        run(fields.pop("art", art), tmp_path, **fields)


# ---------------------------------------------------------------- the command


def test_generate_with_a_gan(
    call: Any,
    trained: Path,
    tmp_path: Path,
) -> None:
    words = ("generate", "rabbit", "--model", trained, "--seed", 3, "--count", 2)
    status, out, _ = call(*words, "--out", tmp_path)
    assert status == 0
    assert [Path(line).name for line in out.splitlines()] == ["rabbit-3.png", "rabbit-4.png"]
    out = call(*words, "--out", tmp_path / "more", "--grid")[1]
    names = [Path(line).name for line in out.splitlines()]
    assert names == ["rabbit-3.png", "rabbit-4.png", "rabbit-3-grid.png"]
    again = tmp_path / "again.png"
    like = ("--like", tmp_path / "rabbit-4.png", "--out", again, "--json")
    status, out, _ = call("generate", *like)
    assert status == 0
    (made,) = json.loads(out)["images"]
    assert made["request"] == {
        "prompt": "rabbit",
        "seed": 4,
        "model": "three things",
        "model_file": str(trained),
    }
    assert read_metadata(again).request == made["request"]
    assert Image.open(again).tobytes() == Image.open(tmp_path / "rabbit-4.png").tobytes()
    status, out, _ = call("info", trained)
    assert status == 0 and "generator of a GAN" in out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("rabit",), "nearest first: rabbit"),
        (("rabbit", "--steps", 3, "--guidance", 2), "steps, guidance are for diffusion models"),
        (("rabbit", "--size", "64x64"), "width, height are for diffusion models"),
        (("rabbit", "--image", "x.png"), "image is for diffusion models"),
        (("rabbit", "--film"), "--film is for diffusion models"),
        (
            ("rabbit", "--vae", __file__, "--dtype", "fp16"),
            "--dtype, --vae are for diffusion models",
        ),
        ((), "there is no class ''; this GAN has 3, nearest first: red apple"),
        (("rabbit", "--count", 0), "count"),
        (("rabbit", "--seed", -5), "seed"),
    ],
)
def test_what_a_gan_cannot_do(
    refused: Any,
    words: tuple[object, ...],
    sentence: str,
    trained: Path,
    tmp_path: Path,
) -> None:
    assert sentence in refused("generate", *words, "--model", trained, "--out", tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_the_prompt_of_an_unconditional_gan_is_not_read(
    call: Any,
    unconditional: Path,
    tmp_path: Path,
) -> None:
    out = ("--model", unconditional, "--seed", 1, "--out", tmp_path)
    status, _, err = call("generate", "a frog", *out)
    assert status == 0 and "the prompt is ignored" in err
    for words in (("",), ()):  # a prompt is not wanted either
        status, _, err = call("generate", *words, *out)
        assert (status, err) == (0, "")
    pictures = [Image.open(p).tobytes() for p in sorted(tmp_path.glob("unconditional-1*.png"))]
    assert len(pictures) == 3 and len(set(pictures)) == 1


def test_other_commands_want_a_diffusion_model(refused: Any, trained: Path) -> None:
    assert "expected a diffusion model" in refused("evaluate", "--model", trained)

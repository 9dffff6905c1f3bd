"""The training loops: a run that is killed and resumed ends where the unbroken one does.

Six things drawn as noise stand for the art; a few steps of small batches stand for a run.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pellucid.cli._bar import show_progress
from pellucid.data.emoji import Concept, EmojiArt
from pellucid.evaluate import classifier
from pellucid.progress import followed
from pellucid.recipes import emoji
from pellucid.train import clip as train_clip
from pellucid.train import diffusion as train_diffusion
from pellucid.train import gan as train_gan
from pellucid.train import loop
from pellucid.train import lora as train_lora
from pellucid.train import vae as train_vae
from pellucid.train.loop import (
    Ema,
    Run,
    generator_of,
    learning_rate,
    load_state,
    rng_of,
    save_state,
)
from references import thin_recipe

STEPS = 12
RECIPE = thin_recipe(emoji.RECIPE)


@pytest.fixture(scope="module")
def art(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six things of 64x64, in four styles."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 4, 8, 8, 4), dtype=np.uint8).repeat(8, 2).repeat(8, 3)
    names = ("frog", "owl", "star", "heart", "boat", "cup")
    path = tmp_path_factory.mktemp("art") / "art.npz"
    EmojiArt([Concept("x", (name,)) for name in names], pixels).save(path)
    return path


def vae_options(art: Path, out: Path) -> train_vae.VAEOptions:
    return train_vae.VAEOptions(art, out, steps=STEPS, batch=2, save_every=4)


def clip_options(art: Path, out: Path) -> train_clip.CLIPOptions:
    return train_clip.CLIPOptions(
        art, out, steps=STEPS, batch=4, vocabulary=400, captions=100, save_every=4
    )


def diffusion_options(art: Path, out: Path) -> train_diffusion.DiffusionOptions:
    return train_diffusion.DiffusionOptions(
        art,
        vae=art.parent / "vae" / "vae.pt",
        clip=art.parent / "clip" / "state.pt",
        out=out,
        steps=STEPS,
        batch=2,
        pool=8,
        channels="32,32",
        save_every=4,
    )


@pytest.fixture(scope="module")
def unbroken(art: Path) -> Callable[[str], dict[str, Any]]:
    """The state after an unbroken run of each loop."""
    folder = art.parent
    torch.manual_seed(0)
    train_vae.train(vae_options(art, folder / "vae"), RECIPE)
    train_clip.train(clip_options(art, folder / "clip"), RECIPE)
    train_diffusion.train(diffusion_options(art, folder / "diffusion"), RECIPE)

    def state(name: str) -> dict[str, Any]:
        found = load_state(folder / name / "state.pt")
        assert found is not None
        return found

    return state


LOOPS: dict[str, tuple[Any, Callable[[Path, Path], Any]]] = {
    "vae": (train_vae, vae_options),
    "clip": (train_clip, clip_options),
    "diffusion": (train_diffusion, diffusion_options),
}


def assert_same(a: Any, b: Any, where: str = "state") -> None:
    """Equal bit for bit, all the way down."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


def kill_after_a_save(name: str, art: Path, out: Path) -> None:
    """Start the loop in a process of its own and SIGKILL it once it has saved its state."""
    code = (
        "import sys; from pathlib import Path; import conftest, test_training\n"
        f"module, options = test_training.LOOPS[{name!r}]\n"
        "module.train(options(Path(sys.argv[1]), Path(sys.argv[2])), test_training.RECIPE)\n"
    )
    paths = [str(Path(__file__).parent), *(p for p in sys.path if p)]
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(art), str(out)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 300
    try:
        while process.poll() is None and not (out / "state.pt").exists():
            assert time.monotonic() < deadline
            try:
                process.wait(timeout=0.005)
            except subprocess.TimeoutExpired:
                continue
    finally:
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize("name", LOOPS)
def test_killed_and_resumed_equals_unbroken(
    name: str, art: Path, unbroken: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    module, options = LOOPS[name]
    kill_after_a_save(name, art, tmp_path)
    left = load_state(tmp_path / "state.pt")
    assert left is not None
    assert 0 < left["step"] < STEPS
    module.train(dataclasses.replace(options(art, tmp_path), resume=True), RECIPE)
    whole, resumed = unbroken(name), load_state(tmp_path / "state.pt")
    assert resumed is not None
    assert resumed["step"] == STEPS
    assert_same(whole, resumed)
    # The steps after the kill did change the weights: equality above is not trivial.
    assert any(not torch.equal(left["model"][k], whole["model"][k]) for k in whole["model"])


def test_a_finished_run_stays_as_it_is(
    art: Path, unbroken: Callable[[str], dict[str, Any]]
) -> None:
    before = unbroken("diffusion")
    options = diffusion_options(art, art.parent / "diffusion")
    options = dataclasses.replace(options, resume=True, steps=STEPS - 2)
    lines: list[str] = []
    train_diffusion.train(options, RECIPE, lambda line, **_: lines.append(line))
    assert_same(before, unbroken("diffusion"))
    assert not any("diffusion 1" in line for line in lines)


def test_a_run_of_another_size_is_not_resumed(art: Path, tmp_path: Path) -> None:
    options = dataclasses.replace(clip_options(art, tmp_path), steps=1)
    train_clip.train(options, RECIPE)
    options = dataclasses.replace(options, vocabulary=300, resume=True, steps=2)
    with pytest.raises(ValueError, match="other options"):
        train_clip.train(options, RECIPE)


def test_two_runs_with_other_seeds_differ(
    art: Path, unbroken: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    options = dataclasses.replace(clip_options(art, tmp_path), seed=1, steps=2)
    train_clip.train(options, RECIPE)
    state = load_state(tmp_path / "state.pt")
    assert state is not None
    assert any(not torch.equal(v, unbroken("clip")["model"][k]) for k, v in state["model"].items())


def test_the_parts_that_were_trained_load(
    art: Path, unbroken: Callable[[str], dict[str, Any]]
) -> None:
    vae = train_vae.trained(art.parent / "vae" / "vae.pt")
    assert vae.to_latents(torch.zeros(1, 3, 64, 64)).shape == (1, 32, 8, 8)
    clip, tokenizer = train_clip.trained(art.parent / "clip" / "state.pt")
    assert clip.embed_texts(tokenizer(["a frog"])).shape == (1, RECIPE.text.projection)


@pytest.mark.parametrize("trained", [train_vae.trained, train_clip.trained])
def test_parts_that_were_not_trained(trained: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run `pellucid train"):
        trained(tmp_path / "state.pt")


# ---------------------------------------------------------------- what the loops share


def test_a_state_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "run" / "state.pt"
    assert load_state(path) is None
    save_state(path, {"step": 1, "x": torch.arange(3)})
    with pytest.raises((AttributeError, TypeError, RuntimeError)):
        save_state(path, {"step": 2, "x": lambda: None})  # cannot be written
    state = load_state(path)
    assert state is not None
    assert state["step"] == 1
    assert [p.name for p in path.parent.iterdir()] == ["state.pt"]


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(ValueError, match=r"state\.pt could not be written: File too large"):
            save_state(tmp_path / "state.pt", {"x": torch.arange(3000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())
    (tmp_path / "run").touch()
    with pytest.raises(ValueError, match=r"state\.pt could not be written: File exists"):
        save_state(tmp_path / "run" / "state.pt", {})


EVERY_LOOP: tuple[tuple[Any, Any], ...] = (
    (train_vae, train_vae.VAEOptions),
    (train_clip, train_clip.CLIPOptions),
    (train_diffusion, train_diffusion.DiffusionOptions),
    (train_gan, train_gan.GANOptions),
    (train_lora, train_lora.LoraOptions),
    (classifier, classifier.ClassifierOptions),
)
OUT_OF_RANGE = (
    ("steps", 0, "steps must be at least 1, got 0"),
    ("batch", 0, "batch must be at least 1, got 0"),
    ("save_every", 0, "save_every must be at least 1, got 0"),
    ("rate", math.nan, "rate must be at least 0, got nan"),
    ("seed", -1, "seed must be between 0 and 9223372036854775807, got -1"),
    ("seed", 2**70, "seed must be between 0 and .*, got 1180591620717411303424"),
    ("ema", 2.0, "ema must be between 0 and 1, got 2.0"),
    ("r1", math.nan, "r1 must be at least 0, got nan"),
    ("rank", 100_000, "rank must be between 1 and 1024, got 100000"),
)


@pytest.mark.parametrize(
    ("loop", "kind", "field", "value", "sentence"),
    [
        (loop, kind, *wrong)
        for (loop, kind), wrong in itertools.product(EVERY_LOOP, OUT_OF_RANGE)
        if wrong[0] in {field.name for field in dataclasses.fields(kind)}
    ],
)
def test_an_option_out_of_range(
    loop: Any, kind: Any, field: str, value: Any, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=sentence):
        loop.train(kind(out=tmp_path / "out", **{field: value}))
    assert not list(tmp_path.iterdir())


def test_a_truncated_state_is_named(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_state(path, {"x": torch.arange(1000)})
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"state\.pt: not a saved training state$"):
        load_state(path)


@pytest.mark.parametrize(
    "content",
    [
        [1, 2, 3],
        {"config": 3},
        {"model": {}},
        {"config": {"nonsense": 1}, "model": {}},
        {"config": {}, "model": {"x": torch.zeros(1)}},
    ],
)
def test_the_file_of_another_part_is_named(content: Any, tmp_path: Path, refused: Any) -> None:
    """Given for vae=, clip= or features=, such as the two of them exchanged."""
    path = tmp_path / "other.pt"
    torch.save(content, path)
    for trained, what in ((train_vae.trained, "autoencoder"), (train_clip.trained, "CLIP")):
        with pytest.raises(ValueError, match=f"other.pt is not the {what} that `pellucid train"):
            trained(path)
    words = ("train", "pack", f"vae={path}", f"out={tmp_path / 'x.safetensors'}")
    assert "other.pt is not the autoencoder" in refused(*words)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def progress(steps: int, first: int = 0, every: int = 50) -> Iterator[Run]:
    """A run that reports each of its steps on stderr, as the command line does."""
    options = loop.RunOptions(steps=steps, batch=8)
    run = Run("vae", options, loop.Saved(Path("state.pt"), {}), show_progress, every)
    run.first = first
    for _ in run.steps():
        run.report(loss=1.0)
        yield run


def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", written := Terminal())
    monkeypatch.setattr(loop, "REDRAW", -1.0)
    for run in progress(4):
        if run.step == 1:
            run.say("a sheet was drawn")
    shown = written.getvalue().split("\r\x1b[K")[1:]
    assert [line.count("━") for line in shown] == [6, 12, 0, 18, 24]
    assert [line.endswith("\n") for line in shown] == [False, False, True, False, True]
    assert "vae" in shown[0] and "4/4  loss 1.0000" in shown[-1] and "0.0 min left" in shown[-1]


def test_the_first_step_is_a_stage_for_it_may_take_minutes() -> None:
    with followed() as stages:
        seen = [[stage.what for stage in stages] for _ in progress(3)]
    assert seen == [["training, the first of 3 steps"], [], []] and not stages


def test_progress_is_lines_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    list(progress(7, first=2, every=2))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["4/7", "6/7", "7/7"]
    assert not any("\r" in line or "━" in line for line in lines)


def test_learning_rate_rises_stays_and_falls() -> None:
    rates = [learning_rate(s, 100, 2.0, 10, 0.6) for s in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (s + 1) for s in range(10)])
    assert rates[10:61] == pytest.approx([2.0] * 51)
    assert all(b < a for a, b in itertools.pairwise(rates[60:]))
    assert rates[80] == pytest.approx(1.0)  # half way down the cosine
    assert 0 < rates[-1] < 0.01


def test_ema_is_the_average_with_warm_up() -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 0.0)
    ema = Ema(module, decay=0.9)
    expected = 0.0
    for k in range(200):
        nn.init.constant_(module.weight, float(k % 7))
        decay = min(0.9, (1 + k) / (10 + k))
        expected = decay * expected + (1 - decay) * (k % 7)
        ema.update()
        assert float(ema.weights["weight"]) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert ema.updates == 200


def test_ema_warm_up_forgets_the_first_weights() -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 1.0)
    ema = Ema(module, decay=0.999)
    nn.init.constant_(module.weight, 0.0)
    for _ in range(50):
        ema.update()
    assert float(ema.weights["weight"]) < 1e-6  # without warm-up: 0.999 ** 50 = 0.95
    assert not module.weight.any()


def test_randomness_is_a_function_of_seed_step_and_rank() -> None:
    def draw(*key: int) -> tuple[float, float]:
        return float(rng_of(*key).random()), float(torch.rand(1, generator=generator_of(*key)))

    assert draw(0, 5, 1) == draw(0, 5, 1)
    keys = [(0, 5, 1), (1, 5, 1), (0, 6, 1), (0, 5, 0)]
    assert len({draw(*key) for key in keys}) == len(keys)

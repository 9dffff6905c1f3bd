"""What a command says at once: errors that need no torch, and that torch is being imported."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pellucid.cli import _bar
from pellucid.progress import followed
from test_progress import Terminal

ROOT = Path(__file__).parents[1]
CAT = str(ROOT / "docs" / "examples" / "cat.png")

# Commands that are wrong, and what is said.
WRONG: tuple[tuple[tuple[str, ...], str], ...] = (
    (("generate", "x", "--steps", "0"), "--steps must be between 1 and 1000, got 0"),
    (("generate", "x", "--steps", "many"), "--steps must be a whole number, got 'many'"),
    (("generate", "x", "--seed", "20.5"), "--seed must be a whole number, got '20.5'"),
    (("generate", "x", "--guidance", "high"), "--guidance must be a number, got 'high'"),
    (("generate", "x", "--count", "0"), "--count must be"),
    (("generate", "x", "--size", "0"), "must be"),
    (("generate", "x", "--size", "big"), "--size must be WIDTHxHEIGHT"),
    (("generate", "x", "--guidance", "nan"), "--guidance"),
    (
        ("generate", "x", "--sampler", "eular"),
        "unknown sampler 'eular'; choices, nearest first: euler",
    ),
    (("generate", "x", "--sampler", "DPM++ 2M Karras", "--steps", "0"), "--steps must be"),
    (("generate", "x", "--spacing", "karas"), "nearest first: karras"),
    (("generate", "x", "--hires", "2", "--hires-upscaler", "latnt"), "nearest first: latent"),
    (("generate", "x", "--image", "none.png"), "none.png is not a file"),
    (("generate", "x", "--image", __file__), "is not a picture"),
    (("generate", "x", "--image", CAT, "--mask", "none.png"), "none.png is not a file"),
    (("generate", "x", "--model", "none.safetensors"), "none.safetensors does not exist"),
    (("generate", "x", "--lora", "none.safetensors"), "none.safetensors does not exist"),
    (("generate", "<lora:none:1>"), "none"),
    (("generate", "x", "--embedding", "none.pt"), "none.pt does not exist"),
    (("generate", "x", "--vae", "none.pt"), "none.pt does not exist"),
    (("generate", "x", "--refiner", "none"), "none does not exist"),
    (("generate", "x", "--like", "none.png"), "none.png is not a file"),
    (("generate", "x", "--like", CAT), "does not say how it was made"),
    (("generate", "x", "--prompts", "none.txt"), "not both"),
    (("generate", "--prompts", "none.txt"), "none.txt cannot be read"),
    (("generate", "x", "--out", "/proc/none"), "/proc/none cannot be written: no file can be made"),
    (("generate", "x", "--out", CAT), "exists; --overwrite replaces it"),
    (("generate", "x", "--out", "x.pdf"), "--out must be a folder or a file"),
    (
        ("generate", "x", "--preset", "lightnin"),
        "unknown preset 'lightnin'; choices, nearest first: l",
    ),
    (("generate", "x", "--preset", "sd2_76"), "nearest first: sd2_768, sd2"),
    (
        ("generate", "x", "--device", "gpu"),
        "--device must be auto, cpu, cuda, cuda:NUMBER or mps, got",
    ),
    (
        ("generate", "x", "--dtype", "int8"),
        "--dtype must be one of auto, float32, float16, bfloat16",
    ),
    (
        ("generate", "x", "--backend", "eagre"),
        "unknown backend 'eagre'; choices, nearest first: eager",
    ),
    (("generate", "x", "--threads", "0"), "--threads must be between 1 and 1024, got 0"),
    (("generate", "x", "--threads", "many"), "--threads must be a whole number, got 'many'"),
    (
        ("generate", "x", "--prediction", "noise"),
        "unknown prediction 'noise'; choices, nearest first",
    ),
    (
        ("generate", "x", "--device", "{x}"),
        "--device must be auto, cpu, cuda, cuda:NUMBER or mps, got '{x}'",
    ),
    (("generate", "x", "--dtype", "{0}"), "got '{0}'"),
    (("grid", "x", "--x", "steps=1", "--device", "tpu"), "--device must be"),
    (("explain", "x", "--dtype", "half"), "--dtype must be"),
    (("upscale", CAT, "--device", "0"), "--device must be"),
    (("explain", "x", "--versus", "y" * 100_001), "at most 100,000 characters"),
    (("explain", "x", "--versus", " "), "--versus must not be empty"),
    (("generate", "x", "--resume", "--out", "one.png"), "--resume looks through a folder"),
    (("generate", "x" * 100_001), "at most 100,000 characters"),
    (("generate",), "generate needs a prompt"),
    (("grid", "x", "--x", "steps=0,1", "--y", "guidance=a"), "guidance must be a number"),
    (("grid", "x", "--x", "steps=0"), "must be between 1 and 1000, got 0"),
    (("explain", "x", "--steps", "0"), "--steps must be"),
    (("explain", "x", "--out", "/proc/none"), "/proc/none cannot be written"),
    (("noise", "none.png"), "none.png is not a file"),
    (("noise", CAT, "--t", "soon"), "--t must be whole numbers"),
    (("autoencoder", "none.png"), "none.png is not a file"),
    (("clip", "none.png"), "none.png is not a file"),
    (("upscale", "none.png"), "none.png is not a file"),
    (("upscale", CAT, "--scale", "0"), "--scale must be above 0"),
    (("upscale", CAT, "--upscaler", "none.pth"), "none.pth does not exist"),
    (("info", "none.png"), "none.png does not exist; expected a picture"),
    (("convert", "none", "out"), "none does not exist"),
    (("merge", "none", "other", "--out", "m.safetensors"), "none does not exist"),
    (("lora", "none"), "none does not exist"),
)
WITHOUT_TORCH = """
import contextlib, io, json, sys
sys.modules["torch"] = None  # importing it fails
from pellucid.cli import main
said = []
for words in json.load(sys.stdin):
    sys.argv, err = ["pellucid", *words], io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.suppress(SystemExit):
        try:
            main()
        except ImportError as error:
            err.write(repr(error))
    said.append(err.getvalue())
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], str]:
    """What each of the commands says where torch cannot be imported."""
    commands = [words for words, _ in WRONG]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path_factory.mktemp("empty"),
    )
    return dict(zip(commands, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize(("words", "message"), WRONG, ids=[" ".join(w)[:50] for w, _ in WRONG])
def test_what_is_wrong_is_said_without_torch(
    words: tuple[str, ...], message: str, said: dict[tuple[str, ...], str]
) -> None:
    assert said[words].startswith("pellucid: ") and message in said[words]


def test_an_import_that_takes_long_is_shown_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "slow_module.py").write_text("import sys\nseen = sys.stderr.getvalue()\n")
    with followed() as stages:
        display = _bar.Display(stages)
        hook = _bar.AnnouncedImport("slow_module", "loading a module", display)
        sys.meta_path.insert(0, hook)
        slow = importlib.import_module("slow_module")
        assert "loading a module" in slow.seen and not stages
        assert hook not in sys.meta_path
        display.draw(0.0)  # the next look at the work
    assert terminal.getvalue().endswith("\r\x1b[K")

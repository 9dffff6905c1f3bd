"""Settings for all tests."""

from __future__ import annotations

import functools
import gc
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from pellucid import checkpoints, cli
from pellucid.backbones.unet import UNet, UNetConfig
from pellucid.cli import _bar
from pellucid.clip import TextConfig, TextTower, VisionConfig, VisionTower
from pellucid.model import Defaults, Model
from pellucid.schedule import Schedule
from pellucid.tokenizer import Tokenizer
from pellucid.train import diffusion as train_diffusion
from pellucid.train import vae as train_vae
from pellucid.vae import VAE, VAEConfig

# The references in the tests must not look for a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

# Nor must the tests read the settings of whoever runs them.
for variable in [name for name in os.environ if name.startswith("PELLUCID_")]:
    del os.environ[variable]
os.environ["PELLUCID_CONFIG"] = os.devnull
os.environ["XDG_DATA_HOME"] = os.devnull


def pytest_addoption(parser: pytest.Parser) -> None:
    about = "write the pictures of the texts' commands there, a sheet for each section"
    parser.addoption("--sheets", metavar="FOLDER", help=about)


# Tiny tensors: more threads only wait for each other, here and in processes that tests start.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

# As the command does: see `pellucid.__main__`.
gc.set_threshold(100_000, 20)


def pytest_collection_finish() -> None:
    """What was imported stays: the collector need not look through it after every few tests."""
    gc.collect()
    gc.freeze()


# Around a training more pictures are measured than the few steps of a test learn from.
train_vae.HELD = train_diffusion.HELD = 16
train_vae.MEASURED = 64

# A slow machine must not add lines to what commands say.
_bar.LINES = (math.inf,)


@pytest.fixture(autouse=True)
def _same_weights_every_time() -> None:
    """Networks that a test builds have the same random weights whichever tests ran before."""
    torch.default_generator.manual_seed(0)  # torch.manual_seed takes a millisecond


@pytest.fixture(scope="session")
def model() -> Model:
    """A whole model, tiny and random: 16x16 pictures from 4x8x8 latents on a flow path."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["a red apple", "a rabbit"], 270, context_length=8)
    unet = UNetConfig(
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        transformer_layers=(0, 1),
        mid_transformer_layers=1,
        heads=(2, 2),
        cross_attention_dim=16,
        norm_groups=4,
        pooled_dim=12,
    )
    text = TextConfig(tokenizer.vocab_size, 8, 16, 1, 2, 16, projection=12, eos=tokenizer.eos)
    made = Model(
        backbone=UNet(unet),
        vae=VAE(VAEConfig(block_out_channels=(8, 8), layers_per_block=1, norm_groups=4)),
        text=TextTower(text),
        tokenizer=tokenizer,
        schedule=Schedule(name="flow"),
        prediction="v",
        name="tiny",
        vision=VisionTower(VisionConfig(16, 8, 16, 1, 2, 16, projection=12)),
        defaults=Defaults(steps=3, guidance=2.0, sampler="euler", width=16, height=16),
    )
    for part in (made.backbone, made.vae, made.text, made.vision):
        assert part is not None
        for parameter in part.parameters():  # layers that begin at zero would hide what they do
            parameter.data += 0.05 * torch.randn_like(parameter)
        part.eval().requires_grad_(False)
    return made


@pytest.fixture(scope="session")
def model_file(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same on disk."""
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    checkpoints.save(model, path)
    return path


Call = Callable[..., tuple[int, str, str]]


@functools.cache
def _built(get_command: Any, application: Any, *_: Any) -> Any:
    return get_command(application)


@pytest.fixture(scope="session")
def _commands_built_once() -> Iterator[None]:
    """Typer builds all commands for each run, which takes as long as the rest of many of them."""
    get_command = typer.main.get_command
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            typer.main,
            "get_command",
            lambda each: _built(
                get_command, each, *each.registered_commands, *each.registered_groups
            ),
        )
        yield


class ReadOnce:
    """`checkpoints.load` for commands: a file that has not changed is read once for all of them.

    Reading takes half of the time of a command with a tiny model, and has tests of its own.
    """

    KEPT = 6  # models

    def __init__(self) -> None:
        self.load = checkpoints.load
        self.models: dict[str, Model] = {}

    def __call__(self, path: Any = None, *args: Any, **options: Any) -> Model:
        files = [path or checkpoints.embedded(), *args, *options.values()]
        files = [Path(file).resolve() for file in files if isinstance(file, Path)]
        trained = sys.argv[1] == "train"  # which changes what it reads
        if trained or not all(file.is_file() for file in files):
            return self.load(path, *args, **options)
        found = [(file, file.stat()) for file in files]
        state = [(file, stat.st_ino, stat.st_size, stat.st_mtime_ns) for file, stat in found]
        key = f"{state} {args} {options}"
        model = self.models.pop(key, None) or self.load(path, *args, **options)
        self.models[key] = model  # the last one now
        for oldest in list(self.models)[: len(self.models) - self.KEPT]:
            del self.models[oldest]
        return replace(model)


@pytest.fixture(scope="session")
def read_once() -> ReadOnce:
    return ReadOnce()


@pytest.fixture
def read_anew(read_once: ReadOnce) -> Iterator[None]:
    """Commands read models as they do without tests."""
    read_once.models.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read_once, "KEPT", 0)
        yield


@pytest.fixture
def call(
    _commands_built_once: None,
    read_once: ReadOnce,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Call:
    """Exit status, stdout and stderr of ``pellucid words``."""

    def pellucid(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pellucid", *map(str, words)])
        status = 0
        with pytest.MonkeyPatch.context() as patch:
            if checkpoints.load is read_once.load:  # the test puts nothing in its place
                patch.setattr(checkpoints, "load", read_once)
            try:
                cli.main()
            except SystemExit as end:
                status = int(end.code or 0)
        return (status, *capsys.readouterr())

    return pellucid


@pytest.fixture
def refused(call: Call) -> Callable[..., str]:
    """What ``pellucid words`` says; fails unless that is one sentence and exit status 2."""

    def say(*words: object) -> str:
        status, out, err = call(*words)
        assert (status, out) == (2, ""), err
        assert err.startswith("pellucid: ") and err.count("\n") == 1, err
        return err

    return say


class Balanced(HTMLParser):
    """Fails where a tag is closed that is not the last one opened, and at what is not in the page."""

    EMPTY = ("meta", "link", "img")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.EMPTY:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action", "poster", "background"):
                assert value is not None and value.startswith("data:")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def well_formed() -> Callable[[str], None]:
    """Fails unless a page closes what it opens and has all that it needs inside."""

    def check(text: str) -> None:
        parser = Balanced()
        parser.feed(text)
        parser.close()
        assert parser.open == []
        # Base64 may have "//": of pictures, and of the hash of the script that may run.
        rest = re.sub(r"(?:data:[a-z/]*;base64,|'sha256-)[A-Za-z0-9+/=]*", "", text)
        assert "//" not in rest and "url(" not in rest and "@import" not in rest
        assert "default-src 'none'" in text

    return check


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A real Chromium; without one, or without playwright, the test is skipped."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium is installed (apt install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as play:
        options = ["--no-sandbox", "--disable-gpu"]
        opened = play.chromium.launch(executable_path=chromium, args=options)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def shared_tab(browser: Any) -> Any:
    """A tab for one test after the other: a new one takes a second."""
    return browser.new_page()


@pytest.fixture
def open_page(browser: Any, shared_tab: Any) -> Iterator[Callable[..., Any]]:
    """Opens a file in a tab. At the end there must be no error on a console, and nothing fetched.

    own: in a tab of its own, which is closed after the test.
    """
    complaints: list[str] = []
    tabs = [shared_tab]
    listeners: dict[str, Callable[[Any], Any]] = {
        "console": lambda message: complaints.append(f"{message.type}: {message.text}"),
        "pageerror": lambda error: complaints.append(str(error)),
        "request": lambda sent: (
            sent.url.startswith(("data:", "file:")) or complaints.append(sent.url)
        ),
    }
    for event, listener in listeners.items():
        shared_tab.on(event, listener)

    def open_one(path: Path, width: int = 1200, height: int = 900, own: bool = False) -> Any:
        tab = shared_tab
        if own:
            tab = browser.new_page()
            tabs.append(tab)
            for event, listener in listeners.items():
                tab.on(event, listener)
        tab.set_viewport_size({"width": width, "height": height})
        tab.emulate_media(color_scheme="light")  # another test may have changed it
        tab.mouse.move(0, 0)
        tab.goto(path.as_uri())
        return tab

    yield open_one
    for event, listener in listeners.items():
        shared_tab.remove_listener(event, listener)
    for tab in tabs[1:]:
        tab.close()
    assert complaints == []

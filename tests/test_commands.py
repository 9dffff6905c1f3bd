"""Every command of README.md and docs/ runs, with files that exist, and its pictures can be seen.

``pytest tests/test_commands.py --sheets FOLDER`` writes the pictures of each section as one sheet for
people to look at. Files that only a user has, such as checkpoints of Stable Diffusion, are thin
random models here, so that their pictures are noise; and a training takes two steps.
"""

from __future__ import annotations

import glob
import itertools
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import save_file

from pellucid import checkpoints, cli, plugins
from pellucid.data.emoji import STYLES, Concept, EmojiArt
from pellucid.esrgan import RRDBConfig, RRDBNet
from pellucid.recipes import emoji
from pellucid.tiny_vae import TinyVAE, TinyVAEConfig
from references import make_lora, model_of, thin_recipe

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.M | re.S)
# Programs that set the project up, which needs the network, and one that talks to the server.
OTHERS = {"make", "source", ".venv/bin/pip", "curl", "docker"}

# What is added to a command so that it is quick.
QUICK = {
    "train": ("steps=2", "batch=2"),
    "compare": ("--seen", "256", "--samples", "100", "--seeds", "1", "--workers", "1"),
    "explain": ("--steps", "2"),
}
QUICK_TRAINING = {
    "clip": ("captions=400",),
    "diffusion": ("channels=32,32", "pool=16"),
    "lora": ("size=64", "rank=2"),
    "gan": ("width=4", "discriminator_width=4"),
    "pack": (),
}
THIN = ("sd15", "v1-5-pruned-emaonly", "sdxl", "sdxl-lightning", "refiner")


@dataclass(frozen=True)
class Section:
    """The commands below one heading of a page, each as words."""

    page: str
    heading: str
    commands: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        return f"{self.page}: {self.heading}"


def sections() -> Iterator[Section]:
    for page in PAGES:
        for part in re.split(r"^## ", page.read_text("utf-8"), flags=re.M)[1:]:
            lines = "".join(BLOCK.findall(part)).replace("\\\n", " ").splitlines()
            commands = [tuple(shlex.split(line, comments=True)) for line in lines]
            ours = tuple(words for words in commands if "pellucid" in words[: 1 + variables(words)])
            if ours:
                yield Section(page.stem, part.partition("\n")[0], ours)


def variables(words: Sequence[str]) -> int:
    """How many environment variables a command line sets first."""
    return sum(1 for _ in itertools.takewhile(re.compile(r"[A-Z_]+=").match, words))


def quick(words: tuple[str, ...], shown: bool) -> list[str]:
    """The words of a command, with those that make it quick at their end.

    shown: the pictures of the included model are for people, and have all their steps.
    """
    command, rest = words[1], words[2:]
    more = list(QUICK.get(command, ()))
    if command == "train":
        more = [] if "--settings" in rest else more
        special = QUICK_TRAINING.get(rest[0])
        more = list(special) if special == () else more + list(special or ()) * bool(more)
    if command == "generate" and any(Path(word).stem in THIN for word in rest):
        more += [] if "--preset" in rest else ["--steps", "4"]
        more += [] if {"--size", "--mask", "--extend"} & set(rest) else ["--size", "64x64"]
    elif command == "generate" and not shown and not {"--model", "--like"} & set(rest):
        more += ["--steps", "4"]  # the last of an option counts
    found = [sorted(glob.glob(word)) if word.endswith("*.png") else [word] for word in rest]
    return [command, *itertools.chain(*found), *more]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that a user has, by the names that the texts give them."""
    shelf = tmp_path_factory.mktemp("shelf")
    shutil.copytree(ROOT / "docs" / "examples", shelf / "docs" / "examples")
    for name in ("garden", "mask"):
        small = shelf / "docs" / "examples" / f"{name}.png"
        Image.open(small).reduce(4).save(small)
    families = {"sd15": "sd1", "sdxl": "sdxl", "refiner": "sdxl_refiner"}
    made = {
        file: model_of(family, vocabulary=49408, layers_per_block=1)
        for file, family in families.items()
    }
    for file, one in made.items():
        checkpoints.save(one, shelf / f"{file}.safetensors", torch.float16, to="ldm")
    for name in ("v1-5-pruned-emaonly", "finetuned"):
        shutil.copy(shelf / "sd15.safetensors", shelf / f"{name}.safetensors")
    shutil.copy(shelf / "sdxl.safetensors", shelf / "sdxl-lightning.safetensors")
    for name in ("inkstyle", "lcm", "loras/inkstyle"):
        make_lora(made["sd15"], shelf / f"{name}.safetensors")
    for word in ("my-frog", "bad-hands"):
        torch.save({"string_to_param": {"*": torch.randn(2, 64) * 0.1}}, shelf / f"{word}.pt")
    tiny = TinyVAE(replace(TinyVAEConfig(), width=8))
    save_file(tiny.state_dict(), shelf / "taesd_decoder.safetensors")
    upscaler = RRDBNet(RRDBConfig(width=4, blocks=1, growth=2))
    torch.save(upscaler.state_dict(), shelf / "4x-UltraSharp.pth")
    rng = np.random.default_rng(0)
    concepts = [Concept("", (name,)) for name in ("frog", "owl", "star", "cactus")]
    (shelf / "runs").mkdir()
    art = rng.integers(0, 255, (4, len(STYLES), 64, 64, 4), dtype=np.uint8)
    EmojiArt(concepts, art).save(shelf / "runs" / "art64.npz")
    return shelf


@pytest.fixture
def working_folder(
    shelf: Path,
    tmp_path: Path,
    pytestconfig: pytest.Config,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """The repository as a newcomer has it, but with small pictures, and the files of a user; what is
    trained is thin."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PELLUCID_UPSCALERS", str(shelf))
    monkeypatch.setattr(emoji, "RECIPE", thin_recipe(emoji.RECIPE))
    for path in shelf.iterdir():
        if path.name not in ("runs", "docs"):
            (tmp_path / path.name).symlink_to(path)
    shown = pytestconfig.getoption("--sheets") is not None
    (tmp_path / "docs").symlink_to((ROOT if shown else shelf) / "docs")
    shutil.copytree(shelf / "runs", tmp_path / "runs")
    return tmp_path


def flags_of(words: Sequence[str]) -> set[str]:
    """The options among the words of a command."""
    return {word.partition("=")[0] for word in words if word.startswith("--")}


def known_flags(command: str) -> set[str]:
    """The options that a command has."""
    plugins.discover("pellucid.cli")
    found = typer.main.get_command(cli.app).commands[command]  # type: ignore[attr-defined]
    return {flag for each in found.params for flag in (*each.opts, *each.secondary_opts)}


def pictures_in(folder: Path) -> set[Path]:
    """The pictures that commands have left, without those of the texts."""
    found = (path for ending in ("png", "webp", "jpg") for path in folder.rglob(f"*.{ending}"))
    return {path for path in found if not path.is_relative_to(folder / "docs")}


@pytest.mark.parametrize("section", list(sections()), ids=str)
def test_the_commands_run(
    section: Section,
    call: Any,
    working_folder: Path,
    pytestconfig: pytest.Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[tuple[Path, str]] = []
    folder = pytestconfig.getoption("--sheets")
    for line in section.commands:
        words = line[variables(line) :]
        for name, _, value in (word.partition("=") for word in line[: variables(line)]):
            monkeypatch.setenv(name, value)
        if words[1] == "serve" or "--ray" in words:  # a server or a cluster: in tests/serve
            assert flags_of(words) <= known_flags(words[1]), shlex.join(words)
            continue
        before = pictures_in(working_folder)
        status, out, err = call(*quick(words, folder is not None))
        assert status == 0, f"{shlex.join(words)}\n{err}"
        assert "pellucid:" not in err, f"{shlex.join(words)} warns\n{err}"
        names_files = words[1] in ("generate", "train", "noise", "explain")
        for path in out.splitlines() if names_files else ():
            if path.endswith((".png", ".html", ".safetensors")):
                assert (working_folder / path).is_file(), f"{shlex.join(words)} printed {path}"
        new = sorted(pictures_in(working_folder) - before)
        shown += [(path, " ".join(words[2:])) for path in new]
    if folder is not None and shown:
        monkeypatch.syspath_prepend(ROOT / "docs")
        from layout import Cell, sheet  # type: ignore[import-not-found]

        cells = [Cell(Image.open(path).convert("RGB"), label[:30]) for path, label in shown]
        Path(folder).mkdir(parents=True, exist_ok=True)
        name = re.sub(r"\W+", "-", str(section).lower())
        sheet(cells, 4, 256).save(Path(folder) / f"{name}.png")


def test_other_programs_are_known() -> None:
    """What the texts run besides pellucid: make and what sets the project up."""
    for page in PAGES:
        for block in BLOCK.findall(page.read_text("utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                words = [w for w in shlex.split(line, comments=True) if not re.match(r"\w+=", w)]
                assert not words or words[0] in OTHERS | {"pellucid"}, f"{page.name}: {line}"


def test_the_options_that_texts_mention_exist() -> None:
    """In `pellucid ...` within a sentence, which is often no whole command."""
    plugins.discover("pellucid.cli")
    group = typer.main.get_command(cli.app)
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "Makefile"]:
        if page.name == "LOG.md":  # tells of earlier versions
            continue
        for mention in re.findall(r"`pellucid ([^`]+)`", page.read_text("utf-8")):
            words = mention.split()
            if words[0].startswith("-") or not words[0].islower():
                continue
            assert words[0] in group.commands, f"{page.name}: pellucid {mention}"  # type: ignore[attr-defined]
            command = group.commands[words[0]]  # type: ignore[attr-defined]
            if words[0] == "data":
                command = command.commands[words[1]]
            known = {flag for each in command.params for flag in (*each.opts, *each.secondary_opts)}
            flags = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert flags <= known | {"--help"}, f"{page.name}: pellucid {mention}"


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_targets_that_texts_mention_exist() -> None:
    """Also in the Makefile itself; nothing is run."""
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "Makefile"]:
        for target in set(
            re.findall(r"`?make ([a-z][a-z-]+)(?:`|\s{2,}#)", page.read_text("utf-8"))
        ):
            dry = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
            assert dry.returncode == 0, f"{page.name}: make {target}\n{dry.stderr}"


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_demo(
    call: Any, working_folder: Path, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pictures that `make demo` draws."""
    dry = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True)
    drawn = [shlex.split(line) for line in dry.stdout.splitlines() if "/pellucid generate" in line]
    drawn = [words for words in drawn if words[0] != "echo"]
    section = Section("Makefile", "demo", tuple(("pellucid", *words[1:]) for words in drawn))
    assert section.commands
    test_the_commands_run(section, call, working_folder, pytestconfig, monkeypatch)

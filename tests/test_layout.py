"""The house is in order: links lead somewhere, modules say what they are, files have telling names."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

from pellucid import plugins
from pellucid.cli import app

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "src").rglob("*.py"))
PROSE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "LICENSES.md"]
PROSE += sorted((ROOT / "docs").glob("*.md"))


def links(text: str) -> list[str]:
    """Targets of Markdown links and pictures that are not addresses or anchors."""
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return [t.split("#")[0] for t in found if not re.match(r"[a-z]+:|#", t)]


def test_links_are_found() -> None:
    assert links("![x](a/b.png) [y](c.md#d) [z](https://x.y) [w](#here)") == ["a/b.png", "c.md"]


@pytest.mark.parametrize("page", PROSE, ids=lambda p: p.name)
def test_relative_links_exist(page: Path) -> None:
    missing = [t for t in links(page.read_text("utf-8")) if not (page.parent / t).exists()]
    assert not missing


def test_readme_begins_with_a_picture_and_names_the_commands() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert links(text)[0].endswith(".png")
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    named = re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)
    assert {"demo", "test", "emoji-model"} <= set(named) <= set(targets)


def test_every_module_says_what_it_is() -> None:
    silent = [m for m in MODULES if not ast.get_docstring(ast.parse(m.read_text("utf-8")))]
    assert not silent


def test_no_file_has_a_name_that_says_nothing() -> None:
    assert MODULES
    assert not [p for p in MODULES if p.stem in {"utils", "util", "common", "helpers", "misc"}]


def options_of(command: Any, words: Sequence[str]) -> set[str]:
    """The options of the command that these words begin with, which may be one of a group."""
    if hasattr(command, "commands"):
        return options_of(command.commands[words[0]], words[1:])
    return {option for each in command.params for option in (*each.opts, *each.secondary_opts)}


def test_readme_options_exist() -> None:
    """Each option that the README shows is one of the command that it is shown with."""
    readme = (ROOT / "README.md").read_text("utf-8").replace("\\\n", "")
    assert all(module.__doc__ for module in plugins.discover("pellucid.cli").values())
    shown = set(re.findall(r"^pellucid .*$", readme, re.MULTILINE))
    assert len(shown) > 20
    command = typer.main.get_command(app)
    for line in shown:
        _, *words = shlex.split(line.split("  #")[0])
        options = {word.split("=")[0] for word in words if re.match("--[a-z]", word)}
        assert options <= options_of(command, words), line

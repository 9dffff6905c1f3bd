"""The house is in order: links lead somewhere, modules say what they are, files have telling names."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "src").rglob("*.py"))
PROSE = [ROOT / "README.md", ROOT / "LICENSES.md", *sorted((ROOT / "docs").glob("*.md"))]


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


@pytest.mark.parametrize("module", MODULES, ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_every_module_says_what_it_is(module: Path) -> None:
    assert ast.get_docstring(ast.parse(module.read_text("utf-8")))


def test_no_file_has_a_name_that_says_nothing() -> None:
    assert MODULES
    assert not [p for p in MODULES if p.stem in {"utils", "util", "common", "helpers", "misc"}]


def test_readme_options_exist() -> None:
    """Each option that the README shows is one of the command line."""
    readme = (ROOT / "README.md").read_text("utf-8")
    commands = (ROOT / "src" / "pellucid" / "cli").glob("*.py")
    source = "\n".join(path.read_text("utf-8") for path in commands)
    shown = set(re.findall(r"^pellucid .*$", readme, re.MULTILINE))
    options = {o for line in shown for o in re.findall(r"--([a-z-]+)", line.split("  #")[0])}
    known = {
        "json" if n == "as_json" else n.replace("_", "-") for n in re.findall(r"(\w+):", source)
    }
    assert options
    assert options <= known

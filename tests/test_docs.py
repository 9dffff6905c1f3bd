"""The documentation: its site builds without a warning, its links lead somewhere, what it tells the
reader to run runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(page.stem for page in DOCS.glob("*.md"))
# A program, and what it prints if the page says so.
EXERCISE = re.compile(r"^```(python|sh)\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", re.M | re.S)
# What a browser fetches without being asked, from another host.
FETCHED = re.compile(
    r"<(?:script|link|img|iframe|source|video)\b[^>]*(?:src|href)=[\"'](?:https?:)?//"
    r"|url\([\"']?(?:https?:)?//|@import"
)


def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Formulas, links, included lines of source and the notebook, which is run."""
    for needed in ("sphinx", "myst_nb", "furo"):
        pytest.importorskip(needed, reason="the extra docs is not installed")
    made = subprocess.run(
        [
            *(sys.executable, "-m", "sphinx", "-q", "-W", "-n", "--keep-going"),
            *("-D", "short_figures=1", DOCS, tmp_path / "site"),
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr[-4000:]
    built = list((tmp_path / "site").glob("*.html"))
    assert {"index", "chain", *PAGES} <= {page.stem for page in built}
    for file in [*built, *(tmp_path / "site" / "_static").rglob("*.css")]:
        assert not FETCHED.search(file.read_text("utf-8")), f"{file.name} asks another host"
    assert "<math" in (tmp_path / "site" / "forward.html").read_text("utf-8")
    assert "<img" in (tmp_path / "site" / "chain.html").read_text("utf-8")


def test_links_of_the_readme() -> None:
    links = re.findall(r"\]\(([^)#\s]+)", (ROOT / "README.md").read_text("utf-8"))
    files = [link for link in links if "://" not in link]
    assert files and not [link for link in files if not (ROOT / link).exists()]


# Pages that explain no concept, and so end in no exercise.
NOT_CONCEPTS = ("LOG", "RESULTS", "BENCHMARKS", "index", "native_api", "serving", "studio")


@pytest.mark.parametrize("page", [page for page in PAGES if page not in NOT_CONCEPTS])
def test_exercises_run(
    page: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Commands run in tests/test_commands.py."""
    monkeypatch.chdir(tmp_path)
    _, _, text = (DOCS / f"{page}.md").read_text("utf-8").partition("## Try it\n")
    exercises = EXERCISE.findall(text)
    assert exercises
    for language, program, printed in exercises:
        if language == "python":
            exec(compile(program, f"{page}.md", "exec"), {})
            if printed:
                assert capsys.readouterr().out == printed


def test_notebook_has_no_outputs() -> None:
    notebook = json.loads((DOCS / "chain.ipynb").read_text("utf-8"))
    assert not any(cell.get("outputs") for cell in notebook["cells"])

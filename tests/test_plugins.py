"""Discovery of files, and names that are not known."""

import sys

import pytest

from pellucid import plugins


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package whose second module must not be imported."""
    folder = tmp_path / "drawer"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "alpha.py").write_text("VALUE = 1\n")
    (folder / "broken.py").write_text("raise RuntimeError('imported')\n")
    (folder / "_private.py").write_text("")
    (folder / "notes.txt").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield "drawer"
    for name in [name for name in sys.modules if name.split(".")[0] == "drawer"]:
        del sys.modules[name]


def test_discovers_stems_and_imports_only_what_is_asked_for(package):
    found = plugins.discover(package)
    assert list(found) == ["alpha", "broken"]
    assert len(found) == 2
    assert "broken" in found.names and "_private" not in found.names
    assert found["alpha"].VALUE == 1
    with pytest.raises(RuntimeError, match="imported"):
        found["broken"]
    with pytest.raises(KeyError):
        found["_private"]


def test_a_new_file_appears_by_itself(package, tmp_path):
    (tmp_path / "drawer" / "gamma.py").write_text("VALUE = 3\n")
    assert plugins.discover(package)["gamma"].VALUE == 3


def test_choose():
    assert plugins.choose("b", ("a", "b"), "letter") == "b"
    with pytest.raises(ValueError, match=r"no spacing 'karas'; .*: karras, "):
        plugins.choose("karas", ("uniform", "karras", "beta"), "spacing")


def test_nearest_ignores_case():
    assert plugins.nearest("EULER", ["heun", "euler_ancestral", "euler"])[0] == "euler"

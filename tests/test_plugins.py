"""Discovery of files, and names that are not known."""

import sys
from dataclasses import replace

import pytest
import torch

from pellucid import plugins, samplers
from pellucid.pipeline import generate
from pellucid.request import Request
from pellucid.samplers import SamplerSpec


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
    with pytest.raises(ValueError, match=r"unknown spacing 'karas'; .*: karras, "):
        plugins.choose("karas", ("uniform", "karras", "beta"), "spacing")


def test_nearest_ignores_case():
    assert plugins.nearest("EULER", ["heun", "euler_ancestral", "euler"])[0] == "euler"


# ---------------------------------------------------------------- a new sampler is one new file

SAMPLER = '''"""Euler's step under another name."""

from itertools import pairwise

from pellucid.diffusion import eps_from_x0
from pellucid.samplers import SamplerSpec, Step

SPEC = SamplerSpec(order=1, aliases=("Lazy Euler",), spacing="karras")


def sample(denoise, x, levels, noise, *, eta=0.0):
    for now, after in pairwise(levels):
        x0 = denoise(x, now)
        x = after.alpha * x0 + after.sigma * eps_from_x0(x, x0, now)
        yield Step(x, x0, after)
'''


@pytest.fixture
def new_sampler(tmp_path, monkeypatch):
    """A function that puts a file next to the samplers, for the length of a test."""
    monkeypatch.setattr(samplers, "__path__", [*samplers.__path__, str(tmp_path)])

    def add(name, source):
        (tmp_path / f"{name}.py").write_text(source)

    before = set(sys.modules)
    yield add
    for name in set(sys.modules) - before:
        if name.startswith("pellucid.samplers."):
            del sys.modules[name]
            vars(samplers).pop(name.rpartition(".")[2], None)


def test_a_new_sampler_is_one_new_file(new_sampler, model, call, refused, model_file, tmp_path):
    new_sampler("lazy_euler", SAMPLER)
    assert "lazy_euler" in samplers.names()
    assert samplers.resolve("Lazy Euler Exponential") == ("lazy_euler", "exponential")
    with pytest.raises(ValueError, match=r"nearest first: lazy_euler, "):
        Request(sampler="lazy_eulr")
    *_, last = generate(model, Request(prompt="a rabbit", seed=1, sampler="lazy_euler", eta=0.5))
    *_, euler = generate(model, Request(prompt="a rabbit", seed=1, sampler="euler"))
    assert last.images and torch.equal(last.x, euler.x)
    # The command line takes it, and names it among the choices.
    words = (
        "generate",
        "a rabbit",
        "--model",
        model_file,
        "--out",
        tmp_path / "a.png",
        "--sampler",
    )
    assert call(*words, "Lazy Euler")[0] == 0
    assert "lazy_euler" in refused(*words, "lazy")


def test_a_sampler_that_declares_nothing_is_refused(new_sampler):
    new_sampler("silent", SAMPLER.replace("SPEC =", "SPECS ="))
    with pytest.raises(TypeError, match=r"silent\.py must define SPEC = SamplerSpec"):
        samplers.get("silent")


def test_a_misspelt_field_of_a_sampler_is_refused(new_sampler):
    new_sampler("misspelt", SAMPLER.replace("spacing=", "spaceing="))
    with pytest.raises(TypeError, match="spaceing"):
        samplers.get("misspelt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": 0}, "order must be None or from 1 to 4, got 0"),
        ({"aliases": ()}, "at least one name"),
        ({"spacing": "karas"}, "unknown spacing 'karas'"),
        ({"ends_first": ("leeding",)}, "unknown spacing 'leeding'"),
        ({"skip_penultimate": ("leeding",)}, "unknown spacing 'leeding'"),
    ],
)
def test_a_declaration_is_checked(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SamplerSpec(order=1, aliases=("A",)), **change)

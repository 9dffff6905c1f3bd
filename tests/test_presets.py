"""Presets: every one of them can be asked for, and says nothing that a request does not know."""

import dataclasses
import sys

import pytest

from pellucid import checkpoints, presets, samplers
from pellucid.model import Defaults
from pellucid.presets import Preset, preset
from pellucid.request import Request
from pellucid.schedule import Schedule

FAMILIES = ("sd1", "sd2", "sd2_768", "sdxl", "sdxl_refiner", "sd3", "emoji")
SIZES = {"sd1": 512, "sd2": 512, "sd2_768": 768, "sdxl": 1024, "sd3": 1024, "emoji": 256}


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_is_a_request(name):
    given = preset(name).given()
    request = Request(**given)
    assert {field: getattr(request, field) for field in given} == given
    assert samplers.resolve(given["sampler"]) == (given["sampler"], None)
    schedule = Schedule("flow", shift=3.0) if name in ("sd3", "emoji") else Schedule()
    levels = samplers.levels_for(given["sampler"], schedule, given["steps"], given["spacing"])
    assert len(levels) == given["steps"] + 1
    assert levels[0] == schedule.level(schedule.last_t)  # few-step models start at the noisiest


def test_names_of_the_fields():
    names = {field.name for field in dataclasses.fields(Preset)}
    assert names == {field.name for field in dataclasses.fields(Defaults)} - {"walk_by"}
    assert names <= Request.model_fields.keys()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_says_everything(name):
    assert len(preset(name).given()) == len(dataclasses.fields(Preset))
    assert preset(name).width == preset(name).height == SIZES.get(name, 1024)
    assert preset(name).guidance > 1


@pytest.mark.parametrize("name", sorted(set(presets.names()) - set(FAMILIES)))
def test_few_step_models_are_few_steps_with_little_guidance(name):
    assert 1 <= preset(name).steps <= 8 and 1 <= preset(name).guidance <= 2


def test_one_over_the_other():
    fast = preset("lightning").over(preset("sdxl").over(Defaults()))
    assert fast == Defaults(4, 1.0, "euler", "trailing", 1024, 1024)
    assert Preset().over(Defaults(steps=7)) == Defaults(steps=7)


def test_the_embedded_model_s_preset_is_its_own_defaults():
    own = checkpoints.load(device="meta", dtype=None).defaults
    assert preset("emoji").over(Defaults(walk_by=own.walk_by)) == own


def test_unknown_preset_names_the_nearest_first():
    with pytest.raises(ValueError, match=r"unknown preset 'sdlx'; .*: sdxl"):
        preset("sdlx")


def test_names_are_read_from_the_sources_of_families(monkeypatch):
    loaded = presets.names()
    monkeypatch.delitem(sys.modules, "pellucid.checkpoints.families")
    assert sorted(presets.names()) == sorted(loaded)

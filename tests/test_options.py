"""The options of the command line are the fields of a request, declared once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import ValidationError
from typer.testing import CliRunner

from pellucid import hires, noise, samplers
from pellucid.cli import app
from pellucid.cli._complete import values_of
from pellucid.cli._options import option_of, options_of, takes_request
from pellucid.messages import sentence
from pellucid.plugins import discover
from pellucid.request import Request, fields
from pellucid.request.fields import choices_of, declared, option
from pellucid.request.request import MAX_SEED


class WithGlow(Request):
    """A request with one more field: this is all that a new option takes."""

    glow: float = option("How much it glows, 0 to 1.", 0.0, fields.STEER, ge=0, le=1)
    frame: tuple[int, int] | None = option("Its frame.", group="New", form="INNER,OUTER")


def command() -> typer.Typer:
    """A command that prints what it was asked for."""
    made = typer.Typer()

    @made.command()
    @takes_request(request=WithGlow)
    def draw(asked: dict[str, Any]) -> None:
        typer.echo(json.dumps(asked))

    return made


def test_a_new_field_is_an_option_with_its_help() -> None:
    run = CliRunner().invoke
    shown = run(command(), ["--help"], env={"COLUMNS": "200"}).stdout
    panels = {panel.split(" ")[1]: panel for panel in shown.split("╭")[1:]}
    assert "--glow" in panels["Noise"] and "How much it glows, 0 to 1." in panels["Noise"]
    assert "--frame" in panels["New"] and "INNER,OUTER" in panels["New"]
    words = ["a rabbit", "--glow", "0.5", "--frame", "2,3", "--size", "64x32", "--mix", "a dog"]
    assert json.loads(run(command(), words).stdout) == {
        "prompt": "a rabbit",
        "glow": 0.5,
        "frame": [2, 3],
        "width": 64,
        "height": 32,
        "mix": [["a dog", 1.0]],
    }
    assert WithGlow(glow=0.5).record()["glow"] == 0.5


def test_each_field_says_what_it_is() -> None:
    schema = Request.model_json_schema()["properties"]
    for name in Request.model_fields:
        assert schema[name]["description"].endswith((".", "..."))
        assert declared(Request, name)["needs"] in (None, *Request.model_fields)
    assert schema["mask"]["group"] == fields.MASK


def test_names_in_the_help_are_those_of_the_code() -> None:
    """They are written there, because the code imports torch, which --help must not wait for."""
    upscalers = (*hires.UPSCALERS, "or a file of the ESRGAN family")
    for field, names in (("noise", noise.NOISES), ("hires_upscaler", upscalers)):
        said = Request.model_fields[field].description
        assert said.removeprefix("The kind of noise: ") == f"{', '.join(names)}."


def test_choices_are_declared_once() -> None:
    listed = {name: choices_of(Request, name) for name in Request.model_fields}
    found = {name: choices() for name, choices in listed.items() if choices is not None}
    assert found["noise"] == list(noise.NOISES) and found["decoder"] == ["vae", "tiny"]
    assert found["sampler"] == list(samplers.names()) and "karras" in found["spacing"]
    assert {"emphasis", "walk_by", "mix_by", "inpaint_fill", "hires_upscaler"} < set(found)
    for name, values in found.items():
        needed = {"walk": "a dog"} if name == "walk_by" else {}
        for value in values:  # each is accepted, and completed from its beginning
            assert getattr(Request(**{name: value}, **needed), name) == value
            complete = values_of(Request, name)
            assert complete is not None and value in complete(value[:2])


def test_a_library_names_fields_and_the_command_line_its_options() -> None:
    with pytest.raises(ValidationError) as caught:
        WithGlow(glow=2)
    assert sentence(caught.value, WithGlow) == "glow must be between 0 and 1, got 2"
    with pytest.raises(ValidationError, match="mask_invert needs a mask") as caught:
        Request(image="a.png", mask_invert=True)
    assert sentence(caught.value, Request) == "mask_invert needs a mask"
    assert sentence(caught.value, Request, option_of) == "--invert-mask needs a --mask"
    assert option_of("width") == "--size (width)" and option_of("walk_span") == "walk_span"


def test_help_shows_fixed_defaults() -> None:
    shown = {option.names[0]: option.parameter() for option in options_of(Request)}
    for name, default in (("hires_strength", "0.7"), ("mask_blur", "4"), ("interval", "0,1")):
        (info,) = shown[name].annotation.__metadata__
        assert f" Default: {default}." in info.help
    (info,) = shown["steps"].annotation.__metadata__
    assert "Default" not in info.help


def test_generate_has_an_option_for_each_field() -> None:
    assert all(module.__doc__ for module in discover("pellucid.cli").values())
    generate: Any = typer.main.get_command(app)
    params = {each.name: each for each in generate.commands["generate"].params}
    options = options_of(Request)
    assert {name for each in options for name in each.names} == {*Request.model_fields} - {
        "walk_span"
    }
    for each in options:
        field = Request.model_fields[each.names[0]]
        assert params[each.names[0]].help.startswith(field.description)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("interval", "0.2,0.8", {"interval": (0.2, 0.8)}),
        ("extend", "1, 2,3,4", {"extend": (1, 2, 3, 4)}),
        ("mix", ["a", "b:0.5", "c:d:2"], {"mix": [("a", 1.0), ("b", 0.5), ("c:d", 2.0)]}),
        ("embeddings", [Path("a.pt")], {"embeddings": ["a.pt"]}),
        ("image", Path("a.png"), {"image": "a.png"}),
        ("only_masked", False, {"only_masked": False}),
        ("seed", 0, {"seed": 0}),
    ],
)
def test_how_values_are_written(name: str, text: Any, value: dict[str, Any]) -> None:
    (made,) = options_of(Request, [name])
    assert made.read(text) == value
    assert Request.model_validate({"image": "a.png", "mask": "b.png"} | value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("interval", "0.2", "--interval must be FROM,TO, got '0.2'"),
        ("extend", "1,2,3", "--extend must be LEFT,TOP,RIGHT,BOTTOM, got '1,2,3'"),
        ("extend", "1,2,3,x", "--extend must be LEFT,TOP,RIGHT,BOTTOM, got '1,2,3,x'"),
        ("mix", ["a:b"], "--mix must be TEXT or TEXT:WEIGHT, got 'a:b'"),
        ("loras", ["0.5"], "--lora must be FILE or FILE:WEIGHT, got '0.5'"),
    ],
)
def test_how_they_are_not(name: str, text: Any, message: str) -> None:
    (made,) = options_of(Request, [name])
    with pytest.raises(ValueError) as caught:
        made.read(text)
    assert str(caught.value) == message
    assert message.split()[0] in made.flag


def test_the_last_seed_is_that_of_noise() -> None:
    """It stands in request/request.py too, which does not import torch."""
    assert MAX_SEED == noise.MAX_SEED

"""What a prompt or an option means is done, or it is said that it is not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pellucid.model import Model
from pellucid.pipeline import generate
from pellucid.request import Request

# ---------------------------------------------------------------- 8: options without an effect

IDLE: dict[str, tuple[tuple[object, ...], tuple[str, ...]]] = {
    "guidance 0": (("a rabbit", "--guidance", 0), ("guidance", "prompt")),
    "negative": (("a rabbit", "--guidance", 1, "--negative", "red"), ("negative", "guidance")),
    "rescale": (("a rabbit", "--guidance", 1, "--rescale", 0.5), ("rescale",)),
    "interval": (("a rabbit", "--guidance", 1, "--interval", "0,0.5"), ("interval",)),
    "variation": (("a rabbit", "--variation-seed", 5), ("variation_strength",)),
    "hypernet": (("a rabbit <hypernet:anime:0.5>",), ("hypernet", "anime")),
    "hypernet to avoid": (("a", "--negative", "<hypernet:anime:1>"), ("hypernet", "anime")),
    "capitals": (("a rabbit <LORA:anime:1>",), ("<lora:anime:1>' is read as text",)),
    "not closed": (("a rabbit <lora:anime:1",), ("'<lora:anime:1' is read as text",)),
    "interval without a step": (
        ("a rabbit", "--interval", "1,1", "--negative", "red", "--guidance", 3),
        ("interval 1,1", "guidance does nothing", "negative does nothing"),
    ),
    "interval alone": (("a rabbit", "--interval", "0.99,0.99"), ("no step has guidance",)),
    "AND with weight 0": (("a rabbit AND red :0",), ("'red'", "weight 0")),
    "walk of one": (("a rabbit", "--walk", "red"), ("walk", "count")),
    "mix_by": (("a rabbit", "--mix-by", "embedding"), ("mix_by", "mix")),
    "emphasis": (("a rabbit", "--emphasis", "no_norm"), ("emphasis", "weight")),
    "grid of one": (("a rabbit", "--grid"), ("grid", "one picture")),
    "folder": (("a rabbit", "--lora-folder", "."), ("lora_folder",)),
}


@pytest.mark.parametrize("kind", IDLE)
def test_what_has_no_effect_is_said(kind: str, drawn: Any) -> None:
    """Case 8: `--guidance 0`, a negative prompt at guidance 1, `<hypernet:...>` and their like."""
    options, words = IDLE[kind]
    _, err = drawn(*options)
    said = err.lower().replace("-", "_")
    assert all(word in said for word in words), err


@pytest.mark.parametrize(
    "options",
    [
        ("", "--guidance", 0),
        ("a rabbit", "--guidance", 1),
        ("a rabbit", "--guidance", 3, "--negative", "red"),
        ("a rabbit", "--guidance", 0.5),
        ("a rabbit", "--guidance", 0, "--negative", ""),
    ],
)
def test_what_has_an_effect_is_silent(options: tuple[object, ...], drawn: Any) -> None:
    """Case 8: no false alarm; guidance 0 with a prompt is one (the prompt counts for nothing)."""
    _, err = drawn(*options)
    nothing = options[0] and options[2] == 0
    assert ("guidance" in err) == bool(nothing), err


def test_a_comparison_of_two_runs_is_silent(call: Any, model_file: Path, tmp_path: Path) -> None:
    """Case 8: the second run has the options of the first, and not its defaults as options."""
    page = tmp_path / "two.html"
    words = ("a rabbit", "--versus", "red", "--steps", 1, "--model", model_file, "--out", page)
    assert call("explain", *words) == (0, f"{page}\n", "")


def test_a_picture_that_stays_as_it_is(drawn: Any, tmp_path: Path) -> None:
    """Issue 12, section 3: strength 0 draws nothing."""
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    assert "strength 0" in drawn("a rabbit", "--image", tmp_path / "a.png", "--strength", 0)[1]


def test_a_tiny_decoder_that_is_not_used(call: Any, tmp_path: Path) -> None:
    """Issue 12, section 3: the autoencoder of the shipped model is as fast as a tiny one."""
    words = ("--decoder", "tiny", "--steps", 1, "--out", tmp_path)
    status, _, err = call("generate", "a rabbit", *words)
    assert status == 0 and "decoder tiny does nothing" in err


def test_what_only_the_negative_prompt_changes(model: Model) -> None:
    """Case 8: where the weights of AND do not add up to 1 it counts at guidance 1 too."""
    *_, last = generate(
        model, Request(prompt="a AND b", negative_prompt="red", guidance=1, steps=2, seed=1)
    )
    assert last.warnings == ()


@pytest.mark.parametrize(
    "tag", ["<hypernet:anime:0.5>", "<hypernet:anime>", "<hypernet:my anime:1:2>"]
)
def test_a_hypernetwork_is_not_read_as_words(tag: str, ids: Any) -> None:
    """Case 8: A1111 takes the tag out of the prompt (`modules/extra_networks.py`)."""
    assert ids(f"a fox {tag}") == ids("a fox")
    assert ids(f"{tag}a fox") == ids("a fox")


@pytest.mark.parametrize("text", ["a < b: c > d", "<3", "<frida>", "time <10:30>", "a <b>"])
def test_other_angles_are_words(text: str, ids: Any) -> None:
    """Case 8: what is no tag of a network stays text."""
    assert len(ids(text)) > 1


# ---------------------------------------------------------------- 12: turns and backslashes


def last_latents(model: Model, prompt: str, **fields: Any) -> Any:
    request = Request(prompt=prompt, seed=4, hires=2, hires_upscaler="nearest", **fields)
    *_, last = generate(model, request)
    return last.x


TURNS = (
    # Two steps in each pass: the third of three is never read, as where there are two.
    ("[red|blue|green] ball", "[red|blue] ball", {"steps": 2, "hires_steps": 2}),
    ("([red|blue|green]:1.2) ball", "([red|blue]:1.2) ball", {"steps": 2, "hires_steps": 2}),
    ("[red|blue|green|a]", "[red|blue|green]", {"steps": 3, "hires_steps": 3}),
    (
        "a [red|blue] AND [a|rabbit|red] :0.5",
        "a [red|blue] AND [a|rabbit] :0.5",
        {"steps": 2, "hires_steps": 2},
    ),
)


@pytest.mark.parametrize("number", range(4))
def test_turns_begin_anew_in_a_second_pass(number: int, model: Model) -> None:
    """Case 12: A1111 counts the steps of each pass from 1 (`modules/prompt_parser.py`)."""
    prompt, same, fields = TURNS[number]
    assert (last_latents(model, prompt, **fields) == last_latents(model, same, **fields)).all()


def test_turns_in_the_first_pass_stay(model: Model) -> None:
    """Case 12: the first step of the second pass is the first turn, whatever the first pass had."""
    fields = {"steps": 3, "hires_steps": 1}
    got = last_latents(model, "[red|blue]", **fields)
    # red, blue, red, then red again: blue is read at step 2 alone.
    want = last_latents(model, "[[red:blue:1]:red:2]", **fields)
    assert (got == want).all()


BACKSLASHES = {
    "end\\": "end",
    "C:\\dir": "C:dir",
    "a\\nb": "anb",
    "under\\_score": "under_score",
    "(red\\ apple:1.2)": "(red apple:1.2)",
    "\\ a fox": " a fox",
    "a fox \\": "a fox ",
    "\\\\\\": "\\\\",
}


@pytest.mark.parametrize("written", BACKSLASHES)
def test_a_lone_backslash_is_dropped(written: str, ids: Any) -> None:
    """Case 12: of `\\x` A1111 keeps what follows (`re_attention`); `\\\\` is one backslash."""
    assert ids(written) == ids(BACKSLASHES[written])


def test_backslashes_that_are_meant(ids: Any) -> None:
    """Case 12: escaped brackets and an escaped backslash are themselves."""
    brackets = ids("\\(a\\)")
    assert len(brackets) == 3 and 320 in brackets
    assert ids("\\\\") == [315]  # "\" in CLIP's vocabulary
    assert ids("end\\") == ids("end")


# ---------------------------------------------------------------- 27: samplers' names

NAMES: dict[str, tuple[str, str | None]] = {
    # ComfyUI and Fooocus (`comfy/samplers.py`)
    "uni_pc": ("unipc", None),
    "uni_pc_bh2": ("unipc", None),
    "dpm++2m": ("dpmpp_2m", None),  # stable-diffusion.cpp's
    "dpm++2s_a": ("dpmpp_2s_ancestral", None),
    "DPM++ 2M Turbo": ("dpmpp_2m", "trailing"),
    "dpmpp_sde_gpu": ("dpmpp_sde", None),
    "dpmpp_2m_sde_gpu": ("dpmpp_2m_sde", None),
    "dpmpp_2m_sde_heun_gpu": ("dpmpp_2m_sde_heun", None),
    "dpmpp_3m_sde_gpu": ("dpmpp_3m_sde", None),
    "euler_cfg_pp": ("ddim_cfgpp", None),  # deterministic, in sigma; the same steps as DDIM's
    "dpm_2": ("dpm2", None),
    "dpm_2_ancestral": ("dpm2_ancestral", None),
    "heunpp2": ("", None),
    "euler_ancestral": ("euler_ancestral", None),
    # InvokeAI (`schedulers/schedulers.py`)
    "euler_a": ("euler_ancestral", None),
    "euler_k": ("euler", "karras"),
    "heun_k": ("heun", "karras"),
    "lms_k": ("lms", "karras"),
    "dpmpp_2m_k": ("dpmpp_2m", "karras"),
    "dpmpp_sde_k": ("dpmpp_sde", "karras"),
    "dpmpp_2m_sde_k": ("dpmpp_2m_sde", "karras"),
    "kdpm_2": ("dpm2", None),
    "kdpm_2_k": ("dpm2", "karras"),
    "kdpm_2_a": ("dpm2_ancestral", None),
    "kdpm_2_a_k": ("dpm2_ancestral", "karras"),
    "unipc_k": ("unipc", "karras"),
    "pndm": ("plms", None),
    # NovelAI
    "k_euler_ancestral": ("euler_ancestral", None),
    "k_dpmpp_2s_ancestral": ("dpmpp_2s_ancestral", None),
    "ddim_v3": ("", None),
    "tcd": ("", None),  # not here
    "sa_solver": ("", None),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_samplers_in_other_programs(name: str, model: Model) -> None:
    """Case 27: those that are here are found by the names of ComfyUI, InvokeAI and Fooocus; the
    others are refused and never answered with another one."""
    sampler, spacing = NAMES[name]
    if not sampler:
        with pytest.raises(ValueError, match=name):
            Request(prompt="a", sampler=name)
        return
    *_, last = generate(model, Request(prompt="a", sampler=name, steps=2, seed=1))
    assert last.request.sampler == sampler
    assert spacing is None or last.request.spacing == spacing


@pytest.mark.parametrize(
    ("name", "nearest"), [("eulr_a", "euler_ancestral"), ("DPM+2M", "dpmpp_2m")]
)
def test_a_wrong_name_gets_the_nearest_first(name: str, nearest: str) -> None:
    """Case 27: the names of other programs count when the nearest is looked for."""
    with pytest.raises(ValueError, match=name.replace("+", r"\+")) as error:
        Request(prompt="a", sampler=name)
    after = re.findall(r"[a-z0-9_]+", str(error.value).split(name, 1)[1])
    near = ("euler", "euler_ancestral", "dpmpp_2m", "dpm2", "heun")
    assert next(word for word in after if word in near) == nearest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("",), "the prompt is empty: the model draws anything"),
        ((" \n",), "the prompt is empty: the model draws anything"),
        (("a hut", "--mix", ""), "a text of --mix is empty"),
        (("a hut", "--mix", ":2"), "a text of --mix is empty"),
        (("a hut", "--walk", "", "--count", "2"), "the text of --walk is empty"),
        (("", "--walk", " "), "the text of --walk is empty"),
    ],
)
def test_a_text_that_is_empty_is_drawn_and_said(
    options: tuple[str, ...], message: str, drawn: Any
) -> None:
    """Section 2 of the issue: nothing is drawn in place of what was meant without a word."""
    assert message in drawn(*options, "--steps", 1, "--seed", 1)[1]


def test_an_option_that_does_nothing_for_a_folder_is_said(drawn: Any) -> None:
    said = drawn("a hut", "--steps", 1, "--seed", 1, "--overwrite")[1]
    assert "--overwrite does nothing for a folder" in said
    assert drawn("a hut", "--steps", 1, "--seed", 1)[1] == ""

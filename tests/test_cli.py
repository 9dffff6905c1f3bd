"""The command line: what goes to stdout, what to stderr, and which exit status."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

import pellucid
from pellucid import pipeline
from pellucid.images.metadata import read_metadata


def test_paths_on_stdout(
    call: Any,
    model_file: Path,
    tmp_path: Path,
) -> None:
    words = ("generate", "a rabbit", "--seed", 5, "--count", 2, "--model", model_file)
    status, out, err = call(*words, "--out", tmp_path, "--show", "--film")
    assert status == 0
    names = [Path(line).name for line in out.splitlines()]
    assert names == [
        "a-rabbit-5.png",
        "a-rabbit-5-strip.png",
        "a-rabbit-5.webp",
        "a-rabbit-6.png",
        "a-rabbit-6-strip.png",
        "a-rabbit-6.webp",
    ]
    assert "▀" in err and sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_version(call: Any) -> None:
    status, out, _ = call("--version")
    assert status == 0
    assert out.startswith(f"pellucid {pellucid.__version__}, torch {torch.__version__}, Python 3.")


def test_like_makes_the_same_picture_again(
    call: Any,
    model_file: Path,
    tmp_path: Path,
) -> None:
    first, again, other = (tmp_path / f"{name}.png" for name in ("first", "again", "other"))
    common = ("--model", model_file, "--out")
    settings = ("--negative", "green", "--steps", 2, "--guidance", 3, "--size", "16x20")
    assert call("generate", "a rabbit", *settings, *common, first)[0] == 0
    assert call("generate", "--like", first, *common, again)[0] == 0
    assert call("generate", "--like", first, "--seed", 1, *common, other)[0] == 0
    pixels = [Image.open(path).tobytes() for path in (first, again, other)]
    assert pixels[0] == pixels[1] != pixels[2]
    request = read_metadata(again).request
    assert request is not None and request["negative_prompt"] == "green"
    # What is asked for beside --like counts more.
    changed = read_metadata(other).request
    assert changed is not None and changed | {"seed": request["seed"]} == request


def test_json_and_info(
    call: Any,
    model_file: Path,
    tmp_path: Path,
) -> None:
    words = ("generate", "", "--mix", "a rabbit:0.5", "--model", model_file, "--json")
    status, out, _ = call(*words, "--out", tmp_path)
    assert status == 0
    (made,) = json.loads(out)["images"]
    assert made["request"]["mix"] == [["a rabbit", 0.5]]
    status, out, _ = call("info", made["path"], "--json")
    assert status == 0
    assert json.loads(out)["request"] == made["request"]
    status, out, _ = call("info", made["path"])
    lines = [line.split(maxsplit=1) for line in out.splitlines()]
    assert status == 0 and ["seed:", str(made["seed"])] in lines  # without commas, to be copied
    assert ["model:", "tiny"] in lines and "prompt:" not in out  # it was empty
    status, out, _ = call("info", model_file)
    assert status == 0 and "backbone" in out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--sampler", "ueler"], "nearest first: euler"),
        (["--steps", "0"], "--steps must be between 1 and 1000, got 0"),
        (["--steps", "1000000"], "steps"),
        (["--steps", "many"], "steps"),
        (["--guidance", "nan"], "--guidance must be a finite number, got nan"),
        (["--hires", "1"], "--hires must be above 1 and at most 8, got 1"),
        (["--extend", "0,0,-1,0"], "--extend must be between 0 and 4096, got -1"),
        (["--fill", "x"], "--fill must be one of original, fill, noise, blank, got 'x'"),
        (["--walk", "b", "--mix", "c"], "--walk and --mix cannot be combined"),
        (["--invert-mask", "--image", "a.png"], "--invert-mask needs a --mask"),
        (["--seed", str(2**70)], "seed"),
        (["--size", "17x16"], "multiple of 2"),
        (["--size", "63"], "multiple of 2, such as 64, got 63"),
        (["--size", "0x0"], "width"),
        (["--size", "99999"], "width"),
        (["--guidance", "inf"], "guidance"),
        (["--seed", "-2"], "seed"),
        (["--count", "0"], "count"),
        (["--spacing", "karas"], "nearest first: karras"),
        (["--preset", "lighting"], "nearest first: lightning"),
        (["--strength", "2"], "strength"),
        (["--steps"], "--steps"),
        (["a second prompt"], "a second prompt"),
        (["--count", "2", "--out", "a.png"], "--out must be a folder for 2 pictures"),
        (["--size", "big"], "WIDTHxHEIGHT"),
        (["--size", "0"], "width"),
        (["--mix", "frog:much"], "TEXT:WEIGHT"),
        (["--interval", "0.2"], "FROM,TO"),
        (["--interval", "0.8,0.2"], "interval must be FROM,TO with FROM <= TO, got 0.8,0.2"),
        (["--image", "absent.png"], "absent.png"),
        (["--like", "absent.png"], "absent.png"),
        (["--model", "absent.safetensors"], "absent.safetensors"),
        (["--out", "picture.gif"], "picture.gif"),
        (["--colour", "red"], "--colour"),
    ],
)
def test_bad_input_is_one_sentence(
    refused: Any,
    monkeypatch: pytest.MonkeyPatch,
    model_file: Path,
    tmp_path: Path,
    words: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sentence in refused("generate", "a rabbit", "--model", model_file, *words)
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_is_none(
    refused: Any,
    model_file: Path,
    tmp_path: Path,
) -> None:
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    for option in ("--image", "--like"):
        words = ("generate", "a rabbit", "--model", model_file, option, text)
        assert "text.png" in refused(*words, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pictures_and_models_that_are_broken(
    refused: Any,
    model_file: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    plain, cut, wide = (tmp_path / f"{name}.png" for name in ("plain", "cut", "wide"))
    noise = Image.effect_noise((64, 64), 50)
    noise.save(plain)
    cut.write_bytes(plain.read_bytes()[:-900])
    Image.new("1", (30_000, 1)).save(wide)
    half, pickle, foreign = (tmp_path / f"{name}.safetensors" for name in "hpf")
    half.write_bytes(model_file.read_bytes()[:-1000])
    torch.save({"a": torch.zeros(3)}, pickle)
    save_file({"a": torch.zeros(3)}, foreign)
    for option, path, sentence in (
        ("--like", plain, "does not say how it was made"),
        ("--image", cut, "truncated"),
        ("--image", wide, "too large"),
        ("--image", tmp_path, "not a file"),
        ("--model", half, "truncated"),
        ("--model", pickle, "pickle"),
        ("--model", foreign, "'pellucid'"),
        ("--model", plain, "not a safetensors file"),
        ("--model", tmp_path, "folder"),
        ("--out", plain / "in", "plain.png"),
    ):
        words = ("generate", "a rabbit", "--model", model_file, "--out", out, option, path)
        said = refused(*words)
        assert sentence in said and path.name in said, said
    assert not out.exists()


def test_a_full_disk(
    call: Any,
    refused: Any,
    monkeypatch: pytest.MonkeyPatch,
    model_file: Path,
    tmp_path: Path,
) -> None:
    real = Image.Image.save

    def full(self: Image.Image, file: Any, *_: Any, **__: Any) -> None:
        Path(file).write_bytes(b"half a pict")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", full)
    words = ("generate", "a rabbit", "--model", model_file, "--out", tmp_path / "a.png")
    said = refused(*words)
    assert "No space left" in said and "a.png" in said
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(Image.Image, "save", real)
    assert call(*words)[0] == 0


def test_long_empty_and_odd_prompts(
    call: Any,
    model_file: Path,
    tmp_path: Path,
) -> None:
    for prompt, name in (
        ("", "unconditional-1.png"),
        ("../*?", "unconditional-1-2.png"),  # no name of a path comes from a prompt
        ("rabbit " * 10_000, f"{'-'.join(['rabbit'] * 9)[:60].strip('-')}-1.png"),
        ("\U00020000" * 90, None),  # four bytes each, in a name of at most 255
        ("((a [rabbit:( \\", "a-rabbit-1.png"),
        ("a (rabbit", "a-rabbit-1-2.png"),
    ):
        words = ("generate", prompt, "--model", model_file, "--steps", 1, "--seed", 1)
        status, out, err = call(*words, "--out", tmp_path)
        assert status == 0
        path = Path(out.strip())
        assert path.parent == tmp_path and path.is_file() and name in (None, path.name)
        assert ("is not closed" in err) == ("(" in prompt)
        assert ("is read in" in err) == (len(prompt) > 50)
        assert ("is empty" in err) == (not prompt)
        assert err.count("\n") == ("(" in prompt) + (len(prompt) > 50) + (not prompt)


def test_a_random_seed_is_in_the_name_and_in_the_picture(
    call: Any,
    model_file: Path,
    tmp_path: Path,
) -> None:
    words = ("generate", "a rabbit", "--model", model_file, "--seed", -1, "--count", 2)
    status, out, _ = call(*words, "--out", tmp_path)
    assert status == 0
    seeds = []
    for line in out.splitlines():
        request = read_metadata(line).request
        assert request is not None and Path(line).stem == f"a-rabbit-{request['seed']}"
        seeds.append(request["seed"])
    assert seeds[0] >= 0 and seeds[1] == seeds[0] + 1


def test_options_that_do_nothing_are_told(call: Any, model_file: Path, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), "white").save(tmp_path / "mask.png")
    base = ("generate", "a rabbit", "--model", model_file, "--steps", 2, "--out", tmp_path)
    masked = ("--image", tmp_path / "mask.png", "--mask", tmp_path / "mask.png")
    for words, told in (
        (("--preview", "vae"), "--preview does nothing without --film"),
        (("--live-lora",), "--live-lora does nothing without a LoRA"),
        (("--padding", 9), "--padding does nothing without --mask"),
        (("--fill", "noise"), "--fill does nothing without --mask"),
        ((*masked, "--padding", 9), "--padding does nothing without --only-masked"),
        ((*masked, "--padding", 9, "--only-masked"), ""),
        (("--preview", "vae", "--film"), ""),
    ):
        status, _, err = call(*base, *words)
        assert (status, err) == (0, f"pellucid: {told}\n" if told else "")
    status, out, _ = call(*base, "--live-lora", "--json")
    assert json.loads(out)["warnings"] == ["--live-lora does nothing without a LoRA"]


def test_a_folder_of_loras_that_is_missing(refused: Any, model_file: Path, tmp_path: Path) -> None:
    for command in ("generate", "explain"):
        words = (command, "a rabbit", "--model", model_file, "--lora-folder", tmp_path / "absent")
        told = refused(*words)
        assert "--lora-folder" in told and "absent" in told and "does not exist" in told


def test_info_of_a_picture_that_says_nothing(call: Any, tmp_path: Path) -> None:
    path = tmp_path / "plain.png"
    Image.new("RGB", (8, 8)).save(path)
    assert call("info", path) == (0, f"{path} has no record of how it was made\n", "")
    status, out, _ = call("info", path, "--json")
    assert status == 0 and json.loads(out) == {"request": None, "parameters": None}


def test_like_a_picture_of_another_program(
    call: Any,
    model_file: Path,
    tmp_path: Path,
) -> None:
    theirs, ours = tmp_path / "theirs.png", tmp_path / "ours.png"
    text = (
        "a rabbit\nNegative prompt: green\n"
        "Steps: 2, Sampler: Euler a, Schedule type: {}, CFG scale: 3, Seed: 4, Size: 16x16, "
        "Model: other"
    )
    for schedule, spacing in (("Automatic", "uniform"), ("SGM Uniform", "sgm_uniform")):
        info = PngImagePlugin.PngInfo()
        info.add_text("parameters", text.format(schedule))
        Image.new("RGB", (16, 16)).save(theirs, pnginfo=info)
        words = ("generate", "--like", theirs, "--model", model_file, "--out", ours, "--overwrite")
        assert call(*words)[0] == 0
        request = read_metadata(ours).request
        assert request is not None and request["sampler"] == "euler_ancestral"
        assert (request["spacing"], request["seed"], request["steps"]) == (spacing, 4, 2)


def test_a_preset_and_what_is_asked_beside_it(call: Any, model_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    words = ("generate", "a rabbit", "--model", model_file, "--preset", "lightning")
    words += ("--out", out, "--overwrite")
    for more, steps in (((), 4), (("--steps", "2"), 2)):
        assert call(*words, *more)[0] == 0
        request = read_metadata(out).request
        assert request is not None
        told = [request[name] for name in ("steps", "guidance", "sampler", "spacing")]
        assert told == [steps, 1.0, "euler", "trailing"]


def test_help_and_no_command(call: Any, refused: Any) -> None:
    for words, status in ((["--help"], 0), (["generate", "--help"], 0), ([], 2), (["data"], 2)):
        found, out, err = call(*words)
        assert found == status and "Usage" in out + err and "pellucid: " not in err
    assert "generate needs a prompt" in refused("generate")
    assert "draw" in refused("draw")
    assert refused("gnerate").endswith("Did you mean 'generate'?\n")
    assert "tokens --help`" in refused("tokens")
    assert "quote a text" in refused("generate", "a", "rabbit")


@pytest.mark.parametrize(
    ("number", "status", "said"), [(errno.EPIPE, 1, ""), (errno.ENOSPC, 2, "No space left")]
)
def test_a_stdout_that_cannot_be_written(
    call: Any,
    monkeypatch: pytest.MonkeyPatch,
    model_file: Path,
    number: int,
    status: int,
    said: str,
) -> None:
    class Closed(io.StringIO):
        def flush(self) -> None:
            raise OSError(number, os.strerror(number))

    with monkeypatch.context() as inside:
        inside.setattr(sys, "stdout", Closed())
        found, _, err = call("info", model_file)
    assert found == status
    assert said in err and "Traceback" not in err and (said or not err)


def test_ctrl_c_is_130_and_leaves_nothing(
    call: Any,
    monkeypatch: pytest.MonkeyPatch,
    model_file: Path,
    tmp_path: Path,
) -> None:
    def stopped(*_: object) -> list[Image.Image]:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "finished", stopped)
    words = ("generate", "a rabbit", "--model", model_file, "--out", tmp_path / "out")
    status, out, err = call(*words)
    assert status == 130
    assert out == "" and "stopped" in err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ..."),
        RuntimeError("could not create a primitive"),  # oneDNN
        MemoryError(),
    ],
    ids=repr,
)
def test_memory_that_does_not_suffice(
    error: Exception, refused: Any, monkeypatch: pytest.MonkeyPatch, model_file: Path
) -> None:
    def full(*_: object) -> list[Image.Image]:
        raise error

    monkeypatch.setattr(pipeline, "finished", full)
    assert "memory" in refused("generate", "a rabbit", "--model", model_file)


def test_help_is_quick_because_torch_is_not_imported() -> None:
    # All commands, as `main` imports them.
    code = (
        "import sys; from pellucid import plugins; dict(plugins.discover('pellucid.cli')); "
        "print('pellucid.cli.generate' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"


def test_a_picture_takes_no_compiler(model_file: Path, tmp_path: Path) -> None:
    """Torch imports its compiler, a second of work, when weights on the meta device are drawn."""
    code = (
        "import sys; from pellucid.cli import main; main(); "
        "print([name for name in ('torch._dynamo', 'sympy', 'diffusers') if name in sys.modules])"
    )
    words = ["generate", "a rabbit", "--model", str(model_file), "--out", str(tmp_path / "a.png")]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [str(tmp_path / "a.png"), "[]"]


# ---------------------------------------------------------------- tokens


def test_tokens_of_a_prompt(call: Any, model_file: Path) -> None:
    prompt = "a (red:1.5) [apple:red:0.5] BREAK a AND [a|red]:-0.5 <lora:paint:0.8>"
    words = ("tokens", prompt, "--model", model_file, "--steps", 4)
    status, out, _ = call(*words, "--json")
    assert status == 0
    facts = json.loads(out)
    assert (facts["model"], facts["chunk_size"], facts["steps"]) == ("tiny", 6, 4)
    assert facts["loras"] == [{"name": "paint", "weight": 0.8, "text_weight": 0.8}]
    first, second = facts["prompts"]
    assert (first["weight"], second["weight"]) == (1.0, -0.5)
    assert [reading["steps"] for reading in first["readings"]] == [[[1, 2]], [[3, 4]]]
    assert [reading["steps"] for reading in second["readings"]] == [
        [[1, 1], [3, 3]],
        [[2, 2], [4, 4]],
    ]
    for reading, text in zip(first["readings"], ("apple", "red"), strict=True):
        chunks = [[(token["token"], token["weight"]) for token in c] for c in reading["chunks"]]
        assert chunks == [[("a", 1.0), ("red", 1.5), (text, 1.0)], [("a", 1.0)]]
    status, text, _ = call(*words)
    assert status == 0
    assert "tiny reads 6 tokens at a time; 4 steps" in text and "LoRA paint: 0.8" in text
    assert "steps 1-2: a (red:1.5) apple BREAK a" in text and "steps 1, 3: a" in text
    assert "prompt 2, weight -0.5" in text and "1.5  red" in text


def test_tokens_of_odd_prompts(call: Any, model_file: Path) -> None:
    for prompt, said in (("", "(empty)"), ("[\x1b\x07\n", "(empty)"), ("((", "(empty)")):
        status, out, err = call("tokens", prompt, "--model", model_file)
        assert status == 0 and said in out and "\x1b" not in out
        assert ("is not closed" in err) == (prompt != "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("tokens", "a (cat:inf)"), "the weight of 'cat' must be from -100 to 100, got inf"),
        (("tokens", "cat:1000 AND dog"), "the weight of 'cat' must be from -100 to 100, got 1000"),
        (("tokens", "<lora:paint:much>"), "<lora:paint:much>: 'much' is not understood"),
        (("tokens", "cat", "--steps", 0), "steps"),
        (("generate", "a (cat:nan)"), "the weight of 'cat' must be from -100 to 100, got nan"),
        (("generate", "cat", "--clip-skip", 5), "--clip-skip must be from 1 to 1, got 5"),
        (("generate", "cat", "--clip-skip", 0), "--clip-skip must be between 1 and 100, got 0"),
        (("generate", "cat", "--emphasis", "loud"), "emphasis"),
        (("generate", "a AND b", "--mix-by", "embedding"), "AND cannot be combined with"),
    ],
)
def test_bad_prompts_are_one_sentence(
    refused: Any,
    monkeypatch: pytest.MonkeyPatch,
    model_file: Path,
    tmp_path: Path,
    words: tuple[Any, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(*words, "--model", model_file)
    assert list(tmp_path.iterdir()) == []

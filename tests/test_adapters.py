"""LoRAs and embeddings of a request: by file, by a name in the prompt, from the command line."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pellucid.adapters import adapt, find
from pellucid.checkpoints import load_lora
from pellucid.cli._options import options_of
from pellucid.images.metadata import read_metadata
from pellucid.lora import attach
from pellucid.model import Model
from pellucid.pipeline import generate
from pellucid.request import Request
from references import make_lora


@pytest.fixture
def folder(model: Model, tmp_path: Path) -> Path:
    """Two LoRAs, one of them in a folder of its own."""
    make_lora(model, tmp_path / "loras" / "one.safetensors", 1)
    make_lora(model, tmp_path / "loras" / "more" / "two.safetensors", 2)
    (tmp_path / "loras" / "one.txt").write_text("not a LoRA")
    return tmp_path / "loras"


def drawn(model: Model, request: Request, **options: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    *_, last = generate(model, request, partial(adapt, **options))
    assert last.images is not None
    return np.asarray(last.images[0]), last.warnings


def test_a_prompt_names_what_a_request_names_by_file(model: Model, folder: Path) -> None:
    one, two = folder / "one.safetensors", folder / "more" / "two.safetensors"
    plain = Request(prompt="a red apple", seed=1)
    by_file = plain.model_copy(update={"loras": ((str(one), 0.5, 0.2), (str(two), 1.0, 1.0))})
    named = plain.model_copy(
        update={"prompt": "<lora:one:0.2:0.5>a red apple<lora:two>"}  # text first, as A1111 has it
    )
    wanted, warnings = drawn(model, by_file)
    assert warnings == ()
    assert np.array_equal(drawn(model, named, folder=folder)[0], wanted)
    assert np.array_equal(drawn(model, by_file, live=True)[0], wanted)
    put_on = attach(model, [(load_lora(one, model), 0.5, 0.2), (load_lora(two, model), 1.0, 1.0)])
    *_, last = generate(put_on, plain)
    assert last.images is not None and np.array_equal(np.asarray(last.images[0]), wanted)
    assert not np.array_equal(drawn(model, plain)[0], wanted)


def test_an_embedding_that_no_prompt_names_is_told(model: Model, tmp_path: Path) -> None:
    paths = [tmp_path / f"{word}.safetensors" for word in ("My-Frog", "bad")]
    for path in paths:
        save_file({"emb_params": torch.randn(2, model.text.config.width)}, path)
    request = Request(prompt="a my-frog", embeddings=tuple(map(str, paths)))
    assert adapt(model, request)[1] == (f"{paths[1]} has no effect: no prompt has its word, 'bad'",)
    for change in ({"negative_prompt": "bad, x"}, {"mix": (("a bad one", 1.0),)}):
        assert adapt(model, request.model_copy(update=change))[1] == ()


def test_the_model_is_as_it_was_when_a_run_is_stopped(model: Model, folder: Path) -> None:
    request = Request(prompt="a red apple <lora:one>", seed=1, steps=3)
    before = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    run = generate(model, request, partial(adapt, folder=folder))
    next(run)  # and it is left there, while another one draws
    plain = Request(prompt="a red apple", seed=1)
    again = drawn(model, plain)[0]
    assert all(torch.equal(v, before[k]) for k, v in model.backbone.state_dict().items())
    run.close()
    assert np.array_equal(drawn(model, plain)[0], again)


def test_what_did_not_match_is_told(model: Model, tmp_path: Path) -> None:
    path = make_lora(model, tmp_path / "odd.safetensors", strange=True)
    request = Request(
        prompt="a", negative_prompt="b <lora:odd>", seed=1, loras=((str(path), 1, 1),)
    )
    _, warnings = drawn(model, request, folder=tmp_path)
    assert warnings == (
        "the LoRA 'odd' is in the negative prompt, where it has no effect",
        f"{path}: 2 keys do not match anything in this model: "
        "lora_unet_x.lora_down.weight, lora_unet_x.lora_up.weight",
    )


def test_an_embedding_is_a_word_in_both_prompts(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "frog.safetensors"
    save_file({"emb_params": torch.randn(2, 16)}, path)
    for field in ("prompt", "negative_prompt"):
        request = Request(seed=1).model_copy(update={field: "a (frog:1.2)"})
        without = drawn(model, request)[0]
        request = request.model_copy(update={"embeddings": (str(path),)})
        assert not np.array_equal(drawn(model, request)[0], without)
    assert model.tokenizer.words == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"prompt": "<lora:ons>"},
            "LoRA in .* named 'ons'; choices, nearest first: one",
        ),
        ({"prompt": "<lora:>"}, "names no LoRA"),
        ({"loras": (("nowhere.safetensors", 1, 1),)}, "nowhere.safetensors is not a file"),
        ({"embeddings": ("nowhere.pt",)}, "nowhere.pt is not a file"),
    ],
)
def test_what_is_not_there(change: Any, message: str, model: Model, folder: Path) -> None:
    with pytest.raises(ValueError, match=message):
        drawn(model, Request(seed=1).model_copy(update=change), folder=folder)


def test_nothing_is_left_out_in_silence(model: Model) -> None:
    for fields in (
        {"prompt": "<lora:one>"},
        {"mix": (("<lora:one>", 1.0),)},
        {"loras": (("one", 1, 1),)},
        {"embeddings": ("one",)},
    ):
        with pytest.raises(ValueError, match="names 'one', and no `adapt` is given that opens"):
            next(generate(model, Request(**fields)))


def test_where_names_are_looked_up(folder: Path, tmp_path: Path) -> None:
    assert find("two", folder) == folder / "more" / "two.safetensors"
    with pytest.raises(ValueError, match=r"no folder of LoRAs is given \(lora_folder\)"):
        find("one", None)
    with pytest.raises(ValueError, match="is not a folder"):
        find("one", folder / "one.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no LoRA in it"):
        find("one", tmp_path / "empty")
    with pytest.raises(ValueError, match="unknown LoRA in"):  # names are no paths
        find("../loras/one", folder)
    (folder / "one.pt").touch()
    with pytest.raises(ValueError, match="2 LoRAs named 'one'"):
        find("one", folder)


# ---------------------------------------------------------------- the command line


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_generate_and_do_it_again(
    call: Any, model_file: Path, folder: Path, tmp_path: Path
) -> None:
    word = tmp_path / "frog.safetensors"
    save_file({"emb_params": torch.randn(2, 16)}, word)
    first, again, other = (tmp_path / f"{name}.png" for name in ("first", "again", "other"))
    base = ("--model", model_file, "--seed", "1", "--lora-folder", folder, "--backend", "eager")
    one, prompt = folder / "one.safetensors", "a frog <lora:two:0.5>"
    words = ("--lora", f"{one}:0.5:0.25", "--embedding", word)
    assert call("generate", prompt, *base, *words, "--out", first)[0] == 0
    request = read_metadata(first).request
    assert request is not None and request["prompt"] == prompt
    assert request["loras"] == [[str(one), 0.5, 0.25]] and request["embeddings"] == [str(word)]
    assert call("generate", "--like", first, *base, "--live-lora", "--out", again)[0] == 0
    assert np.array_equal(pixels(first), pixels(again))
    assert call("generate", prompt, *base, *words[2:], "--out", other)[0] == 0
    assert not np.array_equal(pixels(first), pixels(other))


def changes(kind: str, out: int, into: int, draw: torch.Generator) -> dict[str, torch.Tensor]:
    """What a file has for one weight, (out, into)."""

    def some(*shape: int) -> torch.Tensor:
        return 0.3 * torch.randn(shape, generator=draw)

    if kind == "LoHa":
        sides = {"hada_w1_a": (out, 2), "hada_w1_b": (2, into)}
        sides |= {"hada_w2_a": (out, 2), "hada_w2_b": (2, into)}
    elif kind == "LoKr":
        sides = {"lokr_w1": (2, 2), "lokr_w2_a": (out // 2, 2), "lokr_w2_b": (2, into // 2)}
    elif kind == "full":
        sides = {"diff": (out, into)}
    else:
        sides = {"lora_up.weight": (out, 2), "lora_down.weight": (2, into)}
    made = {name: some(*shape) for name, shape in sides.items()}
    if kind == "DoRA":
        made["dora_scale"] = 1 + some(out, 1).abs()
    return made


@pytest.mark.parametrize("kind", ["LoRA", "LoHa", "LoKr", "DoRA", "full"])
def test_every_kind_merged_live_and_with_weight_zero(
    kind: str, model: Model, model_file: Path, call: Any, tmp_path: Path
) -> None:
    draw, weights = torch.Generator().manual_seed(1), {}
    for part, start in (("backbone", "lora_unet_"), ("text", "lora_te_")):
        for name, module in getattr(model, part).named_modules():
            if isinstance(module, torch.nn.Linear) and "attn" in name:
                made = changes(kind, *module.weight.shape, draw)
                weights |= {f"{start}{name.replace('.', '_')}.{k}": v for k, v in made.items()}
    path = tmp_path / "style.safetensors"
    save_file(weights, path)
    drawn = []
    for words in ((), ("--lora", path), ("--lora", path, "--live-lora"), ("--lora", f"{path}:0")):
        out = tmp_path / f"{len(drawn)}.png"
        # Other backends join layers, and round those of a live LoRA in another place.
        base = ("--model", model_file, "--seed", 1, "--out", out, "--backend", "eager")
        said = "pellucid: the LoRA 'style' has the weight 0 and does nothing\n"
        expected = (0, f"{out}\n", said if f"{path}:0" in words else "")
        assert call("generate", "a frog", *base, *words) == expected
        drawn.append(pixels(out))
    without, merged, live, zero = drawn
    assert (merged != without).any()
    assert np.array_equal(merged, live) and np.array_equal(zero, without)


@pytest.mark.parametrize(
    ("item", "wanted"),
    [
        ("a.safetensors", ("a.safetensors", 1.0, 1.0)),
        ("a.safetensors:0.5", ("a.safetensors", 0.5, 0.5)),
        ("a.safetensors:-1:0", ("a.safetensors", -1.0, 0.0)),
        ("C:\\a.pt:.5", ("C:\\a.pt", 0.5, 0.5)),
        ("a:b:1:2:3", ("a:b:1", 2.0, 3.0)),
    ],
)
def test_how_a_lora_is_written(item: str, wanted: tuple[str, float, float]) -> None:
    (option,) = options_of(Request, ["loras"])
    assert option.read([item]) == {"loras": [wanted]}


def test_wrong_words(call: Any, model_file: Path, folder: Path) -> None:
    for words, message in (
        (("--lora", "0.5"), "--lora must be FILE or FILE:WEIGHT, got '0.5'"),
        (
            ("--lora", f"{folder / 'one.safetensors'}:nan"),
            "--lora must be a finite number, got nan",
        ),
        (("--lora", str(model_file)), "is a whole model, not a LoRA"),
        (("--embedding", str(folder / "one.safetensors")), "is a LoRA, not an embedding"),
    ):
        status, out, err = call("generate", "a", "--model", model_file, *words)
        assert (status, out) == (2, "") and message in err and err.count("\n") == 1


def test_tokens_shows_the_places_of_a_word(call: Any, model_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "frog.safetensors"
    save_file({"emb_params": torch.randn(3, 16)}, path)
    words = ("--model", model_file, "--embedding", path, "--json")
    status, out, _ = call("tokens", "a (frog:1.2)", *words)
    assert status == 0 and out.count('"token": "frog"') == 3 and out.count('"weight": 1.2') == 3


def test_lora_tells(call: Any, model: Model, model_file: Path, tmp_path: Path) -> None:
    path = make_lora(model, tmp_path / "odd.safetensors", strange=True)
    status, out, _ = call("lora", path, "--model", model_file, "--json")
    facts = json.loads(out)
    assert status == 0 and facts["ranks"] == [2]
    assert facts["keys left out"] == ["lora_unet_x.lora_down.weight", "lora_unet_x.lora_up.weight"]
    assert facts["changed weights"]["text"] == facts["modules"]["text encoder"] == 4
    status, out, _ = call("lora", path)
    assert status == 0 and "model" not in facts["kinds"] and "ranks:" in out
    assert call("lora", model_file)[0] == 2

"""Textual inversion: every layout, the words in prompts, against diffusers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pellucid.adapters import adapt
from pellucid.checkpoints import CheckpointError, load, load_embeddings
from pellucid.conditioning import encode_prompts
from pellucid.model import Model
from pellucid.pipeline import generate
from pellucid.request import Request
from pellucid.runtime import Runtime
from pellucid.textual_inversion import Embedding, with_words
from pellucid.tokenizer import Tokenizer
from references import (
    close,
    model_of,
    small_vocabulary,
    their_pipeline,
    their_text,
    their_tokenizer,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


ONE, TWO = noise(64, seed=1), noise(2, 64, seed=2)
LARGE = noise(2, 128, seed=3)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Numbered without a gap, because transformers counts the pieces to number new words."""
    folder = small_vocabulary(tmp_path_factory.mktemp("vocabulary"))
    numbers = json.loads((folder / "vocab.json").read_text())
    dense = {piece: i for i, piece in enumerate(sorted(numbers, key=numbers.__getitem__))}
    (folder / "vocab.json").write_text(json.dumps(dense))
    return folder


@pytest.fixture(scope="module")
def models(vocabulary: Path) -> dict[str, Model]:
    tokenizer = Tokenizer.from_files(vocabulary / "vocab.json", vocabulary / "merges.txt")
    return {
        name: replace(model_of(name), tokenizer=tokenizer, name=f"tiny {name}")
        for name in ("sd1", "sdxl")
    }


def stored(folder: Path, layout: str) -> tuple[Path, str, dict[str, Tensor]]:
    """A file, the word that it is for, and the vectors for each tower."""
    path = folder / "my-frog.safetensors"
    if layout == "emb_params":
        save_file({"emb_params": TWO}, path)
        return path, "my-frog", {"text": TWO}
    if layout == "sdxl":
        save_file({"clip_l": TWO, "clip_g": LARGE}, path)
        return path, "my-frog", {"text": TWO, "text_2": LARGE}
    if layout == "diffusers":
        save_file({"<frog>": ONE}, path)
        return path, "<frog>", {"text": ONE[None]}
    if layout == "cloneofsimo":
        lora = {"unet:0:up": noise(4, 2), "unet:0:down": noise(2, 4), "<s1>": ONE}
        save_file(lora, path, {"unet": '["Attention"]', "<s1>": "<embed>"})
        return path, "<s1>", {"text": ONE[None]}
    path = folder / "my-frog.pt"
    if layout == "diffusers.bin":
        torch.save({"<frog>": TWO}, path)
        return path, "<frog>", {"text": TWO}
    held: Any = {"*": TWO}
    if layout == "a1111, a dictionary of parameters":
        held = nn.ParameterDict({"*": nn.Parameter(TWO)})
    elif layout == "a1111, as torch once pickled it":
        held = old_parameters(TWO)
    about = {"name": "my-frog", "step": 900, "sd_checkpoint": None, "sd_checkpoint_name": None}
    torch.save({"string_to_token": {"*": 265}, "string_to_param": held, **about}, path)
    return path, "my-frog", {"text": TWO}


def old_parameters(vectors: Tensor) -> nn.Module:
    """A ParameterDict with its parameters where torch 1 had them."""
    made = nn.ParameterDict()
    made.__dict__.clear()
    nn.Module.__init__(made)
    nn.Module.register_parameter(made, "vectors", nn.Parameter(vectors))
    return made


LAYOUTS = (
    "emb_params",
    "diffusers",
    "cloneofsimo",
    "diffusers.bin",
    "a1111",
    "a1111, a dictionary of parameters",
    "a1111, as torch once pickled it",
)


@pytest.mark.parametrize("layout", [*LAYOUTS, "sdxl"])
def test_every_layout(layout: str, models: dict[str, Model], tmp_path: Path) -> None:
    path, word, vectors = stored(tmp_path, layout)
    (embedding,) = load_embeddings([path], models["sdxl" if layout == "sdxl" else "sd1"])
    assert embedding.word == word
    assert embedding.vectors.keys() == vectors.keys()
    assert all(torch.equal(embedding.vectors[part], vectors[part]) for part in vectors)


def hidden(model: Model, prompt: str) -> list[Tensor]:
    """What the towers make of a prompt."""
    ids = model.tokenizer([prompt])
    towers = [model.text] if model.text_2 is None else [model.text, model.text_2]
    return [tower(ids).hidden for tower in towers]


@pytest.mark.parametrize("prompt", ["<frog> on red", "a <frog>", "red <frog>, <frog> red <toad>!"])
@torch.no_grad()
def test_equals_diffusers(
    prompt: str, vocabulary: Path, models: dict[str, Model], tmp_path: Path
) -> None:
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    text = their_text(models["sd1"].text.config, projected=False)
    own = models["sd1"].text.state_dict()
    level = any(key.startswith("text_model.") for key in text.state_dict())
    text.load_state_dict({k if level else k.removeprefix("text_model."): own[k] for k in own})
    pipe = diffusers.StableDiffusionPipeline(
        vae=None,
        text_encoder=text,
        tokenizer=transformers.CLIPTokenizer.from_pretrained(str(vocabulary)),
        unet=None,
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    words: list[Embedding] = []
    for word, vectors in (("<frog>", TWO), ("<toad>", ONE)):
        path = tmp_path / f"{word[1:-1]}.safetensors"
        save_file({word: vectors}, path)
        pipe.load_textual_inversion(str(path))
        words += load_embeddings([path], models["sd1"])
    expanded = pipe.maybe_convert_prompt(prompt, pipe.tokenizer)
    theirs = pipe.tokenizer(expanded, padding="max_length", max_length=77, return_tensors="pt")
    model = with_words(models["sd1"], words)
    ids = model.tokenizer([prompt])
    # They put new words behind the tokenizer's pieces, and there are more rows than pieces.
    rows = own["text_model.embeddings.token_embedding.weight"].shape[0]
    assert torch.where(ids >= rows, ids - rows + 516, ids).tolist() == theirs.input_ids.tolist()
    close(hidden(model, prompt)[0], pipe.text_encoder(theirs.input_ids)[0])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", ["sd1", "sdxl"])
@torch.no_grad()
def test_a_run_equals_diffusers(name: str, tmp_path: Path) -> None:
    """CLIP's whole vocabulary, words of several vectors in every tower, in both prompts."""
    pipe = their_pipeline(name, small_vocabulary(tmp_path))
    pipe.set_progress_bar_config(disable=True)
    pipe.register_modules(tokenizer=their_tokenizer("<|endoftext|>"))
    if name == "sdxl":
        pipe.register_modules(tokenizer_2=their_tokenizer("!"))
    pipe.save_pretrained(tmp_path / "model")
    path, word, _ = stored(tmp_path, "sdxl" if name == "sdxl" else "emb_params")
    request = Request(
        prompt=f"a photo of {word}, {word} in a hat",
        negative_prompt=f"not {word}",
        embeddings=(str(path),),
        seed=3,
        steps=5,
        guidance=4.0,
        sampler="ddim",
        spacing="leading",
        width=64,
        height=64,
    )
    model = load(tmp_path / "model")
    if name == "sd1":
        pipe.load_textual_inversion(str(path), token=word)
    else:  # as diffusers' guide has it
        held = load_file(path)
        pipe.load_textual_inversion(held["clip_l"], word, pipe.tokenizer, pipe.text_encoder)
        pipe.load_textual_inversion(held["clip_g"], word, pipe.tokenizer_2, pipe.text_encoder_2)
    texts = [request.prompt, request.negative_prompt]
    known, _ = adapt(model, request)
    mine = encode_prompts(Runtime(known), texts)
    for i, text in enumerate(texts):
        expected = pipe.encode_prompt(
            prompt=text, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        close(mine.tokens[i : i + 1], expected[0])
        if name == "sdxl":
            close(mine.pooled[i : i + 1], expected[2])
    *_, last = generate(model, request, adapt)
    unit = model.vae.config.downsample
    start = torch.randn((1, 4, 64 // unit, 64 // unit), generator=torch.Generator().manual_seed(3))
    picture = pipe(
        texts[0],
        negative_prompt=texts[1],
        height=64,
        width=64,
        num_inference_steps=5,
        guidance_scale=4.0,
        latents=start,
        output_type="np",
    ).images[0]
    assert last.images is not None and last.warnings == ()
    assert picture.std() > 0.02
    assert np.abs(np.asarray(last.images[0]) / 255 - picture).max() <= 0.55 / 255
    *_, other = generate(model, request.model_copy(update={"embeddings": ()}))
    assert np.abs(np.asarray(other.images[0]) / 255 - picture).max() > 2 / 255


@torch.no_grad()
def test_both_towers_of_sdxl(models: dict[str, Model], tmp_path: Path) -> None:
    model = models["sdxl"]
    path, word, vectors = stored(tmp_path, "sdxl")
    knows = with_words(model, load_embeddings([path], model))
    ids = knows.tokenizer([f"red {word} red"])
    for part, table in (("text", knows.text), ("text_2", knows.text_2)):
        assert table is not None
        rows = table.text_model.embeddings.token_embedding(ids)[0]
        assert torch.equal(rows[2:4], vectors[part])
        old = getattr(model, part).text_model.embeddings.token_embedding(model.tokenizer(["red"]))
        assert torch.equal(rows[1], old[0, 1]) and torch.equal(rows[4], old[0, 1])


@torch.no_grad()
def test_the_model_stays_as_it_was(models: dict[str, Model]) -> None:
    model = models["sd1"]
    before = hidden(model, "my-frog")
    knows = with_words(model, [Embedding("my-frog", {"text": TWO})])
    assert not torch.equal(hidden(knows, "my-frog")[0], before[0])
    assert torch.equal(hidden(model, "my-frog")[0], before[0])
    assert model.tokenizer.words == {} and model.text.config.vocab_size == 520
    layer = "text_model.encoder.layers.0.mlp.fc1.weight"
    shared = (m.text.state_dict()[layer].data_ptr() for m in (model, knows))
    assert len(set(shared)) == 1
    more = with_words(knows, [Embedding("toad", {"text": ONE[None]})])
    assert list(more.tokenizer.words.items()) == [("my-frog", (520, 521)), ("toad", (522,))]
    assert torch.equal(hidden(more, "my-frog")[0], hidden(knows, "my-frog")[0])
    assert with_words(model, []) is model


WORDS = {"frog": [900], "frog-2": [901, 902], "<x>": [903]}


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("frog", ["frog"]),
        ("a FROG, frog", ["a", "FROG", ",", "frog"]),
        ("frog-2 frog-3", ["frog-2", "frog-2", "frog", "-", "3"]),
        ("frogs", None),
        ("treefrog", None),
        ("a<x>,<x>", ["a", "<x>", ",", "<x>"]),
        ("", []),
    ],
)
def test_where_a_word_stands(text: str, pieces: list[str] | None) -> None:
    plain = Tokenizer.train(["a frog"], 270, context_length=20)
    known = plain.with_words(WORDS)
    if pieces is None:  # it is a part of another word
        assert known.encode(text) == plain.encode(text)
        return
    assert known.tokens(text) == pieces
    own = {word.lower(): numbers for word, numbers in WORDS.items()}
    wanted: list[int] = []
    for piece in dict.fromkeys(pieces) if text == "frog-2 frog-3" else pieces:
        wanted += own.get(piece.lower(), plain.encode(piece))
    assert known.encode(text) == wanted
    assert known.vocab_size == 904
    assert Tokenizer.from_json(known.to_json()).words == known.words


def test_what_does_not_fit_is_cut_and_told() -> None:
    known = Tokenizer.train(["a frog"], 270, context_length=5).with_words({"frog": [900, 901]})
    assert known.cut("frog a") is None
    assert known.cut("a , frog a") == "frog a"


# ---------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    ("tensors", "model", "message"),
    [
        ({"emb_params": noise(2, 768)}, "sd1", "for Stable Diffusion 1, the model is tiny"),
        ({"emb_params": noise(2, 1024)}, "sd1", "this embedding is for Stable Diffusion 2, the"),
        (
            {"clip_l": noise(2, 768), "clip_g": noise(2, 1280)},
            "sd1",
            "for Stable Diffusion 3 or Stable Diffusion XL, the",
        ),
        ({"emb_params": TWO}, "sdxl", "the width 64, and Stable Diffusion XL needs 64 and 128"),
        (
            {"clip_l": TWO, "clip_g": noise(3, 128)},
            "sdxl",
            "2 and 3 vectors; .* the same number",
        ),
        ({"emb_params": noise(76, 64)}, "sd1", "76 vectors; .* at most 75"),
        ({"emb_params": torch.full((64,), math.nan)}, "sd1", "are not finite numbers"),
        ({"emb_params": torch.ones(64).long()}, "sd1", "are not finite numbers"),
        ({"emb_params": torch.ones(0, 64)}, "sd1", "vectors have the shape"),
        ({"lora_unet_a.lora_down.weight": noise(2, 2)}, "sd1", "is a LoRA, not an embedding"),
        (
            {
                "first_stage_model.encoder.down.0.block.0.conv1.weight": noise(2, 2, 3, 3),
                "model.diffusion_model.input_blocks.0.0.weight": noise(2, 2, 3, 3),
            },
            "sd1",
            "is a model, not an embedding",
        ),
        (
            {"a": noise(2, 2, 2)},
            "sd1",
            "is not a textual-inversion embedding: its keys begin with a",
        ),
        ({}, "sd1", "its keys begin with nothing"),
    ],
)
def test_what_does_not_fit(
    tensors: Mapping[str, Tensor],
    model: str,
    message: str,
    models: dict[str, Model],
    tmp_path: Path,
) -> None:
    path = tmp_path / "frog.safetensors"
    save_file(dict(tensors), path)
    with pytest.raises(CheckpointError, match=message):
        load_embeddings([path], models[model])


def test_an_embedding_of_another_family_is_skipped_and_said(
    models: dict[str, Model], tmp_path: Path
) -> None:
    """As in A1111: a folder may have embeddings for all of one's models."""
    for name, width in (("other", 1024), ("frog", 64)):
        save_file({"emb_params": noise(2, width)}, tmp_path / f"{name}.safetensors")
    files = tuple(str(tmp_path / f"{name}.safetensors") for name in ("other", "frog"))
    request = Request(prompt="a frog and an other", embeddings=files)
    adapted, warnings = adapt(models["sd1"], request)
    assert adapted.tokenizer.words.keys() == {"frog"}
    (said,) = warnings
    assert "other.safetensors: this embedding is for Stable Diffusion 2, the model is" in said
    assert said.endswith("; 'other' is read as text")
    damaged = tmp_path / "damaged.safetensors"
    save_file({"emb_params": torch.full((2, 64), torch.nan)}, damaged)
    with pytest.raises(CheckpointError, match="not finite"):
        adapt(models["sd1"], replace_embeddings(request, damaged))


def replace_embeddings(request: Request, path: Path) -> Request:
    return request.model_copy(update={"embeddings": (str(path),)})


class Evil:
    def __reduce__(self) -> Any:
        return print, ("run",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Evil(), "would run code"),
        ([ONE], "is a pickle of a list; expected a word and its vectors"),
        ({"string_to_param": {}}, "does not hold the vectors of a word"),
        ({"string_to_param": 3}, "does not hold the vectors of a word"),
        ({"string_to_param": {"*": "text"}}, "is not a textual-inversion embedding"),
        (
            {"<frog>": torch.zeros(1).expand(10**9, 64)},
            "claims more bytes than the file stores for it",
        ),
    ],
)
def test_pickles(
    content: Any, message: str, models: dict[str, Model], tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / "frog.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        load_embeddings([path], models["sd1"])
    assert capsys.readouterr().out == ""
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        load_embeddings([path], models["sd1"])


@pytest.mark.parametrize("key", ["", " "])
def test_a_blank_word_is_the_name_of_the_file(
    key: str, models: dict[str, Model], tmp_path: Path
) -> None:
    """It would be between any two letters of a prompt."""
    path = tmp_path / "frida.safetensors"
    save_file({key: TWO}, path)
    assert [each.word for each in load_embeddings([path], models["sd1"])] == ["frida"]


def test_words_that_do_not_go_together(models: dict[str, Model]) -> None:
    one = Embedding("Frog", {"text": TWO})
    with pytest.raises(ValueError, match="two embeddings for the word 'frog'"):
        with_words(models["sd1"], [one, Embedding("frog", {"text": ONE[None]})])
    with pytest.raises(ValueError, match="two embeddings for the word 'frog'"):
        with_words(with_words(models["sd1"], [one]), [Embedding("frog", {"text": TWO})])
    with pytest.raises(ValueError, match=r"has vectors for text; .* has text, text_2"):
        with_words(models["sdxl"], [one])

"""Words as people write them, and words that a tokenizer's folder adds."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from inputs import change_json, copy_folder, quietly, read_weights, replace_weights, write_json
from PIL import Image

from pellucid import checkpoints
from references import noise, their_tokenizer

# ---------------------------------------------------------------- 3: words of the folder

CLIP_TEXT = "text_encoder"


def with_words(source: Path, target: Path, *words: str) -> Path:
    """A folder of diffusers' whose tower has a row for each of these words."""
    folder = copy_folder(source, target)
    file = next((folder / CLIP_TEXT).glob("*.safetensors"))
    weights = read_weights(file)
    name = next(key for key in weights if key.endswith("token_embedding.weight"))
    rows = noise(len(words), 64, seed=9).to(weights[name])
    replace_weights(file, weights | {name: torch.cat([weights[name], rows])})
    change_json(folder / CLIP_TEXT / "config.json", vocab_size=49408 + len(words))
    return folder


def added_tokens(folder: Path, *words: str) -> None:
    """As the tokenizers of transformers 4 are saved: vocab.json, merges.txt and added_tokens.json."""
    numbers = {word: 49408 + number for number, word in enumerate(words)}
    write_json(folder / "tokenizer/added_tokens.json", numbers)


def tokenizer_json(folder: Path, *words: str) -> None:
    """As transformers saves a fast tokenizer: all in tokenizer.json."""
    transformers = pytest.importorskip("transformers")
    kind = transformers.CLIPTokenizer
    tokenizer = quietly(kind.from_pretrained, str(folder / "tokenizer"))
    assert tokenizer.add_tokens(list(words)) == len(words)
    for file in (folder / "tokenizer").iterdir():
        file.unlink()
    quietly(tokenizer.save_pretrained, folder / "tokenizer")
    assert (folder / "tokenizer/tokenizer.json").is_file()


SAVED = {"added_tokens.json": added_tokens, "tokenizer.json": tokenizer_json}


@pytest.mark.parametrize("how", SAVED)
def test_a_word_of_the_folder(how: str, sd1_folder: Path, tmp_path: Path, ids: Any) -> None:
    """Case 3: `<frida>` of `textual_inversion.py --save_as_full_pipeline` is one token."""
    folder = with_words(sd1_folder, tmp_path / "model", "<frida>")
    SAVED[how](folder, "<frida>")
    frida = [320, 1125, 539, 49408]
    assert ids("a photo of <frida>", model=folder) == frida
    assert ids("a photo of (<frida>:1.2)", model=folder) == frida
    row = checkpoints.load(folder).tokenizer(["a photo of <frida>"])[0].tolist()
    assert row[:6] == [49406, *frida, 49407]
    assert ids("a photo of <frid>", model=folder)[:3] == [320, 1125, 539]


@pytest.mark.parametrize("how", SAVED)
def test_several_words_of_the_folder(how: str, sd1_folder: Path, tmp_path: Path, ids: Any) -> None:
    """Case 3: two words; and one of several vectors, whose places diffusers fills in itself
    (`TextualInversionLoaderMixin.maybe_convert_prompt`: `<cat>` stands for `<cat> <cat>_1`)."""
    words = ("<frida>", "sks-dog", "<cat>", "<cat>_1")
    folder = with_words(sd1_folder, tmp_path / "model", *words)
    SAVED[how](folder, *words)
    assert ids("<frida> sks-dog", model=folder) == [49408, 49409]
    assert ids("a <cat>", model=folder) == [320, 49410, 49411]


def test_words_that_differ_in_capitals_alone(sd1_folder: Path, tmp_path: Path, ids: Any) -> None:
    """Case 3: each has its own number; any other spelling is one of the two."""
    folder = with_words(sd1_folder, tmp_path / "model", "<Frida>", "<frida>")
    added_tokens(folder, "<Frida>", "<frida>")
    assert ids("<Frida> <frida>", model=folder) == [49408, 49409]
    assert ids("<FRIDA>", model=folder)[0] in (49408, 49409)


def test_words_in_the_config_of_the_tokenizer(sd1_folder: Path, tmp_path: Path) -> None:
    """Case 3: transformers 4.34 and later; what is in the vocabulary with that number is no word."""
    folder = with_words(sd1_folder, tmp_path / "model", "<frida>")
    decoder = {"49406": "<|startoftext|>", "0": "!", "49408": "<frida>"}
    tokens = {number: {"content": word} for number, word in decoder.items()}
    change_json(folder / "tokenizer/tokenizer_config.json", added_tokens_decoder=tokens)
    assert checkpoints.load(folder).tokenizer.words == {"<frida>": (49408,)}
    added_tokens(folder, "<frida>")  # said twice
    assert checkpoints.load(folder).tokenizer.words == {"<frida>": (49408,)}
    write_json(folder / "tokenizer/added_tokens.json", {"<other>": 49408})
    with pytest.raises(checkpoints.CheckpointError, match="<frida>"):
        checkpoints.load(folder)
    change_json(folder / "tokenizer/tokenizer_config.json", added_tokens_decoder=[1])
    with pytest.raises(checkpoints.CheckpointError, match=r"tokenizer_config.json: .* damaged"):
        checkpoints.load(folder)


def test_words_have_no_place_in_the_original_layout(
    sd1_folder: Path, tmp_path: Path, call: Any
) -> None:
    """Case 3: a single file of the original layout holds no tokenizer."""
    folder = with_words(sd1_folder, tmp_path / "model", "<frida>")
    added_tokens(folder, "<frida>")
    status, _, err = call("convert", folder, tmp_path / "a.safetensors", "--to", "ldm")
    assert status == 2 and "the words <frida> of its tokenizer" in err


def test_words_of_the_folder_are_kept_when_it_is_converted(
    sd1_folder: Path, tmp_path: Path, ids: Any, call: Any
) -> None:
    """Case 3: they are in the model's own layout and in diffusers' afterwards, or it is refused."""
    folder = with_words(sd1_folder, tmp_path / "model", "<frida>")
    added_tokens(folder, "<frida>")
    for layout, name in (("native", "own.safetensors"), ("diffusers", "again")):
        status, _, err = call("convert", folder, tmp_path / name, "--to", layout)
        if status == 0:
            assert ids("a <frida>", model=tmp_path / name) == [320, 49408]
        else:
            assert "<frida>" in err or "words" in err


def test_the_vector_of_the_word_is_used(sd1_folder: Path, tmp_path: Path, call: Any) -> None:
    """Case 3: the row of the word counts, not only its number."""
    drawn = []
    for scale in (1, 3):
        folder = with_words(sd1_folder, tmp_path / f"model-{scale}", "<frida>")
        added_tokens(folder, "<frida>")
        file = next((folder / CLIP_TEXT).glob("*.safetensors"))
        weights = read_weights(file)
        name = next(key for key in weights if key.endswith("token_embedding.weight"))
        weights[name][-1] *= scale
        replace_weights(file, weights)
        out = tmp_path / f"{scale}.png"
        common = ("--steps", 1, "--size", 64, "--seed", 1, "--out", out)
        assert call("generate", "<frida>", "--model", folder, *common)[0] == 0
        drawn.append(Image.open(out).tobytes())
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("number", [49407, 320, 60000, -1, "x"])
def test_a_word_with_an_impossible_number_is_refused(
    number: object, sd1_folder: Path, tmp_path: Path
) -> None:
    """Case 3: a number that another piece has, or that the tower has no row for."""
    folder = with_words(sd1_folder, tmp_path / "model", "<frida>")
    write_json(folder / "tokenizer/added_tokens.json", {"<frida>": number})
    with pytest.raises(checkpoints.CheckpointError, match=r"<frida>|added_tokens|tokenizer"):
        checkpoints.load(folder)


# ---------------------------------------------------------------- 15: CLIP's cleaning


def test_apostrophe_of_a_phone(ids: Any) -> None:
    """Case 15: the numbers of OpenAI's own tokenizer, whose basic_clean is ftfy and html.unescape."""
    assert ids("a dog’s bowl") == [320, 1929, 568, 3814]


# What a person types or pastes, and what ftfy 6's fix_text and html.unescape make of it.
CLEANED = {
    "a dog‘s bowl": "a dog's bowl",
    "a “red” car": 'a "red" car',
    "„red‟ car": '"red" car',
    "it isn’t, they’re": "it isn't, they're",
    "a ﬁne ﬂower, oﬃce": "a fine flower, office",
    "ｒｅｄ　ａｐｐｌｅ１": "red apple1",
    "\ufeffa rabbit": "a rabbit",
    "a rab\ufeffbit": "a rabbit",
    "black &amp; white": "black & white",
    "black &amp;amp; white": "black & white",
    "caf&eacute; &lt;3": "café <3",
    "5&quot; nail &#39;s &#x27;t": "5\" nail 's 't",
    "schÃ¶n": "schön",
    "a dogâ€™s bowl": "a dog's bowl",
    "a dog\x92s \x93red\x94 bowl": 'a dog\'s "red" bowl',
    "cafe\u0301": "café",
    "a red\x1b[31m car\x00": "a red car",
}


@pytest.mark.parametrize("written", CLEANED)
def test_text_is_cleaned_as_clip_s_own(written: str, ids: Any) -> None:
    """Case 15: quotes, ligatures, full-width letters, byte order marks, entities, mojibake."""
    assert ids(written) == ids(CLEANED[written])


@pytest.mark.parametrize(
    "text", ["naïve café", "ÃO é um", "雪 рыба", "🐸 frog", "AT&T", "R&amp", "a < b > c", "Ç"]
)
def test_text_that_is_right_stays(text: str, ids: Any) -> None:
    """Case 15: cleaning is no ASCII-fication: letters of other languages and emoji are kept."""
    theirs = quietly(their_tokenizer, "<|endoftext|>")
    assert ids(text) == theirs(html.unescape(text))["input_ids"][1:-1]


def test_weights_and_words_around_cleaned_text(
    call: Any, sd1_file: Path, ids: Any, tmp_path: Path
) -> None:
    """Case 15: the grammar is read first: an entity makes no bracket and no LoRA."""
    status, out, _ = call("tokens", "(a dog’s:1.3) bowl", "--model", sd1_file, "--json")
    assert status == 0
    tokens = json.loads(out)["prompts"][0]["readings"][0]["chunks"][0]
    assert [token["id"] for token in tokens] == [320, 1929, 568, 3814]
    assert [token["weight"] for token in tokens] == [1.3, 1.3, 1.3, 1]
    status, out, _ = call(
        "tokens", "&lt;lora:x:1&gt; &#40;a:1.5&#41;", "--model", sd1_file, "--json"
    )
    assert status == 0, out
    facts = json.loads(out)
    assert facts["loras"] == []
    chunk = facts["prompts"][0]["readings"][0]["chunks"][0]
    assert {token["weight"] for token in chunk} == {1}


def test_the_shipped_model_reads_a_phone_s_apostrophe(call: Any) -> None:
    """Case 15: the small model that ships is asked by the same people."""
    status, out, _ = call("tokens", "a dog’s “red” bowl", "--json")
    again, other, _ = call("tokens", 'a dog\'s "red" bowl', "--json")
    assert status == again == 0

    def numbers(text: str) -> list[int]:
        return [t["id"] for c in json.loads(text)["prompts"][0]["readings"][0]["chunks"] for t in c]

    assert numbers(out) == numbers(other)

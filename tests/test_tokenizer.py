"""The tokenizers: ours, trained on a few captions, and CLIP's, against transformers'."""

from __future__ import annotations

import html
import json
import random
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import ftfy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from pellucid.tokenizer import CLIP_MERGES, PLAIN, Tokenizer, clean

CAPTIONS = [
    "a rabbit",
    "a red rabbit on a blue background",
    "a frog above a star, flat",
    "two cats and a glass of juice",
    "a bus",
] * 5
SMALL = Tokenizer.train(CAPTIONS, vocab_size=400, context_length=12)


def spelt(tokenizer: Tokenizer, text: str) -> str:
    """What the pieces of a text spell, without the spaces."""
    table = {char: byte for byte, char in enumerate(byte_alphabet())}
    pieces = "".join(tokenizer.bpe.id_to_token(i) or "" for i in tokenizer.encode(text))
    spaces_gone = pieces.replace("Ġ", "")
    return bytes(table[char] for char in spaces_gone).decode("utf-8")


def byte_alphabet() -> list[str]:
    """The letter that byte-level BPE has for each byte (GPT-2's table)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters, extra = [], 0
    for byte in range(256):
        if byte in shown:
            letters.append(chr(byte))
        else:
            letters.append(chr(256 + extra))
            extra += 1
    return letters


def test_the_alphabet_of_the_test_is_that_of_the_library() -> None:
    assert set(byte_alphabet()) == set(pre_tokenizers.ByteLevel.alphabet())


def test_a_row_is_bos_pieces_eos_padding() -> None:
    row = SMALL(["a rabbit"])
    pieces = SMALL.encode("a rabbit")
    assert row.shape == (1, 12)
    padding = [SMALL.pad] * (12 - 2 - len(pieces))
    assert row[0].tolist() == [SMALL.bos, *pieces, SMALL.eos, *padding]
    assert len(pieces) == 2  # both words were met often


def test_unpadded_rows_end_with_the_longest_text() -> None:
    texts = ["a rabbit", "a red rabbit"]
    short, full = SMALL(texts, padded=False), SMALL(texts)
    assert short.shape == (2, 5)
    assert short.tolist() == full[:, :5].tolist()
    assert (full[:, 5:] == SMALL.pad).all()


def test_a_word_and_its_plural_share_their_pieces() -> None:
    rabbit, rabbits = SMALL.encode("rabbit"), SMALL.encode("rabbits")
    assert len(rabbit) == 1
    assert rabbits == [*rabbit, *SMALL.encode("cats")[-1:]]
    assert SMALL.encode("glass")[-1:] != SMALL.encode("cats")[-1:]  # no plural


def test_case_brackets_and_composed_letters_make_no_difference() -> None:
    assert SMALL.encode("A RaBBit") == SMALL.encode("a rabbit")
    assert SMALL.encode("Zu\u0308rich") == SMALL.encode("Zürich")
    assert SMALL.encode("rabbit")[0] in SMALL.encode("((rabbit))")


def test_special_tokens_cannot_be_typed() -> None:
    typed = SMALL.encode("<|startoftext|> <|endoftext|>")
    assert not {SMALL.bos, SMALL.eos, SMALL.pad} & set(typed)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_no_text_is_unknown(text: str) -> None:
    ids = SMALL.encode(text)
    assert all(0 <= i < SMALL.vocab_size for i in ids)
    assert len(SMALL.tokens(text)) == len(ids)
    wanted = unicodedata.normalize("NFC", clean(text)).lower()
    # \s of the regular expressions and str.split differ in the control characters U+001C to U+001F.
    drop = "\x1c\x1d\x1e\x1f\x85"
    gone = str.maketrans("", "", drop)
    lowered = "".join(wanted.split()).translate(gone)
    # The library's Unicode tables may be older or newer than Python's.
    assert len(spelt(SMALL, text).translate(gone)) <= len(lowered) + 2
    if wanted.isascii():
        assert "".join(spelt(SMALL, text).split()).translate(gone) == lowered


def test_plain_text_needs_no_cleaning() -> None:
    plain = "".join(filter(PLAIN.fullmatch, map(chr, range(256))))
    assert len(plain) == 94 and ftfy.fix_text(plain) == html.unescape(plain) == clean(plain)
    assert clean("salt &amp; pepper") == "salt & pepper"
    code = "import sys; from pellucid import tokenizer as t; t.clean('a frog'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "tokenizers" in done.stdout.split() and "ftfy" not in done.stdout.split()


def test_words_are_found_in_cleaned_text() -> None:
    """The words are cleaned too, so that a word with a typographic quote is found either way."""
    known = SMALL.with_words({"dog’s": [900, 901], "<ﬁ>": [902]})
    assert known.encode("dog's <fi>") == known.encode("dog’s &lt;fi&gt;") == [900, 901, 902]
    assert known.tokens("a “dog’s") == ["a", '"', "dog's", "dog's"]


def test_what_is_cut_is_the_end_of_the_text() -> None:
    text = "a red rabbit on a blue background, a red rabbit on a blue background"
    assert SMALL.cut("a rabbit") is None
    cut = SMALL.cut(text)
    assert cut is not None and text.endswith(cut)
    kept = text[: len(text) - len(cut)]
    row = SMALL([text])[0].tolist()
    assert row == [SMALL.bos, *SMALL.encode(kept), SMALL.eos]
    assert SMALL.cut(kept) is None


def test_ten_thousand_words() -> None:
    text = "rabbit " * 10_000
    assert len(SMALL.encode(text)) == 10_000
    assert SMALL([text]).shape == (1, 12)
    assert SMALL.cut(text) == "rabbit " * 9_990


def test_empty_and_unencodable_texts() -> None:
    assert SMALL.encode("") == []
    assert SMALL([""])[0, :3].tolist() == [SMALL.bos, SMALL.eos, SMALL.pad]
    assert SMALL([]).shape == (0, 12)
    assert SMALL.encode("\udcff rabbit")[-1] == SMALL.encode("rabbit")[-1]


def test_json_round_trip() -> None:
    again = Tokenizer.from_json(SMALL.to_json())
    assert again.to_json() == SMALL.to_json()
    assert again.encode("two red Rabbits, a star") == SMALL.encode("two red Rabbits, a star")
    assert (again.context_length, again.vocab_size) == (12, SMALL.vocab_size)


def test_training_twice_gives_the_same() -> None:
    again = Tokenizer.train(CAPTIONS, vocab_size=400, context_length=12)
    assert again.to_json() == SMALL.to_json()
    assert SMALL.vocab_size <= 400


def test_errors() -> None:
    with pytest.raises(ValueError, match="need 258"):
        Tokenizer.train(["a"], vocab_size=100)
    with pytest.raises(ValueError, match="at least 3"):
        Tokenizer.train(["a"], vocab_size=300, context_length=2)
    with pytest.raises(ValueError, match="cannot be read"):
        Tokenizer.from_json("[]")
    with pytest.raises(ValueError, match="a list of strings"):
        SMALL("a rabbit")


# ---------------------------------------------------------------- CLIP's own


@pytest.fixture
def clip_files(tmp_path: Path) -> tuple[Path, Path]:
    """A vocabulary of CLIP's kind, small: bytes, bytes at the end of a word, a few merges."""
    letters = byte_alphabet()
    merges = ["r a", "ra b", "b i", "bi t</w>", "rab bit</w>", "c a", "ca t</w>", "' s</w>"]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters)]
    pieces += [merge.replace(" ", "") for merge in merges]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocab, pairs = tmp_path / "vocab.json", tmp_path / "merges.txt"
    vocab.write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}), "utf-8")
    pairs.write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf-8")
    return vocab, pairs


@pytest.mark.parametrize(
    "text",
    [
        "a rabbit",
        "Rabbits, the cat's 2 CATS!!",
        "  many\t spaces\n",
        "Zürich 🐇",
        "",
        "it's(rabbit)",
    ],
)
def test_clip_tokenizer_equals_transformers(clip_files: tuple[Path, Path], text: str) -> None:
    transformers = pytest.importorskip("transformers")
    vocab, merges = clip_files
    pairs = [tuple(line.split()) for line in merges.read_text("utf-8").splitlines()[1:]]
    theirs = transformers.CLIPTokenizer(vocab=json.loads(vocab.read_text("utf-8")), merges=pairs)
    ours = Tokenizer.from_files(vocab, merges)
    assert [ours.bos, *ours.encode(text), ours.eos] == theirs(text)["input_ids"]


def test_clip_padding(clip_files: tuple[Path, Path]) -> None:
    sd1 = Tokenizer.from_files(*clip_files)
    sd2 = Tokenizer.from_files(*clip_files, pad=0)
    assert sd1(["cat"]).shape == (1, 77)
    assert sd1(["cat"])[0, -1] == sd1.eos
    assert sd2(["cat"])[0, -1] == 0
    assert sd2(["cat"])[0, 2] == sd2.eos
    assert not {sd1.bos, sd1.eos} & set(sd1.encode("<|endoftext|>"))


def test_clip_files_that_are_not(tmp_path: Path, clip_files: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="is not a file"):
        Tokenizer.from_files(tmp_path / "none.json", clip_files[1])
    other = tmp_path / "other.json"
    other.write_text("{}")
    with pytest.raises(ValueError, match="not CLIP's vocabulary"):
        Tokenizer.from_files(other, clip_files[1])
    other.write_text("not JSON")
    with pytest.raises(ValueError, match="not a BPE vocabulary"):
        Tokenizer.from_files(other, clip_files[1])


CORPUS = [
    "a photo of an astronaut riding a horse, highly detailed, 8k, by greg rutkowski",
    "((masterpiece)), [best quality:0.3], 1girl, it's Bob's; they'll've said: don't! #1 @home",
    "  MANY\t spaces\n\r\nand\u00a0others\u2003here\u3000",
    "Zürich, São Paulo, Ångström, naïve café, Zu\u0308rich, ǅ, İstanbul, ΑΣ ας, STRASSE ß ẞ",
    "🐇 on a 🌙, 👨‍👩‍👧‍👦 👍🏽 🇨🇭 ❤️‍🔥 1️⃣ \U0001fae8",
    "水墨画 一只兔子，在月光下。かわいい うさぎ、토끼 กระต่าย أرنب ארנב кролик खरगोश",
    "\x00\x01\x07\x08\x1b[31mred\x7f\x85\u200b\u200d\u2028\u2029\ufeff\ufffd",
    "½ ⅷ ٣ ² x² 3.14 1,000,000 10:30 50% $5 €9 <lora:x:0.5> a_b-c~d`e ^f {g} |h| \\",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa " + "antidisestablishmentarianism" * 20,
    "ﬁne ﬂow ① Å \u1e9b\u0323 ㎏ ℌ e\u0301\u0327 \u0344",
    "",
    " ",
]
# The planes that people write in, and now and then any character at all.
BLOCKS = [(0x20, 0x7F), (0, 0x20), (0x80, 0x250), (0x300, 0x600), (0x3040, 0x3100)]
BLOCKS += [(0x4E00, 0x9FFF), (0xAC00, 0xD7A4), (0x1F300, 0x1FB00), (0x2000, 0x2070), (0, 0x110000)]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """transformers' tokenizer, from vocab.json and merges.txt that are made of the same table."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip")
    merges = CLIP_MERGES.read_text("utf-8")
    letters = [*map(chr, [*range(33, 127), *range(161, 173), *range(174, 256)])]
    letters += [letter for letter in byte_alphabet() if letter not in letters]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters)]
    pieces += [line.replace(" ", "") for line in merges.split("\n")[:-1]]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    assert len(set(pieces)) == 49408
    numbers = {piece: i for i, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(numbers), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges, "utf-8")
    return transformers.CLIPTokenizer.from_pretrained(folder)


def test_published_clip_equals_transformers(published: Any) -> None:
    ours = Tokenizer.clip()
    rng = random.Random(0)
    texts = list(CORPUS)
    for _ in range(10_000):
        blocks = rng.sample(BLOCKS, rng.randint(1, 3))
        chars = [chr(rng.randrange(*rng.choice(blocks))) for _ in range(rng.randint(1, 30))]
        texts.append("".join(char for char in chars if not "\ud800" <= char <= "\udfff"))
    theirs = published([clean(text) for text in texts], padding=False)["input_ids"]
    wrong = [
        text
        for text, ids in zip(texts, theirs, strict=True)
        if [ours.bos, *ours.encode(text), ours.eos] != ids
    ]
    assert not wrong
    cleaned = [clean(text) for text in CORPUS]
    padded = published(cleaned, padding="max_length", truncation=True, max_length=77)["input_ids"]
    assert ours(CORPUS).tolist() == padded


def test_published_clip_numbers() -> None:
    """The numbers that published models were trained with."""
    clip = Tokenizer.clip(pad=0)
    assert (clip.bos, clip.eos, clip.pad, clip.vocab_size) == (49406, 49407, 0, 49408)
    assert clip.context_length == 77
    assert clip.encode("a photo of an astronaut riding a horse") == [
        *(320, 1125, 539, 550),
        *(18376, 6765, 320, 4558),
    ]
    assert clip.tokens("Rabbits, 2") == ["Rabbits", ",", "2"]
    assert Tokenizer.from_json(clip.to_json())(["a rabbit"]).tolist() == clip(["a rabbit"]).tolist()

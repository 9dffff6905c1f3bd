"""The words that a model has learnt: emoji become words, unknown words are named."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid import checkpoints
from pellucid.arrangement import arrange
from pellucid.lexicon import (
    PLAIN_WORDS,
    Entry,
    LeftOut,
    Lexicon,
    Unknown,
    body_parts,
    describe,
    describe_stand_ins,
    expand_emoji,
    negations,
    not_learned,
    stand_ins,
    stand_ins_in,
    unknown_words,
    without,
)

LEXICON = Lexicon(
    (
        Entry("🐸", ("frog", "toad"), ("face", "amphibian")),
        Entry("🐰", ("rabbit", "bunny"), ("face", "pet")),
        Entry("❤️", ("red heart", "heart"), ("love",)),
        Entry("🍎", ("red apple", "apple"), ("fruit",)),
        Entry("👖", ("jeans",), ("clothes",)),
        Entry("🎸", ("guitar",), ("instrument", "music")),
        Entry("👍", ("thumbs up",), ("hand",)),
        Entry("🍒", ("cherries", "cherry"), ("fruit",)),
        Entry("🍁", ("maple leaf", "leaf"), ()),
        Entry("🎈", ("hot air balloon",), ()),
        Entry("🐺", ("wolf",), ()),
        Entry("🐭", ("mouse",), ()),
    ),
    ("red", "blue", "flat", "3d"),
)


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("🐸 on a blue background", "a frog on a blue background"),
        ("a 🐸", "a frog"),
        ("a blue 🐸 on 👖", "a blue frog on jeans"),
        ("🐸🐰", "a frog and a rabbit"),
        ("🐸 🐰 🎸", "a frog, a rabbit and a guitar"),
        ("🐸🐸", "two frogs"),
        ("three 🐸", "three frogs"),
        ("three blue 🐸", "three blue frogs"),
        ("❤ and ❤️", "a red heart and a red heart"),
        ("👍🏽", "a thumbs up"),
        ("cat🐸dog", "cat a frog dog"),
        ("🐸 and 🛸", "a frog and 🛸"),
        ("🐸\u200d🎸", "🐸\u200d🎸"),
        ("no emoji", "no emoji"),
        ("", ""),
    ],
)
def test_emoji_become_words(prompt: str, wanted: str) -> None:
    assert expand_emoji(prompt, LEXICON) == wanted


def test_without_a_lexicon_nothing_changes() -> None:
    assert expand_emoji("🐸 and more", Lexicon(())) == "🐸 and more"


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("two frogs and an apple on a blue background", []),
        ("an astronaut riding a rabbit", ["astronaut"]),
        ("a maple leaf, a hot-air balloon, a maple", ["maple"]),
        ("hot air, air balloons", ["air"]),
        ("a dark-blue guitar and a blue-ish one", ["ish"]),
        ("two mice and a frog with 3 wolves", []),
        ("🐸 and 🛸, 👩‍🚀 and ❤", ["🛸", "👩‍🚀"]),
        ("a cute, highly detailed 4K photo of many tiny frogs sitting in the sun", ["sun"]),
        ("a giutar", ["giutar"]),
        ("a burning guitar, a fire-breathing frog and a beard", ["fire", "beard"]),
        ("Cherries and HEARTS", []),
        ("a frog's guitar", []),
        ("three red apples to the left of a bunny, flat style", []),
        ("an astronaut and an Astronaut", ["astronaut"]),
    ],
)
def test_unknown_words_are_found_once_and_in_order(prompt: str, wanted: list[str]) -> None:
    assert [u.word for u in unknown_words(prompt, LEXICON)] == wanted


def test_the_nearest_by_tag_and_by_spelling() -> None:
    assert unknown_words("an amphibian", LEXICON) == [Unknown("amphibian", ("frog",))]
    assert unknown_words("a giutar", LEXICON)[0].nearest == ("guitar",)
    assert unknown_words("some fruits", LEXICON)[0].nearest == ("red apple", "cherries")


def test_the_sentence_names_word_and_neighbours() -> None:
    assert describe([], "tiny") is None
    assert describe(unknown_words("a giutar by an astronaut", LEXICON), "tiny") == (
        "tiny has not learned the words 'giutar' (known: guitar) and 'astronaut'"
    )
    assert describe(unknown_words("a zebra", LEXICON), "tiny") == (
        "tiny has not learned the word 'zebra'"
    )


def test_json_there_and_back() -> None:
    assert Lexicon.from_json(json.loads(json.dumps(LEXICON.to_json()))) == LEXICON


@pytest.mark.parametrize(
    "facts",
    [
        {},
        3,
        {"entries": 3, "words": []},
        {"entries": [{"emoji": "x"}], "words": []},
        {"entries": [{"emoji": "x", "names": "frog", "tags": []}], "words": []},
        {"entries": [{"emoji": "x", "names": [], "tags": []}], "words": [1]},
    ],
)
def test_other_json_is_refused(facts: object) -> None:
    with pytest.raises(ValueError, match="not the words of a model"):
        Lexicon.from_json(facts)


@given(st.text(max_size=60))
def test_any_text_is_read(text: str) -> None:
    expand_emoji(text, LEXICON)
    for unknown in unknown_words(text, LEXICON):
        assert unknown.word not in LEXICON.known


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("a photo of a cute frog", "a frog"),
        ("a frog, photorealistic, 4k", "a frog"),
        ("masterpiece, best quality, a red frog", "a red frog"),
        ("a frog in a photo", "a frog"),
        ("a picture of a frog", "a picture of a frog"),
        ("(cute:1.3) frog", "frog"),
        ("[a cute frog:a fluffy rabbit:0.3]", "[a frog:a rabbit:0.3]"),
        ("an adorable frog AND a fluffy rabbit", "a frog AND a rabbit"),
        ("two red frogs, 3d style", "two red frogs, 3d style"),
        ("a blorf", "a blorf"),
        ("", ""),
    ],
)
def test_words_that_were_not_learned_are_left_out(prompt: str, read: str) -> None:
    """A small model reads them as pieces of other words, and draws something else."""
    words = Lexicon(
        (Entry("🐸", ("frog",)), Entry("🐰", ("rabbit", "bunny"))), ("red", "two", "3d", "small")
    )
    assert without(prompt, not_learned(prompt, words)) == read


@pytest.mark.parametrize(
    ("prompt", "read", "parts"),
    [
        ("a cat without a hat on a rug", "a cat on a rug", {"a hat"}),
        ("a cat, no hat, 3d style", "a cat, 3d style", {"hat"}),
        ("a cat with no hat and no shoes", "a cat", {"hat", "shoes"}),
        ("a red car but not a bus", "a red car", {"a bus"}),
        ("a cat Without any hat", "a cat", {"any hat"}),
        ("no people", "no people", set()),
        ("a knot, nothing else", "a knot, nothing else", set()),
        ("a cat without", "a cat without", set()),
        ("(a cat without a hat:1.2)", "(a cat:1.2)", {"a hat"}),
    ],
)
def test_what_a_prompt_says_not_to_draw_is_left_out(
    prompt: str, read: str, parts: set[str]
) -> None:
    found = negations(prompt)
    assert set(found) == parts
    assert LeftOut(phrases=True).rest(prompt) == read


@pytest.mark.parametrize(
    ("prompt", "read", "parts"),
    [
        ("a cat with blue eyes", "a cat", ["blue eyes"]),
        ("a man with a long beard and a big nose on a chair", "a man on a chair", None),
        ("an angel with white wings, 3d style", "an angel, 3d style", ["white wings"]),
        ("A dog With its tongue out", "A dog", ["its tongue"]),
        ("(a cat with green eyes:1.2)", "(a cat:1.2)", ["green eyes"]),
        ("a cat with a hat and a dog", "a cat with a hat and a dog", []),
        ("a cat with a mouth organ", "a cat with a mouth organ", []),
        ("an eye and a nose", "an eye and a nose", []),
        ("with wings", "with wings", []),
    ],
)
def test_parts_of_a_body_are_no_things_of_their_own(
    prompt: str, read: str, parts: list[str] | None
) -> None:
    if parts is not None:
        assert body_parts(prompt) == parts
    assert LeftOut(phrases=True).rest(prompt) == read


PETS = Lexicon(
    (
        Entry("🐕", ("dog",)),
        Entry("💎", ("gem",)),
        Entry("👗", ("dress",)),
        Entry("🌷", ("tulip",)),
        Entry("💐", ("bunch of flowers",)),
        Entry("🍁", ("maple leaf",)),
    ),
    ("red", "two"),
)


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("a golden retriever", "a golden dog"),
        ("two Poodles and a ruby", "two dogs and a gem"),
        ("a red ruby dress", "a red ruby dress"),
        ("a ruby, a dress", "a gem, a dress"),
        ("(a poodle:1.2), <lora:poodle:1>", "(a dog:1.2), <lora:poodle:1>"),
        ("red flowers", "red tulips"),
        ("a bunch of flowers", "a bunch of flowers"),
        ("a leaf and a maple leaf", "a leaf and a maple leaf"),
        ("a red leaf", "a red maple leaf"),
        ("a lioness", "a lioness"),
        ("a poodle's dress", "a poodle's dress"),
        ("", ""),
    ],
)
def test_a_known_thing_stands_in_for_a_word_that_was_not_learned(prompt: str, read: str) -> None:
    tagless = prompt.replace("<lora:poodle:1>", "")
    found = LeftOut(instead=stand_ins_in(tagless, PETS))
    assert found.rest(tagless) == read.replace("<lora:poodle:1>", "")


def test_stand_ins_are_said_and_are_the_nearest() -> None:
    assert describe_stand_ins((), "it") is None
    assert describe_stand_ins((("poodle", "dog"),), "it") == (
        "it has not learned the word 'poodle', and draws 'dog' in its place"
    )
    assert describe_stand_ins((("poodle", "dog"), ("ruby", "gem")), "it") == (
        "it has not learned some words, and draws others in their place: 'dog' for 'poodle', 'gem' "
        "for 'ruby'"
    )
    (unknown,) = unknown_words("a poodle dress", PETS)
    assert unknown == Unknown("poodle", ("dog",))
    assert stand_ins_in("a poodle", PETS, also=["poodle"]) == ()


def test_every_stand_in_is_a_thing_and_no_word_for_one_is() -> None:
    shipped = checkpoints.load().lexicon
    assert shipped is not None
    for word, name in stand_ins().items():
        assert tuple(name.split()) in shipped.things, name
        assert (word,) not in shipped.things and word not in PLAIN_WORDS, word


@pytest.mark.parametrize("unit", ["a of ", "a ", "of in ", "1", "<", "(a ", "frog, ", "a' "])
def test_leaving_words_out_of_a_long_prompt_is_linear(unit: str) -> None:
    """As everything that is done to a prompt; what grows faster would not end here."""
    words = Lexicon((Entry("🐸", ("frog",)),))
    prompt = f"blorf frog {unit * (90_000 // len(unit))}"
    assert not_learned(prompt, words) == {"blorf"}
    assert "blorf" not in without(prompt, {"blorf"})
    assert arrange(prompt, words) is None
    negated = "frog" + "".join(f", not {i}" for i in range(10_000))
    assert len(negations(negated)) == 10_000
    assert LeftOut(phrases=True).rest(negated) == "frog"
    assert len(body_parts("frog" + " with eyes" * 10_000)) == 10_000
    assert body_parts("frog" + " with a" * 10_000) == []
    assert stand_ins_in(prompt, PETS) == ()

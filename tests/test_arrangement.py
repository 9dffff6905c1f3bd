"""Several things in one prompt: how it is read, and that each region is drawn by itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pellucid import checkpoints
from pellucid.arrangement import MEETINGS, WORN, Meeting, Region, arrange, why_whole
from pellucid.colors import COLORS
from pellucid.conditioning import weighted_prompts
from pellucid.explain.run import Recorder, page
from pellucid.explain.run.sections import layers
from pellucid.guidance import Parts
from pellucid.lexicon import Entry, Lexicon
from pellucid.model import Model
from pellucid.pipeline import Progress, generate
from pellucid.regions import Regional, box
from pellucid.request import Request, resolve
from pellucid.schedule import Level

WORDS = Lexicon(
    tuple(
        Entry("", names)
        for names in (
            ("cat", "kitten"),
            ("dog",),
            ("red apple", "apple"),
            ("orange",),
            ("cup of coffee", "coffee"),
            ("bow and arrow",),
            ("bow",),
            ("star", "stars"),
            ("rose",),
            ("mouse",),
            ("jeans",),
            ("watch",),
            ("top hat", "hat"),
            ("rain",),
            ("sheep",),
        )
    )
)


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("a cat and a dog", ["a cat", "a dog"]),
        ("A cat, a dog and an orange", ["a cat", "a dog", "an orange"]),
        ("three red apples", ["a red apple"] * 3),
        ("2 small blue cats and a dog", ["a blue cat", "a blue cat", "a dog"]),
        ("cats and dogs", ["a cat", "a dog"]),
        ("four stars", ["a star"] * 4),
        ("two mice", ["a mouse"] * 2),
        ("a dog with jeans", ["a dog", "jeans"]),
        ("an orange cat and an orange", ["an orange cat", "an orange"]),
        ("a rose hat on a dog", ["a rose hat", "a dog"]),
        ("a dog chasing two cats", ["a dog", "a cat", "a cat"]),
        ("a picture of a cat and a dog", ["a picture of a cat", "a picture of a dog"]),
        ("a cup of coffee next to a cat", ["a cup of coffee", "a cat"]),
        (
            "3d style a cat and a dog on a blue background",
            ["3d style a cat", "3d style a dog"],
        ),
        ("a cat in the rain", ["a cat", "rain"]),
        ("a couple of cats and a dog", ["a cat", "a cat", "a dog"]),
        ("a few red apples", ["a red apple"] * 3),
        ("many cats", ["a cat"] * 9),
        ("a pair of cats", ["a cat"] * 2),
        ("five sheep", ["a sheep"] * 5),
        ("a lot of rain and a cat", ["rain", "a cat"]),
        ("a pair of jeans and a dog", ["jeans", "a dog"]),
    ],
)
def test_every_thing_gets_a_text(prompt: str, texts: list[str]) -> None:
    arranged = arrange(prompt, WORDS)
    assert arranged is not None
    assert list(arranged.texts) == texts
    assert len(arranged.cells) == len(texts)
    assert len(set(arranged.cells)) == len(texts)
    assert all(0 <= place <= arranged.side - 1 for cell in arranged.cells for place in cell)


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a cat",
        "a bow and arrow",
        "a cup of coffee",
        "a zebra and a cat",
        "a cat and a blorf",
        "100 cats",
        "a cat of a dog",
        "a (cat:1.2) and a dog",
        "a [cat:dog:0.5] and a dog",
        "a cat AND a dog",
        "watch and see",
        "a dog kicking zebras and a cat",
        "a cat without a dog",
        "a cat or a dog",
        "a cat but no dog",
        "half cat and half dog",
        "a cat that looks like a dog",
        "ten cats and a dog",
        "12 cats and a dog",
    ],
)
def test_what_is_not_several_known_things_stays_whole(prompt: str) -> None:
    assert arrange(prompt, WORDS) is None


@pytest.mark.parametrize(
    ("prompt", "texts", "cells", "side"),
    [
        ("a small cat", ["a cat"], [(0.5, 0.5)], 2),
        ("tiny red cat, 3d style", ["red cat, 3d style"], [(1, 1)], 3),
        ("small cats", ["a cat"], [(0.5, 0.5)], 2),
        ("a large cat on a blue background", ["a cat"], [(0, 0)], 1),
        ("a cat in the middle", ["a cat"], [(0, 0)], 1),
        ("a cat on a white background", ["a cat"], [(0, 0)], 1),
        ("a white cat, plain white background, 3d", ["a white cat, 3d"], [(0, 0)], 1),
        ("a cat and a dog on a white background", ["a cat", "a dog"], [(0, 0.5), (1, 0.5)], 2),
        ("a cat on the left", ["a cat"], [(0, 0.5)], 2),
        ("A cat At The Bottom of the picture.", ["a cat"], [(0.5, 1)], 2),
        ("a tiny cat in the top right corner", ["a cat"], [(2, 0)], 3),
        ("a small cat made of wood", ["a cat made of wood"], [(0.5, 0.5)], 2),
        ("a cat on the left and a dog on the right", ["a cat", "a dog"], [(0, 0.5), (1, 0.5)], 2),
        ("on the right a cat, on the left a dog", ["a cat", "a dog"], [(1, 0.5), (0, 0.5)], 2),
        ("a cat at the bottom and a dog", ["a cat", "a dog"], [(0.5, 1), (0.5, 0)], 2),
        ("a cat in the middle and a dog", ["a cat", "a dog"], [(0, 0.5), (1, 0.5)], 2),
        ("a small cat and a big dog", ["a cat", "a dog"], [(0, 0.5), (1, 0.5)], 2),
        ("a cat on the right side of a dog", ["a cat", "a dog"], [(1, 0.5), (0, 0.5)], 2),
        ("a cat on the top of a dog", ["a cat", "a dog"], [(0.5, 0), (0.5, 1)], 2),
        (
            "a cat in the top left corner, a dog in the lower right corner and a star on the right",
            ["a cat", "a dog", "a star"],
            [(0, 0), (1, 0), (0.5, 1)],  # the last two would lie on each other
            2,
        ),
    ],
)
def test_sizes_and_places(
    prompt: str, texts: list[str], cells: list[tuple[float, float]], side: int
) -> None:
    arranged = arrange(prompt, WORDS)
    assert arranged is not None
    assert arranged[:3] == (tuple(texts), tuple(cells), side)


@pytest.mark.parametrize(
    ("prompt", "texts", "ground"),
    [
        ("a cat on a blue background", ["a cat"], COLORS["blue"]),
        ("a blue cat on a plain red background, 3d", ["a blue cat, 3d"], COLORS["red"]),
        ("two cats, teal backdrop", ["a cat", "a cat"], (0, 128, 128)),
        ("a cat and a dog on green", ["a cat", "a dog"], COLORS["green"]),
        ("a cat", None, None),
        ("a cat on a white background", ["a cat"], None),
        ("a cat on an orange", ["a cat", "an orange"], None),
        ("a cat on a forest background", None, None),
    ],
)
def test_grounds(prompt: str, texts: list[str] | None, ground: tuple[int, int, int] | None) -> None:
    arranged = arrange(prompt, WORDS)
    assert (arranged and list(arranged.texts)) == texts
    layout = arranged and arranged.layout
    assert (layout and layout.ground) == ground


@pytest.mark.parametrize(
    ("prompt", "sizes", "met"),
    [
        ("a cat and a dog", None, None),
        ("two big cats", None, None),
        ("two small cats", (0.65, 0.65), None),
        ("a big cat and two tiny dogs", (1.5, 0.45, 0.45), None),
        ("a small cat on a huge dog", (0.65, 2.0), MEETINGS["on"]),
        ("a cat riding a dog", (1, 1), MEETINGS["riding"]),
        ("a dog wearing a hat", (1, 1), WORN["hat"]),
        ("a dog with a top hat", (1, 1), WORN["hat"]),
        ("a dog with a cat", None, None),
        ("a cat on the left and a dog on the right", None, None),
        ("two cats on a dog", None, None),
        ("a cat above a dog", None, None),
    ],
)
def test_sizes_beside_others_and_what_touches(
    prompt: str, sizes: tuple[float, ...] | None, met: Meeting | None
) -> None:
    arranged = arrange(prompt, WORDS)
    assert arranged is not None
    assert (arranged.layout and arranged.layout.sizes) == sizes
    assert (arranged.layout and arranged.layout.meeting) == met


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        ("a cat", ""),
        ("a (small:1.2) cat", ""),
        ("a cat in the middle of a street", ""),
        ("small and tiny", ""),
        ("a cat and a dog", ""),
        ("a cat of two colours", ""),
        ("a [cat:dog:0.5]", ""),
        ("a cat AND a dog", ""),
        ("ten cats", "it asks for more than 9 things"),
        ("five cats and five dogs", "it asks for more than 9 things"),
        ("a dozen cats", "it asks for more than 9 things"),
        ("9" * 5000 + " cats", "it asks for more than 9 things"),
        ("a (cat:1.2) and a dog", "it has weights"),
        ("three (cats)", "it has weights"),
        ("a cat or a dog", "'or' is not understood"),
        (
            "a mouse between cats",
            "'between' is not understood; {mix} draws what is between two prompts",
        ),
        (
            "something between a cat and a dog",
            "'between' is not understood; {mix} draws what is between two prompts",
        ),
        ("half cat half dog", "'half' is not understood; {mix} draws what is between two prompts"),
        ("a cat zorging a dog", "'zorging a' between two things is not understood"),
    ],
)
def test_why_several_things_stay_whole(prompt: str, why: str) -> None:
    assert why_whole(prompt, WORDS) == why


@pytest.mark.parametrize(
    ("prompt", "row"),
    [
        ("a mouse between two cats", ["a cat", "a mouse", "a cat"]),
        ("a red apple in between a cat and a dog", ["a cat", "a red apple", "a dog"]),
    ],
)
def test_a_thing_between_two_others(prompt: str, row: list[str]) -> None:
    arranged = arrange(prompt, WORDS)
    assert arranged is not None
    in_order = sorted(zip(arranged.cells, arranged.texts, strict=True))
    assert [text for _, text in in_order] == row
    assert len({y for _, y in arranged.cells}) == 1


@pytest.mark.parametrize(
    ("words", "cells"),
    [
        ("to the left of", ((0.0, 0.5), (1.0, 0.5))),
        ("to the right of", ((1.0, 0.5), (0.0, 0.5))),
        ("and", ((0.0, 0.5), (1.0, 0.5))),
        ("above", ((0.5, 0.0), (0.5, 1.0))),
        ("sitting on", ((0.5, 0.0), (0.5, 1.0))),
        ("below", ((0.5, 1.0), (0.5, 0.0))),
        ("in front of", ((0.5, 1.0), (0.5, 0.0))),
    ],
)
def test_two_things_lie_as_the_words_between_them_say(words: str, cells: tuple[object]) -> None:
    arranged = arrange(f"a cat {words} a dog", WORDS)
    assert arranged is not None
    assert (arranged.cells, arranged.side) == (cells, 2)


def test_what_is_not_worn_on_the_head_is_below_it() -> None:
    arranged = arrange("a dog wearing jeans", WORDS)
    assert arranged is not None and arranged.layout is not None
    met = arranged.layout.meeting
    assert met is not None and met.front == 0 and met.first[1] > met.second[1]


def test_rows_and_columns() -> None:
    row, column = arrange("three cats in a row", WORDS), arrange("3 cats in a column", WORDS)
    assert row is not None and column is not None
    assert row.texts == ("a cat",) * 3
    assert row.cells == ((0, 1), (1, 1), (2, 1))
    assert column.cells == ((1, 0), (1, 1), (1, 2))


def test_regions_keep_to_the_middle_of_a_wide_canvas() -> None:
    arranged = arrange("a cat above a dog", WORDS)
    assert arranged is not None
    first, second = arranged.regions(256, 128)
    assert first == Region("a cat", 96 / 256, 0.0, 64 / 256, 0.5)
    assert box(second, 16, 32) == (slice(8, 16), slice(12, 20))


def test_each_region_has_its_own_estimate_and_the_rest_their_corners() -> None:
    regions = (Region("a", 0.0, 0.0, 0.5, 0.5), Region("b", 0.5, 0.5, 0.5, 0.5))
    seen: list[torch.Tensor] = []

    def guide(x: torch.Tensor, level: Level) -> Parts:
        seen.append(x)
        values = torch.tensor([1.0, 2.0, 1.0, 1.0]).view(4, 1, 1, 1).expand_as(x).clone()
        values[..., 1:-1, 1:-1] = 5  # the middle is not the ground
        values[0, :, 0, 0] = 9  # nor is a corner unlike the others
        return Parts(values, 2 * values, 3 * values)

    x = torch.randn(2, 3, 8, 8)
    parts = Regional(guide, regions)(x, Level(1.0, 1.0, 500.0))
    assert torch.equal(seen[0], torch.cat([x[..., :4, :4], x[..., 4:, 4:]]))
    assert torch.equal(parts.guided[0, :, 0, 0], torch.full((3,), 9.0))
    assert torch.equal(parts.guided[0, :, 1, 1], torch.full((3,), 5.0))
    assert torch.equal(parts.guided[1, :, 4, 4], torch.full((3,), 1.0))
    assert torch.equal(parts.guided[0, :, 0, 7], torch.full((3,), 1.0))
    assert torch.equal(parts.uncond, 3 * parts.guided)


@pytest.fixture(scope="module")
def shipped() -> Model:
    return checkpoints.load()


def draw(model: Model, **fields: object) -> Progress:
    *_, last = generate(model, Request.model_validate({"seed": 3, "steps": 2} | fields))
    return last


def test_the_shipped_model_draws_each_thing_by_itself(shipped: Model) -> None:
    last = draw(shipped, prompt="a cat and a dog", count=2)
    assert last.x.shape[2:] == (16, 16)
    assert last.images is not None
    assert [picture.size for picture in last.images] == [(256, 256)] * 2
    other = draw(shipped, prompt="a frog and a dog", count=2)
    left, right = (slice(4, 12), slice(0, 8)), (slice(4, 12), slice(8, 16))
    assert torch.allclose(
        last.x[..., right[0], right[1]], other.x[..., right[0], right[1]], atol=1e-4
    )
    assert not torch.allclose(
        last.x[..., left[0], left[1]], other.x[..., left[0], left[1]], atol=0.1
    )


def test_a_region_is_what_the_network_draws_of_its_noise(shipped: Model) -> None:
    whole = draw(shipped, prompt="a cat", arrange=False)
    assert whole.x.shape[2:] == (8, 8)
    assert draw(shipped, prompt="a cat").x.equal(whole.x)


@pytest.mark.parametrize(
    ("prompt", "there"), [("a cat on a dog, teal background", 2), ("a cat", 0)]
)
def test_explaining_shows_the_layers(shipped: Model, prompt: str, there: int) -> None:
    recorder = Recorder(shipped, Request(prompt=prompt, steps=1))
    for _ in recorder.run():
        pass
    content = layers.content(shipped, recorder.explanation())
    assert (len(content.data) if content else 0) == there


def test_it_can_be_turned_off_and_the_record_says_so(shipped: Model) -> None:
    off = draw(shipped, prompt="a cat and a dog", arrange=False)
    assert off.x.shape[2:] == (8, 8)
    assert off.request.record()["arrange"] is False
    record = resolve(shipped, Request(prompt="a cat and a dog", seed=3)).record()
    assert "regions" not in record
    assert resolve(shipped, Request.model_validate(record)).regions


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"prompt": "a cat"}, "does not name several things"),
        ({"prompt": "a cat and a dog", "mix": (("a frog", 1.0),)}, "the request has mix"),
    ],
)
def test_asking_for_it_in_vain_is_said(shipped: Model, fields: dict[str, object], why: str) -> None:
    assert any(why in warning for warning in draw(shipped, arrange=True, **fields).warnings)


def test_explaining_shows_the_words_of_every_region_in_its_place(shipped: Model) -> None:
    request = Request(prompt="a cat and a dog", steps=2, seed=0)
    recorder = Recorder(shipped, request)
    *_, last = recorder.run()
    run = recorder.explanation()
    assert [(word.whole, word.region) for word in run.steps[0].words if word.content] == [
        ("cat", 0),
        ("flat", 0),
        ("style", 0),
        ("dog", 1),
        ("flat", 1),
        ("style", 1),
    ]
    step = run.steps[0]
    assert step.x.shape == step.cond.shape == last.x.shape[1:]
    names = [word.whole for word in step.words]
    for maps in step.maps:  # (heads, h, w, words + 1)
        assert maps.sum(-1).allclose(torch.ones(()).half(), atol=0.01)
        cat, (height, width) = maps[..., names.index("cat")], maps.shape[1:3]
        left, right = cat[..., : width // 2], cat[..., width // 2 :]
        assert left[:, height // 4 : -height // 4].any()
        assert not right.any()
    text, _ = page.page(shipped, [run])
    assert "names 2 things" in text and "a cat; a dog" in text
    # Where nothing is drawn the noise is that of the run.
    start = draw(shipped, prompt="a cat and a dog", steps=2, seed=last.request.seed)
    pixels = [np.asarray(picture, np.int16) for picture in (run.picture, start.images[0])]
    assert np.abs(pixels[0] - pixels[1]).max() <= 2  # recorded attention is rounded differently
    assert float(step.x[:, 0, 0].abs().min()) > 0


@pytest.mark.parametrize(
    ("fields", "prompts"),
    [
        ({"prompt": "a cat, 3d style"}, [("a cat, 3d style", 2.0), ("a cat", -1.0)]),
        (
            {"prompt": "a cat, 3d style", "style_guidance": 0.5},
            [("a cat, 3d style", 1.5), ("a cat", -0.5)],
        ),
        (
            {"prompt": "a cat and a dog, 3d style"},
            [("a cat, 3d style", 1.0), ("a dog, 3d style", 1.0), ("a cat", -0.5), ("a dog", -0.5)],
        ),
        ({"prompt": "a cat, 3d style", "style_guidance": 0}, [("a cat, 3d style", 1.0)]),
        ({"prompt": "a cat, 3d style", "guidance": 1}, [("a cat, 3d style", 1.0)]),
        ({"prompt": "a cat"}, [("a cat", 1.0)]),
    ],
)
def test_the_style_counts_more(
    shipped: Model, fields: dict[str, object], prompts: list[tuple[str, float]]
) -> None:
    assert weighted_prompts(resolve(shipped, Request.model_validate(fields))) == prompts


def test_style_guidance_is_the_difference_that_the_style_makes(shipped: Model) -> None:
    """One step, by hand: the sum of the prompts that the weights say."""
    fields = {"steps": 1, "width": 64, "height": 64, "style_guidance": 0, "interval": (0, 0)}
    words_alone = replace(shipped, lexicon=None)  # no style is open
    styled, plain, more = (
        draw(model, **fields | own)
        for model, own in (
            (shipped, {"prompt": "a cat, 3d style"}),
            (words_alone, {"prompt": "a cat"}),
            (shipped, {"prompt": "a cat, 3d style", "style_guidance": 1.5}),
        )
    )
    expected = styled.x0 + 1.5 * (styled.x0 - plain.x0)
    assert torch.allclose(more.x0, expected, atol=0.02 * float(expected.abs().max()))
    assert not torch.allclose(more.x0, styled.x0, atol=0.1)


def test_style_guidance_without_a_style_is_said(shipped: Model) -> None:
    warnings = draw(shipped, prompt="a cat", style_guidance=2).warnings
    assert any("names no style" in warning for warning in warnings)
    assert "style_guidance" not in resolve(shipped, Request(prompt="a cat")).record()


@pytest.mark.parametrize("gap", ["İZMİR AND", "İ,", "İİ on İ", "ﬁ With ẞ"])
def test_letters_that_grow_in_lower_case(shipped: Model, gap: str) -> None:
    assert shipped.lexicon is not None
    arrange(f"a cat {gap} dog", shipped.lexicon)
    assert arrange("a cat AND ALSO a dog".lower(), shipped.lexicon) is not None
    assert arrange("a cat On a dog", shipped.lexicon) == arrange("a cat on a dog", shipped.lexicon)

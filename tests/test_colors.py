"""The ground that a prompt asks for."""

from __future__ import annotations

import pytest

from pellucid.colors import COLORS, NAMES, take_ground


@pytest.mark.parametrize(
    ("prompt", "rest", "color"),
    [
        ("a cat on a blue background", "a cat", COLORS["blue"]),
        ("A Cat On A Blue Background.", "A Cat.", COLORS["blue"]),
        ("a cat on a light blue background, 3d style", "a cat, 3d style", NAMES["lightblue"]),
        ("a cat against the plain dark red backdrop", "a cat", (139, 0, 0)),
        ("a cat, deep pink-coloured background", "a cat", NAMES["deeppink"]),
        ("a yellow background with a cat", "with a cat", COLORS["yellow"]),
        ("navy background, a cat", ", a cat", (0, 0, 128)),
        ("a cat in front of a grey background", "a cat", COLORS["gray"]),
        ("a cat on a sky blue background", "a cat", NAMES["skyblue"]),
        ("a cat on a hot-pink background", "a cat", NAMES["hotpink"]),
        ("a cat on a light sea green background", "a cat", NAMES["lightseagreen"]),
        ("a cat on a dark slate grey background", "a cat", NAMES["darkslategrey"]),
        ("a cat on a beautiful forest green background", "a cat", NAMES["forestgreen"]),
        ("a cat on black", "a cat", COLORS["black"]),
        ("a cat on plain pale purple, noto style", "a cat, noto style", None),
        ("a blue cat on a blue background, blue background", "a blue cat", COLORS["blue"]),
    ],
)
def test_a_ground_is_taken(prompt: str, rest: str, color: tuple[int, int, int] | None) -> None:
    text, found = take_ground(prompt)
    assert len(text) == len(prompt)
    assert " ".join(text.split()).replace(" ,", ",").replace(" .", ".") == rest
    assert found is not None and all(0 <= part <= 255 for part in found)
    assert color is None or found == color


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a cat",
        "a blue cat",
        "a cat on an orange",
        "a cat on salmon",
        "a cat on a forest background",
        "a cat on a blue background, red background",
        "on orange cats",
        "a background",
    ],
)
def test_other_prompts_stay_as_they_are(prompt: str) -> None:
    assert take_ground(prompt) == (prompt, None)


def test_a_shade_of_a_colour_goes_towards_white_or_black() -> None:
    assert take_ground("light red background")[1] == (238, 148, 150)
    _, dark = take_ground("a cat on dark yellow")
    assert dark is not None and all(a < b for a, b in zip(dark, COLORS["yellow"], strict=True))

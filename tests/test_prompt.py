"""The grammar of prompts."""

from __future__ import annotations

import math
from itertools import groupby, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.prompt import (
    LoraTag,
    WeightedText,
    each_step,
    parse,
    split_and,
    take_loras,
    unbalanced,
    unread,
    without_style,
)


@pytest.mark.parametrize(
    ("text", "left", "loras"),
    [
        ("a cat", "a cat", []),
        ("a <lora:paint:0.5> cat", "a  cat", [LoraTag("paint", 0.5, 0.5)]),
        ("<lora:my paint v1.2>", "", [LoraTag("my paint v1.2", 1.0, 1.0)]),
        ("<lora:a:-1><lora:b: .5 >x", "x", [LoraTag("a", -1.0, -1.0), LoraTag("b", 0.5, 0.5)]),
        ("<lora:a:0.5:0.8>", "", [LoraTag("a", weight=0.8, text_weight=0.5)]),
        ("<lora:a:unet=0.8>", "", [LoraTag("a", weight=0.8, text_weight=1.0)]),
        ("<lora:a:te=0:unet=0.8>", "", [LoraTag("a", weight=0.8, text_weight=0.0)]),
        ("<lyco:a:2>", "", [LoraTag("a", 2.0, 2.0)]),
        ("<hypernet:anime:0.5>a<hypernet:x>", "a", []),
        ("a < b > c <hat:3> <lora:", "a < b > c <hat:3> <lora:", []),
    ],
)
def test_loras_are_taken_out(text: str, left: str, loras: list[LoraTag]) -> None:
    assert take_loras(text) == (left, loras)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<lora:>", "names no LoRA"),
        ("<lora::1>", "names no LoRA"),
        ("<lora:a:much>", "'much' is not understood"),
        ("<lora:a:inf>", "'inf' is not understood"),
        ("<lora:a:1e999>", "'1e999' is not understood"),
        ("<lora:a:1:2:3>", "'3' is not understood"),
        ("<lora:a:dim=2>", "'dim=2' is not understood"),
    ],
)
def test_loras_that_are_not(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        take_loras(text)


# ---------------------------------------------------------------- weights and BREAK


def weights(prompt: str) -> list[list[tuple[str, float]]]:
    return [[(text, round(weight, 4)) for text, weight in runs] for runs in parse(prompt)]


def test_the_worked_example() -> None:
    assert weights("a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).") == [
        [
            ("a ", 1.0),
            ("house", 1.573),
            (" ", 1.1),
            ("on", 1.0),
            (" a ", 1.1),
            ("hill", 0.55),
            (", sun, ", 1.1),
            ("sky", 1.4641),
            (".", 1.1),
        ]
    ]


@pytest.mark.parametrize(
    ("prompt", "runs"),
    [
        ("", []),
        ("a cat, 10:30, a|b", [("a cat, 10:30, a|b", 1.0)]),
        ("a cat (sitting)", [("a cat ", 1.0), ("sitting", 1.1)]),
        ("((a))[b]", [("a", 1.21), ("b", 0.9091)]),
        ("(a)(b)", [("ab", 1.1)]),
        ("(a: -0.5 )", [("a", -0.5)]),
        ("(a:+.5)(b:1.)", [("a", 0.5), ("b", 1.0)]),
        ("(a (b:2) c:3)", [("a ", 3.0), ("b", 6.0), (" c", 3.0)]),
        ("(a:b:1.2)", [("a:b", 1.2)]),
        # brackets without a partner
        ("(a", [("a", 1.1)]),
        ("a ((b) c", [("a ", 1.0), ("b", 1.21), (" c", 1.1)]),
        ("[a", [("a", 0.9091)]),
        ("a) b] c:2)", [("a) b] c:2)", 1.0)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1.0), (" c", 0.9091)]),
        # what only looks like a weight
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("(a:)", [("a:", 1.1)]),
        ("[a:2)", [("a:2)", 0.9091)]),
        # escapes
        (r"\(a\) \[b\] \\ \: \|", [(r"(a) [b] \ : |", 1.0)]),
        (r"(a\):2)", [("a)", 2.0)]),
        (r"a\b \\(c)", [("ab \\", 1.0), ("c", 1.1)]),
        ("a\\", [("a", 1.0)]),
    ],
)
def test_weights(prompt: str, runs: list[tuple[str, float]]) -> None:
    assert weights(prompt) == [runs]


def test_break_divides() -> None:
    assert weights("a BREAK b") == [[("a ", 1.0)], [(" b", 1.0)]]
    assert weights("(a BREAK b:2)") == [[("a ", 2.0)], [(" b", 2.0)]]
    assert weights("BREAKFAST break") == [[("BREAKFAST break", 1.0)]]
    assert weights("a BREAK") == [[("a ", 1.0)], []]


def test_weights_without_an_end() -> None:
    assert parse("(a:inf)(b:-inf)") == [[WeightedText("a", math.inf), WeightedText("b", -math.inf)]]
    assert math.isnan(parse("(a:nan)")[0][0].weight)
    assert parse("(a:" + "9" * 400 + ")")[0][0].weight == math.inf


def test_split_and() -> None:
    assert split_and("a cat") == [("a cat", 1.0)]
    assert split_and("a clock that says 10:30") == [("a clock that says 10:30", 1.0)]
    assert split_and("a AND b :0.5 AND c:-1") == [("a ", 1.0), (" b ", 0.5), (" c", -1.0)]
    assert split_and("ANDROID and SAND") == [("ANDROID and SAND", 1.0)]
    assert split_and("AND") == [("", 1.0), ("", 1.0)]
    assert split_and("a:b AND (c:2)") == [("a:b ", 1.0), (" (c:2)", 1.0)]


# ---------------------------------------------------------------- what changes on the way


def stretches(prompt: str, steps: int, second: int = 0) -> list[tuple[int, str]]:
    """The last step of every stretch, and what the prompt is there."""
    numbered = enumerate(each_step(prompt, steps, second), start=1)
    groups = (list(group) for _, group in groupby(numbered, key=lambda pair: pair[1]))
    return [group[-1] for group in groups]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat", [(10, "a cat")]),
        ("red [hat:4]", [(4, "red "), (10, "red hat")]),
        ("red [hat: 4 ]", [(4, "red "), (10, "red hat")]),
        ("[[[x]]:6]", [(6, ""), (10, "[[x]]")]),
        ("[(x:2):6]", [(6, ""), (10, "(x:2)")]),
        ("[ x : y :6]", [(6, " x "), (10, " y ")]),
        ("[x:[y:z:8]:6]", [(6, "x"), (8, "y"), (10, "z")]),
        ("red [hat", [(10, "red [hat")]),
        ("red [hat:.4]", [(4, "red "), (10, "red hat")]),
        ("[x|y:.4]", [(4, ""), (10, "x|y")]),
        ("(([x:y [z:6]", [(6, "(([x:y "), (10, "(([x:y z")]),
        ("[wo|]man", [(i, "man" if i % 2 == 0 else "woman") for i in range(1, 11)]),
        ("[a::3]b", [(3, "ab"), (10, "b")]),
        ("[:a:3]b", [(3, "b"), (10, "ab")]),
        ("[a:b:0]", [(10, "b")]),
        ("[a:b:-1]", [(10, "b")]),
        ("[a:b:0.29]", [(2, "a"), (10, "b")]),
        ("[a:b:99]", [(10, "a")]),
        ("[a:b:1.0]", [(10, "a")]),
        ("[a:b:c:3]", [(10, "[a:b:c:3]")]),
        ("[a:b]", [(10, "[a:b]")]),
        ("([a:b:3]:1.2)", [(3, "(a:1.2)"), (10, "(b:1.2)")]),
        (r"\[a:b:3\] [c\:d:e:3]", [(3, r"\[a:b:3\] c\:d"), (10, r"\[a:b:3\] e")]),
        ("[(a|b:2):c:3]", [(3, "(a|b:2)"), (10, "c")]),
        ("a | b : c", [(10, "a | b : c")]),
        ("[a:b:" + "9" * 400 + "]", [(10, "a")]),
        ("[a:b:1.0e999]", [(10, "a")]),
    ],
)
def test_scheduled(prompt: str, expected: list[tuple[int, str]]) -> None:
    assert stretches(prompt, 10) == expected


def test_turns() -> None:
    assert each_step("[a|(b:1.1)|]", 7) == ["a", "(b:1.1)", "", "a", "(b:1.1)", "", "a"]
    assert each_step("[[a:b:2]|c]", 4) == ["a", "c", "b", "c"]
    assert each_step("[a|b]", 3, 2) == ["a", "b", "a", "a", "b"]


def test_two_passes() -> None:
    """A share up to 1 is of the first pass, up to 2 of the second; a number counts all steps."""
    assert stretches("[a:b:.5]", 10, 10) == [(5, "a"), (20, "b")]
    assert stretches("[a:b:1.5]", 10, 10) == [(15, "a"), (20, "b")]
    assert stretches("[a:b:13]", 10, 10) == [(13, "a"), (20, "b")]
    assert stretches("[a:b:2.0]", 10, 10) == [(20, "a")]
    assert each_step("[a:b:1]", 0) == []


def test_what_no_step_reads() -> None:
    assert unread("a (cat:1.3) [dog] [x:y:0.5] [x|y]", 10) == []
    assert unread("[red hat:1.3] and [one:(two:2):99]", 10) == ["red hat", "two"]
    assert unread("[one|two|three]", 2) == ["three"]
    assert unread("[one:two:0.5]", 1) == ["one"]
    assert unread("[one:two:1.5]", 10) == ["two"]
    assert unread("[one:two:1.5]", 10, 2) == []
    assert unread("[one:two:1.5]", 0) == []
    assert unread("[one|two|three]", 2, 3) == []
    assert unread("[one|two|three]", 2, 2) == ["three"]
    assert unread("one [one:two:0] [two:1.3] [two::0]", 3) == []


# ---------------------------------------------------------------- brackets without a partner


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("a (red:1.2) [cat] [day:night:0.5] <lora:x(1:0.5>", None),
        (r"a cat \(sitting\) \[ \\", None),
        ("([overlapping)]", None),
        (
            "a photo of (a [cat]",
            "'(' at character 12 of the prompt, in '(a [cat]', is not closed",
        ),
        ("((a)", "'(' at character 1 of"),
        (
            "a cat] and (a dog",
            "']' at character 6 of the prompt, in 'a cat]', has no opening bracket",
        ),
        (
            ":)",
            "')' at character 2 of the prompt, in ':)', has no opening bracket and is read as text",
        ),
        ("(a AND b)", "'(' at character 1 of the prompt, in '(a AND b)', is not closed"),
        (r"\\(a", r"'(' at character 3"),
        (
            "(" + 99 * "x",
            f"in '({23 * 'x'}', is not closed; it is read as if it were closed at the end; a plain",
        ),
    ],
)
def test_brackets_without_a_partner(prompt: str, told: str | None) -> None:
    found = unbalanced(prompt)
    assert found is None if told is None else told in str(found)


# ---------------------------------------------------------------- any input at all

PIECES = ["(", ")", "[", "]", ":", "|", "\\", "BREAK", "AND", "<lora:", ">", "1.3", ".5", "-1", "e"]
PROMPTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=40).map("".join)


@settings(max_examples=500, deadline=None)
@given(PROMPTS | st.text(max_size=60), st.integers(0, 12), st.integers(0, 5))
def test_no_input_makes_the_parser_fail(text: str, steps: int, second: int) -> None:
    for part, weight in split_and(text):
        assert part in text and isinstance(weight, float)
        each = each_step(part, steps, second)
        assert all(missing in part for missing in unread(part, steps, second))
        assert len(each) == steps + second
        for now in {part, *each}:
            for runs in parse(now):
                assert all(run.text for run in runs)
                assert all(a.weight != b.weight for a, b in pairwise(runs))


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_escaped_text_is_itself(text: str) -> None:
    """Any text without the words of the grammar can be said by escaping."""
    escaped = "".join("\\" + char if char in "()[]:|\\" else char for char in text)
    assert "".join(run.text for runs in parse(escaped) for run in runs) == text
    assert all(run.weight == 1 for runs in parse(escaped) for run in runs)
    assert each_step(escaped, 2) == [escaped] * 2
    assert unbalanced(escaped) is None


def test_long_inputs_take_no_longer_than_their_length_asks() -> None:
    """The work per character of odd inputs is bounded: brackets that nest deeply, digits, spaces."""
    size = 20_000
    for text in ("(" * size, "(a" * size + ")" * size, "[" * size, ":" + "1" * size, " " * size):
        parse(text)
        split_and(text + "AND" + text)
        take_loras(text)
        unbalanced(text + "AND" + text)
    for text in ("[a:" * size + "3]" * size, "[a:b:3]" * size, "[" * size + "|" + "]" * size):
        assert len(each_step(text, 3)) == 3
        unread(text, 3)
    parse("\\" * size + "(a:1.1)b" * size)
    assert parse("(" * 8000 + "a")[0][0].weight == math.inf


@pytest.mark.parametrize(
    ("prompt", "rest"),
    [
        ("a cat, 3d style", "a cat"),
        ("a cat, Pixel Art Style, on a hill", "a cat, on a hill"),
        ("a cat in a pixel art style", "a cat"),
        ("a cat in the style of Monet, on a hill", "a cat, on a hill"),
        ("3d style a cat", "a cat"),
        ("noto style, a cat", "a cat"),
        ("a cat noto style", "a cat"),
        ("a cat", None),
        ("", None),
        ("style", None),
        ("3d style", None),
        ("a cat with style", None),
        ("(a cat), 3d style", None),
        ("a [cat:dog:0.5], 3d style", None),
        ("a stylish cat", None),
    ],
)
def test_a_prompt_without_its_style(prompt: str, rest: str | None) -> None:
    assert without_style(prompt) == rest

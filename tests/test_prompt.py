"""The grammar of prompts."""

from __future__ import annotations

import pytest

from pellucid.prompt import Lora, take_loras


@pytest.mark.parametrize(
    ("text", "left", "loras"),
    [
        ("a cat", "a cat", []),
        ("a <lora:paint:0.5> cat", "a  cat", [Lora("paint", 0.5, 0.5)]),
        ("<lora:my paint v1.2>", "", [Lora("my paint v1.2", 1.0, 1.0)]),
        ("<lora:a:-1><lora:b: .5 >x", "x", [Lora("a", -1.0, -1.0), Lora("b", 0.5, 0.5)]),
        ("<lora:a:0.5:0.8>", "", [Lora("a", weight=0.8, text_weight=0.5)]),
        ("<lora:a:unet=0.8>", "", [Lora("a", weight=0.8, text_weight=1.0)]),
        ("<lora:a:te=0:unet=0.8>", "", [Lora("a", weight=0.8, text_weight=0.0)]),
        ("<lyco:a:2>", "", [Lora("a", 2.0, 2.0)]),
        ("a < b > c <hat:3> <lora:", "a < b > c <hat:3> <lora:", []),
    ],
)
def test_loras_are_taken_out(text: str, left: str, loras: list[Lora]) -> None:
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

"""The two sheets of the README, drawn by the model that ships: ``python docs/sheets.py [FOLDER]``.

Every eighth thing that it has learned, and twelve pairs of common things with words between two things
in turn, every other one on a coloured ground. Nothing is chosen by how it came out: things, words and
colours follow from numbers, and picture i has the seed i.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from pellucid import checkpoints
from pellucid.data.emoji import TINTS
from pellucid.evaluate.evaluation import read_prompts
from pellucid.images.metadata import save_image
from pellucid.images.pixels import grid
from pellucid.model import Model
from pellucid.nouns import with_article
from pellucid.pipeline import Request, generate

SIDE, EVERY, PAIRS = 128, 8, 12
WORDS = ("and", "to the right of", "above", "on", "in front of", "holding", "behind")


def drawn(model: Model, prompts: Sequence[str]) -> list[Image.Image]:
    """A small picture of each prompt."""
    found = []
    for seed, prompt in enumerate(prompts):
        *_, last = generate(model, Request(prompt=prompt, seed=seed))
        assert last.images is not None
        found.append(last.images[0].resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    return found


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs")
    torch.set_num_threads(1)  # for tiny tensors more threads are slower
    model = checkpoints.load()
    assert model.lexicon is not None
    things = [with_article(entry.names[0]) for entry in model.lexicon.entries[::EVERY]]
    save_image(grid(drawn(model, things), 8), folder / "sheet.png")
    common = [with_article(each.concept) for each in read_prompts("common")]
    chance = random.Random(21)
    pairs = [chance.sample(common, 2) for _ in range(PAIRS)]
    grounds = [f" on {with_article(color)} background" for color in TINTS]
    texts = [
        f"{a} {WORDS[i % len(WORDS)]} {b}{grounds[i // 2 % len(grounds)] if i % 2 else ''}"
        for i, (a, b) in enumerate(pairs)
    ]
    save_image(grid(drawn(model, texts), 6), folder / "sheet_two.png")


if __name__ == "__main__":
    main()

"""A pool of scenes on disk: drawn once, then read by the autoencoder, CLIP and the network.

Files of one folder: ``pixels.npy`` (N, 64, 64, 3) uint8, ``scenes.jsonl`` (one scene a line: caption,
kind, concepts, words and boxes of the things), later ``latents.npy`` (N, C, h, w) float16 and
``tokens.npy``, ``pooled.npy`` of the captions. All are mapped into memory and not copied into it.
A pool is made in shards of its own randomness, so that more can be added while training runs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pellucid.data import scenes
from pellucid.data.emoji import EmojiArt
from pellucid.train.loop import rng_of


def make(
    art: EmojiArt,
    folder: Path,
    count: int,
    mix: scenes.SceneMix,
    seed: int,
    among: Sequence[int],
    held: bool = False,
) -> None:
    """Draw `count` scenes into `folder`; what is complete there stays."""
    if (folder / "scenes.jsonl").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    shape = (count, art.size, art.size, 3)
    pixels = np.lib.format.open_memmap(folder / "pixels.npy", "w+", np.uint8, shape)
    lines = []
    for i in range(count):
        scene = scenes.plan(art, rng_of(seed, i, 3), mix, held=held, among=among)
        pixels[i] = scenes.draw(art, scene, art.size)
        lines.append(json.dumps(told(scene), ensure_ascii=False))
    pixels.flush()
    temporary = folder / "scenes.tmp"
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    temporary.replace(folder / "scenes.jsonl")


def told(scene: scenes.Scene) -> dict[str, Any]:
    """A scene as JSON."""
    return {
        "caption": scene.caption,
        "kind": scene.kind,
        "concepts": [t.concept for t in scene.things],
        "styles": [t.style for t in scene.things],
        "tints": [t.tint for t in scene.things],
        "background": scene.background,
        "places": [[p.start, p.end, [round(x, 3) for x in p.box]] for p in scene.places],
    }


def read(folder: Path) -> list[dict[str, Any]]:
    """The scenes of a pool. ValueError if it was not drawn."""
    path = folder / "scenes.jsonl"
    if not path.is_file():
        raise ValueError(f"{folder}: no scenes there")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def pixels(folder: Path) -> np.ndarray:
    return np.load(folder / "pixels.npy", mmap_mode="r")


def to_pixels(drawn: np.ndarray) -> Tensor:
    """(B, size, size, 3) uint8 -> (B, 3, size, size) float32 in [-1, 1]."""
    return torch.from_numpy(np.array(drawn)).permute(0, 3, 1, 2).float() / 127.5 - 1

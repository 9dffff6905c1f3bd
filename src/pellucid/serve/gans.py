"""The GANs among the models. One is a single step from noise to a picture, so it answers at once."""

from __future__ import annotations

import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pellucid import checkpoints, gan
from pellucid.gan import GAN
from pellucid.images.pixels import to_pil
from pellucid.serve.library import Library, ModelFile, UnknownName

KEPT = 2
"""GANs that stay in memory."""


@lru_cache(KEPT)
def _opened(path: Path, version: tuple[int, int]) -> GAN:
    """The GAN in a file. version: changes when the file does."""
    return checkpoints.load_gan(path)


class Gans:
    """Draws with the GANs of a library, one picture at a time, on the CPU."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._drawing = threading.Lock()

    def _files(self) -> dict[str, ModelFile]:
        return {file.name: file for file in self._library.models() if file.is_gan}

    def listed(self) -> list[dict[str, Any]]:
        """Name, classes (none: it draws anything) and size in pixels of each."""
        found = []
        for name, file in self._files().items():
            config = _opened(file.path, file.version).generator.config
            found.append({"name": name, "classes": list(config.classes), "size": config.size})
        return found

    @torch.no_grad()
    def picture(self, name: str, prompt: str, seeds: tuple[int, int], share: float) -> Image.Image:
        """The picture on the way between those of two seeds; share: 0 is the first one's.

        Raises UnknownName; ValueError: the prompt is not one of its classes.
        """
        file = self._files().get(name)
        if file is None:
            raise UnknownName(f"there is no GAN {name[:80]!r} here")
        with self._drawing:
            generator = _opened(file.path, file.version).generator
            label = gan.class_of(generator.config, prompt)
            return to_pil(gan.between(generator, seeds, share, label)[0])

"""The pages of the explaining commands, made of a picture that a client names."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image

from pellucid.data.emoji import phrases
from pellucid.explain.autoencoder import round_trip
from pellucid.explain.clip import compare_pictures
from pellucid.explain.noise import NoiseSettings, examine_noise
from pellucid.explain.noise import page as noise_page
from pellucid.explain.parts_page import round_trip_html, similarity_html
from pellucid.model import Model
from pellucid.request import Request

NAME = "picture"
"""What the pages call it: a client names a picture by its content."""


def _noise(model: Model, image: Image.Image, request: Request) -> str:
    guidance = 1.0 if request.guidance is None else request.guidance
    settings = NoiseSettings(prompt=request.prompt, guidance=guidance, seed=request.seed or 0)
    return noise_page.html(examine_noise(model, image, NAME, settings))


def _autoencoder(model: Model, image: Image.Image, request: Request) -> str:
    return round_trip_html(round_trip(model, image, NAME))


def _clip(model: Model, image: Image.Image, request: Request) -> str:
    texts = [request.prompt] if request.prompt else []
    return similarity_html(compare_pictures(model, [(NAME, image)], texts, *phrases()))


PAGES: dict[str, Callable[[Model, Image.Image, Request], str]] = {
    "noise": _noise,
    "autoencoder": _autoencoder,
    "clip": _clip,
}
"""By the kind of the job. Each gets a picture, and the request for its prompt, guidance and seed."""

"""The pages of noise, the autoencoder and CLIP in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pellucid.explain import autoencoder, clip
from pellucid.explain.noise import NoiseSettings, examine_noise
from pellucid.explain.noise import page as noise_page
from pellucid.explain.parts_page import round_trip_html, similarity_html
from pellucid.html import pages
from pellucid.model import Model

NAMES = ("noise", "autoencoder", "clip")


@pytest.fixture(scope="module")
def files(model: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    picture = Image.linear_gradient("L").resize((40, 30)).convert("RGB")
    report = examine_noise(model, picture, "a.png", NoiseSettings((0, 500, 999)))
    trip = autoencoder.round_trip(model, picture, "a.png")
    near = clip.compare_pictures(
        model, [("a.png", picture)], ["a rabbit", "an apple"], ["red", "rabbit"]
    )
    made = {
        "noise": noise_page.html(report),
        "autoencoder": round_trip_html(trip),
        "clip": similarity_html(near),
    }
    for name, text in made.items():
        pages.write(folder / f"{name}.html", text)
    return {name: folder / f"{name}.html" for name in made}


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_with_every_picture(
    name: str, files: dict[str, Path], open_page: Callable[..., Any]
) -> None:
    tab = open_page(files[name])
    assert tab.evaluate("document.images.length") > 2
    assert tab.evaluate("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")
    assert tab.evaluate("[...document.querySelectorAll('svg path')].every((p) => p.getBBox())")


@pytest.mark.parametrize("name", NAMES)
def test_it_fits_a_telephone(
    name: str, files: dict[str, Path], open_page: Callable[..., Any]
) -> None:
    """Wide tables scroll in themselves; the page does not."""
    tab = open_page(files[name], width=360)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360


def test_names_are_not_cut_to_pieces_on_a_telephone(
    files: dict[str, Path], open_page: Callable[..., Any]
) -> None:
    tab = open_page(files["clip"], width=360)
    heads = tab.locator(".matrix th:first-child").all()[1:]
    assert len(heads) == 3 and all(head.bounding_box()["width"] >= 70 for head in heads)


def test_pictures_in_rows_keep_their_size_on_a_telephone(
    files: dict[str, Path], open_page: Callable[..., Any]
) -> None:
    tab = open_page(files["noise"], width=360)
    widths = tab.evaluate(
        "[...document.querySelectorAll('.gallery img')].map((i) => i.clientWidth)"
    )
    assert widths and min(widths) >= 96


@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_read_in_the_dark(
    name: str, files: dict[str, Path], open_page: Callable[..., Any]
) -> None:
    tab = open_page(files[name])
    look = "(e) => { const s = getComputedStyle(e); return [s.color, s.backgroundColor]; }"
    ink = []
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
        ink.append(tab.eval_on_selector("body", look))
    (dark_ink, light_paper), (light_ink, dark_paper) = ink
    assert len({dark_ink, light_paper, light_ink, dark_paper}) == 4


def test_curves_have_the_colours_of_their_series(
    files: dict[str, Path], open_page: Callable[..., Any]
) -> None:
    """A style sheet that was not applied would leave them invisible."""
    tab = open_page(files["noise"])
    strokes = tab.evaluate(
        "[...document.querySelectorAll('svg')[0].querySelectorAll('path.line[class^=s]')]"
        ".map((p) => getComputedStyle(p).stroke)"
    )
    assert len(set(strokes)) == 7 and "none" not in strokes

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


# ---------------------------------------------------------------- controls


def move(tab: Any, name: str, key: str) -> str:
    """Press a key on the slider of this name; what it says then."""
    slider = tab.get_by_label(name, exact=True).first
    slider.focus()
    tab.keyboard.press(key)
    return str(slider.get_attribute("aria-valuetext"))


def test_any_t_of_any_schedule(files: dict[str, Path], open_page: Callable[..., Any]) -> None:
    """The browser computes x = alpha x0 + sigma eps; at t = 0 of flow that is the picture."""
    tab = open_page(files["noise"])
    panel = tab.locator("[data-control=schedule]")
    assert move(tab, "t", "Home") == "t = 0"
    assert "flow" in tab.get_by_label("Schedule", exact=True).get_attribute("aria-valuetext")
    same = """async (panel) => {
      const pixels = (source) => {
        const canvas = document.createElement("canvas");
        canvas.width = source.naturalWidth ?? source.width;
        canvas.height = source.naturalHeight ?? source.height;
        const context = canvas.getContext("2d", { willReadFrequently: true });
        context.drawImage(source, 0, 0);
        return context.getImageData(0, 0, canvas.width, canvas.height).data;
      };
      const [a, b] = [pixels(panel.querySelector("img")), pixels(panel.querySelector("canvas"))];
      return [a.length, Math.max(...a.map((v, i) => Math.abs(v - b[i])))];
    }"""
    count, largest = panel.evaluate(same)
    assert count == 4 * 40 * 30 and largest <= 1
    assert move(tab, "t", "End") == "t = 1000"
    assert panel.evaluate(same)[1] > 30
    assert panel.locator("figcaption").all_inner_texts()[:2] == ["0 × picture", "+ 1 × noise"]
    names = {move(tab, "Schedule", key) for key in ("Home", "ArrowRight", "End")}
    assert names == {"linear", "scaled_linear", "zero_terminal_snr"}


def test_steps_types_and_estimates_have_sliders(
    files: dict[str, Path], open_page: Callable[..., Any]
) -> None:
    tab = open_page(files["noise"])
    for name, slider in (("steps", "t"), ("types", "Type"), ("estimates", "t")):
        panel = tab.locator(f"[data-control={name}]")
        seen = set()
        for key in ("Home", "End"):
            panel.get_by_label(slider, exact=True).focus()
            tab.keyboard.press(key)
            seen.add(panel.locator("img").first.get_attribute("src"))
        assert len(seen) == 2


@pytest.mark.parametrize("name", ["autoencoder", "noise"])
def test_two_pictures_under_a_slider(
    name: str, files: dict[str, Path], open_page: Callable[..., Any]
) -> None:
    tab = open_page(files[name])
    assert move(tab, "Divide", "Home") == "0 %"
    shown = "(e) => getComputedStyle(e).clipPath"
    upper = tab.locator(".stage img").nth(1)
    hidden = upper.evaluate(shown)
    tab.locator(".stage").scroll_into_view_if_needed()
    stage = tab.locator(".stage").bounding_box()
    tab.mouse.click(stage["x"] + stage["width"] * 0.75, stage["y"] + 10)
    assert tab.get_by_label("Divide").get_attribute("aria-valuetext") == "75 %"
    assert upper.evaluate(shown) != hidden
    before = upper.get_attribute("src")
    tab.get_by_label("Left").select_option(index=2)
    assert upper.get_attribute("src") != before


def test_the_numbers_of_a_place_of_the_latents(
    files: dict[str, Path], open_page: Callable[..., Any]
) -> None:
    tab = open_page(files["autoencoder"])
    panel = tab.locator("[data-control=values]")
    panel.locator(".pointed").focus()
    before = panel.locator(".told").inner_text()
    tab.keyboard.press("ArrowRight")
    assert panel.locator(".told").inner_text() != before
    assert panel.locator(".cells b").count() == 4
    assert all(text.strip() for text in panel.locator(".cells b").all_inner_texts())


def test_a_curve_says_its_values(files: dict[str, Path], open_page: Callable[..., Any]) -> None:
    tab = open_page(files["noise"])
    plot = tab.locator("svg.plot").first
    plot.focus()
    tab.keyboard.press("Home")
    said = tab.locator(".values").first
    assert "t = 0" in said.inner_text() and "linear 1" in said.inner_text()
    tab.keyboard.press("End")
    assert "flow (model's) 0" in said.inner_text()
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 3, box["y"] + box["height"] / 2)
    assert "t = 0" not in said.inner_text()
    line = tab.locator(".cursor").first.bounding_box()
    assert (
        line["height"] == pytest.approx(box["height"])
        and abs(line["x"] - box["x"] - box["width"] / 3) < 5
    )


def test_two_of_the_table_have_an_angle(
    files: dict[str, Path], open_page: Callable[..., Any]
) -> None:
    tab = open_page(files["clip"])
    told = tab.locator("[data-control=angle] .told")
    cell = tab.locator(".matrix tr").nth(2).locator("td").nth(1)  # a text and itself
    cell.click()
    assert told.inner_text() == "“a rabbit” and “a rabbit”: cosine 1.00, an angle of 0°."
    tab.keyboard.press("ArrowRight")
    assert told.inner_text().startswith("“a rabbit” and “an apple”: cosine ")
    assert move(tab, "Show from", "Home") == "cosine -1.00: 9 of 9"


def test_wide_tables_show_that_they_scroll(
    files: dict[str, Path], open_page: Callable[..., Any]
) -> None:
    tab = open_page(files["noise"], width=360)
    wide = tab.locator(".scroll.right").first
    assert wide.get_attribute("tabindex") == "0"
    assert tab.locator(".hint:visible").first.inner_text() == "← scrolls sideways →"
    wide.evaluate("(e) => e.scrollTo(e.scrollWidth, 0)")
    # Not wait_for_function: it evaluates text again and again, which the page forbids.
    tab.locator(".scroll.left").first.wait_for()


@pytest.mark.parametrize("name", NAMES)
def test_every_control_has_a_name(
    name: str, files: dict[str, Path], open_page: Callable[..., Any]
) -> None:
    tab = open_page(files[name])
    nameless = """() => [...document.querySelectorAll("input, select, img, canvas, [role=img]")]
      .filter((e) => !e.labels?.length && !e.hasAttribute("aria-label") && !e.hasAttribute("alt"))
      .length"""
    assert tab.evaluate(nameless) == 0


def test_a_page_cannot_run_what_is_not_its_own(model: Model, tmp_path: Path, browser: Any) -> None:
    """Names and texts are data: a script that comes with them does not run."""
    evil = '"><img src=x onerror="window.hit=1"><script>window.hit=1</script>'
    picture = Image.new("RGB", (16, 16), "red")
    found = clip.compare_pictures(model, [(evil, picture)], [evil, "a rabbit"], [evil, "red"])
    pages.write(tmp_path / "evil.html", similarity_html(found))
    tab = browser.new_page()
    tab.goto((tmp_path / "evil.html").as_uri())
    assert tab.evaluate("window.hit") is None
    assert tab.evaluate("document.querySelectorAll('[onerror]').length") == 0
    tab.close()

"""The page of an explanation in a real browser: it opens without an error, and can be used."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pellucid.backbones.mmdit import MMDiT, MMDiTConfig
from pellucid.explain.run import explain, page
from pellucid.model import Model
from pellucid.request import Request

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect

REQUEST = Request(prompt="a red <b>apple</b>", seed=5, steps=6, guidance=3.0)
STEP = "#step"


@pytest.fixture(scope="module")
def files(model: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One explanation as a page, and two."""
    folder = tmp_path_factory.mktemp("pages")
    first = explain(model, REQUEST, ["a rabbit", "a red apple"])
    second = explain(model, REQUEST.model_copy(update={"prompt": "a rabbit", "guidance": 1.0}))
    paths = {"one": folder / "one.html", "two": folder / "two.html"}
    page.write(paths["one"], model, [first])
    page.write(paths["two"], model, [first, second])
    return paths


@pytest.fixture
def shown(
    open_page: Callable[..., Any], files: dict[str, Path], request: pytest.FixtureRequest
) -> Any:
    """The page "one", or the one that the test asks for; no error, and nothing fetched."""
    return open_page(files[getattr(request, "param", "one")])


two = pytest.mark.parametrize("shown", ["two"], indirect=True)


def test_it_opens_where_the_guidance_is_seen(shown: Any) -> None:
    expect(shown.locator("h1")).to_have_text("How “a red <b>apple</b>” was drawn")
    opening = shown.evaluate("JSON.parse(document.getElementById('record').textContent).opening")
    expect(shown.locator(STEP)).to_have_value(str(opening))
    expect(shown.locator("#where")).to_contain_text(f"Step {opening} of 6")
    expect(shown.locator("#guidance")).to_contain_text("at this step; most at step")
    expect(shown.locator("section")).to_have_count(11)
    for section in shown.locator("section").all():  # each says where it is in the source, and how
        expect(section.locator(".equation")).not_to_be_empty()
        expect(section.locator("summary").first).to_contain_text(re.compile(r"pellucid/.*\.py"))
    assert shown.evaluate("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")


def test_the_slider_by_keyboard(shown: Any) -> None:
    guess = shown.locator("#estimate img").nth(1)
    shown.focus(STEP)
    shown.keyboard.press("End")
    last = guess.get_attribute("src")
    shown.keyboard.press("Home")
    expect(shown.locator("#where")).to_contain_text("Step 1 of 6: 100 % noise")
    assert guess.get_attribute("src") != last
    shown.keyboard.press("ArrowRight")
    expect(shown.locator("#where")).to_contain_text("Step 2 of 6")
    expect(shown.locator(STEP)).to_have_attribute("aria-valuetext", re.compile("Step 2 of 6"))
    shown.keyboard.press("End")
    assert guess.get_attribute("src") == last


def test_the_slider_by_mouse(shown: Any) -> None:
    box = shown.locator(STEP).bounding_box()
    shown.mouse.click(box["x"] + 3, box["y"] + box["height"] / 2)
    expect(shown.locator("#where")).to_contain_text("Step 1 of 6")
    shown.mouse.move(box["x"] + 8, box["y"] + box["height"] / 2)
    shown.mouse.down()
    shown.mouse.move(box["x"] + box["width"] - 3, box["y"] + box["height"] / 2, steps=5)
    shown.mouse.up()
    expect(shown.locator("#where")).to_contain_text("Step 6 of 6")


def test_arrows_and_space_where_nothing_has_the_focus(shown: Any) -> None:
    shown.keyboard.press("ArrowRight")
    expect(shown.locator("#where")).to_contain_text("Step 3 of 6")
    shown.keyboard.press("ArrowLeft")
    expect(shown.locator("#where")).to_contain_text("Step 2 of 6")
    shown.keyboard.press("Space")
    expect(shown.locator("#play")).to_have_text("Pause")
    expect(shown.locator("#where")).to_contain_text("Step 6 of 6")


def test_play_and_pause(open_page: Callable[..., Any], files: dict[str, Path]) -> None:
    shown = open_page(files["one"], own=True)  # whose clock stays as it is set
    shown.clock.install(time=0)
    shown.reload()
    shown.clock.pause_at(10**7)  # from here on time goes by when the test says so
    button, where = shown.locator("#play"), shown.locator("#where")
    button.click()  # where nothing was moved yet, from the beginning
    expect(button).to_have_text("Pause")
    expect(where).to_contain_text("Step 1 of 6")
    shown.clock.run_for(800)
    expect(where).to_contain_text("Step 3 of 6")
    button.focus()
    shown.keyboard.press("Enter")
    expect(button).to_have_text("Play")
    expect(button).to_have_attribute("aria-pressed", "false")
    shown.clock.run_for(800)
    expect(where).to_contain_text("Step 3 of 6")
    shown.keyboard.press("Space")  # goes on where it was, and stops at the end
    shown.clock.run_for(5000)
    expect(where).to_contain_text("Step 6 of 6")
    expect(button).to_have_text("Play")
    button.click()  # and from the end it begins again
    expect(where).to_contain_text("Step 1 of 6")


def test_words_layers_and_heads(shown: Any) -> None:
    shown.focus(STEP)
    shown.keyboard.press("Home")
    shown.keyboard.press("ArrowRight")
    words = shown.locator("#attention .words button")
    large = shown.locator("#attention figure canvas")
    picture = "(canvas) => canvas.toDataURL()"
    expect(words).to_have_count(4)  # "red", "b", "apple", "b": not "a", "<", ">"
    assert sum(float(text.split(" %")[0]) for text in words.locator("small").all_inner_texts()) == (
        pytest.approx(100, abs=2)
    )
    expect(words.first).to_have_attribute("aria-pressed", "true")
    expect(shown.locator("#attention figcaption")).to_contain_text("red at step 2, 4×4 positions")
    expect(shown.locator("#attention .small")).to_contain_text(
        re.compile("words with a map get .* “a” .* and the start, the end and the padding")
    )
    before = large.evaluate(picture)
    words.nth(2).focus()
    shown.keyboard.press("Enter")
    expect(words.nth(2)).to_have_attribute("aria-pressed", "true")
    expect(shown.locator("#attention figcaption")).to_contain_text("apple at step 2")
    averaged = large.evaluate(picture)
    assert averaged != before
    shown.get_by_label("Layer").select_option(index=1)
    shown.get_by_label("Head").select_option(index=2)
    assert large.evaluate(picture) != averaged


def test_the_map_has_the_squares_of_the_layer(shown: Any) -> None:
    """4x4 squares of one colour each, with lines between them: nothing is smoothed."""
    colours = """(canvas) => {
      const copy = document.createElement("canvas"), side = canvas.width / 4;
      copy.width = copy.height = canvas.width;
      const context = copy.getContext("2d", { willReadFrequently: true });
      context.drawImage(canvas, 0, 0);
      const at = (x, y) => context.getImageData(x, y, 1, 1).data.join();
      const same = [...Array(16).keys()].every((i) => {
        const [x, y] = [(i % 4) * side, Math.floor(i / 4) * side];
        return at(x, y) === at(x + side - 2, y + side - 2) && at(x + side - 1, y) === "0,0,0,0";
      });
      return [same, getComputedStyle(canvas).imageRendering];
    }"""
    canvas = shown.locator("#attention figure canvas")
    assert canvas.evaluate(colours) == [True, "pixelated"]


def test_the_overview_leads_to_every_section(shown: Any) -> None:
    links = shown.locator("#overview a")
    expect(links).to_have_count(11)
    for link in links.all():
        assert shown.locator(link.get_attribute("href")).count() == 1
    links.nth(5).click()
    assert shown.evaluate("location.hash") == "#network"
    expect(shown.locator("#network h2")).to_be_in_viewport()


def test_the_schedule_shows_the_step(shown: Any) -> None:
    dot = shown.locator("#schedule circle.dot.sigma").nth(3)
    dot.scroll_into_view_if_needed()
    dot.click()
    expect(shown.locator("#where")).to_contain_text("Step 4 of 6")
    expect(shown.locator("#schedule figcaption")).to_contain_text("Step 4 of 6: t = ")
    place = "(e) => [e.getAttribute('cx'), e.getAttribute('cy')]"
    assert shown.locator("#schedule .here.sigma").evaluate(place) == dot.evaluate(place)


def test_the_drawing_of_the_network(shown: Any) -> None:
    titles = shown.locator("#network .block .title").all_text_contents()
    assert titles == ["8×8 × 8"] * 2 + ["4×4 × 16"] * 2 + ["4×4 × 16: the bottom"]
    expect(shown.locator("#network .skips")).to_have_count(2)
    expect(shown.locator("#network .block .mark.time")).to_have_count(5)
    expect(shown.locator("#network .block .mark.text")).to_have_count(3)


def test_strip_and_path_lead_to_their_steps(shown: Any) -> None:
    shown.get_by_role("button", name="Go to step 2", exact=True).click()
    expect(shown.locator("#where")).to_contain_text("Step 2 of 6")
    dot = shown.locator("#path circle.dot").nth(3)
    dot.scroll_into_view_if_needed()
    dot.click()
    expect(shown.locator("#where")).to_contain_text("Step 4 of 6")


def test_the_bar_of_the_share_is_as_long_as_it_says(shown: Any) -> None:
    shown.focus(STEP)
    share = """() => {
      const bar = document.querySelector("#estimate .share");
      const words = document.querySelector("#estimate .shares").textContent;
      return [bar.firstChild.getBoundingClientRect().width / bar.clientWidth, words];
    }"""
    shown.keyboard.press("Home")
    assert shown.evaluate(share) == [0, "picture 0 %noise 100 %"]
    for _ in range(5):
        shown.keyboard.press("ArrowRight")
        width, words = shown.evaluate(share)
        told = re.match(r"picture (\d+) %", words)
        assert told and abs(width - int(told[1]) / 100) < 0.01


@two
def test_two_runs_move_together(shown: Any) -> None:
    expect(shown.locator("#estimate .run")).to_have_count(2)
    expect(shown.locator("#estimate .tag").first).to_have_text(
        "A: “a red <b>apple</b>”, guidance 3"
    )
    expect(shown.locator("#estimate .tag").last).to_have_text("B: “a rabbit”, guidance 1")
    guesses = shown.locator("#estimate .run figure:nth-child(2) img")
    before = [guess.get_attribute("src") for guess in guesses.all()]
    shown.focus(STEP)
    shown.keyboard.press("Home")
    after = [guess.get_attribute("src") for guess in guesses.all()]
    assert all(old != new for old, new in zip(before, after, strict=True))
    expect(shown.locator("#guidance .run.b figcaption").last).to_contain_text("None")
    # A word of one is chosen in the other only if it is there.
    chosen = shown.locator("#attention button[aria-pressed=true]")
    shown.locator("#attention .run.a .words button").nth(2).click()
    expect(chosen).to_have_count(2)
    expect(chosen.first).to_contain_text("apple")
    expect(chosen.last).to_contain_text("rabbit")


@pytest.mark.parametrize("shown", ["one", "two"], indirect=True)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_on_a_small_screen(shown: Any, scheme: str) -> None:
    shown.emulate_media(color_scheme=scheme)
    shown.set_viewport_size({"width": 400, "height": 800})
    assert shown.evaluate("document.documentElement.scrollWidth") <= 400
    ratio = """() => {
      const light = (colour) => {
        const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
          .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
      };
      const style = (selector) => getComputedStyle(document.querySelector(selector));
      const [a, b] = [style("figcaption").color, style(".run").backgroundColor].map(light);
      return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    }"""
    assert shown.evaluate(ratio) >= 4.5  # WCAG 2.1, 1.4.3


def test_everything_that_can_be_used_has_a_name(shown: Any) -> None:
    nameless = """() => [...document.querySelectorAll(
      "button, input, select, summary, img, canvas"
    )].filter((e) => !(e.textContent.trim() || e.getAttribute("aria-label") || e.labels?.length
        || e.hasAttribute("alt") || e.getAttribute("aria-hidden"))).length"""
    assert shown.evaluate(nameless) == 0
    # Tab goes through the controls, and where it is can be seen.
    shown.keyboard.press("Tab")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert shown.evaluate(outline) == "solid"


def test_a_transformer_has_its_own_drawing(
    model: Model, tmp_path: Path, open_page: Callable[..., Any]
) -> None:
    config = MMDiTConfig(
        in_channels=4,
        out_channels=4,
        layers=2,
        heads=2,
        head_width=8,
        cross_attention_dim=16,
        pooled_dim=12,
        sample_size=8,
        max_patches=8,
    )
    other = replace(model, backbone=MMDiT(config).eval().requires_grad_(False), name="mmdit")
    page.write(tmp_path / "mmdit.html", other, [explain(other, REQUEST)])
    tab = open_page(tmp_path / "mmdit.html")
    drawing = " ".join(tab.locator("#network svg text").all_text_contents())
    assert "2 layers, each:" in drawing and "16 patches × 16" in drawing
    expect(tab.locator("#attention .small")).to_contain_text("the other positions of the picture")

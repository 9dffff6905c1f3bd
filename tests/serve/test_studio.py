"""The studio in a real browser: what people do there, by pointer and by keyboard, without an error."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from PIL import Image, PngImagePlugin

from pellucid.serve.app import application
from pellucid.serve.configuration import Configuration
from pellucid.serve.engine import Engine
from pellucid.serve.server import bound

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
expect = playwright.expect

LONG = 120_000
"""Milliseconds that nothing should need; a busy machine is slow."""
expect.set_options(timeout=LONG)
VIEWS = ("make", "change", "look", "learn", "compare", "history")
STUDIO = Path(__file__).parents[2] / "src" / "pellucid" / "studio"


@pytest.fixture(scope="session")
def address(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of its own, with a tiny model, on a free port."""
    loras = tmp_path_factory.mktemp("loras")
    (loras / "ink.safetensors").touch()
    configuration = Configuration(
        data=tmp_path_factory.mktemp("studio"),
        models=(models,),
        loras=loras,
        model="tiny",
        port=0,
    )
    listening = bound(configuration)
    server = uvicorn.Server(
        uvicorn.Config(
            application(Engine(configuration)), log_config=None, timeout_graceful_shutdown=5
        )
    )
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="session")
def shared_tab(browser: Any) -> Any:
    """For one test after the other: a new one takes a second."""
    page = browser.new_context(accept_downloads=True).new_page()
    page.set_default_timeout(LONG)
    return page


@pytest.fixture
def tab(shared_tab: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens a view as in a new profile. At the end its console is empty, and nothing else was asked
    for."""
    complaints: list[str] = []
    listeners: dict[str, Callable[[Any], Any]] = {
        "console": lambda said: complaints.append(f"{said.type}: {said.text}"),
        "pageerror": lambda error: complaints.append(str(error)),
        "request": lambda sent: (
            sent.url.startswith((address, "data:", "blob:")) or complaints.append(sent.url)
        ),
    }
    # What the studio keeps belongs to its address; on an empty page there it is cleared.
    empty = {"body": '<link rel="icon" href="data:,">', "content_type": "text/html"}
    shared_tab.route(f"{address}empty", lambda route: route.fulfill(**empty))
    shared_tab.goto(f"{address}empty")
    shared_tab.evaluate("localStorage.clear()")
    for event, listener in listeners.items():
        shared_tab.on(event, listener)

    def opened(view: str = "make", width: int = 1200, scheme: str = "light") -> Any:
        shared_tab.set_viewport_size({"width": width, "height": 900})
        shared_tab.emulate_media(color_scheme=scheme)
        shared_tab.mouse.move(0, 0)
        shared_tab.goto(f"{address}#{view}")
        shared_tab.wait_for_selector("main h1")
        return shared_tab

    yield opened
    shared_tab.unroute_all()
    for event, listener in listeners.items():
        shared_tab.remove_listener(event, listener)
    # A request that is refused (by a test that asks for it) is an error on the console as well.
    assert [text for text in complaints if "422" not in text] == []


def made(page: Any, prompt: str = "a red square") -> Any:
    """A picture of Make."""
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name="Draw", exact=True).click()
    page.get_by_role("link", name="Look inside").wait_for()
    return page


def settings(page: Any) -> None:
    page.get_by_text("More", exact=True).click()


def test_a_picture_is_made_and_its_steps_are_seen(tab: Callable[..., Any]) -> None:
    page = tab()
    settings(page)
    page.get_by_label("Steps", exact=True).first.fill("4")
    made(page)
    slider = page.locator("#step")
    expect(slider).to_have_attribute("max", "4")
    slider.focus()
    slider.press("Home")
    first = page.locator(".stage img").get_attribute("src")
    slider.press("ArrowRight")
    expect(page.get_by_text("step 2", exact=True)).to_be_visible()
    assert page.locator(".stage img").get_attribute("src") != first
    estimate = page.locator(".stage img").get_attribute("src")
    page.get_by_role("button", name="with noise").click()
    assert page.locator(".stage img").get_attribute("src") != estimate
    slider.press("End")
    expect(page.locator(".stage img")).to_have_attribute("src", re.compile("^/api/pictures/"))


def test_an_example_is_a_prompt(tab: Callable[..., Any]) -> None:
    page = tab()
    page.get_by_label("Model", exact=True).select_option("emoji")
    example = page.locator(".examples button").last
    text = example.inner_text()
    example.click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(text)
    expect(page.locator("#prompt-prompt-count")).to_contain_text("tokens")
    assert page.locator(".note").count() == 0  # the model knows all of it


def test_the_prompt_counts_tokens_and_keeps_weights(tab: Callable[..., Any]) -> None:
    page = tab()
    page.get_by_label("Prompt", exact=True).fill("a (red:1.3) square")
    expect(page.locator(".tokens .strong").first).to_contain_text("1.3")
    expect(page.locator("#prompt-prompt-count")).to_contain_text("tokens")


def test_the_things_of_a_prompt_are_told(tab: Callable[..., Any]) -> None:
    page = tab()
    page.get_by_label("Model", exact=True).select_option("emoji")
    page.get_by_label("Prompt", exact=True).fill("a red apple and a blue car")
    expect(page.get_by_text("Drawn one by one: a red apple · a blue car")).to_be_visible()


def test_a_name_is_completed_by_the_keyboard(tab: Callable[..., Any]) -> None:
    page = tab()
    with (
        page.expect_response(re.compile("/api/loras")),
        page.expect_response(re.compile("/api/embe")),
    ):
        page.reload()  # the names are there when both replies are
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.press_sequentially("a cat in in")
    expect(page.get_by_role("option", name="ink LoRA")).to_be_visible()
    prompt.press("ArrowDown")
    prompt.press("Enter")
    expect(prompt).to_have_value("a cat in <lora:ink:1>")


def test_everything_survives_a_reload(tab: Callable[..., Any]) -> None:
    page = made(tab(), "a reloaded circle")
    page.reload()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a reloaded circle")
    page.get_by_role("link", name="History").click()
    page.get_by_label("Search in prompts and settings").fill("reloaded")
    expect(page.locator(".thumb")).to_have_count(1)


def test_a_job_that_waits_is_cancelled(tab: Callable[..., Any]) -> None:
    page = tab()
    page.evaluate(
        """() => fetch("/api/queue", {method: "PATCH", headers: {"content-type": "application/json"},
        body: JSON.stringify({paused: true})})"""
    )
    expect(page.get_by_role("heading", name="Queue")).to_be_visible()
    page.get_by_label("Prompt", exact=True).fill("a cancelled square")
    page.keyboard.press("Control+Enter")
    queue = page.locator("section[aria-labelledby=queue]")
    expect(queue).to_contain_text("a cancelled square")
    # The queue may show a job before the reply comes that makes it the one of this page.
    expect(page.get_by_text("Waiting for its turn")).to_be_visible()
    page.keyboard.press("Escape")
    expect(queue).not_to_contain_text("a cancelled square")
    queue.get_by_role("button", name="Go on").click()
    expect(queue).to_have_count(0)


def test_a_part_is_painted_and_redrawn(tab: Callable[..., Any]) -> None:
    page = made(tab())
    page.get_by_role("link", name="Change it").click()
    page.get_by_role("button", name="Brush").click()
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_text("Paint where the picture is redrawn")).to_be_visible()
    box = page.locator(".brush canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.3)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.4, steps=4)
    page.mouse.up()
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_role("button", name="Go on with this picture")).to_be_visible()


def test_a_frame_is_dragged_outwards(tab: Callable[..., Any]) -> None:
    page = made(tab())
    page.get_by_role("link", name="Change it").click()
    page.get_by_role("button", name="Extend", exact=True).click()
    handle = page.get_by_role("slider", name="Extend at the right")
    box = handle.bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 150, box["y"] + 20, steps=4)
    page.mouse.up()
    assert int(handle.get_attribute("aria-valuenow")) > 0


def test_a_second_pass_has_the_pictures_model_and_the_typed_prompt(tab: Callable[..., Any]) -> None:
    page = made(tab())
    page.get_by_label("Model", exact=True).select_option("other")
    page.get_by_role("link", name="Change it").click()
    page.get_by_role("button", name="Second pass").click()
    page.get_by_label("Prompt", exact=True).fill("a violet square")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_role("button", name="Go on with this picture")).to_be_visible()
    (job,) = page.request.get(page.url.split("#")[0] + "api/jobs?q=violet").json()["jobs"]
    assert (job["model"], job["request"]["hires"]) == ("tiny", 2)


def test_all_variations_can_be_seen(tab: Callable[..., Any]) -> None:
    page = made(tab())
    page.get_by_role("link", name="Change it").click()
    page.get_by_role("button", name="Variations").click()
    page.get_by_label("Pictures").fill("2")
    page.get_by_role("button", name="Draw", exact=True).click()
    second = page.get_by_role("button", name="Variation 2")
    second.click()
    expect(second).to_have_attribute("aria-pressed", "true")
    own = second.locator("img").get_attribute("src")
    expect(page.locator(".stage img")).to_have_attribute("src", own)


def test_two_prompts_are_mixed(tab: Callable[..., Any]) -> None:
    page = tab("change")
    page.get_by_role("button", name="Mix").click()
    page.get_by_label("First prompt").fill("a red square")
    page.get_by_label("Second prompt").fill("a blue circle")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_role("button", name="Go on with this picture")).to_be_visible()


def test_the_glass_pane_shows_one_run_and_two(tab: Callable[..., Any]) -> None:
    page = made(tab())
    page.get_by_role("link", name="Look inside").click()
    inside = page.frame_locator("iframe[title='Inside this picture']")
    expect(inside.locator("h1")).to_contain_text("a red square")
    first = page.locator("iframe").get_attribute("src")
    page.reload()
    expect(page.locator("iframe")).to_have_attribute("src", first)  # it is not drawn again
    page.get_by_label("Guidance", exact=True).fill("1")
    page.get_by_role("button", name="Draw both").click()
    expect(inside.locator(".run.b").first).to_be_visible()


def test_a_grid_goes_on_where_a_cell_fails(tab: Callable[..., Any]) -> None:
    page = tab("compare")
    page.get_by_label("Prompt", exact=True).fill("a red square")
    values = page.get_by_label("Values, with commas")
    values.nth(0).fill("1, 3")
    values.nth(1).fill("2, 9999")
    page.get_by_role("button", name="Draw the grid").click()
    expect(page.locator("table.plot img")).to_have_count(2)
    expect(page.locator("table.plot .note.bad")).to_have_count(2)


def test_two_pictures_under_a_slider(tab: Callable[..., Any]) -> None:
    page = made(made(tab()), "a blue square")
    page.get_by_role("link", name="Compare").click()
    page.get_by_role("button", name="Two pictures").click()
    page.locator(".thumb").nth(0).click()
    page.locator(".thumb").nth(1).click()
    page.get_by_label("How much of first is shown").press("Home")
    expect(page.locator(".over img")).to_have_count(2)
    expect(page.locator("dd.differs").first).to_be_visible()


def test_settings_of_another_program_are_read(tab: Callable[..., Any], tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text(
        "parameters",
        "a yellow star\nNegative prompt: a circle\nSteps: 7, Sampler: Euler, CFG scale: 4, Seed: 11",
    )
    path = tmp_path / "other.png"
    Image.new("RGB", (64, 64), "white").save(path, pnginfo=info)
    page = tab("history")
    page.locator("input[type=file]").set_input_files(path)
    page.get_by_role("button", name="Use these settings").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a yellow star")
    settings(page)
    expect(page.get_by_label("Negative prompt")).to_have_value("a circle")
    expect(page.get_by_label("Steps", exact=True).first).to_have_value("7")


def test_settings_that_are_used_again_replace_the_others(tab: Callable[..., Any]) -> None:
    page = tab("change")
    page.get_by_role("button", name="Walk").click()
    page.get_by_label("First prompt").fill("a walking square")
    page.get_by_label("Second prompt").fill("a circle")
    page.get_by_label("Pictures").fill("2")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_role("button", name="Go on with this picture")).to_be_visible()
    page.get_by_role("link", name="Make").click()
    settings(page)
    page.get_by_label("Guidance", exact=True).fill("3")
    page.get_by_role("link", name="History").click()
    page.get_by_label("Search in prompts and settings").fill("walking square")
    page.locator(".thumb").first.click()
    page.get_by_role("button", name="Use these settings again").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a walking square")
    settings(page)
    expect(page.get_by_label("Guidance", exact=True)).to_have_value("")
    other = page.get_by_role("group", name="Other settings")
    other.get_by_text("Walk: a circle").click()
    expect(other.get_by_text("Walk: a circle")).to_have_count(0)


def test_favourites_and_the_bin(tab: Callable[..., Any]) -> None:
    page = made(tab(), "a favourite triangle")
    page.get_by_role("link", name="History").click()
    page.get_by_label("Search in prompts and settings").fill("favourite triangle")
    expect(page.locator(".thumb")).to_have_count(1)
    page.locator(".thumb").click()
    page.get_by_role("button", name="☆ Favourite").click()
    page.get_by_role("button", name="Favourites", exact=True).click()
    expect(page.locator(".thumb")).to_have_count(1)
    page.get_by_role("button", name="To the bin").click()
    expect(page.locator(".thumb")).to_have_count(0)
    page.get_by_role("button", name="Bin", exact=True).click()
    expect(page.locator(".thumb")).to_have_count(1)


def test_a_late_reply_does_not_replace_a_newer_one(tab: Callable[..., Any]) -> None:
    page = made(made(tab(), "a late circle"), "a late square")
    held: list[Any] = []
    page.route(lambda url: "limit=60" in url and "q=" not in url, lambda route: held.append(route))
    with page.expect_request(lambda sent: "limit=60" in sent.url):
        page.get_by_role("link", name="History").click()
    page.get_by_label("Search in prompts and settings").fill("late circle")
    expect(page.locator(".thumb")).to_have_count(1)
    with page.expect_response(lambda reply: "limit=60" in reply.url) as late:
        for route in held:
            route.continue_()
    late.value.finished()
    page.evaluate(
        "new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))"
    )
    assert page.locator(".thumb").count() == 1


def test_without_a_pointer(tab: Callable[..., Any]) -> None:
    page = tab()
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    page.keyboard.type("a red square")
    page.keyboard.press("Control+Enter")
    page.get_by_role("link", name="Change it").focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Brush").focus()
    page.keyboard.press("Enter")
    page.locator(".brush canvas").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Space")
    page.get_by_role("button", name="Draw", exact=True).focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Go on with this picture")).to_be_visible()
    page.get_by_role("button", name="Back to the first picture").focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Extend", exact=True).focus()
    page.keyboard.press("Enter")
    handle = page.get_by_role("slider", name="Extend at the bottom")
    handle.focus()
    page.keyboard.press("ArrowDown")
    assert int(handle.get_attribute("aria-valuenow")) > 0


def test_the_noise_lab_answers(tab: Callable[..., Any]) -> None:
    page = made(tab())
    page.get_by_role("link", name="Learn").click()
    time = page.get_by_label("Time t")
    before = page.locator(".lab .equation").inner_text()
    time.press("End")
    assert page.locator(".lab .equation").inner_text() != before
    page.get_by_role("button", name="The autoencoder").click()
    inside = page.frame_locator("iframe[title='The autoencoder']")
    expect(inside.locator("h1")).to_be_visible()


def test_the_gan_follows_its_slider(tab: Callable[..., Any]) -> None:
    page = tab("learn")
    picture = page.get_by_alt_text("Picture of the GAN gan")
    picture.wait_for()
    before = picture.get_attribute("src")
    page.get_by_label(re.compile("On the way")).press("End")
    expect(page.get_by_text("On the way: 100 %")).to_be_visible()
    assert picture.get_attribute("src") != before
    page.get_by_label("What", exact=True).select_option("rabbit")
    expect(picture).to_have_attribute("src", re.compile("prompt=rabbit"))
    expect(picture).to_have_js_property("naturalWidth", 32)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_barrier(tab: Callable[..., Any], scheme: str) -> None:
    """By axe-core, in every view."""
    page = made(tab("make", scheme=scheme))
    settings(page)
    for view in VIEWS:
        page.get_by_role("navigation").get_by_role("link", name=view.title()).click()
        expect(page).to_have_title(re.compile(f"^{view}", re.IGNORECASE))
        page.wait_for_selector("main h1")
        found = axe.Axe().run(page).response["violations"]
        serious = [
            (each["id"], node["target"])
            for each in found
            if each["impact"] in ("serious", "critical")
            for node in each["nodes"]
        ]
        assert serious == [], view


@pytest.mark.parametrize("width", [360, 768, 1440])
def test_nothing_is_wider_than_the_screen(tab: Callable[..., Any], width: int) -> None:
    page = made(tab("make", width))
    for view in VIEWS:
        page.goto(f"{page.url.split('#')[0]}#{view}")
        page.wait_for_selector("main h1")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, view
    last = page.locator(".tabs a").last.bounding_box()
    assert last["x"] + last["width"] <= width  # all views can be seen in the navigation
    expect(page.get_by_role("heading", name="History", level=1)).to_be_visible()
    page.locator(".thumb").first.click()
    chosen = page.get_by_label("The chosen picture").bounding_box()
    others = page.locator(".thumbs").bounding_box()
    beside = others["x"] + others["width"] <= chosen["x"]
    assert beside or chosen["y"] + chosen["height"] <= others["y"]  # never over the list


def test_the_pictures_of_the_docs(tab: Callable[..., Any], tmp_path: Path) -> None:
    """Made anew by STUDIO_PICTURES=docs python -m pytest -k pictures_of_the_docs tests/serve"""
    folder = Path(os.environ.get("STUDIO_PICTURES", tmp_path))
    page = tab()
    page.get_by_label("Model", exact=True).select_option("emoji")
    expect(page.get_by_text("things that this model knows")).to_be_visible()
    page.get_by_label("Seed", exact=True).fill("7")
    made(page, "a dog and an apple")
    expect(page.locator("#prompt-prompt-count")).to_contain_text("5 of 22 tokens")
    page.screenshot(path=folder / "studio_make.png")
    page.get_by_role("link", name="Change it").click()
    page.get_by_role("button", name="Brush").click()
    box = page.locator(".brush canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.35, box["y"] + box["height"] * 0.2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.65, box["y"] + box["height"] * 0.25, steps=8)
    page.mouse.up()
    expect(page.get_by_role("button", name="Undo")).to_be_enabled()
    page.screenshot(path=folder / "studio_change.png")
    for name in ("studio_make.png", "studio_change.png"):
        with Image.open(folder / name) as image:
            assert image.size == (1200, 900)


def test_the_page_is_small() -> None:
    """Without pictures, as it is on the disk: nothing is compressed on the way."""
    files = [path for path in STUDIO.rglob("*") if path.suffix in (".js", ".css", ".html", ".svg")]
    assert sum(path.stat().st_size for path in files) < 150_000

"""Pages that need nothing but themselves, and the plots in them."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from pellucid.html import bundles, pages
from pellucid.html.bundles import bundle
from pellucid.html.numbers import people
from pellucid.html.plots import Plot, Series
from pellucid.images.data_url import KINDS, to_data_url


def places(svg: str, style: str = "line") -> list[np.ndarray]:
    """The points of every curve of a series, in the order in which they are drawn."""
    found = []
    for path in ElementTree.fromstring(svg).iter("path"):
        if re.fullmatch(rf"s\d {style}", path.attrib["class"]):
            numbers = re.findall(r"[ML]([\d.]+) ([\d.]+)", path.attrib["d"])
            found.append(np.array(numbers, dtype=float))
    return found


def test_a_page_is_well_formed_and_asks_for_nothing(well_formed: Callable[[str], None]) -> None:
    image = Image.new("RGB", (4, 2), "red")
    body = pages.section(
        "Two & more",
        pages.paragraph("a < b"),
        pages.row(pages.picture(image, 'a "red" one', width=40)),
        pages.table(["name", "value"], [["x<y", 0.123456], ["n", 12345]]),
        pages.figure(Plot("p", [Series("a", [0, 1], [1, 2])]).html(), "caption"),
    )
    text = pages.page("Noise & more", body, script="let a = 1;")
    well_formed(text)
    assert re.findall(r'(?:src|href)="([^"]{0,15})', text) == ["data:,", "data:image/png;"]
    assert "x&lt;y" in text and "0.123<" in text and "12,345" in text
    assert 'width="40" height="20"' in text
    digest = base64.b64encode(hashlib.sha256(b"let a = 1;").digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text and "<script>let a = 1;</script>" in text
    assert "script" not in pages.page("Still", body)


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_in_a_url_is_that_picture(kind: str) -> None:
    image = Image.new("RGB", (8, 6), (200, 30, 60))
    head, _, data = to_data_url(image, kind).partition(",")
    assert head == f"data:image/{kind.lower()};base64"
    again = Image.open(io.BytesIO(base64.b64decode(data)))
    assert again.size == (8, 6)
    assert np.abs(np.asarray(again.convert("RGB"), int) - np.asarray(image, int)).max() < 4


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    pages.write(tmp_path / "a.html", "é\ud800")
    assert (tmp_path / "a.html").read_text("utf-8") == "é?"
    with pytest.raises(ValueError, match="is not a folder"):
        pages.write(tmp_path / "none" / "a.html", "x")
    assert [p.name for p in tmp_path.iterdir()] == ["a.html"]


def test_curves_lie_where_their_numbers_say() -> None:
    (line,) = places(Plot("p", [Series("a", [0, 5, 10], [1, 3, 2])]).svg())
    assert line[1, 0] - line[0, 0] == pytest.approx(line[2, 0] - line[1, 0], abs=0.11)
    assert line[0, 1] > line[2, 1] > line[1, 1]  # a page's y goes downwards
    assert line[0, 1] - line[2, 1] == pytest.approx(line[2, 1] - line[1, 1], abs=0.11)


def test_a_logarithmic_axis_has_equal_room_for_equal_ratios() -> None:
    (line,) = places(
        Plot("p", [Series("a", [1, 10, 100], [1, 1e3, 1e6])], log_x=True, log_y=True).svg()
    )
    steps = np.diff(line, axis=0)
    assert steps[0] == pytest.approx(steps[1], abs=0.11)


def test_a_curve_is_broken_where_it_is_not_finite_or_out_of_range() -> None:
    y = [0, 1, float("inf"), 1, 2, 9, float("nan"), 3]
    plot = Plot("p", [Series("a", range(8), y)], y_range=(0, 5))
    assert [len(run) for run in places(plot.svg())] == [2, 2]
    assert plot.svg().count('class="s0 dots"') == 1  # the lonely last point


def test_what_a_logarithm_cannot_show_is_left_out() -> None:
    y = [1e-30, 0, -1, 1e3, float("inf"), 10]
    series = [Series("a", range(6), y)]
    for span, shown in ((None, 3), ((1.0, 1e4), 2)):
        drawn = Plot("p", series, log_y=True, y_range=span).svg()
        assert drawn.count('class="s0 dots"') == shown and "nan" not in drawn


def test_ticks_are_round_and_inside() -> None:
    texts = [mark.text for mark in Plot("p", [Series("a", [0, 1000], [-20, 10])]).marks()]
    assert {"0", "200", "1,000", "-20", "-10"} <= set(texts)
    decades = Plot("p", [Series("a", [1, 2], [1e-4, 1e3])], log_y=True).marks()
    assert {"0.0001", "0.01", "1", "100"} <= {mark.text for mark in decades}


def test_a_plot_as_a_picture_shows_every_series() -> None:
    series = [
        Series("a", [0, 1], [0, 1]),
        Series("b", [0, 1], [1, 0], "dashed"),
        Series("c", [0.5], [0.2], "dots"),
    ]
    picture = Plot("p", series, width=300, height=200).image(scale=2)
    assert picture.size == (600, 400)
    seen = {color for _, color in picture.getcolors(1 << 20) or []}
    assert {(0, 0x72, 0xB2), (0xC2, 0x4E, 0), (0, 0x80, 0x5C)} <= seen


def test_a_flat_curve_has_an_axis_all_the_same() -> None:
    (line,) = places(Plot("p", [Series("a", [0, 1], [3, 3])]).svg())
    assert np.isfinite(line).all()


@pytest.mark.parametrize(
    ("plot", "sentence"),
    [
        (lambda: Plot("p", []), "no series"),
        (lambda: Plot("p", [Series("a", [1], [1, 2])]), "1 x and 2 y"),
        (
            lambda: Plot("p", [Series("a", [0, 1], [0, 1])], x_range=(0, 1), log_x=True).svg(),
            "logarithmic",
        ),
    ],
)
def test_wrong_plots_are_named(plot, sentence: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=sentence):
        plot()


NUMBERS = {
    0: "0",
    7: "7",
    0.5: "0.5",
    3.14159: "3.14",
    31.4159: "31.4",
    314.159: "314",
    12345: "12,345",
    12345.6: "12,346",
    999.9: "1,000",
    999_400: "999,400",
    1_000_000: "1 million",
    24_600_000.0: "24.6 million",
    15_724_970_532_864: "15.7 trillion",
    999_999_999: "1 billion",
    0.0123: "0.012",
    0.0001263: "0.0001",
    -0.0007: "-0.001",
    2e-5: "0.00002",
    1e-9: "nearly 0",
    float("inf"): "∞",
    float("-inf"): "-∞",
}


@pytest.mark.parametrize(("value", "text"), NUMBERS.items())
def test_numbers_for_people(value: float, text: str) -> None:
    assert people(value) == text
    assert people(float("nan")) == "-"


def test_scripts_write_the_same_numbers(tmp_path: Path, open_page: Callable[..., Any]) -> None:
    numbers = [float(value) for value in NUMBERS if np.isfinite(value)]
    numbers += [float(f"{m:.3g}") * 10.0**e for e in range(-8, 14) for m in (1, 1.2345, 9.995, 5.5)]
    said = bundle(
        'import { people } from "./numbers.js";\ndocument.title = JSON.stringify('
        + str(numbers)
        + ".map(people));\n",
        "html/modules",
    )
    pages.write(tmp_path / "a.html", pages.page("Numbers", script=said))
    assert json.loads(open_page(tmp_path / "a.html").title()) == [people(n) for n in numbers]


def test_a_bundle_has_every_module_once_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "x/a.js": '// One.\nimport { two } from "../y/b.js";\nexport const one = two + 1;\n',
        "y/b.js": "/** Two\n * lines. */\nexport function make() {}\nexport const two = 2;\n",
    }
    monkeypatch.setattr(bundles, "read", files.__getitem__)
    script = (
        'import { one } from "./a.js";\nimport { two as deux } from "../y/b.js";\none + deux;\n'
    )
    text = bundle(script, "x")
    assert text.count("const module_y_b =") == 1 == text.count("const module_x_a =")
    assert text.index("module_y_b =") < text.index("module_x_a =")
    assert "return { make, two };" in text and "const { two: deux } = module_y_b;" in text
    assert not re.search(r"import|export|//|lines", text)
    files["y/b.js"] = 'import { one } from "../x/a.js";\nexport const two = 2;\n'
    with pytest.raises(ValueError, match=r"x/a.js and y/b.js and x/a.js import each other"):
        bundle(script, "x")

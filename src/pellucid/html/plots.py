"""Plots of a few curves or points, drawn once as SVG for a page and once as a picture.

A plot becomes a list of marks, and both outputs draw these marks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pellucid.html.numbers import people

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Style = Literal["line", "dashed", "dots"]

# One colour for each series, on white and on black (Okabe & Ito 2008: safe for colour blindness).
LIGHT = ("#0072b2", "#c24e00", "#00805c", "#b8438a", "#8a6d00", "#111111", "#7a3fb0", "#3fa7dd")
DARK = ("#5ab4f0", "#ff9050", "#35d0a0", "#f09acb", "#e6c84a", "#ffffff", "#c79bff", "#a5dcff")
INK, FAINT = "#222222", "#c8c8c8"
LEFT, TOP, RIGHT, BOTTOM = 52, 44, 14, 42  # margins in pixels
SAMPLE, LETTER = 44, 6.2  # width of a line in the legend, and of a letter


@dataclass(frozen=True)
class Series:
    """One curve: y over x. Where either is not finite the curve is broken."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: Style = "line"


@dataclass(frozen=True)
class Mark:
    """A path through `points` (N, 2), or `text` at the one point. color: a series, or None: ink."""

    points: np.ndarray
    text: str = ""
    style: str = "line"  # of a text: "start", "middle" or "end", where its point is
    color: int | None = None
    faint: bool = False


@dataclass(frozen=True)
class Scale:
    """Numbers from `low` to `high` as positions from `start` to `end` in pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def __call__(self, values: Sequence[float]) -> np.ndarray:
        """(N,) positions; NaN for what is not finite or out of range."""
        numbers = np.asarray(values, dtype=float)
        low, high = self.low, self.high
        if self.log:
            numbers = np.log(np.where(numbers > 0, numbers, np.nan))
            low, high = math.log(low), math.log(high)
        share = (numbers - low) / (high - low)
        share = np.where((share > -1e-9) & (share < 1 + 1e-9), share, np.nan)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """About five round numbers; on a logarithmic axis powers of ten, with 2 and 5 times these
        if there are few."""
        decades = math.log10(self.high / self.low) if self.log else 0
        if decades >= 1:
            first, last = math.floor(math.log10(self.low)), math.floor(math.log10(self.high))
            powers = range(first, last + 1, 1 + int(decades) // 7)
            digits = (1, 2, 5) if decades < 3 else (1,)
            ticks = [digit * 10.0**power for power in powers for digit in digits]
            return [tick for tick in ticks if self.low <= tick <= self.high]
        rough = (self.high - self.low) / 5
        unit = 10.0 ** math.floor(math.log10(rough))
        step = min((unit * m for m in (1, 2, 5, 10)), key=lambda step: abs(math.log(step / rough)))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [step * i for i in range(first, last + 1)]


@dataclass(frozen=True)
class Plot:
    """Curves over one pair of axes, with a legend where there are several: in a picture on the right,
    on a page below, where its letters are as large as those of the text.

    x_range, y_range: None covers all finite values; values outside are left out.
    Raises ValueError: no series, x and y of unequal length, a logarithmic axis that reaches 0.
    """

    title: str
    series: Sequence[Series]
    x_label: str = ""
    y_label: str = ""
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    log_x: bool = False
    log_y: bool = False
    width: int = 460
    height: int = 280

    def __post_init__(self) -> None:
        if not self.series:
            raise ValueError(f"the plot {self.title!r} has no series; at least one is needed")
        for one in self.series:
            if len(one.x) != len(one.y):
                raise ValueError(f"{one.name!r} has {len(one.x)} x and {len(one.y)} y")

    def marks(self, legend: bool = False) -> list[Mark]:
        """Axes, curves, and the legend if there is to be one, in drawing order."""
        x, y = self.axes(self._legend_width() if legend else 0)
        left, right, bottom, top = x.start, x.end, y.start, y.end
        marks = [_text(left, 16, self.title, "start")]
        if self.y_label:
            marks.append(_text(left, 34, self.y_label, "start", faint=True))
        if self.x_label:
            middle = (left + right) / 2
            marks.append(_text(middle, self.height - 8, self.x_label, "middle", faint=True))
        for tick, at in zip(x.ticks(), x(x.ticks()), strict=True):
            marks.append(Mark(np.array([[at, top], [at, bottom]]), faint=True))
            marks.append(_text(at, bottom + 15, people(tick), "middle", faint=True))
        for tick, at in zip(y.ticks(), y(y.ticks()), strict=True):
            marks.append(Mark(np.array([[left, at], [right, at]]), faint=True))
            marks.append(_text(left - 6, at + 4, people(tick), "end", faint=True))
        for number, one in enumerate(self.series):
            color = number % len(LIGHT)
            points = np.stack([x(one.x), y(one.y)], axis=1)
            whole = np.isfinite(points).all(axis=1)
            ends = np.flatnonzero(np.diff(whole)) + 1
            for run in np.split(points, ends):
                if len(run) and np.isfinite(run[0]).all():
                    style = "dots" if len(run) == 1 else one.style
                    marks.append(Mark(run, style=style, color=color))
            if legend and len(self.series) > 1:
                at = top + 6 + 17 * number
                sample = np.array([[right + 12, at], [right + 32, at]])
                marks.append(Mark(sample, style=one.style, color=color))
                marks.append(_text(right + 38, at + 4, one.name, "start"))
        return marks

    def _axis(self, name: Literal["x", "y"], start: float, end: float) -> Scale:
        log = self.log_x if name == "x" else self.log_y
        limits = self.x_range if name == "x" else self.y_range
        if limits is None:
            values = np.concatenate([np.asarray(getattr(s, name), float) for s in self.series])
            values = values[np.isfinite(values) & ((values > 0) | (not log))]
            limits = (float(values.min()), float(values.max())) if len(values) else (0.1, 1.0)
        low, high = limits
        if log and low <= 0:
            raise ValueError(
                f"the {name} axis of {self.title!r} is logarithmic and cannot begin at {low}"
            )
        if high <= low:  # one value only
            low, high = (low / 2, low * 2) if log else (low - 0.5, low + 0.5)
        return Scale(low, high, start, end, log)

    def html(self) -> str:
        """The plot and its legend, which `modules/hover.js` adds values to."""
        keys = "".join(_key(one, i, len(self.series) > 1) for i, one in enumerate(self.series))
        return f'<div class="plotbox">{self.svg()}<p class="values">{keys}</p></div>'

    def svg(self) -> str:
        """An <svg> element without the legend, coloured by the page's `CSS`."""
        drawn = "".join(_svg(mark) for mark in self.marks())
        return (
            f'<svg class="plot" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" role="img" aria-label="{escape(self.title)}" '
            f'data-plot="{escape(json.dumps(self.data()))}">{drawn}</svg>'
        )

    def data(self) -> dict[str, Any]:
        """What a page shows where the pointer is (`modules/hover.js`), as JSON values: the x axis
        in pixels, and the series; None where y is not finite."""
        x, _ = self.axes()
        return {
            "x": {"low": x.low, "high": x.high, "start": x.start, "end": x.end, "log": x.log},
            "x_label": self.x_label,
            "series": [
                {
                    "x": [float(f"{value:.4g}") for value in one.x],
                    "y": [float(f"{v:.4g}") if math.isfinite(v) else None for v in one.y],
                }
                for one in self.series
            ],
        }

    def axes(self, legend: float = 0) -> tuple[Scale, Scale]:
        """Of x and of y, inside the margins, left of a legend of this width."""
        x = self._axis("x", float(LEFT), float(self.width - RIGHT) - legend)
        return x, self._axis("y", float(self.height - BOTTOM), float(TOP))

    def _legend_width(self) -> float:
        """The width of the legend in pixels."""
        longest = max(len(one.name) for one in self.series)
        return SAMPLE + LETTER * longest if len(self.series) > 1 else 0

    def image(self, scale: int = 2) -> Image.Image:
        """The plot as a picture on white, each pixel scale x scale."""
        picture = Image.new("RGB", (self.width * scale, self.height * scale), "white")
        brush, font = ImageDraw.Draw(picture), ImageFont.load_default(11 * scale)
        for mark in self.marks(legend=True):
            _paint(brush, mark, scale, font)
        return picture


def _text(x: float, y: float, text: str, anchor: str, faint: bool = False) -> Mark:
    return Mark(np.array([[x, y]]), text, anchor, faint=faint)


def _svg(mark: Mark) -> str:
    name = f"s{mark.color}" if mark.color is not None else "faint" if mark.faint else "ink"
    if mark.text:
        (x, y), anchor = mark.points[0], mark.style
        text = escape(mark.text)
        return f'<text class="{name}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
    if mark.style == "dots":
        path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in mark.points)
    else:
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in mark.points)
    return f'<path class="{name} {mark.style}" d="{path}"/>'


def _key(one: Series, number: int, shown: bool) -> str:
    """The name of a curve behind a piece of it."""
    path = "M2 5h0M10 5h0M18 5h0" if one.style == "dots" else "M0 5H20"
    return (
        f'<span{"" if shown else " hidden"}><svg class="sample" width="20" height="10" '
        f'aria-hidden="true"><path class="s{number % len(LIGHT)} {one.style}" d="{path}"/></svg>'
        f"{escape(one.name)}</span>"
    )


def _paint(brush: ImageDraw.ImageDraw, mark: Mark, scale: int, font: Font) -> None:
    points = mark.points * scale
    if mark.text:
        anchor = {"start": "ls", "middle": "ms", "end": "rs"}[mark.style]
        brush.text(tuple(points[0]), mark.text, fill=INK, font=font, anchor=anchor)
        return
    ink = LIGHT[mark.color] if mark.color is not None else FAINT if mark.faint else INK
    if mark.style == "dots":
        for x, y in points:
            brush.ellipse((x - scale, y - scale, x + scale, y + scale), fill=ink)
    elif mark.style == "dashed":
        length = np.r_[0, np.hypot(*np.diff(points, axis=0).T).cumsum()]
        ends = np.arange(0, length[-1], 4.5 * scale)  # of the dashes and the gaps in turn
        x, y = (np.interp(ends, length, side) for side in points.T)
        for i in range(0, len(ends) - 1, 2):
            brush.line((x[i], y[i], x[i + 1], y[i + 1]), fill=ink, width=round(1.6 * scale))
    else:
        width = max(1, scale // 2) if mark.faint else round(1.6 * scale)
        brush.line([tuple(point) for point in points], fill=ink, width=width, joint="curve")


def _colors(colors: Sequence[str]) -> str:
    return "".join(f".s{i}{{stroke:{color}}}" for i, color in enumerate(colors))


CSS = (
    ".plot{overflow:visible;max-width:100%;height:auto;font:11px system-ui,sans-serif;display:block}"
    "@media(max-width:560px){.plot{font-size:16px}}.sample{margin-right:.35rem}"
    ".plot path,.sample path{fill:none;stroke-width:1.6}.plot path.faint{stroke:#8885;stroke-width:1}"
    ".plot text{fill:currentColor}.plot text.faint{opacity:.75}"
    "path.dashed{stroke-dasharray:5 4}path.dots{stroke-width:3.2!important;stroke-linecap:round}"
    f"{_colors(LIGHT)}@media(prefers-color-scheme:dark){{{_colors(DARK)}}}"
)

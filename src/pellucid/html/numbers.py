"""Numbers for people: as many digits as an eye can use."""

from __future__ import annotations

import math

WORDS = ((1e12, "trillion"), (1e9, "billion"), (1e6, "million"))
SMALLEST = 1e-6


def people(value: float) -> str:
    """A number as a person would write it: 15.7 trillion, 12,300, 3.14, 0.012, 0.0001.

    Three digits from a million on; whole numbers below that are whole. Others have three digits,
    at most three of them behind the point, and one digit below a thousandth.
    `modules/numbers.js` does the same in a page.
    """
    size = abs(value)
    if not math.isfinite(value):
        return "-" if math.isnan(value) else "∞" if value > 0 else "-∞"
    if 0 < size < SMALLEST:
        return "nearly 0"
    for unit, word in WORDS:
        if size >= unit * 0.9995:
            return f"{_digits(value / unit)} {word}"
    if isinstance(value, int) or size >= 999.5:
        return f"{round(value):,}"
    return _digits(value)


def _digits(value: float) -> str:
    size = abs(value)
    if size < 0.0005:
        places = 0 if size == 0 else math.ceil(-math.log10(size))
    else:
        places = 0 if size >= 99.95 else 1 if size >= 9.995 else 2 if size >= 0.9995 else 3
    text = f"{value:.{places}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "") else text

"""The figures of ``pellucid evaluate``. Each file is a metric; its name is the metric's name.

A metric is a file with a function ``measure(evaluation)`` that returns figures by name: numbers,
texts, lists of texts, and pictures, which are saved as NAME.png.
"""

from __future__ import annotations

from pellucid.plugins import discover

METRICS = discover(__name__)

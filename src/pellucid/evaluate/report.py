"""All metrics of a model in one go, as JSON and as a table, and the pictures that they return."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from pellucid.data.emoji import EmojiArt
from pellucid.evaluate import classifier as classifiers
from pellucid.evaluate.evaluation import Evaluation
from pellucid.evaluate.metrics import METRICS
from pellucid.files import write_text
from pellucid.images.metadata import save_image
from pellucid.model import Model
from pellucid.plugins import choose
from pellucid.train.loop import Say, silent


def markdown(results: dict[str, Any]) -> str:
    """Figures and texts as a table, and lists of texts as sentences."""
    lines = ["| what | figure |", "|---|---|"]
    lists = []
    for name, value in results.items():
        if isinstance(value, list):
            lists.append(f"**{name}**: {'; '.join(value)}.")
        else:
            shown = value if isinstance(value, str) else f"{value:.3g}"
            lines.append(f"| {name} | {shown} |")
    return "\n".join(lines) + "\n\n" + "\n\n".join(lists) + "\n"


def report(
    model: Model,
    art: Path = Path("runs/art64.npz"),
    classifier: Path = Path("runs/classifier/state.pt"),
    out: Path = Path("outputs/evaluation"),
    metrics: Sequence[str] = (),
    say: Say = silent,
) -> dict[str, Any]:
    """Measure; ``results.json``, ``results.md`` and the pictures are written to `out`.

    art, classifier: files. metrics: names of `METRICS`; none is all. Raises ValueError if a file is
    missing, or there is no such metric.
    """
    chosen = [choose(name, METRICS, "metric") for name in metrics] or list(METRICS)
    pictures = EmojiArt.load(art)
    evaluation = Evaluation(model, pictures, classifiers.trained(classifier, pictures))
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    for metric in chosen:
        for name, value in METRICS[metric].measure(evaluation).items():
            if isinstance(value, Image.Image):
                save_image(value, out / f"{name}.png")
                continue
            results[name] = value
            say(f"{name}: {value}")
    write_text(out / "results.json", json.dumps(results, indent=1) + "\n")
    write_text(out / "results.md", markdown(results))
    return results

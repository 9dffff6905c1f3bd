"""All figures of a model in one go, as JSON, and the sheet of its hundred common things."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from pellucid.data.emoji import EmojiArt
from pellucid.evaluate import classifier as classifiers
from pellucid.evaluate import quality
from pellucid.files import write_text
from pellucid.images.metadata import save_image
from pellucid.images.pixels import grid
from pellucid.model import Model
from pellucid.train.loop import say


def markdown(results: dict[str, Any]) -> str:
    """The figures as a table, and the misses as lists."""
    lines = ["| what | figure |", "|---|---|"]
    lists = []
    for name, value in results.items():
        if isinstance(value, list):
            lists.append(f"**{name}**: {'; '.join(value)}.")
        else:
            lines.append(f"| {name} | {value:.3g} |")
    return "\n".join(lines) + "\n\n" + "\n\n".join(lists) + "\n"


def report(
    model: Model,
    art_path: Path = Path("runs/art64.npz"),
    classifier_path: Path = Path("runs/classifier/state.pt"),
    out: Path = Path("runs/evaluation"),
) -> dict[str, Any]:
    """Measure everything; ``results.json``, ``results.md`` and ``sheet.png`` are written to `out`.

    Raises ValueError if the rendered art or the trained classifier is missing.
    """
    art = EmojiArt.load(art_path)
    classifier = classifiers.trained(classifier_path, art)
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}

    def note(name: str, value: Any) -> None:
        results[name] = value
        say(f"{name}: {value}")

    for name, value in quality.judge(art, classifier).items():
        note(name, value)
    began = time.monotonic()
    rate, drawn, misses = quality.concept_rate(model, art, classifier, "common")
    save_image(grid(drawn, 10), out / "sheet.png")
    note("common concepts named", rate)
    note("common concepts missed", misses)
    note("seconds for 100 pictures", round(time.monotonic() - began, 1))
    note(
        "common concepts named, guidance 1",
        quality.concept_rate(model, art, classifier, "common", guidance=1.0)[0],
    )
    everyday, _, misses = quality.concept_rate(model, art, classifier, "everyday")
    note("everyday words named", everyday)
    note("everyday words missed", misses)
    for name, value in quality.attributes(model, art, classifier).items():
        note(name, value)
    note("two objects both named", quality.two_objects(model, art, classifier))
    for name, value in quality.novelty(model, art).items():
        note(name, value)
    note("autoencoder PSNR on held-out pictures, dB", quality.autoencoder_psnr(model, art))
    note(
        "CLIP: right picture in the first 5 of 100, held-out captions",
        quality.clip_recall(model, art),
    )
    write_text(out / "results.json", json.dumps(results, indent=1) + "\n")
    write_text(out / "results.md", markdown(results))
    return results

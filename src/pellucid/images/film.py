"""How a picture came out of noise: its steps as one strip, or as an animation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pellucid.files import new_file
from pellucid.images.pixels import grid


def film_strip(
    noisy: Sequence[Image.Image],
    estimates: Sequence[Image.Image],
    labels: Sequence[str] | None = None,
    columns: int = 12,
) -> Image.Image:
    """All steps side by side: x_t above, the estimate of x0 below it, a label under both.

    labels: one for each step; None numbers them from 1. At most `columns` steps, evenly chosen with
    the first and the last among them.
    """
    frames = _frames(noisy, estimates, labels)
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    if len(frames) > columns:
        last = len(frames) - 1
        chosen = [round(i * last / max(columns - 1, 1)) for i in range(columns)]
        frames = [frames[i] for i in (chosen if columns > 1 else [last])]
    return grid(frames, columns=len(frames))


def save_film(
    noisy: Sequence[Image.Image],
    estimates: Sequence[Image.Image],
    path: str | Path,
    labels: Sequence[str] | None = None,
    seconds: float = 4.0,
    scale: int = 2,
    replace: bool = True,
) -> None:
    """The steps as an animated WebP of `seconds`, and one more second on the last step.

    scale: each pixel becomes scale x scale. replace: as in `files.new_file`. Raises
    ValueError if `path` does not end in .webp.
    """
    path = Path(path)
    if path.suffix.lower() != ".webp":
        raise ValueError(f"{path} must end in .webp, got {path.suffix!r}")
    frames = [
        frame.resize((frame.width * scale, frame.height * scale), Image.Resampling.NEAREST)
        for frame in _frames(noisy, estimates, labels)
    ]
    duration = max(20, round(1000 * seconds / len(frames)))  # ms; browsers do not play faster
    durations = [duration] * (len(frames) - 1) + [duration + 1000]
    with new_file(path, replace=replace) as temporary:
        frames[0].save(
            temporary,
            "WEBP",
            save_all=True,
            append_images=frames[1:],
            duration=durations,
            loop=0,
            lossless=True,
        )


def _frames(
    noisy: Sequence[Image.Image],
    estimates: Sequence[Image.Image],
    labels: Sequence[str] | None,
) -> list[Image.Image]:
    if labels is None:
        labels = [str(number) for number in range(1, len(noisy) + 1)]
    if not noisy or not len(noisy) == len(estimates) == len(labels):
        raise ValueError(
            f"noisy, estimates and labels must have the same length of at least 1, got {len(noisy)}, "
            f"{len(estimates)} and {len(labels)}"
        )
    font = ImageFont.load_default()
    frames = []
    for above, below, label in zip(noisy, estimates, labels, strict=True):
        frame = Image.new("RGB", (above.width, above.height + 2 + below.height + 13), "white")
        frame.paste(above, (0, 0))
        frame.paste(below, (0, above.height + 2))
        middle = (above.width / 2, frame.height - 1)
        ImageDraw.Draw(frame).text(middle, label, fill="black", font=font, anchor="md")
        frames.append(frame)
    return frames

"""The noise report as a page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from pellucid.explain.noise import NoiseReport, first_noise
from pellucid.explain.noise.schedules import ScheduleCurves
from pellucid.html.bundles import bundle, read
from pellucid.html.gallery import Gallery
from pellucid.html.pages import (
    control,
    figure,
    page,
    paragraph,
    picture,
    row,
    section,
    source,
    table,
)
from pellucid.html.plots import Plot, Series
from pellucid.images.data_url import to_data_url
from pellucid.images.pixels import to_pil

# How the estimate follows from the network's output; `diffusion.to_x0`.
X0 = {
    "eps": "x0 = (x − σ · ε) / α,  the network predicts ε",
    "x0": "the network predicts x0",
    "v": "x0 = (α · x − σ · v) / (α² + σ²),  the network predicts v = α · ε − σ · x0",
    "flow": "x0 = (x − σ · u) / (α + σ),  the network predicts u = ε − x0",
}
NOISE_RANGE = 4.0  # beyond it a number of the noise is one in 16,000
FOLDER = "explain/noise"
SNR_RANGE = (-12.0, 12.0)  # beyond it either picture or noise is invisible
POWER_RANGE = (1e-4, 1e4)  # a flat picture has no power, which a logarithm cannot show


def html(report: NoiseReport) -> str:
    """The whole page, which needs no other file."""
    return page(
        f"Noise: {report.source}",
        paragraph(
            "A diffusion model learns to remove noise. This page adds more and more noise to your "
            "picture until nothing of it can be seen, and shows what the model recovers of it."
        ),
        row(
            picture(report.picture, f"{report.source}: {_sizes(report)}", 192),
            picture(
                report.estimates.picture,
                f"for {report.model}: its middle, {_size(report.estimates.picture)}",
                192,
            ),
        ),
        _schedules(report),
        _trajectory(report),
        _noise_types(report),
        _estimates(report),
        script=bundle(read(f"{FOLDER}/page.js"), FOLDER),
        data=data(report),
    )


def data(report: NoiseReport) -> dict[str, Any]:
    """What the controls of the page need that is not on it, as JSON values."""
    return {
        "picture": to_data_url(report.picture),
        # As a picture: 0 is grey, black and white are -NOISE_RANGE and NOISE_RANGE.
        "noise": to_data_url(to_pil(first_noise(report.picture, report.seed) / NOISE_RANGE)),
        "noiseRange": NOISE_RANGE,
        "schedules": [
            {
                "name": one.name,
                "about": one.about,
                "t": rounded(one.t),
                "alpha": rounded(one.alpha),
                "sigma": rounded(one.sigma),
                "left": rounded(one.left),
            }
            for one in report.schedules
        ],
        "moments": [
            m.model_dump(mode="json", exclude={"jump", "steps"}) for m in report.trajectory.moments
        ],
        "types": [
            {
                "name": kind.name,
                "about": kind.about,
                "facts": {
                    "variance": kind.variance,
                    "brightness ±": kind.brightness,
                    "neighbours": kind.neighbours,
                    "slope": kind.spectrum.slope if math.isfinite(kind.spectrum.slope) else None,
                },
            }
            for kind in report.noise_types
        ],
        "estimates": [
            {"t": one.t, "error": one.error, "psnr": one.psnr if math.isfinite(one.psnr) else None}
            for one in report.estimates.by_time
        ],
        "decoded": to_data_url(report.estimates.decoded),
    }


def rounded(values: Sequence[float]) -> list[float | None]:
    """With four digits, for JSON, which has no infinity."""
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values]


def _sizes(report: NoiseReport) -> str:
    return "{}x{}".format(*report.size) + f", here {_size(report.picture)}"


def _size(image: Image.Image) -> str:
    return f"{image.width}x{image.height}"


# ---------------------------------------------------------------- the sections


def _schedules(report: NoiseReport) -> str:
    return section(
        "Schedules",
        source("schedule.py", "x = α · x0 + σ · ε,  log SNR = log(α² / σ²)"),
        paragraph(
            "A schedule defines how much picture, α, and how much noise, σ, there is at each t. "
            "All but flow keep α² + σ² = 1. The share of the picture is its part of the variance "
            "of x. Move the two sliders: the first goes through t, the second through the schedules."
        ),
        control("schedule"),
        row(*(figure(plot.html()) for plot in curves(report.schedules))),
        table(("schedule", "what"), [(one.name, one.about) for one in report.schedules]),
        paragraph("The same picture and the same noise under each schedule:"),
        strips(report).html(),
    )


def _trajectory(report: NoiseReport) -> str:
    count, schedule = report.trajectory.count, report.trajectory.schedule
    return section(
        "Small steps and one jump",
        source("diffusion.py", "x_t = r · x_(t-1) + √(σ_t² − r² σ_(t-1)²) · ε,  r = α_t / α_(t-1)"),
        paragraph(
            f"Above, {count} small steps along the schedule {schedule}, each with fresh noise; "
            "below, one jump to each t. The pixels differ, the distribution is the same: mean and "
            "variance agree with the equation up to the precision of measuring a picture of this "
            "size (±, one standard deviation)."
        ),
        control("steps"),
        trajectory(report).html(),
        table(
            (
                *("t", "mean, equation", "±", "small steps", "one jump"),
                *("variance, equation", "±", "small steps", "one jump"),
            ),
            [
                (
                    str(m.t),
                    *(m.mean, m.mean_deviation, m.steps_mean, m.jump_mean),
                    *(m.variance, m.variance_deviation, m.steps_variance, m.jump_variance),
                )
                for m in report.trajectory.moments
            ],
        ),
        row(*(figure(plot.html()) for plot in moments(report))),
    )


def _noise_types(report: NoiseReport) -> str:
    return section(
        "Types of noise",
        source("noise.py", "P(f) = |DFT(x)|² / (H W)"),
        paragraph(
            "Each type, and below it its power spectrum, low frequencies in the middle, high "
            "frequencies at the rim: grey is the power of white noise, white is 100 times that, "
            "black a hundredth. A picture has most of its power at low frequencies, so noise hides "
            "fine detail first. Brightness ± is the standard deviation of a channel's mean between "
            "draws, neighbours the correlation of adjacent pixels (-1 to 1), slope the exponent of "
            "the power law: 0 for white noise, about -2 for photographs."
        ),
        control("types"),
        noise_types(report).html(),
        row(figure(spectra(report).html())),
        table(
            ("noise", "variance", "brightness ±", "neighbours", "slope", "what"),
            [
                (k.name, k.variance, k.brightness, k.neighbours, k.spectrum.slope, k.about)
                for k in report.noise_types
            ],
        ),
    )


def _estimates(report: NoiseReport) -> str:
    found = report.estimates
    prompt = f"with the prompt {found.prompt!r}" if found.prompt else "without a prompt"
    mean = "the mean of all pictures that are possible"
    if found.guidance == 1:
        near_end = f"Near the end that is {mean}"
    else:
        near_end = (
            f"Guidance {found.guidance:g} exaggerates what the prompt changes; without it, the "
            f"estimate near the end would be {mean}"
        )
    parts = []
    if found.by_time:
        parts += [control("estimates"), estimates(report).html()]
        parts += [row(figure(errors(report).html()), figure(quality(report).html()))]
    if len(found.by_time) < len(report.times):
        parts += [
            paragraph(
                "Where α = 0 nothing of the picture is left, and a network that predicts the noise "
                "says nothing about the picture; such a t is left out."
            )
        ]
    return section(
        "The model's estimate of the original",
        source("diffusion.py", X0[found.prediction]),
        paragraph(
            "The picture as latents with noise, decoded, and below it the estimate of the original "
            f"that the model {report.model} makes in one evaluation {prompt}. {near_end}, which is "
            "why a sampler evaluates the network many times."
        ),
        *parts,
    )


# ---------------------------------------------------------------- the galleries and plots


def curves(schedules: Sequence[ScheduleCurves]) -> list[Plot]:
    """alpha, sigma, log SNR and the share of the picture, over t."""

    def plot(
        title: str, of: Callable[[ScheduleCurves], Sequence[float]], span: tuple[float, float]
    ) -> Plot:
        series = [Series(one.name, one.t, of(one)) for one in schedules]
        return Plot(title, series, "t", y_range=span)

    return [
        plot("alpha: how much picture", lambda one: one.alpha, (0, 1)),
        plot("sigma: how much noise", lambda one: one.sigma, (0, 1)),
        plot("log SNR", lambda one: one.log_snr, SNR_RANGE),
        plot("the share of the picture", lambda one: one.left, (0, 1)),
    ]


def strips(report: NoiseReport) -> Gallery:
    """The picture at the chosen times under each schedule."""
    rows = [(one.name, one.strip) for one in report.schedules]
    return Gallery([f"t = {t}" for t in report.times], rows, kind="WEBP")


def trajectory(report: NoiseReport) -> Gallery:
    """x after small steps and after one jump."""
    found = report.trajectory.moments
    rows = [("small steps", [m.steps for m in found]), ("one jump", [m.jump for m in found])]
    return Gallery([f"t = {m.t}" for m in found], rows, kind="WEBP")


def moments(report: NoiseReport) -> list[Plot]:
    """Mean and variance over t: the equation, the steps, the jump."""
    found = report.trajectory.moments
    t = [m.t for m in found]
    return [
        Plot(
            name,
            [
                Series("equation", t, [getattr(m, name) for m in found]),
                Series("small steps", t, [getattr(m, f"steps_{name}") for m in found], "dots"),
                Series("one jump", t, [getattr(m, f"jump_{name}") for m in found], "dots"),
            ],
            "t",
        )
        for name in ("mean", "variance")
    ]


def noise_types(report: NoiseReport) -> Gallery:
    """Each type of noise and its spectrum, and the picture's."""
    kinds = report.noise_types
    rows = [
        ("noise", [*(kind.picture for kind in kinds), report.picture]),
        ("spectrum", [*(kind.spectrum.plane for kind in kinds), report.spectrum.plane]),
    ]
    return Gallery([*(kind.name for kind in kinds), "the picture"], rows, width=144)


def spectra(report: NoiseReport) -> Plot:
    """Power over frequency."""
    series = [Series(k.name, k.spectrum.frequency, k.spectrum.power) for k in report.noise_types]
    own = Series("the picture", report.spectrum.frequency, report.spectrum.power, "dashed")
    return Plot(
        "power spectrum",
        [*series, own],
        "cycles per pixel",
        y_range=POWER_RANGE,
        log_x=True,
        log_y=True,
    )


def estimates(report: NoiseReport) -> Gallery:
    """The network's input and its estimate."""
    found = report.estimates.by_time
    rows = [("noisy", [e.noisy for e in found]), ("estimate", [e.guess for e in found])]
    return Gallery([f"t = {e.t:g}" for e in found], rows)


def errors(report: NoiseReport) -> Plot:
    """The distance of the estimate's latents from the original's."""
    found = report.estimates.by_time
    series = [Series("error", [e.t for e in found], [e.error for e in found])]
    return Plot("error of the estimate, relative to the latents", series, "t")


def quality(report: NoiseReport) -> Plot:
    """PSNR of the estimate, and of the autoencoder alone."""
    found, bound = report.estimates.by_time, report.estimates.decoded_psnr
    t = [e.t for e in found]
    return Plot(
        "PSNR of the estimate",
        [
            Series("estimate", t, [e.psnr for e in found]),
            Series("autoencoder", t, [bound] * len(t), "dashed"),
        ],
        "t",
        "dB",
    )

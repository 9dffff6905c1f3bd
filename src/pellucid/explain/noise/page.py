"""The noise lab as a page, and the most of it as one picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image

from pellucid.explain.noise import NoiseLab
from pellucid.explain.noise.schedules import ScheduleLook
from pellucid.html import gallery
from pellucid.html.gallery import Gallery
from pellucid.html.pages import figure, page, paragraph, picture, row, section, source, table
from pellucid.html.plots import Plot, Series

# How the estimate follows from what the network says; `diffusion.to_x0`.
X0 = {
    "eps": "x0 = (x − σ · ε) / α,  the network says ε",
    "x0": "the network says x0",
    "v": "x0 = (α · x − σ · v) / (α² + σ²),  the network says v = α · ε − σ · x0",
    "flow": "x0 = (x − σ · u) / (α + σ),  the network says u = ε − x0",
}
SNR_RANGE = (-12.0, 12.0)  # beyond it one of picture and noise cannot be seen
POWER_RANGE = (1e-4, 1e4)  # a flat picture has no power, which a logarithm cannot show


def html(lab: NoiseLab) -> str:
    """One file that needs no other."""
    estimates = lab.estimates
    own, seen = "{}x{}".format(*lab.size), _size(estimates.picture)
    told = f"when told {estimates.prompt!r}" if estimates.prompt else "without a prompt"
    return page(
        f"Noise lab: {lab.source}",
        row(
            picture(lab.picture, f"{lab.source}: {own}, here {_size(lab.picture)}", 192),
            picture(estimates.picture, f"for {lab.model}: its middle, {seen}", 192),
        ),
        section(
            "Schedules",
            source("schedule.py", "x = α · x0 + σ · ε,  log SNR = log(α² / σ²)"),
            paragraph(
                "A schedule says how much picture, α, and how much noise, σ, there is at every t. "
                "All but flow keep α² + σ² = 1. What is left is the picture's share of the "
                "variance of x."
            ),
            row(*(figure(plot.svg()) for plot in curves(lab.schedules))),
            table(("schedule", "what"), [(look.name, look.about) for look in lab.schedules]),
            paragraph("The same picture and the same noise under each of them:"),
            strips(lab).html(),
        ),
        section(
            "Small steps and one jump",
            source(
                "diffusion.py", "x_t = r · x_(t-1) + √(σ_t² − r² σ_(t-1)²) · ε,  r = α_t / α_(t-1)"
            ),
            paragraph(
                f"Above, {lab.walk.count} small steps along the schedule {lab.walk.schedule}, each "
                "with fresh noise; below, one jump to each t. The grains differ, the law is the "
                "same: mean and variance are those of the equation, up to what measuring a picture "
                "of this size allows (±, one deviation)."
            ),
            walked(lab).html(),
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
                    for m in lab.walk.moments
                ],
            ),
            row(*(figure(plot.svg()) for plot in moments(lab))),
        ),
        section(
            "Types of noise",
            source("noise.py", "P(f) = |DFT(x)|² / (H W)"),
            paragraph(
                "Each type, and below it the power of its waves, the long ones in the middle, the "
                "short ones at the rim: grey is the power of white noise, white is 100 times that, "
                "black a hundredth. A picture has most of its power in the long waves, so that "
                "noise drowns what is fine first. Brightness ± is how far the mean of a channel "
                "moves from draw to draw, neighbours how alike pixels beside each other are (their "
                "correlation, -1 to 1), slope the exponent of the frequency that the power "
                "follows: 0 for white noise, about -2 for photographs."
            ),
            kinds(lab).html(),
            row(figure(spectra(lab).svg())),
            table(
                ("noise", "variance", "brightness ±", "neighbours", "slope", "what"),
                [
                    (k.name, k.variance, k.brightness, k.neighbours, k.spectrum.slope, k.about)
                    for k in lab.kinds
                ],
            ),
        ),
        section(
            "What the model thinks it was",
            source("diffusion.py", X0[estimates.prediction]),
            paragraph(
                "The picture as latents with noise, decoded, and below it the estimate of the "
                f"original that the model {lab.model} makes in one look {told}. "
                f"{_mean(estimates.guidance)}, which is why a sampler looks many times."
            ),
            *_seen(lab),
        ),
    )


def overview(lab: NoiseLab) -> Image.Image:
    """The plots and the pictures as one picture."""
    plots = [*curves(lab.schedules), spectra(lab), quality(lab)]
    pairs = zip(plots[::2], plots[1::2], strict=True)
    drawn = [gallery.beside([a.image(scale=1), b.image(scale=1)]) for a, b in pairs]
    tables = [strips(lab), walked(lab), kinds(lab)]
    if lab.estimates.looks:
        tables.append(guesses(lab))
    return gallery.stack([*drawn, *(one.image() for one in tables)])


def _mean(guidance: float) -> str:
    mean = "the mean of all that could be there"
    if guidance == 1:
        return f"Near the end that is {mean}"
    return (
        f"Guidance {guidance:g} exaggerates in it what the words change; without, it would near the "
        f"end be {mean}"
    )


def _seen(lab: NoiseLab) -> list[str]:
    looks, parts = lab.estimates.looks, []
    if looks:
        plots = row(figure(errors(lab).svg()), figure(quality(lab).svg()))
        parts = [guesses(lab).html(), plots]
    if len(looks) < len(lab.times):
        words = (
            "Where nothing of the picture is left, α = 0, a network that predicts the noise can say "
            "nothing of the picture; such a t is left out."
        )
        parts.append(paragraph(words))
    return parts


def _size(image: Image.Image) -> str:
    return f"{image.width}x{image.height}"


def curves(looks: Sequence[ScheduleLook]) -> list[Plot]:
    """alpha, sigma, log SNR and what is left, over t."""

    def plot(
        title: str, of: Callable[[ScheduleLook], Sequence[float]], span: tuple[float, float]
    ) -> Plot:
        series = [Series(look.name, look.t, of(look)) for look in looks]
        return Plot(title, series, "t", y_range=span)

    return [
        plot("alpha: how much picture", lambda look: look.alpha, (0, 1)),
        plot("sigma: how much noise", lambda look: look.sigma, (0, 1)),
        plot("log SNR", lambda look: look.log_snr, SNR_RANGE),
        plot("what is left of the picture", lambda look: look.left, (0, 1)),
    ]


def strips(lab: NoiseLab) -> Gallery:
    """The picture at the chosen times under each schedule."""
    rows = [(look.name, look.strip) for look in lab.schedules]
    return Gallery([f"t = {t}" for t in lab.times], rows, kind="WEBP")


def walked(lab: NoiseLab) -> Gallery:
    """x after small steps and after one jump."""
    seen = lab.walk.moments
    rows = [("small steps", [m.steps for m in seen]), ("one jump", [m.jump for m in seen])]
    return Gallery([f"t = {m.t}" for m in seen], rows, kind="WEBP")


def moments(lab: NoiseLab) -> list[Plot]:
    """Mean and variance over t: the equation, the steps, the jump."""
    seen = lab.walk.moments
    t = [m.t for m in seen]
    return [
        Plot(
            name,
            [
                Series("equation", t, [getattr(m, name) for m in seen]),
                Series("small steps", t, [getattr(m, f"steps_{name}") for m in seen], "dots"),
                Series("one jump", t, [getattr(m, f"jump_{name}") for m in seen], "dots"),
            ],
            "t",
        )
        for name in ("mean", "variance")
    ]


def kinds(lab: NoiseLab) -> Gallery:
    """Each type of noise and its spectrum, and the picture's."""
    rows = [
        ("noise", [*(kind.picture for kind in lab.kinds), lab.picture]),
        ("spectrum", [*(kind.spectrum.plane for kind in lab.kinds), lab.spectrum.plane]),
    ]
    return Gallery([*(kind.name for kind in lab.kinds), "the picture"], rows, width=144)


def spectra(lab: NoiseLab) -> Plot:
    """Power over frequency."""
    series = [Series(k.name, k.spectrum.frequency, k.spectrum.power) for k in lab.kinds]
    own = Series("the picture", lab.spectrum.frequency, lab.spectrum.power, "dashed")
    return Plot(
        "power of the waves",
        [*series, own],
        "cycles per pixel",
        y_range=POWER_RANGE,
        log_x=True,
        log_y=True,
        width=560,
    )


def guesses(lab: NoiseLab) -> Gallery:
    """What the network was given and what it made of it."""
    looks = lab.estimates.looks
    rows = [("noisy", [e.noisy for e in looks]), ("estimate", [e.guess for e in looks])]
    return Gallery([f"t = {e.t:g}" for e in looks], rows)


def errors(lab: NoiseLab) -> Plot:
    """How far the estimate's latents are from the original's."""
    looks = lab.estimates.looks
    series = [Series("error", [e.t for e in looks], [e.error for e in looks])]
    return Plot("error of the estimate, in sizes of the latents", series, "t")


def quality(lab: NoiseLab) -> Plot:
    """PSNR of the estimate, and of the autoencoder alone."""
    looks, bound = lab.estimates.looks, lab.estimates.decoded_psnr
    t = [e.t for e in looks]
    return Plot(
        "PSNR of the estimate",
        [
            Series("estimate", t, [e.psnr for e in looks]),
            Series("autoencoder", t, [bound] * len(t), "dashed"),
        ],
        "t",
        "dB",
    )

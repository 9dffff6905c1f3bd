"""What the parts say together: means over the seeds, runs that failed, and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import mean
from typing import Any

from pellucid.evaluate.compare import METHODS, CompareOptions, Part, parameters_of
from pellucid.evaluate.compare.contest import Contest

FAILED = 0.5
"""A run has failed if it broke down (a sample is not finite), or if its good samples cover less than
this share of the modes that as many real samples cover."""
WHOLE = 0.9
"""With this share of the real samples' modes there is no mode collapse."""
CROWDED = 0.5
"""Samples that lie nearer to each other than this, in the distance of real ones, are the same few."""
GOOD_ENOUGH = 0.5
"""Where fewer samples are good than this share of the real ones', modes are missed for another
reason: the pictures are not learnt yet."""

Findings = Mapping[Part, Mapping[str, Any]]


def summarise(
    options: CompareOptions, contests: Mapping[str, Contest], findings: Findings
) -> dict[str, Any]:
    """All that was found, as JSON takes it."""
    data = {}
    for name, contest in contests.items():
        real = findings[Part(name, "real", 0)]["coverage"]
        methods = {
            method: of_method(
                [f for part, f in findings.items() if part[:2] == (name, method)], real
            )
            for method in options.methods
        }
        data[name] = {
            "title": contest.title,
            "modes": contest.modes,
            "good": contest.good,
            "features": contest.features,
            "published": contest.published,
            "recipe": asdict(options.recipe(contest)),
            "parameters": parameters_of(contest, options.methods),
            "real": real,
            "methods": methods,
            "verdict": [verdict(METHODS[m], found, real) for m, found in methods.items()],
        }
    return {"failed_means": " ".join(FAILED_MEANS.split()), "full": options.full, "data": data}


FAILED_MEANS = f"""a sample is not finite, or the good samples cover less than {FAILED:.0%} of the
modes that as many real samples cover"""


def of_method(runs: Sequence[Mapping[str, Any]], real: Mapping[str, Any]) -> dict[str, Any]:
    """The runs of one method, their means, and how many failed."""
    coverages = [run["coverage"] for run in runs if run["coverage"] is not None]
    means = {key: mean(c[key] for c in coverages) for key in real} if coverages else None
    return {
        "runs": [
            {key: run[key] for key in ("coverage", "seconds", "curves")}
            | {"failed": has_failed(run["coverage"], real)}
            for run in runs
        ],
        "mean": means,
        "failed": sum(has_failed(run["coverage"], real) for run in runs),
        "seconds": mean(sum(run["seconds"].values()) for run in runs),
    }


def has_failed(coverage: Mapping[str, Any] | None, real: Mapping[str, Any]) -> bool:
    """See FAILED; no coverage is that of a run that broke down."""
    return coverage is None or coverage["good_modes"] < FAILED * real["good_modes"]


def verdict(title: str, found: Mapping[str, Any], real: Mapping[str, Any]) -> str:
    """Whether this method lost modes, in a sentence."""
    runs, means = found["runs"], found["mean"]
    if means is None:
        return f"{title}: every run broke down."
    covered = [run["coverage"]["good_modes"] for run in runs if run["coverage"] is not None]
    spread = f"from {min(covered)} to {max(covered)} over {len(covered)} runs"
    told = (
        f"{mean(covered):.4g} of the {real['good_modes']} modes that as many real samples show "
        f"({'in one run' if len(covered) == 1 else spread}), {means['good']:.0%} of the samples good"
    )
    if min(covered) >= WHOLE * real["good_modes"] and len(covered) == len(runs):
        return f"{title}: no mode collapse; {told}."
    if means["apart"] < CROWDED:
        near = f"the samples lie {means['apart']:.0%} as far from each other as real ones"
        return f"{title}: mode collapse; {told}, and {near}."
    if means["good"] < GOOD_ENOUGH * real["good"]:
        return (
            f"{title}: not learnt well enough to tell modes that are lost from bad samples; {told}."
        )
    return f"{title}: mode collapse; {told}."

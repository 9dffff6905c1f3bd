"""The results of all parts: means over the seeds, runs that failed, and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import mean
from typing import Any

from pellucid.evaluate.compare.benchmark import CompareOptions, ComparePart, parameters_of
from pellucid.evaluate.compare.methods import METHODS
from pellucid.evaluate.compare.task import Task

FAILED = 0.5
"""A run has failed if a sample is not finite, or if its good samples cover less than this fraction of
the modes that as many real samples cover."""
WHOLE = 0.9
"""With this fraction of the real samples' modes there is no mode collapse."""
CROWDED = 0.5
"""Samples nearer to each other than this fraction of the distance of real ones are counted as
duplicates."""
GOOD_ENOUGH = 0.5
"""If fewer samples are good than this fraction of the real ones', modes are missed for another
reason: the pictures are not learned yet."""

Findings = Mapping[ComparePart, Mapping[str, Any]]


def summarise(
    options: CompareOptions, tasks: Mapping[str, Task], findings: Findings
) -> dict[str, Any]:
    """All results, ready for JSON."""
    data = {}
    for name, task in tasks.items():
        real = findings[ComparePart(name, "real", 0)]["coverage"]
        methods = {
            method: of_method(
                [f for part, f in findings.items() if part[:2] == (name, method)], real
            )
            for method in options.methods
        }
        data[name] = {
            "title": task.title,
            "modes": task.modes,
            "good": task.good,
            "features": task.features,
            "published": task.published,
            "recipe": asdict(options.setup(task)),
            "parameters": parameters_of(task, options.methods),
            "real": real,
            "methods": methods,
            "verdict": [verdict(METHODS[m].title, found, real) for m, found in methods.items()],
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
    """See FAILED; a run whose samples are not finite has no coverage."""
    return coverage is None or coverage["good_modes"] < FAILED * real["good_modes"]


def verdict(title: str, found: Mapping[str, Any], real: Mapping[str, Any]) -> str:
    """Whether this method lost modes, in a sentence."""
    runs, means = found["runs"], found["mean"]
    if means is None:
        return f"{title}: every run failed."
    covered = [run["coverage"]["good_modes"] for run in runs if run["coverage"] is not None]
    spread = f"from {min(covered)} to {max(covered)} over {len(covered)} runs"
    summary = (
        f"{mean(covered):.4g} of the {real['good_modes']} modes that as many real samples show "
        f"({'in one run' if len(covered) == 1 else spread}), {means['good']:.0%} of the samples good"
    )
    if min(covered) >= WHOLE * real["good_modes"] and len(covered) == len(runs):
        return f"{title}: no mode collapse; {summary}."
    if means["apart"] < CROWDED:
        near = f"the samples lie {means['apart']:.0%} as far from each other as real ones"
        return f"{title}: mode collapse; {summary}, and {near}."
    if means["good"] < GOOD_ENOUGH * real["good"]:
        return f"{title}: not learned well enough to distinguish lost modes from bad samples; {summary}."
    return f"{title}: mode collapse; {summary}."

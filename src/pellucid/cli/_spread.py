"""``pellucid generate --prompts FILE --ray``: the lines of a file, spread over a cluster by Ray Data.

Each actor opens the model once and draws one line after another as this machine would, so the pictures
are the same. The files are written here, in the order of the lines.
"""

from __future__ import annotations

import pickle
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pellucid.cli._app import report
from pellucid.cli._draw import Drawn, DrawOptions, draw_job
from pellucid.cli._files import Output
from pellucid.cli._jobs import DrawJob, Jobs, PictureIndex, missing
from pellucid.cli._like import PictureRecord
from pellucid.folders import embedded
from pellucid.messages import text_of

if TYPE_CHECKING:
    from pellucid.model import Model


@dataclass
class Drawer:
    """What an actor does: a row has a pickled job, and gets pickled pictures or an error."""

    jobs: Jobs
    settings: DrawOptions
    recorded: PictureRecord
    output: Output

    def __post_init__(self) -> None:
        settings = self.settings
        self.model = self.jobs.files.open(settings.device, settings.dtype, settings.threads)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Draw a line."""
        job: DrawJob = pickle.loads(row["job"])
        try:
            drawn = draw_job(job, self.model, self.settings, self.recorded, self.output, None)
            made: Any = [replace(each, steps=[], model=None) for each in drawn]
        except ValueError as error:
            made = text_of(error)
        return {"made": pickle.dumps((job.place, made))}


def draw_on_ray(
    jobs: Jobs,
    settings: DrawOptions,
    recorded: PictureRecord,
    output: Output,
    made: PictureIndex | None = None,
) -> Generator[Drawn]:
    """As `draw_with_diffusion`, on the cluster of RAY_ADDRESS or on one that is started here.

    ValueError: ray is missing, there is no cluster.
    """
    from pellucid.serve.replicas import connected

    ray = connected()
    left = [{"job": pickle.dumps(job)} for job in _left(jobs, settings, made)]
    if not left:
        return
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    gpus = 1 if settings.device.startswith("cuda") else 0
    actors = max(1, int(ray.cluster_resources().get("GPU" if gpus else "CPU", 1)))
    rows = ray.data.from_items(left, override_num_blocks=len(left)).map(
        Drawer,
        fn_constructor_args=(jobs, settings, recorded, output),
        concurrency=min(actors, len(left)),
        num_cpus=1,
        num_gpus=gpus,
    )
    for row in rows.iter_rows():
        place, drawn = pickle.loads(row["made"])
        if isinstance(drawn, str):
            report(f"{place}: {drawn}")
            output.failed = True
        else:
            yield from drawn


def _left(jobs: Jobs, settings: DrawOptions, made: PictureIndex | None) -> Iterator[DrawJob]:
    """The jobs, less the pictures that are made already."""
    from pellucid import checkpoints
    from pellucid.request import chosen_seed, resolve

    if made is None:
        yield from jobs
        return
    path = embedded() if jobs.files.model is None else jobs.files.model
    model: Model = checkpoints.load(path, "meta", None, jobs.files.prediction)
    for job in jobs:
        seeded = job.request.seed not in (None, -1)
        request = job.request.model_copy(update={"seed": chosen_seed(job.request)})
        record = partial(job.record, name=model.name)
        try:
            parts, there = missing(request, resolve(model, request), seeded, made, record)
        except ValueError:  # the actor says it
            parts, there = [request], []
        for each in there:
            report(f"{each} is there already")
        for part in parts:
            yield replace(job, request=part)

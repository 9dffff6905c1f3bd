"""The process that draws: it gets tasks over a pipe, and reports each step and each result.

It runs the same loop as the command line, ``for progress in generate_in_batches(...)``. Between
steps it reads what came over the pipe, so cancelling is to stop iterating. It ends when the pipe
closes: a worker never outlives its server.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from torch import nn

from pellucid.adapters import adapt, on_backend
from pellucid.data.emoji import concept_names, synonyms
from pellucid.explain.run import Explanation, Recorder, page
from pellucid.files import write_text
from pellucid.images.data_url import to_data_url
from pellucid.images.load import open_image
from pellucid.messages import text_of
from pellucid.model import Model
from pellucid.opening import open_model
from pellucid.pipeline import Progress, batch_size, generate, generate_in_batches
from pellucid.preview import preview
from pellucid.request import Request, resolve
from pellucid.request.fields import PICTURES, file_fields, files_in
from pellucid.runtime import Runtime
from pellucid.runtime.backends import OnBackend
from pellucid.runtime.memory import DoesNotFit, ran_out
from pellucid.serve.models_kept import Kept
from pellucid.serve.picture_pages import PAGES
from pellucid.serve.pictures import PictureStore
from pellucid.serve.queue import Fault, Kind, Picture, State

log = logging.getLogger(__name__)

PREVIEW_SIDE = 256
"""Previews have at most this many pixels on a side."""


class ModelSpec(NamedTuple):
    """A model to open. name: as clients know it. version: changes when the file does."""

    name: str
    path: Path
    version: tuple[int, int]
    prediction: str | None = None


@dataclass(frozen=True)
class WorkerJob:
    """A job, with files in place of names.

    request: with paths. named: the fields of it that name files, as the client named them, which is
    what a picture records. versus: a second run, to explain both.
    """

    id: str
    kind: Kind
    request: Request
    named: Mapping[str, Any]
    model: ModelSpec
    refiner: ModelSpec | None = None
    versus: Request | None = None
    previews: bool = False


class Draw(NamedTuple):
    """To a worker: draw these."""

    tasks: list[WorkerJob]


class Cancel(NamedTuple):
    """To a worker: stop drawing this job of the last `Draw`. keep: with the pictures so far."""

    id: str
    keep: bool = False


class Show(NamedTuple):
    """To a worker: report previews of this job of the last `Draw` from now on."""

    id: str


class StepReport(NamedTuple):
    """From a worker: a step is done. first: the index of the first picture that is
    drawn now. of: how many the job has."""

    id: str
    step: int
    steps: int
    first: int
    of: int
    x: list[str]
    """The noisy latents of each picture, as data: URLs; empty without previews."""
    x0: list[str]
    """The estimates of the results, likewise."""


class Ended(NamedTuple):
    """From a worker: a job has ended. Its pictures are stored. fault: why it failed."""

    id: str
    state: State
    error: str | None = None
    pictures: Sequence[Picture] = ()
    warnings: Sequence[str] = ()
    fault: Fault | None = None
    backend: str | None = None
    """What computed the network of a picture that was drawn."""


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker needs to know. folder: of the server's data."""

    device: str
    dtype: str
    model_bytes: int
    folder: Path
    lora_folder: Path | None
    backend: str = "auto"


class Chosen(NamedTuple):
    """How a model is computed. adapt: as `adapters.on_backend` gives it."""

    adapt: OnBackend
    threads: int


class _Cancelled(Exception):
    """The job was cancelled."""


def main(connection: Connection, options: WorkerOptions) -> None:
    """Run a worker process until the server closes the connection."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the server, which ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the server is gone
        Worker(connection, options).run()


@dataclass
class Worker:
    """Draws what comes over `connection`, until that closes."""

    connection: Connection
    options: WorkerOptions
    cancelled: dict[str, bool] = field(default_factory=dict)
    """Job -> whether its pictures so far are kept."""
    shown: set[str] = field(default_factory=set)
    chosen: WeakKeyDictionary[nn.Module, Chosen] = field(default_factory=WeakKeyDictionary)
    """By the networks of the models that are kept."""
    threads: int = field(default_factory=torch.get_num_threads)
    """Of a model that is not small."""

    def __post_init__(self) -> None:
        self.kept = Kept(self.options.model_bytes)
        self.pictures = PictureStore(self.options.folder / "pictures")

    def run(self) -> None:
        """Draw task after task. Raises EOFError when the server has closed the pipe."""
        while True:
            self.read(self.connection.recv())

    def read(self, message: Draw | Cancel | Show) -> None:
        """Handle a message of the server."""
        if isinstance(message, Cancel):
            self.cancelled[message.id] = message.keep
        elif isinstance(message, Show):
            self.shown.add(message.id)
        else:
            self.cancelled.clear()  # of a run before
            self.shown = {task.id for task in message.tasks if task.previews}
            tasks = message.tasks if len(message.tasks) == 1 else self.left_of_batch(message.tasks)
            for task in tasks:
                self.connection.send(self.ended(task))

    def left_of_batch(self, tasks: Sequence[WorkerJob]) -> list[WorkerJob]:
        """Draw jobs in one batch. Returns those that it did not finish, because it failed."""
        drawn = set[str]()
        try:
            for ended in self.draw_together(tasks):
                self.connection.send(ended)
                drawn.add(ended.id)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except Exception as error:  # of one of them, or of all: each by itself shows it
            log.warning("a batch of %d jobs failed, and each is drawn alone: %s", len(tasks), error)
        return [task for task in tasks if task.id not in drawn]

    def draw_together(self, tasks: Sequence[WorkerJob]) -> Iterator[Ended]:
        """Draw jobs in one batch, as far as the memory allows it. One that is cancelled ends at once."""
        model = self.opened(tasks[0].model)
        refiner = None if tasks[0].refiner is None else self.opened(tasks[0].refiner)
        most = batch_size(Runtime(model), resolve(model, tasks[0].request))
        left = {
            i: task
            for i, task in enumerate(tasks)
            if sum(t.request.count for t in tasks[: i + 1]) <= most
        }
        if len(left) < 2:
            return
        others = [task.request for i, task in left.items() if i > 0]
        adapted = self.chosen[model.backbone].adapt
        for progress in generate(model, tasks[0].request, adapted, refiner, others):
            for i, own in enumerate(progress.each()):
                if i in left and (ended := self.stepped(left[i], model, own, [])) is not None:
                    del left[i]
                    yield ended
            if not left:
                return

    def ended(self, task: WorkerJob) -> Ended:
        """Carry out a job, and return how it ended; an error never ends the worker."""
        try:
            if task.kind in PAGES:
                return self.examine(task)
            return self.explain(task) if task.kind == "explain" else self.draw(task)
        except _Cancelled:
            return Ended(task.id, "cancelled")
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except ValueError as error:
            whose: Fault = "server" if isinstance(error, DoesNotFit) else "request"
            return Ended(task.id, "failed", self.said(text_of(error), task), fault=whose)
        except Exception as error:
            if not ran_out(error):
                log.exception("job %s failed", task.id)
                reason = self.said(f"{type(error).__name__}: {error}", task)
                return Ended(task.id, "failed", f"internal error: {reason}", fault="server")
        self.kept.free()  # only now: the error held the tensors of the run
        reason = "not enough memory; use a smaller size or count"
        return Ended(task.id, "failed", reason, fault="server")

    def draw(self, task: WorkerJob) -> Ended:
        """All pictures of a job."""
        model, refiner = self.opened(task.model), None
        if task.refiner is not None:
            refiner = self.opened(task.refiner)
        made: list[Picture] = []
        adapted = self.chosen[model.backbone].adapt
        for progress in generate_in_batches(model, task.request, adapted, refiner):
            if (ended := self.stepped(task, model, progress, made)) is not None:
                return ended
        raise AssertionError("a run ends with its pictures")

    def stepped(
        self, task: WorkerJob, model: Model, progress: Progress, made: list[Picture]
    ) -> Ended | None:
        """Report a step and store its pictures, which are added to `made`; how the job ended, if this
        was its last step or it was cancelled."""
        try:
            self.report(task, model, progress, len(made), task.request.count)
        except _Cancelled:
            if not self.cancelled[task.id]:
                return Ended(task.id, "cancelled")
            made += self.store(task, progress)
            reason = f"interrupted after step {progress.step} of {progress.steps}"
            return Ended(task.id, "cancelled", reason, made)
        made += self.store(task, progress)
        if len(made) < task.request.count:
            return None
        said = [self.said(warning, task) for warning in progress.warnings]
        return Ended(
            task.id, "done", None, made, said, backend=self.chosen[model.backbone].adapt.name
        )

    def store(self, task: WorkerJob, progress: Progress) -> list[Picture]:
        """The pictures of the last step of a batch, stored with their requests inside; of an earlier
        step, the estimates."""
        last = progress.step == progress.steps
        images = progress.images
        if images is None:
            images = [] if last or task.id not in self.cancelled else self.estimates(task, progress)
        made = []
        for i, image in enumerate(images):
            request = progress.request.alone(i)
            record = request.record() | dict(task.named) | {"model": task.model.name}
            if not last:
                record["interrupted_after"] = progress.step
            name = self.pictures.add_image(image, record)
            made.append(Picture(name, request.seed, *image.size))
        return made

    def estimates(self, task: WorkerJob, progress: Progress) -> list[Image.Image]:
        """What the pictures of a step are expected to be."""
        return preview(self.opened(task.model), progress.x0, "vae")

    def report(
        self, task: WorkerJob, model: Model, progress: Progress, first: int, count: int
    ) -> None:
        """Report a step to the server, and read the server's messages. Raises _Cancelled."""
        while self.connection.poll():
            self.read(self.connection.recv())
        if task.id in self.cancelled:
            raise _Cancelled
        x: list[str] = []
        x0: list[str] = []
        if task.id in self.shown:
            x, x0 = ([_small(p) for p in preview(model, z)] for z in (progress.x, progress.x0))
        self.connection.send(
            StepReport(task.id, progress.step, progress.steps, first, count, x, x0)
        )

    def opened(self, spec: ModelSpec, dtype: str | None = None) -> Model:
        """A model, kept for the next job. dtype: None: that of the options."""
        device, dtype = self.options.device, dtype or self.options.dtype
        load = partial(
            open_model,
            spec.path,
            prediction=spec.prediction,
            device=device,
            dtype=dtype,
            in_turns=True,
        )
        torch.set_num_threads(self.threads)  # a small model before this one had one
        model = self.kept.get((spec.path, spec.version, spec.prediction, dtype), load)
        if model.backbone not in self.chosen:  # once: later its own memory is not free
            adapted = on_backend(model, self.options.backend, self.options.lora_folder)
            self.chosen[model.backbone] = Chosen(adapted, torch.get_num_threads())
        torch.set_num_threads(self.chosen[model.backbone].threads)
        return model

    def explain(self, task: WorkerJob) -> Ended:
        """The page of a run, or of two."""
        model = self.opened(task.model)
        requests = [task.request] + ([] if task.versus is None else [task.versus])
        runs: list[Explanation] = []
        for request in requests:
            recorder = Recorder(model, request, partial(adapt, folder=self.options.lora_folder))
            for progress in recorder.run():
                self.report(task, model, progress, len(runs), len(requests))
            runs.append(recorder.explanation(concept_names(), synonyms()))
        text, left_out = page.page(model, runs)
        self.store_page(task, text)
        made = []
        for run in runs:
            record = run.request.record() | dict(task.named) | {"model": task.model.name}
            name = self.pictures.add_image(run.picture, record)
            made.append(Picture(name, run.request.seed, *run.picture.size))
        warnings = [text for run in runs for text in run.warnings] + (
            [left_out] if left_out else []
        )
        said = [self.said(warning, task) for warning in dict.fromkeys(warnings)]
        return Ended(task.id, "done", None, made, said)

    def examine(self, task: WorkerJob) -> Ended:
        """The page of noise, the autoencoder or CLIP on a picture."""
        # In float32, as the commands that make these pages: they measure what a part loses.
        model, image = self.opened(task.model, "float32"), open_image(Path(str(task.request.image)))
        self.store_page(task, PAGES[task.kind](model, image, task.request))
        return Ended(task.id, "done")

    def said(self, text: str, task: WorkerJob) -> str:
        """A message for the client of a job."""
        specs = [task.model] + ([] if task.refiner is None else [task.refiner])
        names = {str(spec.path): spec.name for spec in specs}
        if self.options.lora_folder is not None:
            names[str(self.options.lora_folder)] = "the LoRA folder"
        return without_paths(text, task.request, names)

    def store_page(self, task: WorkerJob, text: str) -> None:
        """Write the page of a job, whole or not at all."""
        folder = self.options.folder / "explanations"
        folder.mkdir(exist_ok=True)
        write_text(folder / f"{task.id}.html", text)


def without_paths(text: str, request: Request, names: Mapping[str, str] | None = None) -> str:
    """A message for a client: with names in place of the server's paths, which are those of the request
    and those in `names`."""
    places = dict(names or {})
    for name, kind in file_fields(type(request)).items():
        for path in files_in(getattr(request, name)):
            places.setdefault(path, name if kind == PICTURES else Path(path).stem)
            if kind == PICTURES:
                places |= {f"the {word} {path}": f"the {word}" for word in ("picture", "mask")}
    for place in sorted(places, key=len, reverse=True):
        text = text.replace(place, places[place])
    return text


def _small(image: Image.Image) -> str:
    small = image.copy()
    small.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    return to_data_url(small, "JPEG")

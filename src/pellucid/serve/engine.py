"""The engine: jobs are accepted, drawn by worker processes one after another, and watched.

It knows nothing of HTTP. A thread per worker takes the next job from the queue, hands it to its
process, and stores what comes back. Whoever watches gets an event for each change.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pellucid.files import write_text
from pellucid.pipeline import faster_together
from pellucid.runtime.devices import choose_device
from pellucid.serve import replicas, worker
from pellucid.serve.acceptance import Acceptance, Asked
from pellucid.serve.configuration import Configuration
from pellucid.serve.gans import Gans
from pellucid.serve.hashes import Hashes
from pellucid.serve.library import Library
from pellucid.serve.pictures import PictureStore
from pellucid.serve.queue import ENDED, Job, Queue, State
from pellucid.serve.worker import Cancel, Draw, Ended, Show, StepReport, WorkerJob

try:
    from fcntl import LOCK_EX, LOCK_NB, flock
except ImportError:  # Windows: nothing prevents a second server
    flock = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

CRASHES = 2
"""How often a job may be in a worker that ends unexpectedly."""
UNUSED_SECONDS = 86_400.0
"""A picture that no job has or names is deleted when the server starts, if it is older than this."""
SHUTDOWN = "the server is stopping"


class QueueFull(ValueError):
    """No more jobs are accepted now. seconds: when to try again."""

    def __init__(self, message: str, seconds: int) -> None:
        super().__init__(message)
        self.seconds = seconds


class Event(NamedTuple):
    """Something has happened to a job, or to the queue.

    kind: "job": its state or its marks changed. "step": it has a `step`. "queue": its order
    or its pause changed, and `id` is empty. "deleted": the job is gone. "stopping": the server stops.
    job: of "job", one that ended just now.
    """

    kind: Literal["job", "step", "queue", "deleted", "stopping"]
    id: str = ""
    step: StepReport | None = None
    job: Job | None = None


@dataclass
class Live:
    """A job that is drawn now. steps: those with previews so far. batch: the jobs that are drawn
    together with it, itself too, and their work."""

    batch: tuple[str, ...] = ()
    work: float = 0.0
    began: float = field(default_factory=time.monotonic)
    last: StepReport | None = None
    steps: list[StepReport] = field(default_factory=list)

    def seconds_left(self) -> float | None:
        """Until it is done; None: no step is done yet. A batch of pictures is done at once."""
        if self.last is None or self.last.of == 0:
            return None
        share = (self.last.first + self.last.step / max(self.last.steps, 1)) / self.last.of
        spent = time.monotonic() - self.began
        return spent * (1 - share) / share if 0 < share < 1 else 0.0


class Engine:
    """One queue and its workers. Its methods are safe to use from several threads.

    Raises ValueError: the data folder cannot be used, or another server uses it; a device that is not
    there.
    """

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        for device in () if configuration.ray else configuration.devices:
            choose_device(device)  # an error comes now
        self._lock_file, self.pictures, self.queue = _opened(configuration.data)
        self.library = Library(
            configuration.models,
            configuration.loras,
            configuration.embeddings,
            configuration.predictions,
            configuration.upscalers,
        )
        self.acceptance = Acceptance(configuration, self.library, self.pictures)
        self.hashes, self.gans = Hashes(self.queue), Gans(self.library)
        self.live: dict[str, Live] = {}
        self.backends: dict[str, str] = {}
        """What computed the last picture of each model."""
        self.stopping = False
        self.changed = threading.Condition()
        self._watchers: set[Callable[[Event], None]] = set()
        self._paused = self.queue.fact("paused") == "yes"
        self._pace: dict[str, float] = {}  # seconds per unit of work, by model
        self._crashes: dict[str, int] = {}
        if configuration.ray:
            replicas.connected()  # an error comes now
        devices = [each for each in configuration.devices for _ in range(configuration.replicas)]
        self.workers = [_Worker(self, device) for device in devices]

    # ------------------------------------------------------------ life

    def start(self) -> None:
        """Resume the queue; jobs that a killed server was drawing wait again."""
        again = self.queue.requeue()
        if again:
            log.info("%d jobs that were interrupted wait again", again)
        unused = self.pictures.sweep(self.queue.pictures(), UNUSED_SECONDS)
        if unused:
            log.info("%d pictures that no job uses are deleted", unused)
        for each in self.workers:
            each.start()

    def stop_soon(self) -> None:
        """Accept no more jobs, and begin none."""
        with self.changed:
            self.stopping = True
            self.changed.notify_all()
        self.publish(Event("stopping"))

    def stop(self) -> None:
        """Wait for running jobs, `stop_seconds` at most; those that have not ended are queued again."""
        self.stop_soon()
        deadline = time.monotonic() + self.configuration.stop_seconds
        for each in self.workers:
            each.join(max(0.0, deadline - time.monotonic()))
        for each in self.workers:
            each.kill()
        for each in self.workers:
            each.join(10)
        again = self.queue.requeue()
        if again:
            log.info("%d jobs were stopped and wait for the next start", again)
        self.queue.close()
        if self._lock_file is not None:
            self._lock_file.close()

    @property
    def ready(self) -> bool:
        """Whether jobs are accepted and every worker is there."""
        return not self.stopping and all(each.is_alive() for each in self.workers)

    # ------------------------------------------------------------ jobs

    def submit(self, *asked: Asked) -> list[Job]:
        """Accept jobs, all or none; they are on the disk afterwards.

        Raises ValueError: one of them cannot be done; QueueFull.
        """
        if self.stopping:
            raise QueueFull(SHUTDOWN, 10)
        waiting = self.queue.count_waiting()
        if waiting + len(asked) > self.configuration.queue_limit:
            seconds = max(1, round(self.seconds_waiting() / max(waiting, 1)))
            raise QueueFull(
                f"{waiting} jobs wait, and at most {self.configuration.queue_limit} may", seconds
            )
        jobs = [self.acceptance.job(each) for each in asked]
        self.queue.add(jobs)
        self._notify()
        self.queue.sync()
        for job in jobs:
            self.publish(Event("job", job.id))
        self.publish(Event("queue"))
        return jobs

    def cancel(self, id: str, keep: bool = False) -> bool:
        """End a job that waits, or have it stopped after its step; False: it has ended already.

        keep: the pictures so far become its pictures.
        """
        with self.changed:
            drawing = next((each for each in self.workers if id in each.open), None)
            if drawing is not None:
                drawing.send(Cancel(id, keep))
                return True
            return self.end(Ended(id, "cancelled"))  # in the lock: no worker takes it meanwhile

    def leave(self, id: str) -> None:
        """Cancel a job whose client has disconnected; when the server stops, it resumes later."""
        if not self.stopping:
            self.cancel(id)

    def retry(self, id: str) -> bool:
        """Draw again what failed or was cancelled; False: it did neither."""
        if not self.queue.retry(id):
            return False
        self._crashes.pop(id, None)
        self._notify()
        self.publish(Event("job", id))
        self.publish(Event("queue"))
        return True

    def move(self, id: str, place: int) -> bool:
        """Give a waiting job another place; False: it does not wait."""
        if not self.queue.move(id, place):
            return False
        self.publish(Event("queue"))
        return True

    def mark(self, id: str, **values: Any) -> bool:
        """Set marks, as `Queue.mark`. A job that is put into the bin and has not ended is cancelled."""
        if not self.queue.mark(id, **values):
            return False
        if values.get("deleted") is not None:
            self.cancel(id)
        self.publish(Event("job", id))
        if "priority" in values:
            self.publish(Event("queue"))
        return True

    def mark_picture(self, id: str, position: int, favourite: bool) -> bool:
        """As `Queue.mark_picture`."""
        if not self.queue.mark_picture(id, position, favourite):
            return False
        self.publish(Event("job", id))
        return True

    def forget(self, id: str) -> bool:
        """Delete a job of the bin and its files for good; False: it is not in the bin."""
        job = self.queue.job(id)
        if job is None or job.deleted is None or job.state not in ENDED:
            return False
        for name in self.queue.forget(id):
            self.pictures.remove(name)
        for path in (self._steps_file(id), self.explanation(id)):
            path.unlink(missing_ok=True)
        self.publish(Event("deleted", id))
        return True

    def show(self, id: str) -> None:
        """Have previews made of a job that is drawn, from its next step on."""
        with self.changed:
            for each in self.workers:
                if id in each.open:
                    each.send(Show(id))

    @property
    def paused(self) -> bool:
        """Whether waiting jobs are held; running ones go on."""
        return self._paused

    @paused.setter
    def paused(self, held: bool) -> None:
        self.queue.remember("paused", "yes" if held else "no")
        self._paused = held
        self._notify()
        self.publish(Event("queue"))

    # ------------------------------------------------------------ what is known of a job

    def steps(self, id: str) -> list[dict[str, Any]]:
        """The previews of each step, of a job that was asked for with previews."""
        live = self.live.get(id)
        if live is not None:
            return [step._asdict() for step in live.steps]
        try:
            found: list[dict[str, Any]] = json.loads(self._steps_file(id).read_text("utf-8"))
        except (OSError, ValueError):
            return []
        return found

    def keep_grid(self, id: str, grid: dict[str, Any]) -> None:
        """Store the cells of a grid."""
        self.queue.remember(f"grid {id}", json.dumps(grid))

    def grid(self, id: str) -> dict[str, Any] | None:
        """What `keep_grid` has stored; None: there is no such grid."""
        stored = self.queue.fact(f"grid {id}")
        return None if stored is None else json.loads(stored)

    def explanation(self, id: str) -> Path:
        """The page of a job that explains; it is there when the job is done."""
        return self.configuration.data / "explanations" / f"{id}.html"

    def _steps_file(self, id: str) -> Path:
        return self.configuration.data / "steps" / f"{id}.json"

    def seconds_left(self, job: Job) -> float | None:
        """How long a running job still needs; None: not known yet."""
        live = self.live.get(job.id)
        if live is None:
            return None
        if (left := live.seconds_left()) is not None:
            return left
        pace = self._pace.get(job.model)
        spent = time.monotonic() - live.began
        return None if pace is None else max(0.0, pace * live.work - spent)

    def places(self) -> dict[str, tuple[int, float | None]]:
        """Of each waiting job: its place, 1 is the next, and the seconds until it is done."""
        before: float | None = 0.0
        for job in self.queue.running():
            live = self.live.get(job.id)
            if live is not None and live.batch and live.batch[0] != job.id:
                continue  # it is drawn in one batch with another
            left = self.seconds_left(job)
            before = None if before is None or left is None else before + left
        places = {}
        for place, (id, model, work) in enumerate(self.queue.order(), start=1):
            pace = self._pace.get(model)
            before = None if before is None or pace is None else before + pace * work
            places[id] = (place, None if before is None else before / len(self.workers))
        return places

    def seconds_waiting(self) -> float:
        """About how long the whole queue takes."""
        known = [seconds for _, seconds in self.places().values() if seconds is not None]
        return max(known, default=0.0)

    # ------------------------------------------------------------ events

    @contextmanager
    def watch(self, take: Callable[[Event], None]) -> Iterator[None]:
        """Calls `take` with every event in the block. It must return at once."""
        self._watchers.add(take)
        try:
            yield
        finally:
            self._watchers.discard(take)

    def publish(self, event: Event) -> None:
        """Pass an event to all watchers."""
        for take in tuple(self._watchers):
            take(event)

    def wait(self, id: str, timeout: float | None = None) -> Job | None:
        """The job when it has ended; None: there is none, or it took longer than `timeout`."""
        ended = threading.Event()

        def take(event: Event) -> None:
            if event.id == id and (event.job is not None or event.kind == "deleted"):
                ended.set()

        with self.watch(take):
            job = self.queue.job(id)
            if job is not None and job.state not in ENDED:
                ended.wait(timeout)
                job = self.queue.job(id)
        return job if job is not None and job.state in ENDED else None

    # ------------------------------------------------------------ for the workers

    def next_jobs(self, device: str) -> list[Job]:
        """The jobs to draw now, in one batch; waits for one. Empty: the engine stops."""
        while True:
            with self.changed:
                jobs = [] if self.paused or self.stopping else self._batch(device)
                if self.stopping:
                    return []
                if not jobs:
                    self.changed.wait()
                    continue
                taken = self.queue.take([job.id for job in jobs])
                jobs = [job for job in jobs if job.id in taken]
                batch, work = tuple(job.id for job in jobs), sum(job.work for job in jobs)
                self.live |= {id: Live(batch, work) for id in batch}
            if jobs:
                return jobs

    def _batch(self, device: str) -> list[Job]:
        """The next job, and those that are drawn in one batch with it."""
        jobs = self.queue.next(1)
        if not jobs or self.configuration.batch == 1 or jobs[0].id in self._crashes:
            return jobs
        equals = self.queue.equals(jobs[0])
        if len(equals) < 2:
            return jobs
        kind = choose_device(device).type if device == "auto" else device.partition(":")[0]
        pixels = jobs[0].options["batch"]["pixels"]
        room = min(self.configuration.batch, faster_together(kind, pixels))
        batch = []
        for job in equals:
            count = job.request.get("count", 1)
            if count <= room and job.id not in self._crashes:
                batch.append(job)
                room -= count
        return batch or jobs

    def stepped(self, step: StepReport) -> None:
        """A worker has done a step."""
        live = self.live.get(step.id)
        if live is None:  # it was cancelled just before it was handed over
            return
        live.last = step
        if step.first == 0 and step.step == 1:
            live.steps.clear()  # of a batch that failed
        if step.x:
            live.steps.append(step)
        self.publish(Event("step", step.id, step))

    def end(self, ended: Ended) -> bool:
        """Store how a job ended; False: it had ended already."""
        live = self.live.get(ended.id)
        if live is not None and live.steps:
            self._keep_steps(ended.id, live.steps)
        job = self.queue.finish(
            ended.id, ended.state, ended.error, ended.pictures, ended.warnings, ended.fault
        )
        self.live.pop(ended.id, None)
        self._crashes.pop(ended.id, None)
        if job is not None:
            if ended.backend is not None:
                self.backends[job.model] = ended.backend
            if ended.state == "done" and live is not None and live.work:
                spent = (time.monotonic() - live.began) / live.work
                before = self._pace.get(job.model, spent)
                self._pace[job.model] = 0.7 * before + 0.3 * spent
            self.publish(Event("job", ended.id, job=job))
            self.publish(Event("queue"))
            log.info("job ended", extra={"job": ended.id, "state": ended.state, "api": job.api})
        return job is not None

    def crashed(self, ids: list[str], reason: str) -> None:
        """The worker of these jobs has ended: they run once more, the second time they fail."""
        if self.stopping:
            return
        for id in ids:
            self._crashes[id] = self._crashes.get(id, 0) + 1
            if self._crashes[id] >= CRASHES:
                self.end(Ended(id, "failed", reason, fault="server"))
            else:
                self.live.pop(id, None)
                self.queue.requeue([id])
                self.publish(Event("job", id))
        self.publish(Event("queue"))
        self._notify()

    def _keep_steps(self, id: str, steps: list[StepReport]) -> None:
        path = self._steps_file(id)
        path.parent.mkdir(exist_ok=True)
        with suppress(ValueError):  # a full disk: the picture is worth more than its previews
            write_text(path, json.dumps([step._asdict() for step in steps]))

    def _notify(self) -> None:
        with self.changed:
            self.changed.notify_all()


class _Worker(threading.Thread):
    """The thread that hands jobs to one worker process."""

    def __init__(self, engine: Engine, device: str) -> None:
        super().__init__(name=f"worker on {device}", daemon=True)
        self.engine = engine
        self.device = device
        self.open: set[str] = set()
        """The jobs that the process has and that have not ended."""
        self._sending = threading.Lock()
        self._process: Any = None
        self._connection: Connection | None = None

    def run(self) -> None:
        """Draw until the engine stops."""
        try:
            self._begin()
        except ValueError as error:
            log.error("%s", error)
            return
        while jobs := self.engine.next_jobs(self.device):
            try:
                self._draw(jobs)
            except Exception:
                log.exception("the engine failed")
                self.kill()
                for job in jobs:
                    reason = "internal error of the engine"
                    self.engine.end(Ended(job.id, "failed", reason, fault="server"))
        self.kill()

    def send(self, message: Draw | Cancel | Show) -> None:
        """Send a message to the worker process, unless it has ended."""
        with self._sending, suppress(OSError, AttributeError):
            self._connection.send(message)  # type: ignore[union-attr]

    def kill(self) -> None:
        """End the process now."""
        if self._process is not None:
            self._process.kill()

    def _begin(self) -> None:
        """Start the process, or start it again."""
        configuration = self.engine.configuration
        options = worker.WorkerOptions(
            self.device,
            configuration.dtype,
            configuration.model_bytes,
            configuration.data.absolute(),
            configuration.loras,
            configuration.backend,
        )
        process: Any
        if configuration.ray:
            process = replicas.RemoteProcess(options)
            ours = process.connection
        else:
            spawn = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
            ours, theirs = spawn.Pipe()
            process = spawn.Process(
                target=worker.main, args=(theirs, options), name=self.name, daemon=True
            )
            process.start()
            theirs.close()
        with self._sending:
            if self._connection is not None:
                self._connection.close()
            self._process, self._connection = process, ours

    def _draw(self, jobs: list[Job]) -> None:
        """Send jobs to the worker process, and wait until they have ended."""
        tasks = [task for job in jobs if (task := self._task(job)) is not None]
        if tasks and not self._process.is_alive():
            self._begin()
        with self.engine.changed:  # some may have been cancelled by now
            tasks = [task for task in tasks if task.id in self.engine.live]
            self.open = {task.id for task in tasks}
        if tasks:
            self.send(Draw(tasks))
        for job in jobs:
            if job.id in self.engine.live:
                self.engine.publish(Event("job", job.id))
        self.engine.publish(Event("queue"))
        if not tasks:
            return
        limit = self.engine.configuration.second_limit
        deadline = time.monotonic() + limit * len(tasks)
        connection = self._connection
        assert connection is not None
        try:
            while self.open:
                if not connection.poll(max(0.0, deadline - time.monotonic())):
                    self._too_long(limit)
                    return
                self._read(connection.recv())
        except (EOFError, OSError):
            self._process.join(10)
            code = self._process.exitcode
            with self.engine.changed:
                lost, self.open = sorted(self.open), set()
            reason = f"the worker process ended unexpectedly (exit status {code})"
            log.error("%s", reason, extra={"jobs": lost})
            self.engine.crashed(lost, reason)
            if not self.engine.stopping:
                self._begin()

    def _task(self, job: Job) -> WorkerJob | None:
        """None: a file that it names is gone, and it has failed."""
        try:
            return self.engine.acceptance.task(job)
        except ValueError as error:
            self.engine.end(Ended(job.id, "failed", str(error), fault="request"))
            return None

    def _read(self, message: StepReport | Ended) -> None:
        if isinstance(message, StepReport):
            self.engine.stepped(message)
            return
        with self.engine.changed:
            self.open.discard(message.id)
        self.engine.end(message)

    def _too_long(self, limit: float) -> None:
        self.kill()
        self._process.join(10)
        with self.engine.changed:
            lost, self.open = sorted(self.open), set()
        for id in lost:
            reason = f"it took longer than {limit:g} seconds"
            self.engine.end(Ended(id, "failed", reason, fault="server"))
        self._begin()


def _opened(folder: Path) -> tuple[Any, PictureStore, Queue]:
    """The lock, the pictures and the queue of a data folder. ValueError: it cannot be used."""
    with ExitStack() as undo:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = undo.enter_context(_locked(folder))
            pictures, queue = PictureStore(folder / "pictures"), Queue(folder / "queue.sqlite")
        except (OSError, sqlite3.Error) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"the data folder {folder} cannot be used: {reason}") from None
        undo.pop_all()
    return lock, pictures, queue


def _locked(folder: Path) -> Any:
    """The lock of a data folder, held as long as it is open. ValueError: another server has it."""
    file = (folder / "lock").open("w")
    if flock is not None:
        try:
            flock(file, LOCK_EX | LOCK_NB)
        except OSError:
            file.close()
            raise ValueError(f"{folder} is in use by another server") from None
    return file


__all__ = ["Asked", "Engine", "Event", "QueueFull", "State"]

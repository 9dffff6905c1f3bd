"""Pellucid's own interface: jobs, their events, pictures, models, tokens, grids."""

from __future__ import annotations

import asyncio
import itertools
import re
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Query
from fastapi import Path as InPath
from fastapi import Request as Call
from fastapi.concurrency import run_in_threadpool
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import FileResponse, Response, StreamingResponse

from pellucid import __version__
from pellucid.conditioning import reading
from pellucid.explain.noise.schedules import level_at, published
from pellucid.images.load import open_image
from pellucid.images.metadata import read_metadata
from pellucid.plan import prompt_warnings
from pellucid.plugins import nearest
from pellucid.request import Request, chosen_seed
from pellucid.request.request import MAX_SEED
from pellucid.schedule import Schedule
from pellucid.serve import events
from pellucid.serve.acceptance import Asked, upscaler_names
from pellucid.serve.capabilities import capabilities
from pellucid.serve.engine import Engine, Event, QueueFull
from pellucid.serve.library import UnknownName
from pellucid.serve.pictures import encoded, media_type
from pellucid.serve.queue import ENDED, Fault, Job, Kind, Search, State
from pellucid.serve.replies import Json, Problem, Refused, Server, answer_errors, problem_of
from pellucid.variations import MAX_PROMPT

PREFIX = "/api"
RECORD = re.compile('<script type="application/json" id="record">(.*?)</script>', re.DOTALL)
"""The data of a page, as `html.pages` writes them."""
CELLS = 100
"""Cells of a grid at most."""

Id = Annotated[str, InPath(pattern="^[0-9a-f]{32}$", description="Of a job or a grid.")]
PictureId = Annotated[str, InPath(pattern="^[0-9a-f]{64}$", description="SHA-256 of a file.")]
Name = Annotated[str, Field(max_length=300)]
Seed = Annotated[int, Query(ge=0, le=MAX_SEED)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewJob(_Strict):
    """What to draw.

    In `request`, `image` and `mask` are ids of pictures; `loras`, `embeddings` and `refiner` are
    names, as /loras, /embeddings and /models list them.
    """

    request: Request
    model: Name | None = Field(None, description="A name of /models; null: the server's default.")
    kind: Kind = Field(
        "generate",
        description='"explain" makes a page of one run, or of two; "noise", "autoencoder" and "clip" '
        "make theirs of the picture `image`.",
    )
    versus: Request | None = Field(
        None, description="With explain: a second run, from the same noise, next to the first."
    )
    previews: bool = Field(
        False, description="Report x and x0 of each step as pictures, and keep them."
    )
    priority: Annotated[int, Field(ge=-100, le=100)] = Field(0, description="Higher runs first.")


class Changes(_Strict):
    """What to change in a job; what is left out stays."""

    favourite: bool | None = Field(None, description="Of all its pictures.")
    deleted: bool | None = Field(
        None, description="true: into the bin, and cancelled if it has not ended; false: out."
    )
    priority: Annotated[int, Field(ge=-100, le=100)] | None = None
    place: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        None, description="Its place in the queue; 1 is the next."
    )


class PictureChanges(_Strict):
    """What to change in a picture of a job."""

    favourite: bool


class MadePicture(BaseModel):
    """A picture of a job."""

    id: str
    seed: int
    width: int
    height: int
    favourite: bool
    url: str = Field(description="Where to get it, on this server.")


class JobView(BaseModel):
    """A job as clients see it."""

    id: str
    number: int = Field(
        description="Jobs are numbered as they are accepted; `before` of the history takes it."
    )
    kind: Kind
    api: str = Field(description="The interface that it came from.")
    model: str
    state: State
    request: dict[str, Any] = Field(description="As asked, with its seed: send it to repeat.")
    resolved: dict[str, Any] = Field(description="The same with the model's defaults.")
    versus: dict[str, Any] | None
    previews: bool
    priority: int
    place: int | None = Field(description="In the queue; 1 is the next. null: it does not wait.")
    step: int | None
    steps: int | None
    seconds_left: float | None = Field(description="Until it is done; null: not known.")
    pictures: list[MadePicture]
    explanation: str | None = Field(description="The address of the page of an explanation.")
    warnings: list[str]
    error: str | None
    fault: Fault | None = Field(
        description='Of a job that failed: "request", it cannot be done; "server", it may be later.'
    )
    favourite: bool
    deleted: bool
    grid: str | None
    created: float = Field(description="Seconds since 1970, as `started` and `finished`.")
    started: float | None
    finished: float | None


class JobPage(BaseModel):
    """A page of the history, newest first."""

    jobs: list[JobView]
    total: int
    next: int | None = Field(description="`before` of the next page; null: this is the last.")


class QueueState(BaseModel):
    """The queue."""

    paused: bool
    running: list[str]
    waiting: list[str] = Field(description="Ids, the next one first.")
    seconds_left: float | None = Field(description="Until all of it is done; null: not known.")


class Pause(_Strict):
    """Whether waiting jobs are held."""

    paused: bool


class StoredPicture(BaseModel):
    """A picture that was sent."""

    id: str
    width: int
    height: int


class PromptText(_Strict):
    """A prompt to be read."""

    prompt: Annotated[str, Field(max_length=MAX_PROMPT)]
    model: Name | None = None
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None


class Axis(_Strict):
    """One side of a grid."""

    field: Name = Field(description="A field of the request.")
    values: Annotated[list[Any], Field(min_length=1, max_length=CELLS)]


class NewGrid(_Strict):
    """One parameter against another."""

    request: Request
    model: Name | None = None
    x: Axis
    y: Axis | None = None
    previews: bool = False


class Cell(BaseModel):
    """A cell of a grid. error: why it was not accepted; the others are drawn."""

    x: Any
    y: Any
    job: JobView | None
    error: str | None


class Grid(BaseModel):
    """A grid, row by row."""

    id: str
    x: Axis
    y: Axis | None
    rows: list[list[Cell]]


def shape(problem: Problem) -> dict[str, Any]:
    """An error of this interface."""
    return {"error": {"message": problem.message, "field": problem.field}}


def interface(engine: Engine) -> FastAPI:
    """The application of this interface."""
    app = FastAPI(
        title="Pellucid",
        version=__version__,
        description="Pellucid's own interface. Errors are {error: {message, field}}.",
        docs_url=None,
        redoc_url=None,
        default_response_class=Json,
    )
    answer_errors(app, shape)
    app.state.engine = engine
    for router in (about_router, jobs_router, queue_router, pictures_router, grids_router):
        app.include_router(router, responses={422: {"description": "What is wrong, in words."}})
    return app


# ---------------------------------------------------------------- views


def view(engine: Engine, job: Job, places: dict[str, tuple[int, float | None]]) -> JobView:
    """A job for a client. places: as `Engine.places`."""
    live = engine.live.get(job.id)
    last = None if live is None else live.last
    place, seconds = places.get(job.id, (None, None))
    if job.state == "running":
        seconds = engine.seconds_left(job)
    done = job.kind != "generate" and job.state == "done"
    return JobView(
        **{name: getattr(job, name) for name in ("id", "number", "kind", "api", "model", "state")},
        **{name: getattr(job, name) for name in ("request", "resolved", "priority", "warnings")},
        **{name: getattr(job, name) for name in ("error", "fault", "favourite", "grid")},
        **{name: getattr(job, name) for name in ("created", "started", "finished")},
        versus=job.options.get("versus"),
        previews=bool(job.options.get("previews")),
        place=place,
        step=None if last is None else last.step,
        steps=None if last is None else last.steps,
        seconds_left=seconds,
        pictures=[
            MadePicture(
                id=each.picture,
                seed=each.seed,
                width=each.width,
                height=each.height,
                favourite=each.favourite,
                url=f"{PREFIX}/pictures/{each.picture}",
            )
            for each in job.pictures
        ],
        explanation=f"{PREFIX}/jobs/{job.id}/explanation" if done else None,
        deleted=job.deleted is not None,
    )


def found(engine: Engine, id: str) -> Job:
    """The job of an id. Raises Refused: there is none."""
    job = engine.queue.job(id)
    if job is None:
        raise Refused(404, f"there is no job {id}")
    return job


def viewed(engine: Engine, id: str) -> JobView:
    """The job of an id, for a client. Raises Refused: there is none."""
    return _placed(engine, found(engine, id))


def _placed(engine: Engine, job: Job) -> JobView:
    """A job for a client, with its place if it waits."""
    return view(engine, job, engine.places() if job.state == "queued" else {})


def queue_state(engine: Engine) -> QueueState:
    """The queue for a client."""
    places = engine.places()
    times = [seconds for _, seconds in places.values()]
    running = engine.queue.running()
    times += [engine.seconds_left(job) for job in running]
    known = [seconds for seconds in times if seconds is not None]
    return QueueState(
        paused=engine.paused,
        running=[job.id for job in running],
        waiting=list(places),
        seconds_left=max(known, default=0.0) if len(known) == len(times) else None,
    )


# ---------------------------------------------------------------- the server and its models


about_router = APIRouter(tags=["models"])


@about_router.get("/about")
def about(engine: Server) -> dict[str, Any]:
    """The version and the limits of the server."""
    names = ("queue_limit", "pixel_limit", "step_limit", "count_limit", "body_limit")
    return {
        "version": __version__,
        "default_model": engine.acceptance.default_model,
        "limits": {name: getattr(engine.configuration, name) for name in (*names, "upload_pixels")},
    }


@about_router.get("/models")
def models(engine: Server) -> dict[str, Any]:
    """The models: name, and why one cannot be used. backend: what computed its last picture; null: it
    has drawn none yet."""
    listed = []
    for file in engine.library.models():
        try:
            problem, model = None, file.outline
            facts = {
                "defaults": vars(model.defaults),
                "prediction": model.prediction,
                "backend": engine.backends.get(file.name),
            }
        except ValueError as error:
            problem, facts = str(error).replace(str(file.path), file.name), {}
        listed.append({"name": file.name, "problem": problem, **facts})
    return {"models": listed, "default": engine.acceptance.default_model}


@about_router.get("/gans")
def gans(engine: Server) -> dict[str, Any]:
    """The GANs among the models: name, classes, size in pixels."""
    return {"gans": engine.gans.listed()}


@about_router.get("/gans/{name:path}/picture", response_class=Response)
def gan_picture(
    engine: Server,
    name: Name,
    seed: Seed = 0,
    towards: Seed = 0,
    share: Annotated[float, Query(ge=0, le=1, description="0: of seed; 1: of towards.")] = 0.0,
    prompt: Annotated[str, Query(max_length=1000, description="One of its classes.")] = "",
) -> Response:
    """A picture of a GAN as PNG, on the way between those of two seeds."""
    try:
        image = engine.gans.picture(name, prompt, (seed, towards), share)
    except UnknownName as error:
        raise Refused(404, str(error)) from None
    return Response(encoded(image), media_type="image/png")


@about_router.get("/models/{name:path}/capabilities")
def of_model(engine: Server, name: Name) -> dict[str, Any]:
    """What a model can do: its fields with limits, choices and defaults."""
    try:
        file = engine.library.model(name)
    except UnknownName as error:
        raise Refused(404, str(error)) from None
    able = capabilities(file.outline, engine.configuration) | {
        "name": file.name,
        "backend": engine.backends.get(file.name),
    }
    for field in able["fields"]:
        if field["name"] == "hires_upscaler":
            field["choices"] += upscaler_names(engine.library)
    return able


@about_router.get("/schedules")
def schedules(engine: Server) -> dict[str, dict[str, list[float]]]:
    """The curves of the noise schedules: alpha and sigma at 101 times, from the picture to noise."""
    return {name: _curves(schedule) for name, schedule in published().items()}


@about_router.get("/loras")
def loras(engine: Server) -> dict[str, list[str]]:
    """The names of the LoRAs, for `loras` and for <lora:NAME:WEIGHT> in prompts."""
    return {"loras": list(engine.library.loras())}


@about_router.get("/embeddings")
def embeddings(engine: Server) -> dict[str, list[str]]:
    """The names of the textual-inversion embeddings."""
    return {"embeddings": list(engine.library.embeddings())}


@about_router.post("/tokens")
def tokens(engine: Server, text: PromptText) -> dict[str, Any]:
    """How a model reads a prompt: its tokens, weights, chunks, and the steps that use them."""
    file = engine.library.model(text.model or engine.acceptance.default_model)
    request = Request(prompt=text.prompt, steps=text.steps, seed=0)
    model, resolved = engine.acceptance.read(file, request)
    read = reading(model.tokenizer, resolved, seeded=False)
    chunks = [r["chunks"] for prompt in read["prompts"] for r in prompt["readings"]]
    warnings = [str(each) for each in prompt_warnings(model, resolved, [resolved.steps])]
    count = max((sum(map(len, own)) for own in chunks), default=0)
    return {"model": file.name, "count": count, **read, "warnings": warnings}


def _curves(schedule: Schedule) -> dict[str, list[float]]:
    levels = [level_at(schedule, 10.0 * i) for i in range(101)]
    return {
        "alpha": [round(level.alpha, 5) for level in levels],
        "sigma": [round(level.sigma, 5) for level in levels],
    }


# ---------------------------------------------------------------- jobs


jobs_router = APIRouter(tags=["jobs"])


@jobs_router.post("/jobs", status_code=201)
def new_job(engine: Server, new: NewJob) -> JobView:
    """Accept a job. It is on the disk when the reply comes, and survives a killed server."""
    if new.versus is not None and new.kind != "explain":
        raise Refused(422, 'versus needs kind "explain"', "versus")
    (job,) = engine.submit(
        Asked(
            new.request,
            new.model,
            new.kind,
            previews=new.previews,
            versus=new.versus,
            priority=new.priority,
        )
    )
    return _placed(engine, job)


@jobs_router.get("/jobs")
def history(
    engine: Server,
    q: Annotated[str, Query(max_length=1000, description="Words in prompt or settings.")] = "",
    state: State | None = None,
    favourite: bool | None = None,
    deleted: bool = False,
    grid: Annotated[str | None, Query(max_length=64)] = None,
    before: Annotated[int | None, Query(ge=0, le=2**53)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> JobPage:
    """The history, newest first."""
    search = Search(q, state, favourite, deleted, grid, before, limit)
    jobs, total = engine.queue.find(search)
    places = engine.places()
    more = jobs[-1].number if len(jobs) == limit else None
    return JobPage(jobs=[view(engine, job, places) for job in jobs], total=total, next=more)


@jobs_router.get("/jobs/{id}")
def one_job(engine: Server, id: Id) -> JobView:
    """A job."""
    return viewed(engine, id)


@jobs_router.patch("/jobs/{id}")
def change(engine: Server, id: Id, changes: Changes) -> JobView:
    """Change its marks, its priority or its place in the queue."""
    found(engine, id)
    values = changes.model_dump(exclude_none=True)
    place, deleted = values.pop("place", None), values.pop("deleted", None)
    if deleted is not None:
        values["deleted"] = time.time() if deleted else None
    if values:
        engine.mark(id, **values)
    if place is not None and not engine.move(id, place):
        raise Refused(409, "the job does not wait, so it has no place", "place")
    return viewed(engine, id)


@jobs_router.patch("/jobs/{id}/pictures/{number}")
def change_picture(
    engine: Server, id: Id, number: Annotated[int, InPath(ge=0, le=1000)], changes: PictureChanges
) -> JobView:
    """Change the marks of a picture of a job; `number` counts from 0."""
    found(engine, id)
    if not engine.mark_picture(id, number, changes.favourite):
        raise Refused(404, f"the job has no picture {number}")
    return viewed(engine, id)


@jobs_router.delete("/jobs/{id}", status_code=204)
def delete(engine: Server, id: Id) -> Response:
    """Delete a job of the bin, and its pictures, for good."""
    found(engine, id)
    if not engine.forget(id):
        raise Refused(409, "only a job that has ended and is in the bin can be deleted")
    return Response(status_code=204)


@jobs_router.post("/jobs/{id}/cancel")
def cancel(engine: Server, id: Id) -> JobView:
    """Cancel it: at once if it waits, after its step if it runs."""
    if found(engine, id).state in ENDED or not engine.cancel(id):
        raise Refused(409, "the job has ended already")
    return viewed(engine, id)


@jobs_router.post("/jobs/{id}/retry")
def retry(engine: Server, id: Id) -> JobView:
    """Draw it again, after it failed or was cancelled."""
    found(engine, id)
    if not engine.retry(id):
        raise Refused(409, "only a job that failed or was cancelled can be tried again")
    return viewed(engine, id)


@jobs_router.get("/jobs/{id}/steps")
def steps(engine: Server, id: Id) -> dict[str, Any]:
    """x and x0 of each step as data: URLs, of a job with `previews`."""
    found(engine, id)
    return {"steps": engine.steps(id)}


@jobs_router.get("/jobs/{id}/explanation", response_class=Response)
def explanation(
    engine: Server,
    id: Id,
    format: Annotated[Literal["html", "json"], Query(description="json: the data alone.")] = "html",
) -> Response:
    """The page of a job of kind "explain". It needs nothing else, and runs in a sandbox."""
    job, path = found(engine, id), engine.explanation(id)
    if job.state != "done" or not path.is_file():
        raise Refused(404, "the job has no explanation, or not yet")
    if format == "json":
        data = RECORD.search(path.read_text("utf-8"))
        if data is None:
            raise Refused(404, "the page of this job has no data")
        return Response(data[1], media_type="application/json")
    policy = (
        "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; "
        "style-src 'unsafe-inline'; img-src data:; frame-ancestors 'self'"
    )
    return FileResponse(path, media_type="text/html", headers={"Content-Security-Policy": policy})


@jobs_router.get("/jobs/{id}/events", response_class=StreamingResponse)
async def events_of(engine: Server, id: Id) -> StreamingResponse:
    """Server-sent events of a job, until it has ended: job, step, place while it waits, deleted."""
    await run_in_threadpool(found, engine, id)
    return _stream(engine, id)


@jobs_router.get("/events", response_class=StreamingResponse)
async def all_events(engine: Server) -> StreamingResponse:
    """Server-sent events of everything: job, step, queue, deleted."""
    return _stream(engine, None)


@jobs_router.get("/difference")
def difference(
    engine: Server,
    first: Annotated[str, Query(pattern="^[0-9a-f]{32}$")],
    second: Annotated[str, Query(pattern="^[0-9a-f]{32}$")],
) -> dict[str, Any]:
    """The settings in which two jobs differ: name -> [first, second]."""
    one, other = (
        {"model": job.model, **job.resolved}
        for job in (found(engine, first), found(engine, second))
    )
    names = dict.fromkeys([*one, *other])
    changed = {n: [one.get(n), other.get(n)] for n in names if one.get(n) != other.get(n)}
    return {"first": first, "second": second, "difference": changed}


def _stream(engine: Engine, id: str | None) -> StreamingResponse:
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_events(engine, id), media_type="text/event-stream", headers=headers)


async def _events(engine: Engine, id: str | None) -> AsyncIterator[bytes]:
    """The state now, and then each change."""
    async with events.watching(engine, id) as queue:
        if id is None:
            state = await run_in_threadpool(queue_state, engine)
            yield events.written("queue", state.model_dump())
        else:
            queue.put_nowait(Event("job", id))
        while True:
            try:
                async with asyncio.timeout(events.BEAT):
                    event = await queue.get()
            except TimeoutError:
                yield b": still here\n\n"
                continue
            if event.kind == "stopping":
                return
            if event.kind == "job" and (id is None or event.id == id):
                if event.job is not None:  # at once: nothing needs to be read
                    seen: JobView | None = _placed(engine, event.job)
                else:
                    seen = await run_in_threadpool(_seen, engine, event.id)
                if seen is not None:
                    yield events.written("job", seen.model_dump())
                if id is not None and (seen is None or seen.state in ENDED):
                    return
            elif event.kind == "step" and event.step is not None:
                yield events.written("step", _step(engine, event))
            elif event.kind == "queue" and id is None:
                state = await run_in_threadpool(queue_state, engine)
                yield events.written("queue", state.model_dump())
            elif event.kind == "queue":
                place, seconds = (await run_in_threadpool(engine.places)).get(
                    id or "", (None, None)
                )
                if place is not None:
                    yield events.written(
                        "place", {"id": id, "place": place, "seconds_left": seconds}
                    )
            elif event.kind == "deleted":
                yield events.written("deleted", {"id": event.id})
                if id is not None:
                    return


def _seen(engine: Engine, id: str) -> JobView | None:
    job = engine.queue.job(id)
    return None if job is None else _placed(engine, job)


def _step(engine: Engine, event: Event) -> dict[str, Any]:
    assert event.step is not None
    live = engine.live.get(event.id)
    left = None if live is None else live.seconds_left()
    return event.step._asdict() | {"seconds_left": left}


# ---------------------------------------------------------------- the queue


queue_router = APIRouter(tags=["queue"])


@queue_router.get("/queue")
def state(engine: Server) -> QueueState:
    """What runs and what waits."""
    return queue_state(engine)


@queue_router.patch("/queue")
def pause(engine: Server, pause: Pause) -> QueueState:
    """Pause or resume the queue; running jobs are not stopped."""
    engine.paused = pause.paused
    return queue_state(engine)


# ---------------------------------------------------------------- pictures


pictures_router = APIRouter(tags=["pictures"])


def _path_of(engine: Engine, id: str) -> Path:
    path = engine.pictures.path(id)
    if path is None:
        raise Refused(404, f"there is no picture {id}")
    return path


BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


@pictures_router.post(
    "/pictures",
    status_code=201,
    openapi_extra={"requestBody": {"required": True, "content": BINARY}},
)
async def upload(engine: Server, call: Call) -> StoredPicture:
    """Store a picture: the body is its file (PNG, JPEG, WebP, AVIF, GIF, TIFF, BMP)."""
    add = engine.pictures.add_upload
    data = await call.body()
    id, (width, height) = await run_in_threadpool(add, data, engine.configuration.upload_pixels)
    return StoredPicture(id=id, width=width, height=height)


@pictures_router.get("/pictures/{id}", response_class=Response)
def picture(
    engine: Server,
    id: PictureId,
    format: Annotated[Literal["png", "jpeg", "webp"] | None, Query()] = None,
    side: Annotated[int | None, Query(ge=16, le=4096, description="Shrink to this.")] = None,
    metadata: Annotated[bool, Query(description="false: without what made it.")] = True,
) -> Response:
    """A picture: the stored file, or one made from it in another format or size."""
    path = _path_of(engine, id)
    headers = {"Cache-Control": "private, max-age=31536000, immutable"}
    if format is None and side is None and metadata:
        return FileResponse(path, media_type=media_type(path), headers=headers)
    image, kind = open_image(path), format or "png"
    record = read_metadata(path).request if metadata and side is None else None
    if side is not None:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return Response(encoded(image, kind, record), media_type=f"image/{kind}", headers=headers)


@pictures_router.get("/pictures/{id}/settings")
def settings(engine: Server, id: PictureId) -> dict[str, Any]:
    """The settings in a picture of this or another program, as fields of a request."""
    return settings_of(_path_of(engine, id))


def settings_of(path: Path) -> dict[str, Any]:
    """What a picture records, for a client.

    request: fields of a request. names: of models and files. unused: settings that do not exist here.
    """
    found = read_metadata(path)
    if found.request is not None:
        values, program, unused, problem = dict(found.request), "Pellucid", [], None
    elif found.settings is not None:
        values, program = dict(found.settings.fields), found.settings.program
        unused, problem = list(found.settings.unused), found.settings.problem
    else:
        values, program, unused, problem = {}, None, [], None
    known = {name: value for name, value in values.items() if name in Request.model_fields}
    names = {n: v for n, v in values.items() if n in ("model", "vae", "refiner")}
    unused += [name for name in values if name not in known and name not in names]
    return {
        "program": program,
        "request": known,
        "names": names,
        "unused": unused,
        "problem": problem,
        "parameters": found.parameters,
    }


# ---------------------------------------------------------------- grids


grids_router = APIRouter(tags=["grids"])


@grids_router.post("/grids", status_code=201)
def new_grid(engine: Server, new: NewGrid) -> Grid:
    """Draw one parameter against another: a job for each cell. A cell that cannot be drawn says
    why, and the others are drawn."""
    columns, rows = new.x.values, new.y.values if new.y else [None]
    if len(columns) * len(rows) > CELLS:
        raise Refused(
            422, f"a grid must have at most {CELLS} cells, got {len(columns) * len(rows)}"
        )
    for axis in (new.x, new.y):
        if axis is not None and axis.field not in (*Request.model_fields, "model"):
            near = ", ".join(nearest(axis.field, Request.model_fields)[:5])
            raise Refused(422, f"unknown field {axis.field[:80]!r}; nearest: {near}", "field")
    if new.y is not None and new.x.field == new.y.field:
        raise Refused(422, f"x and y must be different fields, both are {new.x.field}", "y")
    id = uuid.uuid4().hex
    seeded = new.request.model_copy(update={"seed": chosen_seed(new.request)})
    fields = seeded.model_dump(exclude_defaults=True)
    cells = []
    for y, x in itertools.product(rows, columns):
        changes = {new.x.field: x} | ({new.y.field: y} if new.y else {})
        cells.append(_cell(engine, new, fields, changes, id) | {"x": x, "y": y})
    engine.keep_grid(
        id, {"x": new.x.model_dump(), "y": new.y and new.y.model_dump(), "cells": cells}
    )
    return _grid(engine, id)


@grids_router.get("/grids/{id}")
def grid(engine: Server, id: Id) -> Grid:
    """A grid, with the state of each cell."""
    return _grid(engine, id)


def _cell(
    engine: Engine, new: NewGrid, fields: dict[str, Any], changes: dict[str, Any], grid: str
) -> dict[str, Any]:
    """The id of the job of a cell, or why there is none."""
    model = changes.pop("model", new.model)
    try:
        if not isinstance(model, str | None):
            raise ValueError(f"model must be a name, got {str(model)[:80]}")
        request = Request.model_validate(fields | changes)
        asked = Asked(request, model, previews=new.previews, grid=grid)
        (job,) = engine.submit(asked)
    except QueueFull as error:
        return {"job": None, "error": str(error)}
    except ValueError as error:
        return {"job": None, "error": problem_of(error).message}
    return {"job": job.id, "error": None}


def _grid(engine: Engine, id: str) -> Grid:
    stored = engine.grid(id)
    if stored is None:
        raise Refused(404, f"there is no grid {id}")
    places = engine.places()
    cells = []
    for cell in stored["cells"]:
        job = None if cell["job"] is None else engine.queue.job(cell["job"])
        shown = None if job is None else view(engine, job, places)
        error = cell["error"] if job is None else job.error
        cells.append(Cell(x=cell["x"], y=cell["y"], job=shown, error=error))
    width = len(stored["x"]["values"])
    rows = [cells[first : first + width] for first in range(0, len(cells), width)]
    return Grid(id=id, x=stored["x"], y=stored["y"], rows=rows)

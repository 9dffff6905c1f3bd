"""OpenAI's Images API: generations, edits, variations, models.

Pellucid's own settings (seed, steps, guidance, sampler, negative_prompt, and every other field of a
request that names no file) are further fields of the body, which the `openai` client sends from
`extra_body`. A field that has no effect here is listed under `warnings` in the reply; an unknown one
is refused.
"""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from fastapi import APIRouter, FastAPI
from fastapi import Request as Call
from fastapi.concurrency import run_in_threadpool
from PIL import Image, ImageChops
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import UploadFile
from starlette.responses import Response, StreamingResponse

from pellucid import __version__
from pellucid.conditioning import chunked
from pellucid.images.data_url import data_of
from pellucid.images.load import open_header, open_image
from pellucid.plugins import nearest
from pellucid.request import Request
from pellucid.request.fields import file_fields
from pellucid.serve import events
from pellucid.serve.acceptance import Asked
from pellucid.serve.engine import Engine
from pellucid.serve.library import UnknownName
from pellucid.serve.pictures import encoded
from pellucid.serve.queue import ENDED, Job
from pellucid.serve.replies import Json, Problem, Refused, Server, answer_errors, problem_of
from pellucid.serve.worker import StepReport

PREFIX = "/v1"
MAX_PROMPT = 32_000
STATUS = {422: 400}
"""OpenAI answers 400 for a request that cannot be done."""
QUALITY = {"low": 0.5, "medium": 1.0, "standard": 1.0, "auto": 1.0, "high": 2.0, "hd": 2.0}
"""How many steps, as a multiple of the model's own."""
IDLE = ("moderation", "style", "user", "input_fidelity")
"""Fields of OpenAI's that change no picture here."""
OWN = (
    frozenset(Request.model_fields)
    - {"prompt", "count", "width", "height"}
    - (frozenset(file_fields(Request)) - {"hires_upscaler"})  # which names a method here
)
"""Fields of a request that can be further fields of the body."""
FORM = {
    "type": "object",
    "required": ["image", "prompt"],
    "properties": {
        "image": {"type": "string", "format": "binary"},
        "mask": {"type": "string", "format": "binary", "description": "PNG; alpha 0 is redrawn."},
        "prompt": {"type": "string"},
        **{name: {"type": "string"} for name in ("n", "size", "model", "response_format")},
    },
}


class Body(BaseModel):
    """What all three operations have. null is as if a field was left out."""

    model_config = ConfigDict(extra="allow")

    model: Annotated[str, Field(max_length=300)] | None = None
    n: Annotated[int, Field(ge=1, le=10)] | None = None
    size: Annotated[str, Field(pattern=r"^(auto|[1-9]\d{0,4}x[1-9]\d{0,4})$")] | None = Field(
        None, description="WIDTHxHEIGHT, multiples of the model's unit; auto is its own size."
    )
    quality: Literal["auto", "low", "medium", "high", "standard", "hd"] | None = Field(
        None, description="low: half of the model's own steps; high and hd: twice as many."
    )
    response_format: Literal["url", "b64_json"] | None = Field(
        None, description="Default: b64_json."
    )
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    background: Literal["auto", "opaque", "transparent"] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    moderation: Literal["auto", "low"] | None = None
    style: Literal["vivid", "natural"] | None = None
    user: str | None = None


class Generation(Body):
    """A picture from words."""

    prompt: Annotated[str, Field(max_length=MAX_PROMPT)]


class ImageReference(BaseModel):
    """A picture to edit: a data: URL, or the id of one that this server has. No address is fetched."""

    model_config = ConfigDict(extra="forbid")

    image_url: str | None = None
    file_id: str | None = None


class FormEdit(Generation):
    """A picture from a picture and words; the pictures are files of the form."""

    input_fidelity: Literal["high", "low"] | None = None


class Edit(FormEdit):
    """A picture from a picture and words."""

    images: Annotated[list[ImageReference], Field(min_length=1, max_length=16)]
    mask: ImageReference | None = None


class Variation(Body):
    """A picture from a picture."""


class Answered(NamedTuple):
    """A call that is being answered. kind: as the events of a stream name it."""

    call: Call
    body: Body
    asked: Asked
    kind: str
    warnings: list[str]

    @property
    def form(self) -> str:
        """The format of the pictures in the reply."""
        return self.body.output_format or "png"


def shape(problem: Problem) -> dict[str, Any]:
    """An error of OpenAI's."""
    kinds = {429: "rate_limit_error", 401: "authentication_error", 403: "permission_error"}
    kind = kinds.get(problem.status, "invalid_request_error")
    if problem.status >= 500:
        kind = "server_error"
    codes = {429: "rate_limit_exceeded", 401: "invalid_api_key"}
    code = problem.code or codes.get(problem.status)
    error = {"message": problem.message, "type": kind, "param": problem.field, "code": code}
    return {"error": error}


def interface(engine: Engine) -> FastAPI:
    """The application of this interface."""
    app = FastAPI(
        title="OpenAI's Images API",
        version=__version__,
        description="As `openai` speaks it; Pellucid's settings are further fields of the body.",
        docs_url=None,
        redoc_url=None,
        default_response_class=Json,
    )
    answer_errors(app, shape, STATUS)
    app.state.engine = engine
    app.include_router(router)
    return app


# ---------------------------------------------------------------- the operations


def _form_body(schema: dict[str, Any]) -> dict[str, Any]:
    """What OpenAPI says of an operation whose body is a form."""
    content = {"multipart/form-data": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


router = APIRouter()


@router.post("/images/generations", response_class=Response)
async def generations(engine: Server, call: Call, body: Generation) -> Response:
    """Draw pictures from words."""
    asked, warnings = await run_in_threadpool(_asked, engine, body, body.prompt)
    return await _answer(engine, Answered(call, body, asked, "image_generation", warnings))


@router.post("/images/edits", response_class=Response, openapi_extra=_form_body(FORM))
async def edits(engine: Server, call: Call) -> Response:
    """Redraw a picture, or the part that a mask marks. multipart/form-data, or JSON with
    `images`."""
    if call.headers.get("content-type", "").startswith("application/json"):
        body: Body = Edit.model_validate(await _json(call))
        assert isinstance(body, Edit)
        sent = [await run_in_threadpool(_referred, engine, each, "images") for each in body.images]
        mask: bytes | None = None
        if body.mask is not None:
            mask = await run_in_threadpool(_referred, engine, body.mask, "mask")
        prompt = body.prompt
    else:
        fields, sent, mask = await _form(call)
        form_body = FormEdit.model_validate(fields)
        body, prompt = form_body, form_body.prompt
    image, marked = await run_in_threadpool(_start, engine, sent, mask)
    asked, warnings = await run_in_threadpool(_asked, engine, body, prompt, image, marked)
    return await _answer(engine, Answered(call, body, asked, "image_edit", warnings))


@router.post(
    "/images/variations",
    response_class=Response,
    openapi_extra=_form_body({**FORM, "required": ["image"]}),
)
async def variations(engine: Server, call: Call) -> Response:
    """Redraw a picture without words."""
    fields, sent, mask = await _form(call)
    if mask is not None:
        raise Refused(400, "variations have no mask; edits do", "mask")
    body = Variation.model_validate(fields)
    image, _ = await run_in_threadpool(_start, engine, sent, None, False)
    asked, warnings = await run_in_threadpool(_asked, engine, body, "", image, None)
    return await _answer(engine, Answered(call, body, asked, "image_edit", warnings))


@router.get("/models")
def models(engine: Server) -> dict[str, Any]:
    """The models."""
    return {"object": "list", "data": [_model(file) for file in engine.library.models()]}


@router.get("/models/{model:path}")
def model(engine: Server, model: Annotated[str, Field(max_length=300)]) -> dict[str, Any]:
    """A model."""
    try:
        return _model(engine.library.model(model))
    except UnknownName as error:
        raise Refused(404, str(error), "model", "model_not_found") from None


def _model(file: Any) -> dict[str, Any]:
    created = file.version[0] // 10**9
    return {"id": file.name, "object": "model", "created": created, "owned_by": "pellucid"}


# ---------------------------------------------------------------- what is asked


def _asked(
    engine: Engine, body: Body, prompt: str, image: str | None = None, mask: str | None = None
) -> tuple[Asked, list[str]]:
    """The job of a call, and what of the call has no effect. Raises Refused, ValueError."""
    extras = {name: value for name, value in (body.model_extra or {}).items() if value is not None}
    warnings = [f"{n} does nothing here" for n in IDLE if getattr(body, n, None) is not None]
    for name in extras:
        if name not in OWN:
            near = ", ".join(nearest(name[:80], [*Body.model_fields, *OWN])[:5])
            raise Refused(400, f"unknown field {name[:80]!r}; nearest: {near}", name[:80])
    if body.background == "transparent":
        raise Refused(
            400, "background must be auto or opaque: no model here draws transparency", "background"
        )
    try:
        file = engine.library.model(body.model or engine.acceptance.default_model)
    except UnknownName as error:
        raise Refused(404, str(error), "model", "model_not_found") from None
    fields = {name: _value(value) for name, value in extras.items()} | {"prompt": prompt}
    fields["count"] = body.n or 1
    if body.size not in (None, "auto"):
        width, height = str(body.size).split("x")
        fields |= {"width": int(width), "height": int(height)}
    if "steps" in extras and QUALITY[body.quality or "auto"] != 1:
        warnings.append("quality does nothing: steps is given")
    elif QUALITY[body.quality or "auto"] != 1:
        steps = round(file.outline.defaults.steps * QUALITY[body.quality or "auto"])
        fields["steps"] = max(1, min(steps, engine.configuration.step_limit))
    if body.output_compression is not None and body.output_format in (None, "png"):
        warnings.append("output_compression does nothing: png is compressed without loss")
    if body.partial_images and not body.stream:
        warnings.append("partial_images does nothing without stream")
    if body.response_format == "url" and body.stream:
        warnings.append("response_format does nothing: a stream has b64_json")
    fields |= {"image": image, "mask": mask}
    request = Request.model_validate({n: v for n, v in fields.items() if v is not None})
    previews = bool(body.stream and body.partial_images)
    return Asked(request, file.name, api="openai", previews=previews), warnings


def _value(value: Any) -> Any:
    """A field of a form, which is a text, or of JSON."""
    if isinstance(value, str) and value[:1] in "[{":
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


async def _json(call: Call) -> dict[str, Any]:
    try:
        value = json.loads(await call.body())
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not JSON") from None
    if not isinstance(value, dict):
        raise Refused(400, "the body must be a JSON object")
    return value


async def _form(call: Call) -> tuple[dict[str, Any], list[bytes], bytes | None]:
    """The texts of a form, its pictures, its mask."""
    kind = call.headers.get("content-type", "").split(";")[0]
    if kind != "multipart/form-data":
        raise Refused(415, "the body must be multipart/form-data, or JSON for edits")
    fields: dict[str, Any] = {}
    images: list[bytes] = []
    mask = None
    async with call.form(max_files=17, max_fields=100) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name in ("image", "image[]"):
                    images.append(await value.read())
                elif name == "mask":
                    mask = await value.read()
                else:
                    raise Refused(
                        400, f"unknown file {name[:80]!r}; files are image and mask", name[:80]
                    )
            elif name in ("image", "image[]", "mask"):
                raise Refused(400, f"{name} must be a file", name)
            else:
                fields[name] = value
    return fields, images, mask


def _referred(engine: Engine, reference: ImageReference, field: str) -> bytes:
    """The bytes of a picture that JSON refers to. Raises Refused."""
    if reference.file_id is not None:
        path = engine.pictures.path(reference.file_id)
        if path is None:
            raise Refused(404, f"there is no picture {reference.file_id[:80]!r}", field)
        return path.read_bytes()
    try:
        return data_of(reference.image_url or "")
    except ValueError as error:
        raise Refused(400, f"image_url: {error} (addresses are not fetched)", field) from None


def _start(
    engine: Engine, sent: list[bytes], mask: bytes | None, own_alpha: bool = True
) -> tuple[str, str | None]:
    """The picture to start from and its mask, stored. own_alpha: without a mask, what is transparent
    in the picture is the mask. Raises Refused."""
    if len(sent) != 1:
        raise Refused(400, f"image must be one picture, got {len(sent)}", "image")
    limit = engine.configuration.upload_pixels
    try:
        image, size = engine.pictures.add_upload(sent[0], limit)
    except ValueError as error:
        raise Refused(400, f"image: {error}", "image") from None
    if mask is None:
        marked = _marked(sent[0]) if own_alpha else None
        return image, None if marked is None else engine.pictures.add(encoded(marked))
    try:
        _, mask_size = engine.pictures.add_upload(mask, limit)
    except ValueError as error:
        raise Refused(400, f"mask: {error}", "mask") from None
    marked = _marked(mask)
    if marked is None:
        raise Refused(400, "mask must be transparent where the picture is redrawn", "mask")
    if mask_size != size:
        sizes = f"{mask_size[0]}x{mask_size[1]} and {size[0]}x{size[1]}"
        raise Refused(400, f"mask and image must have the same size, got {sizes}", "mask")
    return image, engine.pictures.add(encoded(marked))


def _marked(data: bytes) -> Image.Image | None:
    """White where a picture is transparent, black where it is not; None: it is opaque."""
    image, _ = open_header(io.BytesIO(data))
    with image:
        alpha = image.convert("RGBA").getchannel("A")
    return None if alpha.getextrema()[0] == 255 else ImageChops.invert(alpha).convert("RGB")


# ---------------------------------------------------------------- the answer


async def _answer(engine: Engine, call: Answered) -> Response:
    (job,) = await run_in_threadpool(engine.submit, call.asked)
    if call.body.stream:
        headers = {"Cache-Control": "no-store"}
        stream = _stream(engine, call, job.id)
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)
    ended = _done(await events.ended_or_left(engine, job.id, call.call))
    return Json(await run_in_threadpool(_reply, engine, call, ended))


def _done(job: Job | None) -> Job:
    """A job that is done. Raises Refused for any other."""
    if job is None:
        raise Refused(503, "the server is stopping; the job goes on when it starts again")
    if job.state == "cancelled":
        raise Refused(400, "the job was cancelled", None, "cancelled")
    if job.state != "done":
        status = 500 if job.fault == "server" else 400
        raise Refused(status, str(job.error), None, "generation_failed")
    return job


def _reply(engine: Engine, call: Answered, job: Job) -> dict[str, Any]:
    """The reply to a call that does not stream."""
    first = job.pictures[0]
    data: list[dict[str, Any]] = []
    for picture in job.pictures:
        if call.body.response_format == "url":
            base = str(call.call.base_url).removesuffix("/").removesuffix(PREFIX)
            entry = {"url": f"{base}/api/pictures/{picture.picture}"}
            if call.form != "png":
                entry["url"] += f"?format={call.form}"
        else:
            entry = {"b64_json": _base64(engine, call, picture.picture)}
        data.append(entry | {"seed": picture.seed})
    return {
        "created": int(job.finished or 0),
        "data": data,
        "background": "opaque",
        "output_format": call.form,
        "size": f"{first.width}x{first.height}",
        "quality": _quality(call),
        "usage": _usage(engine, job),
        "warnings": [*call.warnings, *job.warnings],
    }


async def _stream(engine: Engine, call: Answered, id: str) -> AsyncIterator[bytes]:
    """Partial pictures, and then the whole ones."""
    parts = call.body.partial_images or 0
    sent = 0
    try:
        async with events.watching(engine, id) as queue:
            job = await run_in_threadpool(engine.queue.job, id)
            # The events of a job that has ended meanwhile are still in the queue.
            while job is not None and not (job.state in ENDED and queue.empty()):
                event = await queue.get()
                step = event.step
                if event.kind == "stopping":
                    break
                if event.kind in ("job", "deleted"):
                    job = event.job or await run_in_threadpool(engine.queue.job, id)
                elif step is not None and sent < parts and step.x0 and _is_due(step, sent, parts):
                    data = await run_in_threadpool(_partial, call, step.x0[0], job)
                    yield _event(call, "partial_image", data | {"partial_image_index": sent})
                    sent += 1
        job = _done(await events.ended(engine, id))
        for picture in job.pictures:
            text = await run_in_threadpool(_base64, engine, call, picture.picture)
            data = {"b64_json": text, "usage": _usage(engine, job), "seed": picture.seed}
            data |= {"size": f"{picture.width}x{picture.height}"}
            data |= {"warnings": [*call.warnings, *job.warnings]}
            yield _event(call, "completed", data)
    except Refused as error:
        yield events.written("error", {"type": "error", **shape(error.problem)})
    except Exception as error:
        yield events.written("error", {"type": "error", **shape(problem_of(error))})
        raise
    finally:
        engine.leave(id)  # nothing, if it has ended


def _is_due(step: StepReport, sent: int, parts: int) -> bool:
    """Whether the next partial picture is sent after this step; they are evenly spaced."""
    return step.step < step.steps and step.step * (parts + 1) >= step.steps * (sent + 1)


def _event(call: Answered, name: str, data: Mapping[str, Any]) -> bytes:
    kind = f"{call.kind}.{name}"
    fixed = {
        "type": kind,
        "created_at": int(time.time()),
        "background": "opaque",
        "output_format": call.form,
        "quality": _quality(call),
    }
    return events.written(kind, fixed | dict(data))


def _partial(call: Answered, url: str, job: Job) -> dict[str, Any]:
    """The estimate of a step at the size of the result."""
    size = (job.resolved["width"], job.resolved["height"])
    image = open_image(io.BytesIO(data_of(url)))
    image = image.resize(size, Image.Resampling.LANCZOS)
    data = encoded(image, call.form, quality=call.body.output_compression)
    return {"b64_json": base64.b64encode(data).decode(), "size": f"{size[0]}x{size[1]}"}


def _base64(engine: Engine, call: Answered, name: str) -> str:
    """A stored picture in the format of the reply; a PNG keeps what made it."""
    path = engine.pictures.path(name)
    if path is None:
        raise Refused(404, "the picture was deleted")
    data = path.read_bytes()
    if call.form != "png":
        data = encoded(open_image(path), call.form, quality=call.body.output_compression)
    return base64.b64encode(data).decode()


def _quality(call: Answered) -> str:
    quality = call.body.quality or "auto"
    return {"standard": "medium", "hd": "high"}.get(quality, quality)


def _usage(engine: Engine, job: Job) -> dict[str, Any]:
    """The tokens of the prompt; a picture is no tokens here."""
    tokenizer = engine.library.model(job.model).outline.tokenizer
    count = sum(map(len, chunked(tokenizer, str(job.request.get("prompt", "")))))
    return {
        "input_tokens": count,
        "input_tokens_details": {"text_tokens": count, "image_tokens": 0},
        "output_tokens": 0,
        "total_tokens": count,
    }

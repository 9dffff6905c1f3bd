"""The API of A1111's web UI, /sdapi/v1: what its clients ask for, by their names.

A field that has no effect here, or is not known, is listed under `warnings` in the reply. Steps,
guidance, size and sampler that are left out are the model's own, not 50, 7, 512 and Euler.
"""

from __future__ import annotations

import base64
import inspect
import io
import json
import os
import secrets
import time
import uuid
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from fastapi import APIRouter, FastAPI
from fastapi import Request as Call
from fastapi.concurrency import run_in_threadpool
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field

from pellucid import __version__, hires, samplers
from pellucid.images.data_url import data_of
from pellucid.images.load import open_header, open_image
from pellucid.images.metadata import read_metadata
from pellucid.images.parameters import WORDS, read_parameters
from pellucid.inpaint import crop
from pellucid.request import Request
from pellucid.request.request import MAX_SIDE
from pellucid.runtime.devices import free_memory
from pellucid.serve import events
from pellucid.serve.acceptance import Asked
from pellucid.serve.engine import Engine
from pellucid.serve.library import UnknownName
from pellucid.serve.pictures import encoded
from pellucid.serve.queue import Job
from pellucid.serve.replies import Json, Problem, Refused, Server, answer_errors
from pellucid.variations import MAX_PROMPT

PREFIX = "/sdapi/v1"
FILLS = ("fill", "original", "noise", "blank")
"""A1111's numbers of `inpainting_fill`."""
RESIZES = ("stretched", "cropped", "filled")
"""A1111's numbers of `resize_mode`."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "styles": ([],),
    "seed_resize_from_h": (-1, 0),
    "seed_resize_from_w": (-1, 0),
    "restore_faces": (False,),
    "tiling": (False,),
    "do_not_save_samples": (False,),
    "do_not_save_grid": (False,),
    "s_min_uncond": (0,),
    "s_churn": (0,),
    "s_tmax": (0,),
    "s_tmin": (0,),
    "s_noise": (1,),
    "override_settings_restore_afterwards": (True,),
    "disable_extra_networks": (False,),
    "firstpass_image": (),
    "comments": ({},),
    "firstphase_width": (0,),
    "firstphase_height": (0,),
    "hr_checkpoint_name": ("", "Use same checkpoint"),
    "hr_sampler_name": ("", "Use same sampler"),
    "hr_scheduler": ("", "Use same scheduler"),
    "hr_prompt": ("",),
    "hr_negative_prompt": ("",),
    "hr_additional_modules": ([], ["Use same choices"]),
    "force_task_id": ("",),
    "script_name": ("",),
    "script_args": ([],),
    "save_images": (False, True),  # the history keeps all pictures
    "alwayson_scripts": ({},),
    "infotext": ("",),
    "latent_mask": (),
    "image_cfg_scale": (0, 1.5),
    "mask_round": (True,),
    "initial_noise_multiplier": (0, 1),
}
"""Fields of A1111's that change nothing here, and the values for which they change nothing there."""
NEUTRAL_OPTIONS: dict[str, tuple[Any, ...]] = {
    "sd_vae": ("Automatic", "None", ""),
    "samples_format": ("png",),
    "live_previews_enable": (True, False),
}
STATE = {
    "skipped": False,
    "interrupted": False,
    "stopping_generation": False,
    "job": "",
    "job_count": 0,
    "job_timestamp": "0",
    "job_no": 0,
    "sampling_step": 0,
    "sampling_steps": 0,
}
NO_PICTURE = {"current_image": None, "textinfo": None}
WAITING = 1000
"""Waiting jobs that are searched for those of an interrupted call."""
Number = Annotated[float, Field(allow_inf_nan=False)]


class TextToImage(BaseModel):
    """The fields of txt2img. null is as if a field was left out."""

    model_config = ConfigDict(extra="allow")

    prompt: Annotated[str, Field(max_length=MAX_PROMPT)] | None = None
    negative_prompt: Annotated[str, Field(max_length=MAX_PROMPT)] | None = None
    seed: int | None = None
    subseed: int | None = None
    subseed_strength: Number | None = None
    sampler_name: str | None = None
    sampler_index: str | None = Field(None, description="The old name of sampler_name.")
    scheduler: str | None = None
    batch_size: Annotated[int, Field(ge=1, le=64)] | None = None
    n_iter: Annotated[int, Field(ge=1, le=100)] | None = None
    steps: int | None = None
    cfg_scale: Number | None = None
    width: int | None = None
    height: int | None = None
    eta: Number | None = None
    denoising_strength: Number | None = None
    refiner_checkpoint: str | None = None
    refiner_switch_at: Number | None = None
    override_settings: dict[str, Any] | None = None
    send_images: bool | None = None
    enable_hr: bool | None = None
    hr_scale: Number | None = None
    hr_upscaler: str | None = None
    hr_second_pass_steps: int | None = None
    hr_resize_x: Annotated[int, Field(ge=0, le=MAX_SIDE)] | None = None
    hr_resize_y: Annotated[int, Field(ge=0, le=MAX_SIDE)] | None = None


class ImageToImage(TextToImage):
    """The fields of img2img."""

    init_images: Annotated[list[str], Field(max_length=16)] | None = None
    resize_mode: int | None = None
    mask: str | None = Field(None, description="White is redrawn.")
    mask_blur: int | None = None
    mask_blur_x: int | None = None
    mask_blur_y: int | None = None
    inpainting_fill: Annotated[int, Field(ge=0, le=3)] | None = None
    inpaint_full_res: bool | None = None
    inpaint_full_res_padding: int | None = None
    inpainting_mask_invert: Annotated[int, Field(ge=0, le=1)] | None = None
    include_init_images: bool | None = None


class PngInfo(BaseModel):
    """A picture to read."""

    image: str


def shape(problem: Problem) -> dict[str, Any]:
    """An error of A1111's."""
    return {"detail": problem.message}


router = APIRouter()


def interface(engine: Engine) -> FastAPI:
    """The application of this interface."""
    app = FastAPI(
        title="The API of A1111's web UI",
        version=__version__,
        description="As A1111's clients speak it; what has no effect is listed under `warnings`.",
        docs_url=None,
        redoc_url=None,
        default_response_class=Json,
    )
    answer_errors(app, shape)
    app.state.engine = engine
    app.include_router(router)
    return app


# ---------------------------------------------------------------- options


class Options:
    """The settings that A1111's clients change for all later requests: the model, clip skip."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def values(self) -> dict[str, Any]:
        """All of them."""
        stored = json.loads(self.engine.queue.fact("a1111") or "{}")
        model = stored.get("sd_model_checkpoint")
        try:
            model = self.engine.library.model(str(model)).name
        except UnknownName:  # it is gone, or none was chosen
            model = self.engine.acceptance.default_model
        return {
            "sd_model_checkpoint": model,
            "CLIP_stop_at_last_layers": stored.get("CLIP_stop_at_last_layers", 1),
            "samples_format": "png",
        }

    def over(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """All of them with others for one request, and what has no effect. Raises Refused."""
        values, warnings = self.values(), []
        for name, value in given.items():
            if name == "sd_model_checkpoint":
                values[name] = self.model(value)
            elif name == "CLIP_stop_at_last_layers":
                if type(value) is not int or not 1 <= value <= 12:
                    raise Refused(
                        422, f"{name} must be between 1 and 12, got {str(value)[:80]}", name
                    )
                values[name] = value
            elif value not in NEUTRAL_OPTIONS.get(name, ()):
                warnings.append(f"the option {name[:80]} does nothing here")
        return values, warnings

    def change(self, given: Mapping[str, Any]) -> list[str]:
        """Store options; what has no effect. Raises Refused."""
        values, warnings = self.over(given)
        self.engine.queue.remember("a1111", json.dumps(values))
        return warnings

    def model(self, title: Any) -> str:
        """The model of A1111's title, "name.safetensors [hash]", or of its name. Raises Refused."""
        name = str(title)
        for each in (name, name.rsplit(" [", 1)[0]):
            for short in (each, each.removesuffix(".safetensors"), each.removesuffix(".ckpt")):
                try:
                    return self.engine.library.model(short).name
                except UnknownName as error:
                    unknown = error
        raise Refused(422, str(unknown), "sd_model_checkpoint")


# ---------------------------------------------------------------- txt2img, img2img


@router.post("/txt2img")
async def txt2img(engine: Server, call: Call, body: TextToImage) -> dict[str, Any]:
    """Pictures from words; the reply comes when they are done."""
    return await _answer(engine, call, body)


@router.post("/img2img")
async def img2img(engine: Server, call: Call, body: ImageToImage) -> dict[str, Any]:
    """Pictures from a picture, with or without a mask."""
    return await _answer(engine, call, body)


@router.post("/png-info")
def png_info(engine: Server, body: PngInfo) -> dict[str, Any]:
    """The settings in a picture."""
    path = engine.pictures.path(_stored(engine, body.image, "image"))
    assert path is not None
    text = read_metadata(path).parameters or ""
    items = {"parameters": text} if text else {}
    return {"info": text, "items": items, "parameters": read_parameters(text) if text else {}}


async def _answer(engine: Engine, call: Call, body: TextToImage) -> dict[str, Any]:
    asked, warnings = await run_in_threadpool(_asked, engine, Options(engine), body)
    submitted = await run_in_threadpool(engine.submit, *asked)
    jobs = []
    for job in submitted:  # n_iter of them
        try:
            ended = await events.ended_or_left(engine, job.id, call)
        except BaseException:
            for other in submitted:
                engine.leave(other.id)
            raise
        if ended is None:
            raise Refused(503, "the server is stopping; the job goes on when it starts again")
        if ended.state == "failed":
            for other in submitted:
                engine.leave(other.id)
            raise Refused(500 if ended.fault == "server" else 422, str(ended.error))
        jobs.append(ended)
    return await run_in_threadpool(_reply, engine, body, jobs, warnings)


def _asked(engine: Engine, options: Options, body: TextToImage) -> tuple[list[Asked], list[str]]:
    """A job for each of n_iter, and what has no effect. Raises Refused, ValueError."""
    given = {n: v for n, v in body.model_dump(exclude_unset=True).items() if v is not None}
    settings, warnings = options.over(given.pop("override_settings", {}))
    warnings += _idle(body, given)
    model = settings["sd_model_checkpoint"]
    fields = _fields(given, warnings)
    if (upscaler := engine.library.upscalers().get(fields.get("hires_upscaler", ""))) is not None:
        fields["hires_upscaler"] += upscaler.suffix
    if settings["CLIP_stop_at_last_layers"] > 1:
        fields["clip_skip"] = settings["CLIP_stop_at_last_layers"]
    if given.get("refiner_checkpoint") not in (None, "", "None"):
        fields["refiner"] = options.model(given["refiner_checkpoint"])
        fields["refiner_at"] = given.get("refiner_switch_at", 0.8)
    if isinstance(body, ImageToImage):
        fields |= _start(engine, given, engine.library.model(model).outline.defaults, warnings)
    count, times = given.get("batch_size", 1), given.get("n_iter", 1)
    seed = fields["seed"]
    requests = [Request.model_validate(fields | {"seed": seed, "count": count})]
    for i in range(1, times):
        later = {"seed": seed + i * count, "count": count}
        if "variation_seed" in fields:
            later["variation_seed"] = fields["variation_seed"] + i * count
        requests.append(Request.model_validate(fields | later))
    together = uuid.uuid4().hex if times > 1 else None
    asked = [Asked(request, model, api="a1111", grid=together) for request in requests]
    return asked, warnings


def _idle(body: TextToImage, given: Mapping[str, Any]) -> list[str]:
    """Warnings of fields that have no effect."""
    warnings = []
    known = set(type(body).model_fields)
    for name, value in given.items():
        if name in NEUTRAL:
            if value not in NEUTRAL[name]:
                warnings.append(f"{name} does nothing here")
        elif name not in known:
            warnings.append(f"{name[:80]} is not known here")
    second = ("hr_scale", "hr_upscaler", "hr_second_pass_steps", "hr_resize_x", "hr_resize_y")
    if not given.get("enable_hr"):
        defaults = {"hr_scale": 2, "hr_upscaler": "Latent"}
        idle = [n for n in second if given.get(n, 0) not in (0, defaults.get(n))]
        warnings += [f"{name} does nothing without enable_hr" for name in idle]
        if not isinstance(body, ImageToImage) and given.get("denoising_strength"):
            warnings.append("denoising_strength does nothing without enable_hr")
    return warnings


def _fields(given: Mapping[str, Any], warnings: list[str]) -> dict[str, Any]:
    """The fields of a request for those of A1111 that txt2img and img2img share."""
    names = {
        "prompt": "prompt",
        "negative_prompt": "negative_prompt",
        "steps": "steps",
        "cfg_scale": "guidance",
        "width": "width",
        "height": "height",
    }
    fields = {ours: given[theirs] for theirs, ours in names.items() if theirs in given}
    seed = given.get("seed", -1)
    fields["seed"] = secrets.randbelow(2**32) if seed == -1 else seed
    if (strength := given.get("subseed_strength", 0)) > 0:
        subseed = given.get("subseed", -1)
        fields["variation_seed"] = secrets.randbelow(2**32) if subseed == -1 else subseed
        fields["variation_strength"] = strength
    if (sampler := given.get("sampler_name", given.get("sampler_index"))) is not None:
        fields["sampler"] = sampler
    if (scheduler := given.get("scheduler")) is not None:
        fields["spacing"] = _spacing(scheduler)
    if given.get("eta"):
        fields |= _eta(given["eta"], fields.get("sampler", ""), warnings)
    if given.get("enable_hr"):
        fields |= _second_pass(given, fields, warnings)
    return fields


def _eta(eta: float, sampler: str, warnings: list[str]) -> dict[str, float]:
    """eta, for a sampler that has it; clients send it with every sampler."""
    name = samplers.resolve(sampler)[0] if sampler else ""
    if name and "eta" in inspect.signature(samplers.get(name).sample).parameters:
        return {"eta": eta}
    warnings.append(f"eta does nothing with the sampler {sampler or 'of the model'}")
    return {}


def _spacing(scheduler: str) -> str:
    """The spacing of A1111's name or label of a scheduler."""
    plain = scheduler.strip().lower().replace("_", " ")
    return samplers.SUFFIXES.get(plain, scheduler)


def _second_pass(
    given: Mapping[str, Any], fields: Mapping[str, Any], warnings: list[str]
) -> dict[str, Any]:
    second: dict[str, Any] = {"hires": given.get("hr_scale", 2.0)}
    x, y = given.get("hr_resize_x", 0), given.get("hr_resize_y", 0)
    width, height = fields.get("width"), fields.get("height")
    if x or y:
        if not width or not height:
            raise Refused(422, "hr_resize_x and hr_resize_y need width and height", "hr_resize_x")
        second["hires"] = x / width if x else y / height
        if x and y and abs(x / width - y / height) > 0.01:
            warnings.append("hr_resize_y does nothing: it has another ratio than hr_resize_x")
    if given.get("hr_second_pass_steps"):
        second["hires_steps"] = given["hr_second_pass_steps"]
    if given.get("denoising_strength") is not None:
        second["hires_strength"] = given["denoising_strength"]
    if (upscaler := given.get("hr_upscaler")) not in (None, "", "None"):
        second["hires_upscaler"] = upscaler
    return second


def _start(
    engine: Engine, given: Mapping[str, Any], defaults: Any, warnings: list[str]
) -> dict[str, Any]:
    """The picture to start from, and its mask. Raises Refused."""
    images = given.get("init_images") or []
    if len(images) != 1:
        raise Refused(422, f"init_images must have one picture, got {len(images)}", "init_images")
    mode = given.get("resize_mode", 0)
    if mode not in range(len(RESIZES)):
        raise Refused(422, f"resize_mode must be 0, 1 or 2, got {mode}", "resize_mode")
    name = _stored(engine, images[0], "init_images")
    image = open_image(engine.pictures.path(name) or "")
    masked = given.get("mask") is not None
    part = masked and given.get("inpaint_full_res", True)
    size = (given.get("width", defaults.width), given.get("height", defaults.height))
    if not (0 < size[0] <= MAX_SIDE and 0 < size[1] <= MAX_SIDE):
        raise Refused(
            422, f"width and height must be between 1 and {MAX_SIDE}, got {size}", "width"
        )
    if size[0] * size[1] > (most := engine.configuration.pixel_limit):  # before it is made so large
        raise Refused(422, f"a picture must have at most {most:,} pixels on this server", "width")
    if image.size != size and not part:
        name = engine.pictures.add(encoded(_resized(image, size, RESIZES[mode])))
    fields = {"image": name, "width": size[0], "height": size[1]}
    fields["strength"] = given.get("denoising_strength", 0.75)
    if not masked:
        idle = [n for n in given if n.startswith(("mask_", "inpaint")) and given[n]]
        warnings += [f"{name} does nothing without a mask" for name in idle if name not in NEUTRAL]
        return fields
    mask = _mask(engine, given["mask"])
    if mask.size != image.size:
        mask = mask.resize(image.size, Image.Resampling.BILINEAR)
    if not part:
        mask = _resized(mask, size, RESIZES[mode])
    fields["mask"] = engine.pictures.add(encoded(mask.convert("RGB")))
    blurs = [given[n] for n in ("mask_blur", "mask_blur_x", "mask_blur_y") if n in given]
    if blurs:
        fields["mask_blur"] = max(blurs)
        if len(set(blurs)) > 1:
            warnings.append("mask_blur is the same in both directions here: the larger one")
    fields["mask_invert"] = bool(given.get("inpainting_mask_invert", 0))
    fields["inpaint_fill"] = FILLS[given.get("inpainting_fill", 0)]
    if part:
        fields |= {"only_masked": True, "padding": given.get("inpaint_full_res_padding", 0)}
    return fields


def _resized(image: Image.Image, size: tuple[int, int], how: str) -> Image.Image:
    """A picture at another size, one of `RESIZES`."""
    if how == "stretched":
        return image.resize(size, Image.Resampling.LANCZOS)
    if how == "cropped":
        return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    inside = ImageOps.contain(image, size, Image.Resampling.LANCZOS)
    left, top = (size[0] - inside.width) // 2, (size[1] - inside.height) // 2
    box = (-left, -top, size[0] - left, size[1] - top)
    return crop(inside, box)  # the edge is repeated, as in A1111


def _stored(engine: Engine, text: str, field: str) -> str:
    """The name of a picture that was sent as base64, with "data:" before it or without. Raises
    Refused."""
    try:
        data = data_of(text if text.startswith("data:") else f"data:image/png;base64,{text}")
    except ValueError as error:
        message = f"{field}: {error} (addresses are not fetched)"
        raise Refused(422, message, field) from None
    try:
        return engine.pictures.add_upload(data, engine.configuration.upload_pixels)[0]
    except ValueError as error:
        raise Refused(422, f"{field}: {error}", field) from None


def _mask(engine: Engine, text: str) -> Image.Image:
    """A mask as A1111 reads it: its alpha, where it has one; else white is redrawn."""
    path = engine.pictures.path(_stored(engine, text, "mask"))
    assert path is not None
    image, _ = open_header(path)
    with image:
        alpha = image.convert("RGBA").getchannel("A")
        return alpha if alpha.getextrema() != (255, 255) else image.convert("L")


def _reply(
    engine: Engine, body: TextToImage, jobs: list[Job], warnings: list[str]
) -> dict[str, Any]:
    """What A1111 replies, with the warnings."""
    paths = [
        path
        for job in jobs
        for each in job.pictures
        if (path := engine.pictures.path(each.picture))
    ]
    images = [base64.b64encode(path.read_bytes()).decode() for path in paths]
    said = [*warnings, *(text for job in jobs for text in job.warnings)]
    said += [str(job.error) for job in jobs if job.error]
    if body.send_images is False:
        images = []
    elif isinstance(body, ImageToImage) and body.include_init_images:
        images += [text.partition(",")[2] or text for text in body.init_images or ()]
    texts = [read_metadata(path).parameters or "" for path in paths]
    given = body.model_dump(mode="json", exclude_none=True)
    if isinstance(body, ImageToImage) and not body.include_init_images:
        given |= {"init_images": None, "mask": None}
    return {
        "images": images,
        "parameters": given,
        "info": json.dumps(_info(engine, jobs, texts)),
        "warnings": list(dict.fromkeys(said)),
    }


def _info(engine: Engine, jobs: list[Job], texts: list[str]) -> dict[str, Any]:
    """A1111's description of a run."""
    first = jobs[0].resolved
    seeds = [picture.seed for job in jobs for picture in job.pictures] or [first["seed"]]
    subseed = first.get("variation_seed")
    offset = 0 if subseed is None else subseed - first["seed"]
    subseeds = [seed + offset for seed in seeds]
    sampler = samplers.get(first["sampler"]).spec.aliases[0]
    count = len(seeds)
    return {
        "prompt": first["prompt"],
        "all_prompts": [first["prompt"]] * count,
        "negative_prompt": first["negative_prompt"],
        "all_negative_prompts": [first["negative_prompt"]] * count,
        "seed": seeds[0],
        "all_seeds": seeds,
        "subseed": subseeds[0],
        "all_subseeds": subseeds,
        "subseed_strength": first.get("variation_strength", 0),
        "width": first["width"],
        "height": first["height"],
        "sampler_name": sampler,
        "cfg_scale": first["guidance"],
        "steps": first["steps"],
        "batch_size": first["count"],
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": jobs[0].model,
        "sd_model_hash": (engine.hashes.of(engine.library.model(jobs[0].model)) or "")[:10],
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": first.get("strength", first.get("hires_strength")),
        "extra_generation_params": {
            "Schedule type": WORDS["spacing"].get(first["spacing"], first["spacing"])
        },
        "index_of_first_image": 0,
        "infotexts": texts,
        "styles": [],
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(jobs[0].created)),
        "clip_skip": first.get("clip_skip") or 1,
        "is_using_inpainting_conditioning": False,
        "version": f"pellucid {__version__}",
    }


# ---------------------------------------------------------------- progress


def _running(engine: Engine) -> list[Job]:
    return [job for job in engine.queue.running() if job.api == "a1111"]


@router.get("/progress")
def progress(engine: Server, skip_current_image: bool = False) -> dict[str, Any]:
    """Where the running job is, with its picture."""
    job = next(iter(_running(engine)), None)
    live = None if job is None else engine.live.get(job.id)
    state = dict(STATE)
    if job is None or live is None:
        return {"progress": 0.0, "eta_relative": 0.0, "state": state, **NO_PICTURE}
    state |= {"job": job.id, "job_count": 1}
    state["job_timestamp"] = time.strftime("%Y%m%d%H%M%S", time.localtime(job.started))
    share, picture = 0.0, None
    if (last := live.last) is not None:
        share = (last.first + last.step / max(last.steps, 1)) / max(last.of, 1)
        state |= {"sampling_step": last.step, "sampling_steps": last.steps}
        picture = _current(last.x0) if last.x0 else None
    if not skip_current_image:
        engine.show(job.id)  # from the next step on
    left = live.seconds_left() or 0.0
    shown = None if skip_current_image else picture
    whole = {"progress": min(share, 1.0), "eta_relative": left, "state": state}
    return whole | {"current_image": shown, "textinfo": None}


@router.post("/interrupt")
def interrupt(engine: Server) -> dict[str, Any]:
    """End what runs: its picture so far is the reply. What its call still has waiting is
    cancelled."""
    for job in _running(engine):
        engine.cancel(job.id, keep=True)
        for other in engine.queue.next(WAITING):
            if other.grid is not None and other.grid == job.grid:
                engine.cancel(other.id)
    return {}


@router.post("/skip")
def skip(engine: Server) -> dict[str, Any]:
    """End the running job with its picture so far; the next of n_iter follows."""
    for job in _running(engine):
        engine.cancel(job.id, keep=True)
    return {}


def _current(urls: list[str]) -> str:
    """The first preview as a PNG in base64, as A1111 sends it."""
    image = open_image(io.BytesIO(data_of(urls[0])))
    return base64.b64encode(encoded(image)).decode()


# ---------------------------------------------------------------- lists


@router.get("/options")
def get_options(engine: Server) -> dict[str, Any]:
    """The options that have an effect here."""
    return Options(engine).values()


@router.post("/options")
def set_options(engine: Server, given: dict[str, Any]) -> dict[str, Any]:
    """Change options for later requests."""
    return {"warnings": Options(engine).change(given)}


@router.get("/sd-models")
def models(engine: Server) -> list[dict[str, Any]]:
    """The models."""
    listed = []
    for file in engine.library.models():
        digest = engine.hashes.of(file)
        short = None if digest is None else digest[:10]
        listed.append(
            {
                "title": file.path.name if short is None else f"{file.path.name} [{short}]",
                "model_name": file.name,
                "hash": short,
                "sha256": digest,
                "filename": file.path.name,
                "config": None,
            }
        )
    return listed


@router.get("/samplers")
def all_samplers() -> list[dict[str, Any]]:
    """The samplers."""
    specs = {name: samplers.get(name).spec for name in samplers.names()}
    return [
        {
            "name": spec.aliases[0],
            "aliases": [name, *spec.aliases[1:]],
            "options": {"scheduler": spec.spacing},
        }
        for name, spec in specs.items()
    ]


@router.get("/schedulers")
def schedulers() -> list[dict[str, Any]]:
    """The spacings."""
    return [
        {
            "name": name,
            "label": label,
            "aliases": None,
            "default_rho": 7.0 if name == "karras" else -1,
            "need_inner_model": False,
        }
        for name, label in WORDS["spacing"].items()
    ]


@router.get("/loras")
def loras(engine: Server) -> list[dict[str, Any]]:
    """The LoRAs."""
    return [
        {"name": name, "alias": name, "path": path.name, "metadata": {}}
        for name, path in engine.library.loras().items()
    ]


@router.get("/embeddings")
def embeddings(engine: Server) -> dict[str, Any]:
    """The textual-inversion embeddings."""
    facts = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None}
    names = engine.library.embeddings()
    return {"loaded": dict.fromkeys(names, facts), "skipped": {}}


@router.get("/upscalers")
def upscalers(engine: Server) -> list[dict[str, Any]]:
    """What enlarges pictures between two passes."""
    fixed = {"model_name": None, "model_path": None, "model_url": None, "scale": 4}
    names = ("None", *map(str.title, (*hires.PICTURE, hires.DIFFUSION)))
    return [{"name": name, **fixed} for name in (*names, *engine.library.upscalers())]


@router.get("/latent-upscale-modes")
def latent_modes() -> list[dict[str, str]]:
    """What enlarges latents between two passes."""
    return [{"name": name.replace("_", " ").capitalize()} for name in hires.LATENT]


@router.get("/sd-vae")
@router.get("/hypernetworks")
@router.get("/face-restorers")
@router.get("/prompt-styles")
@router.get("/sd-modules")
@router.get("/realesrgan-models")
@router.get("/script-info")
def nothing() -> list[Any]:
    """There are none here."""
    return []


@router.get("/scripts")
def scripts() -> dict[str, list[str]]:
    """There are none here."""
    return {"txt2img": [], "img2img": []}


@router.get("/cmd-flags")
def flags() -> dict[str, Any]:
    """There are none of A1111's here."""
    return {}


@router.get("/memory")
def memory() -> dict[str, Any]:
    """Bytes of memory, of the machine and of the first GPU."""
    return _memory()


@router.post("/refresh-checkpoints")
def refresh(engine: Server) -> None:
    """Look into the folders of models again."""
    engine.library.scan()


def _memory() -> dict[str, Any]:
    free = free_memory(torch.device("cpu")) or 0
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows
        total = free
    ram = {"free": free, "used": total - free, "total": total}
    if not torch.cuda.is_available():
        return {"ram": ram, "cuda": {"error": "there is no CUDA device"}}
    left, all_of_it = torch.cuda.mem_get_info()
    return {
        "ram": ram,
        "cuda": {"system": {"free": left, "used": all_of_it - left, "total": all_of_it}},
    }

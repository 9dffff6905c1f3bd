"""``pellucid generate``: pictures from words."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pellucid.cli._app import app, tell
from pellucid.cli._bar import bar
from pellucid.cli._files import free_name, names_a_file, stem_of
from pellucid.cli._like import Opening, read
from pellucid.cli._model import (
    Device,
    Dtype,
    LoraFolder,
    ModelFile,
    Prediction,
    TinyVae,
    Vae,
    open_model,
)
from pellucid.cli._request import (
    Guidance,
    Like,
    Negative,
    Sampler,
    Seed,
    Size,
    Spacing,
    Steps,
    extend_of,
    interval_of,
    lora_of,
    mix_of,
    size_of,
)

if TYPE_CHECKING:
    from torch import Tensor

    from pellucid.model import Model
    from pellucid.pipeline import Adapt, Progress, Request

SMALL = 256  # pictures of no more pixels on a side are shown twice as large in a film

START, MASK, SECOND = "Picture to start from", "Mask", "Second pass"
ADD, STEER, OUTPUT = "On the model", "Noise and guidance", "Output"


def _panel(panel: str, help: str, *names: str) -> Any:
    """An option in one of the boxes of --help."""
    return typer.Option(*names, help=help, rich_help_panel=panel)


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Argument(help='What to draw; "" is anything.')] = None,
    negative: Negative = None,
    preset: Annotated[
        str | None,
        typer.Option(help="Settings of a fast model: lcm, turbo, lightning, hyper; others win."),
    ] = None,
    steps: Steps = None,
    guidance: Guidance = None,
    sampler: Sampler = None,
    spacing: Spacing = None,
    seed: Seed = None,
    count: Annotated[int | None, typer.Option(help="How many; seeds follow on.")] = None,
    size: Size = None,
    like: Like = None,
    model: ModelFile = None,
    vae: Vae = None,
    prediction: Prediction = None,
    tiny_vae: TinyVae = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    lora: Annotated[
        list[str] | None, _panel(ADD, "A LoRA, FILE or FILE:WEIGHT; repeatable.")
    ] = None,
    lora_folder: LoraFolder = None,
    live_lora: Annotated[
        bool, _panel(ADD, "Add LoRAs at every step: slower, needs less memory.", "--live-lora")
    ] = False,
    embedding: Annotated[
        list[Path] | None, _panel(ADD, "A file with a word of textual inversion; repeatable.")
    ] = None,
    image: Annotated[Path | None, _panel(START, "A picture to start from.")] = None,
    strength: Annotated[float | None, _panel(START, "How much of it to redraw, 0 to 1.")] = None,
    extend: Annotated[
        str | None, _panel(START, "Pixels to add, LEFT,TOP,RIGHT,BOTTOM, and to draw there.")
    ] = None,
    mask: Annotated[
        Path | None, _panel(MASK, "A picture of the same size: redraw where white or transparent.")
    ] = None,
    invert_mask: Annotated[
        bool | None, _panel(MASK, "Redraw the rest instead.", "--invert-mask/--no-invert-mask")
    ] = None,
    mask_grow: Annotated[int | None, _panel(MASK, "Widen it by so many pixels.")] = None,
    mask_blur: Annotated[int | None, _panel(MASK, "Blend its edge over about so many.")] = None,
    fill: Annotated[
        str | None, _panel(MASK, "Begin there with: original, fill, noise, blank.")
    ] = None,
    only_masked: Annotated[
        bool | None,
        _panel(MASK, "Draw that part alone, at full size.", "--only-masked/--whole-picture"),
    ] = None,
    padding: Annotated[int | None, _panel(MASK, "Pixels around that part.")] = None,
    hires: Annotated[float | None, _panel(SECOND, "Enlarge so many times and draw over.")] = None,
    hires_steps: Annotated[int | None, _panel(SECOND, "Its steps.")] = None,
    hires_strength: Annotated[float | None, _panel(SECOND, "How much it redraws, 0 to 1.")] = None,
    hires_upscaler: Annotated[
        str | None, _panel(SECOND, "latent, latent_bicubic, lanczos, nearest, ...")
    ] = None,
    refiner: Annotated[
        Path | None, _panel(SECOND, "A model that takes over on the way, such as SDXL's refiner.")
    ] = None,
    refiner_at: Annotated[
        float | None, _panel(SECOND, "From which part of the way on, 0 to 1; 0.8 if not given.")
    ] = None,
    mix: Annotated[
        list[str] | None, _panel(STEER, "A further prompt, TEXT or TEXT:WEIGHT; repeatable.")
    ] = None,
    mix_by: Annotated[str | None, _panel(STEER, "noise or embedding.")] = None,
    walk: Annotated[
        str | None, _panel(STEER, "A prompt to walk to: --count pictures on the way, of one seed.")
    ] = None,
    interval: Annotated[
        str | None, _panel(STEER, "FROM,TO: the part of the way with guidance, such as 0.2,0.8.")
    ] = None,
    variation_seed: Annotated[int | None, _panel(STEER, "Noise to turn towards.")] = None,
    variation_strength: Annotated[float | None, _panel(STEER, "How far, 0 to 1.")] = None,
    clip_skip: Annotated[
        int | None, _panel(STEER, "Layer of the text tower to read: 1 last, 2 the one before.")
    ] = None,
    emphasis: Annotated[
        str | None, _panel(STEER, "What weights in a prompt do: original, no_norm.")
    ] = None,
    rescale: Annotated[float | None, _panel(STEER, "Guidance rescale, 0 to 1.")] = None,
    eta: Annotated[float | None, _panel(STEER, "Fresh noise of ddim, 0 to 1.")] = None,
    noise: Annotated[str | None, _panel(STEER, "gaussian, offset, pyramid, blue, pink.")] = None,
    clip_guidance: Annotated[float | None, _panel(STEER, "Scale of CLIP guidance.")] = None,
    out: Annotated[
        Path, _panel(OUTPUT, "A folder, or the name of a .png, .jpg or .webp file.")
    ] = Path("outputs"),
    decoder: Annotated[
        str | None, _panel(OUTPUT, "What makes pixels of latents: vae, or tiny, which is faster.")
    ] = None,
    film: Annotated[
        bool, _panel(OUTPUT, "Also a strip and a film of how it came out of noise.", "--film")
    ] = False,
    preview: Annotated[
        str, _panel(OUTPUT, "How the film shows a step: linear, tiny, vae, or what is quick.")
    ] = "auto",
    show: Annotated[bool, _panel(OUTPUT, "Draw the picture in the terminal.", "--show")] = False,
    as_json: Annotated[bool, _panel(OUTPUT, "Results as JSON on stdout.", "--json")] = False,
) -> None:
    """Draw pictures from words."""
    from pellucid import checkpoints, presets
    from pellucid.adapters import adapt
    from pellucid.cli import _gan
    from pellucid.images.metadata import save_image
    from pellucid.images.terminal import draw_in_terminal
    from pellucid.plugins import choose
    from pellucid.preview import PREVIEWS
    from pellucid.request import Request

    told = read(like)
    opening, warnings = told.over(Opening(model, prediction, vae, tiny_vae, lora_folder))
    width, height = size_of(size)
    asked = {
        "prompt": prompt,
        "negative_prompt": negative,
        "steps": steps,
        "guidance": guidance,
        "sampler": sampler,
        "spacing": spacing,
        "seed": seed,
        "count": count,
        "width": width,
        "height": height,
        "image": None if image is None else str(image),
        "strength": strength,
        "extend": None if extend is None else extend_of(extend),
        "mask": None if mask is None else str(mask),
        "mask_invert": invert_mask,
        "mask_grow": mask_grow,
        "mask_blur": mask_blur,
        "inpaint_fill": fill,
        "only_masked": only_masked,
        "padding": padding,
        "hires": hires,
        "hires_steps": hires_steps,
        "hires_strength": hires_strength,
        "hires_upscaler": hires_upscaler,
        "refiner": None if refiner is None else str(refiner),
        "refiner_at": refiner_at,
        "mix": mix_of(mix) if mix else None,
        "mix_by": mix_by,
        "walk": walk,
        "interval": None if interval is None else interval_of(interval),
        "variation_seed": variation_seed,
        "variation_strength": variation_strength,
        "clip_skip": clip_skip,
        "emphasis": emphasis,
        "rescale": rescale,
        "eta": eta,
        "noise": noise,
        "clip_guidance": clip_guidance,
        "decoder": decoder,
        "loras": [lora_of(item) for item in lora] if lora else None,
        "embeddings": [str(path) for path in embedding] if embedding else None,
    }
    known = {} if preset is None else presets.preset(preset).given()
    fields = dict(told.request) | known | {name: v for name, v in asked.items() if v is not None}
    if opening.model is not None and checkpoints.holds_gan(opening.model):
        options = {
            "--film": film,
            "--preview": preview != "auto",
            "--live-lora": live_lora,
            "--dtype": dtype != "auto",
            "--prediction": prediction,
            "--vae": vae,
            "--tiny-vae": tiny_vae,
            "--lora-folder": lora_folder,
        }
        _gan.refuse(opening.model, [option for option, given in options.items() if given])
        _gan.draw(opening.model, fields, out, device, show, as_json)
        return
    if "prompt" not in fields:
        raise ValueError('a prompt is wanted, such as: pellucid generate "a rabbit"')
    request = Request.model_validate(fields)
    choose(preview, PREVIEWS, "preview")
    is_file = names_a_file(out, request.count)
    loaded = opening.open(device, dtype)
    second = None
    if request.refiner is not None:
        second = _open_refiner(Path(request.refiner), opening, device, dtype)
    warnings += told.other_model(opening, loaded.name) + told.other_refiner(request)
    warnings += [
        f"{option} does nothing without {needed}"
        for option, needed, idle in (
            ("--preview", "--film", preview != "auto" and not film),
            ("--live-lora", "a LoRA", live_lora and not (request.loras or request.lora_tags)),
            (
                "--tiny-vae",
                "--decoder tiny or --film",
                tiny_vae and not (film or request.decoder == "tiny"),
            ),
        )
        if idle
    ]
    folder = out.parent if is_file else out
    adapted = partial(adapt, folder=opening.lora_folder, live=live_lora)
    record = partial(opening.record, name=loaded.name)
    keep = partial(_kept, record=record, folder=folder)
    last, trail = _run(loaded, request, film, adapted, second, keep)
    warnings += last.warnings
    for warning in warnings:
        tell(warning)
    folder.mkdir(parents=True, exist_ok=True)
    assert last.images is not None
    results = []
    for i, (picture, seed) in enumerate(zip(last.images, last.seeds, strict=True)):
        # What is stored makes this one picture again, alone.
        stored = record(last.request.alone(i))
        target = out if is_file else free_name(out, stem_of(request.prompt, seed))
        save_image(picture, target, stored)
        result: dict[str, Any] = {"path": str(target), "seed": seed}
        if film and trail:
            result |= _film(loaded, trail, i, target, preview)
        if show:
            typer.echo(draw_in_terminal(picture, 48), err=True)
        results.append(result | ({"request": stored} if as_json else {}))
    if as_json:
        typer.echo(json.dumps({"images": results, "warnings": warnings}, indent=1))
        return
    for result in results:
        for name in ("path", "strip", "film"):
            if name in result:
                typer.echo(result[name])


def _open_refiner(path: Path, opening: Opening, device: str, dtype: str) -> Model:
    """The refiner; what --prediction says counts for it as well where its file says nothing."""
    from pellucid.checkpoints import UnknownPrediction

    open_it = partial(open_model, path, vae=opening.vae, device=device, dtype=dtype)
    try:
        return open_it()
    except UnknownPrediction:
        if opening.prediction is None:
            raise
        return open_it(prediction=opening.prediction)


def _run(
    model: Model,
    request: Request,
    keep: bool,
    adapt: Adapt,
    refiner: Model | None,
    save: Callable[[Tensor, Request], Path],
) -> tuple[Progress, list[Progress]]:
    """The last step, and with `keep` all of them, with a bar on the terminal meanwhile.

    Latents that cannot be decoded are kept by `save`, and the ValueError says where.
    """
    from pellucid.pipeline import generate as run
    from pellucid.request import resolve, seeded
    from pellucid.runtime.precision import NotFinite

    request, trail = seeded(request), []
    with bar(request.prompt[:40] or "(no prompt)") as advance:
        try:
            for last in run(model, request, adapt, refiner):
                advance(total=last.steps, completed=last.step)
                request = last.request
                if keep:
                    trail.append(last)
        except NotFinite as error:
            if error.latents is None:
                raise
            kept = save(error.latents, resolve(model, request))
            raise ValueError(
                f"{error}. The latents are kept in {kept}; with a sound decoder, that of FILE: "
                f"pellucid decode {kept} --vae FILE"
            ) from error
    return last, trail


def _kept(
    latents: Tensor, request: Request, record: Callable[[Request], dict[str, Any]], folder: Path
) -> Path:
    """Where latents are written that could not be decoded, with what their pictures would hold."""
    from pellucid.images.latent_file import save_latents

    folder.mkdir(parents=True, exist_ok=True)
    path = free_name(folder, stem_of(request.prompt, request.seed or 0), ".latents.safetensors")
    records = [record(request.alone(i)) for i in range(len(latents))]
    save_latents(path, latents, {"requests": json.dumps(records)})
    return path


def _film(model: Model, trail: list[Progress], i: int, target: Path, how: str) -> dict[str, str]:
    """The steps of picture i as a strip and as a film, beside `target`."""
    from pellucid.images.film import film_strip, save_film
    from pellucid.images.metadata import save_image
    from pellucid.preview import preview

    noisy = [preview(model, step.x[i : i + 1], how)[0] for step in trail]
    clean = [preview(model, step.x0[i : i + 1], how)[0] for step in trail]
    size = noisy[-1].size  # a second pass is larger than the first
    noisy, clean = ([frame.resize(size, 0) for frame in frames] for frames in (noisy, clean))
    strip, film = target.with_name(target.stem + "-strip.png"), target.with_suffix(".webp")
    if film == target:
        film = target.with_name(target.stem + "-film.webp")
    save_image(film_strip(noisy, clean), strip)
    save_film(noisy, clean, film, scale=2 if max(size) <= SMALL else 1)
    return {"strip": str(strip), "film": str(film)}

"""``pellucid generate``: pictures from words."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pellucid.cli._app import MODEL_HELP, app
from pellucid.cli._model import DEVICE_HELP, DTYPE_HELP, PREDICTION_HELP, open_model

if TYPE_CHECKING:
    from torch import Tensor

    from pellucid.model import Model
    from pellucid.pipeline import Adapt, Progress, Request

SMALL = 256  # pictures of no more pixels on a side are shown twice as large in a film


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(p.strip().isdecimal() for p in parts):
        raise ValueError(f"--size is {text!r}; WIDTHxHEIGHT or one number is wanted, such as 64x64")
    return int(parts[0]), int(parts[-1])


def _extend(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"--extend is {text!r}; LEFT,TOP,RIGHT,BOTTOM in pixels is wanted")
    return tuple(int(part) for part in parts)


def _mix(items: list[str]) -> list[tuple[str, float]]:
    out = []
    for item in items:
        text, colon, weight = item.rpartition(":")
        try:
            out.append((text, float(weight)) if colon else (item, 1.0))
        except ValueError:
            raise ValueError(f"--mix is {item!r}; TEXT or TEXT:WEIGHT is wanted") from None
    return out


def _interval(text: str) -> tuple[float, float]:
    try:
        start, end = map(float, text.split(","))
    except ValueError:
        raise ValueError(f"--interval is {text!r}; FROM,TO is wanted, such as 0.2,0.8") from None
    return start, end


def _lora(item: str) -> tuple[str, float, float]:
    """FILE, FILE:WEIGHT or FILE:WEIGHT:WEIGHT IN THE TEXT TOWERS; a path may have a colon too."""
    path, weights = item, list[float]()
    while len(weights) < 2:
        rest, colon, last = path.rpartition(":")
        try:
            weights.insert(0, float(last))
        except ValueError:
            break
        if not colon:
            raise ValueError(f"--lora is {item!r}; FILE or FILE:WEIGHT is wanted")
        path = rest
    weight = weights[0] if weights else 1.0
    return path, weight, weights[-1] if weights else 1.0


def _from_picture(path: Path) -> dict[str, Any]:
    """The request that a picture carries."""
    from pellucid.images import read_metadata
    from pellucid.pipeline import Request

    found = read_metadata(path)
    if found.request is not None:
        return {k: v for k, v in found.request.items() if k in Request.model_fields}
    if not found.parameters:
        raise ValueError(f"{path} does not say what made it: it has no request inside")
    from pellucid.images import read_parameters
    from pellucid.samplers import SUFFIXES
    from pellucid.schedule import SPACINGS

    known = read_parameters(found.parameters)
    if "spacing" in known:  # labels such as "SGM Uniform"
        spacing = str(known["spacing"]).lower()
        known["spacing"] = spacing if spacing in SPACINGS else SUFFIXES.get(spacing)
    return {k: v for k, v in known.items() if k in Request.model_fields}


def _free_name(folder: Path, stem: str, suffix: str = ".png") -> Path:
    """A name that is not taken."""
    path, number = folder / f"{stem}{suffix}", 2
    while path.exists():
        path, number = folder / f"{stem}-{number}{suffix}", number + 1
    return path


def _stem(prompt: str, seed: int) -> str:
    words = "-".join("".join(c if c.isalnum() else " " for c in prompt.lower()).split())
    short = words[:60].encode()[:150].decode(errors="ignore")  # a file name has at most 255 bytes
    return f"{short.strip('-') or 'unconditional'}-{seed}"


MODEL = "Model"
START, MASK, SECOND = "Picture to start from", "Mask", "Second pass"
ADD, STEER, OUTPUT = "On the model", "Noise and guidance", "Output"


def _panel(panel: str, help: str, *names: str) -> Any:
    """An option in one of the boxes of --help."""
    return typer.Option(*names, help=help, rich_help_panel=panel)


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Argument(help='What to draw; "" is anything.')] = None,
    negative: Annotated[str | None, typer.Option(help="What to keep away from.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the sampler, 1 to 1000.")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="How much the text counts; 1: once.")
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="ddim, euler, dpmpp_2m, ...")] = None,
    spacing: Annotated[
        str | None, typer.Option("--spacing", "--schedule", help="Where the steps lie: karras, ...")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed is the same picture.")] = None,
    count: Annotated[int | None, typer.Option(help="How many; seeds follow on.")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels.")] = None,
    model: Annotated[Path | None, typer.Option(help=MODEL_HELP)] = None,
    vae: Annotated[Path | None, _panel(MODEL, "A file whose autoencoder is used instead.")] = None,
    prediction: Annotated[str | None, _panel(MODEL, PREDICTION_HELP)] = None,
    device: Annotated[str, _panel(MODEL, DEVICE_HELP)] = "auto",
    dtype: Annotated[str, _panel(MODEL, DTYPE_HELP)] = "auto",
    like: Annotated[
        Path | None, typer.Option(help="A picture made here or by A1111: do as it was done.")
    ] = None,
    lora: Annotated[
        list[str] | None, _panel(ADD, "A LoRA, FILE or FILE:WEIGHT; repeatable.")
    ] = None,
    lora_folder: Annotated[
        Path | None, _panel(ADD, "Where the LoRAs of <lora:name:weight> in a prompt lie.")
    ] = None,
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
    tiny_vae: Annotated[
        Path | None, _panel(OUTPUT, "The tiny autoencoder, if it does not lie beside the model.")
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
    from pellucid import checkpoints, images
    from pellucid.adapters import adapt
    from pellucid.cli import _gan
    from pellucid.pipeline import Request
    from pellucid.plugins import choose
    from pellucid.preview import PREVIEWS

    if prompt is None and like is None:
        raise ValueError('a prompt is wanted, such as: pellucid generate "a rabbit"')
    fields: dict[str, Any] = {} if like is None else _from_picture(like)
    width, height = (None, None) if size is None else _size(size)
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
        "extend": None if extend is None else _extend(extend),
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
        "mix": _mix(mix) if mix else None,
        "mix_by": mix_by,
        "walk": walk,
        "interval": None if interval is None else _interval(interval),
        "variation_seed": variation_seed,
        "variation_strength": variation_strength,
        "clip_skip": clip_skip,
        "emphasis": emphasis,
        "rescale": rescale,
        "eta": eta,
        "noise": noise,
        "clip_guidance": clip_guidance,
        "decoder": decoder,
        "loras": [_lora(item) for item in lora] if lora else None,
        "embeddings": [str(path) for path in embedding] if embedding else None,
    }
    fields |= {name: value for name, value in asked.items() if value is not None}
    if model is not None and checkpoints.holds_gan(model):
        if film or tiny_vae is not None:
            what = "--film" if film else "--tiny-vae"
            raise ValueError(f"{what} is for diffusion models, and {model} is a GAN")
        _gan.draw(model, fields, out, show, as_json)
        return
    request = Request.model_validate(fields)
    choose(preview, PREVIEWS, "preview")
    is_file = _is_file(out, request.count)
    loaded = open_model(
        model, prediction=prediction, vae=vae, tiny_vae=tiny_vae, device=device, dtype=dtype
    )
    folder = out.parent if is_file else out
    adapted = partial(adapt, folder=lora_folder, live=live_lora)
    last, trail = _run(loaded, request, film, adapted, folder)
    for warning in last.warnings:
        typer.echo(f"pellucid: {warning}", err=True)
    folder.mkdir(parents=True, exist_ok=True)
    assert last.images is not None
    results = []
    for i, (picture, seed) in enumerate(zip(last.images, last.seeds, strict=True)):
        # What is stored makes this one picture again, alone.
        record = last.request.alone(i).record() | {"model": loaded.name}
        target = out if is_file else _free_name(out, _stem(request.prompt, seed))
        images.save(picture, target, record)
        result: dict[str, Any] = {"path": str(target), "seed": seed}
        if film and trail:
            result |= _film(loaded, trail, i, target, preview)
        if show:
            typer.echo(images.draw_in_terminal(picture, 48), err=True)
        results.append(result | ({"request": record} if as_json else {}))
    if as_json:
        typer.echo(json.dumps({"images": results, "warnings": list(last.warnings)}, indent=1))
        return
    for result in results:
        for name in ("path", "strip", "film"):
            if name in result:
                typer.echo(result[name])


def _is_file(out: Path, count: int) -> bool:
    """Whether --out names a file; a folder otherwise."""
    from pellucid.images import FORMATS

    is_file = out.suffix.lower() in FORMATS
    if out.suffix and not is_file and not out.is_dir():
        known = ", ".join(FORMATS)
        raise ValueError(f"--out is {out}; a folder or a file that ends in {known} is wanted")
    if is_file and count > 1:
        raise ValueError(f"--out is one file, {out}, and --count is {count}; name a folder")
    folder = out.parent if is_file else out
    if folder.exists() and not folder.is_dir():  # said now, not after the work is done
        raise ValueError(f"--out is {out}, and {folder} is a file; a folder is wanted")
    return is_file


def _run(
    model: Model, request: Request, keep: bool, adapt: Adapt, folder: Path
) -> tuple[Progress, list[Progress]]:
    """The last step, and with `keep` all of them, with a bar on the terminal meanwhile.

    Latents that cannot be decoded are kept in `folder`, and the ValueError says where.
    """
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from pellucid.pipeline import generate as run
    from pellucid.precision import NotFinite

    trail = []
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    hidden = not console.is_terminal  # it would still write an empty line
    with Bar(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(request.prompt[:40] or "(no prompt)", total=None)
        try:
            for last in run(model, request, adapt):
                bar.update(task, total=last.steps, completed=last.step)
                request = last.request
                if keep:
                    trail.append(last)
        except NotFinite as error:
            if error.latents is None:
                raise
            kept = _kept(error.latents, request, folder)
            raise ValueError(
                f"{error}. The latents are kept in {kept}; with a sound decoder, that of FILE: "
                f"pellucid decode {kept} --model FILE"
            ) from error
    return last, trail


def _kept(latents: Tensor, request: Request, folder: Path) -> Path:
    """Where the latents are written that could not be decoded."""
    from pellucid.vae import save_latents

    folder.mkdir(parents=True, exist_ok=True)
    path = _free_name(folder, _stem(request.prompt, request.seed or 0), ".latents.safetensors")
    save_latents(path, latents, {"request": json.dumps(request.record())})
    return path


def _film(model: Model, trail: list[Progress], i: int, target: Path, how: str) -> dict[str, str]:
    """The steps of picture i as a strip and as a film, beside `target`."""
    from pellucid import images
    from pellucid.preview import preview

    noisy = [preview(model, step.x[i : i + 1], how)[0] for step in trail]
    clean = [preview(model, step.x0[i : i + 1], how)[0] for step in trail]
    size = noisy[-1].size  # a second pass is larger than the first
    noisy, clean = ([frame.resize(size, 0) for frame in frames] for frames in (noisy, clean))
    strip, film = target.with_name(target.stem + "-strip.png"), target.with_suffix(".webp")
    if film == target:
        film = target.with_name(target.stem + "-film.webp")
    images.save(images.film_strip(noisy, clean), strip)
    images.save_film(noisy, clean, film, scale=2 if max(size) <= SMALL else 1)
    return {"strip": str(strip), "film": str(film)}

"""How ``pellucid generate`` draws: with a diffusion model, or with a GAN."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid.cli._app import report
from pellucid.cli._files import Output
from pellucid.cli._jobs import DrawJob, Jobs, PictureIndex, missing
from pellucid.cli._like import ModelFiles, PictureRecord, flag_of
from pellucid.cli._recorded_paths import shareable
from pellucid.messages import text_of
from pellucid.progress import stage

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from pellucid.checkpoints import Turns
    from pellucid.model import Model
    from pellucid.pipeline import Adapt, Progress
    from pellucid.request import Request, ResolvedRequest

OF_GAN = ("prompt", "seed", "count")
"""The fields of a request that a GAN has."""


@dataclass(frozen=True)
class DrawOptions:
    """The options of the command that are neither the request's nor files."""

    device: str = "auto"
    dtype: str = "auto"
    backend: str = "auto"
    threads: int | None = None
    live_lora: bool = False
    film: bool = False
    preview: str = "auto"
    show: bool = False


@dataclass(frozen=True)
class Drawn:
    """Pictures that are finished, and what each is stored with, from which it can be made again
    alone."""

    images: list[Image]
    records: list[dict[str, Any]]
    warnings: list[str]
    steps: list[Progress] = field(default_factory=list)
    """All of them for a film, else the last."""
    model: Model | None = None
    """The diffusion model, which previews the steps of a film."""


def check_gan_options(files: ModelFiles, asked: Mapping[str, Any], settings: DrawOptions) -> None:
    """ValueError: an option that a GAN does not have."""
    values = asdict(settings) | asdict(files)
    defaults = asdict(DrawOptions(settings.device, show=settings.show)) | asdict(
        ModelFiles(files.model)
    )
    given = [flag_of(name) for name, value in values.items() if value != defaults[name]]
    given += [name.replace("_", " ") for name in asked if name not in OF_GAN]
    if given:
        raise ValueError(
            f"{files.model} is a GAN, which draws in one step at its own size; {', '.join(given)} "
            f"{'is' if len(given) == 1 else 'are'} for diffusion models"
        )


def draw_with_gan(files: ModelFiles, request: Request, settings: DrawOptions) -> Generator[Drawn]:
    """One step for each picture. ValueError: the prompt is not one of the GAN's classes, where it
    has classes."""
    from pellucid import gan
    from pellucid.checkpoints import load_gan
    from pellucid.images.pixels import to_pil
    from pellucid.request import chosen_seed
    from pellucid.runtime.devices import choose_device

    assert files.model is not None
    loaded = load_gan(files.model, choose_device(settings.device))
    classes = loaded.generator.config.classes
    label = gan.class_of(loaded.generator.config, request.prompt)
    warnings = []
    if label is None and request.prompt.strip():
        warnings.append(f"{files.model} is an unconditional GAN: the prompt is ignored")
    first, prompt = chosen_seed(request), "" if label is None else classes[label]
    names = shareable({"model": loaded.name, "model_file": str(files.model)})
    for seed in range(first, first + request.count):
        pixels = gan.sample(loaded.generator, [seed], label)[0]
        yield Drawn([to_pil(pixels)], [{"prompt": prompt, "seed": seed} | names], warnings)


def draw_with_diffusion(
    jobs: Jobs,
    settings: DrawOptions,
    recorded: PictureRecord,
    output: Output,
    made: PictureIndex | None = None,
) -> Generator[Drawn]:
    """All jobs, batch after batch. Latents that cannot be decoded are kept.

    made: the pictures that are there already and are not drawn again. A line of a file that cannot
    be drawn is reported, and the next ones are drawn.
    """
    from pellucid.plugins import choose
    from pellucid.preview import PREVIEWS
    from pellucid.runtime.devices import choose_device

    # Errors come now, and not after a model is loaded.
    choose(settings.preview, PREVIEWS, "preview")
    choose_device(settings.device)
    turns: Turns = "text" if jobs.count() == 1 else True
    model = jobs.files.open(settings.device, settings.dtype, settings.threads, turns)
    for job in jobs:
        try:
            yield from draw_job(job, model, settings, recorded, output, made)
        except ValueError as error:
            if job.place is None:
                raise
            report(f"{job.place}: {text_of(error)}")
            output.failed = True


def draw_job(
    job: DrawJob,
    model: Model,
    settings: DrawOptions,
    recorded: PictureRecord,
    output: Output,
    made: PictureIndex | None,
) -> Generator[Drawn]:
    """The pictures of one job that are not made yet."""
    from pellucid.adapters import on_backend
    from pellucid.images.metadata import format_of
    from pellucid.plan import faster
    from pellucid.request import chosen_seed, resolve

    files, request = job.files, job.request
    refiner = None
    if request.refiner is not None:
        refiner = _open_refiner(Path(request.refiner), files, settings)
    warnings = recorded.missing(files, model.name, request)
    warnings += _without_effect(files, request, settings)
    adapted = on_backend(model, settings.backend, files.lora_folder, settings.live_lora)
    if settings.backend == "fast":
        request = faster(model, request)
    seeded = request.seed not in (None, -1)
    # Chosen here, so that the record of latents that are kept has the seed of the run.
    request = request.model_copy(update={"seed": chosen_seed(request)})

    record = partial(job.record, name=model.name)
    parts = [request]
    if made is not None:
        parts, there = missing(request, resolve(model, request), seeded, made, record)
        for path in there:
            report(f"{path} is there already")
    resolved = resolve(model, request)  # errors come now, not after the work is done
    output.check_room(sum(part.count for part in parts), resolved.width * resolved.height)
    if output.file is not None:
        format_of(output.file, record(resolved))
    keep = partial(_keep_latents, record, output)
    for part in parts:
        for steps in _run(model, part, adapted, refiner, keep, settings.film):
            last = steps[-1]
            assert last.images is not None
            records = [record(last.request.alone(i)) for i in range(len(last.images))]
            yield Drawn(last.images, records, [*warnings, *last.warnings], steps, model)


def _open_refiner(path: Path, files: ModelFiles, settings: DrawOptions) -> Model:
    """The refiner; --prediction counts for it too, but only where its file does not say."""
    from pellucid.checkpoints import UnknownPrediction
    from pellucid.opening import open_model

    open_it = partial(
        open_model, path, vae=files.vae, device=settings.device, dtype=settings.dtype, in_turns=True
    )
    try:
        return open_it()
    except UnknownPrediction:
        if files.prediction is None:
            raise
        return open_it(prediction=files.prediction)


def _without_effect(files: ModelFiles, request: Request, settings: DrawOptions) -> list[str]:
    """Warnings of options that do nothing without another."""
    film, tiny = settings.film, request.decoder == "tiny"
    loras = request.loras or request.lora_tags
    options = (
        ("--preview", "--film", settings.preview != "auto" and not film),
        ("--lora-folder", "<lora:...> in a prompt", files.lora_folder and not request.lora_tags),
        ("--live-lora", "a LoRA", settings.live_lora and not loras),
        ("--tiny-vae", "--decoder tiny or --film", files.tiny_vae and not (film or tiny)),
    )
    return [f"{option} does nothing without {other}" for option, other, idle in options if idle]


def _run(
    model: Model,
    request: Request,
    adapt: Adapt,
    refiner: Model | None,
    keep_latents: Callable[[ResolvedRequest, Tensor], Path],
    every: bool,
) -> Iterator[list[Progress]]:
    """The last step of each batch, or `every` one; ValueError that names where undecodable latents
    are kept."""
    from pellucid.pipeline import generate_in_batches
    from pellucid.request import resolve
    from pellucid.runtime.precision import NotFinite

    steps: list[Progress] = []
    finished = 0
    prompt = f'"{request.prompt[:40]}"' if request.prompt else "without a prompt"
    with stage(f"drawing {prompt}", request.count) as now:
        try:
            for step in generate_in_batches(model, request, adapt, refiner):
                now.done = finished + len(step.seeds) * step.step / max(step.steps, 1)
                steps = [*steps, step] if every else [step]
                if step.images is not None:
                    yield steps
                    finished, steps = finished + len(step.images), []
        except NotFinite as error:
            if error.latents is None:
                raise
            part = request.part(finished, len(error.latents))
            kept = keep_latents(resolve(model, part), error.latents)
            raise ValueError(
                f"{error}. The latents are kept in {kept}; decode them with another autoencoder: "
                f"pellucid decode {kept} --vae FILE"
            ) from error


def _keep_latents(
    record: Callable[[Request], dict[str, Any]],
    output: Output,
    request: ResolvedRequest,
    latents: Tensor,
) -> Path:
    """Writes latents that could not be decoded, with what their pictures would be stored with."""
    from pellucid.images.latent_file import save_latents

    records = [record(request.alone(i)) for i in range(len(latents))]
    about = {"requests": json.dumps(records)}
    ending = ".latents.safetensors"
    path = output.folder / f"{output.stem(records[0])}{ending}"
    return output.save(partial(save_latents, latents=latents, about=about), path, ending)

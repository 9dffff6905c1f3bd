"""Whether a job can be done, decided before it waits; and the files that its names stand for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from pellucid import checkpoints, hires
from pellucid.messages import FieldMessage
from pellucid.model import Model
from pellucid.plan import batch_key, faster, planned
from pellucid.request import Request, ResolvedRequest, chosen_seed, resolve
from pellucid.request.fields import PICTURES, file_fields, with_files
from pellucid.serve.configuration import Configuration
from pellucid.serve.library import Library, ModelFile, UnknownName
from pellucid.serve.pictures import PictureStore
from pellucid.serve.queue import Job, Kind
from pellucid.serve.worker import ModelSpec, WorkerJob, without_paths
from pellucid.settings import embeddings_named
from pellucid.textual_inversion import reads_words


class Asked(NamedTuple):
    """A new job as an interface asks for it. In `request`, files are named.

    image, mask: of the store of pictures. loras, embeddings, refiner: of the library. versus: the
    request of a second run, which an explanation compares.
    """

    request: Request
    model: str | None = None
    kind: Kind = "generate"
    api: str = "native"
    previews: bool = False
    versus: Request | None = None
    priority: int = 0
    grid: str | None = None


class Acceptance:
    """Checks jobs against the limits and the models of a server."""

    def __init__(self, limits: Configuration, library: Library, pictures: PictureStore) -> None:
        self.limits = limits
        self.library = library
        self.pictures = pictures

    @property
    def default_model(self) -> str:
        """The name of the model for jobs that name none. ValueError: there is none at all."""
        if self.limits.model is not None:
            return self.limits.model
        first = self.library.first()
        if first is None:
            raise ValueError("this server has no model; start it with a folder of models")
        return first.name

    def job(self, asked: Asked) -> Job:
        """The job, with a seed. ValueError: it cannot be done, and why."""
        file = self.library.model(self.default_model if asked.model is None else asked.model)
        # With a seed, a job that runs again makes the same picture.
        seed = {"seed": chosen_seed(asked.request)}
        request = self.with_embeddings(asked.request).model_copy(update=seed)
        versus = asked.versus and self.with_embeddings(asked.versus).model_copy(update=seed)
        ignored = []
        if asked.kind == "explain" and (request.refiner or (versus and versus.refiner)):
            said = FieldMessage(
                "{refiner} does nothing: only the steps of {model} are explained", model=file.name
            )
            ignored = [str(said)]
            request, versus = _without_refiner(request), versus and _without_refiner(versus)
        if asked.kind == "generate" and self.limits.backend == "fast":
            request = self.faster(file, request)
        resolved, warnings = self.checked(file, request)
        if asked.kind == "explain":
            for each in (request, versus):
                if each is not None and each.count != 1:
                    raise ValueError(
                        FieldMessage(
                            "{count} must be 1 to explain a picture, got {n}", n=each.count
                        )
                    )
        if asked.kind not in ("generate", "explain") and request.image is None:
            raise ValueError(FieldMessage(f"{asked.kind} needs an {{image}}"))
        options: dict[str, Any] = {"previews": asked.previews}
        if asked.kind == "generate" and (key := batch_key(file.outline, resolved)) is not None:
            width, height = resolved.largest_size
            key = hashlib.sha256(key.encode()).hexdigest()
            options["batch"] = {"key": key, "pixels": width * height}
        if versus is not None:
            self.checked(file, versus)
            options["versus"] = _given(versus)
        return Job(
            kind=asked.kind,
            api=asked.api,
            model=file.name,
            request=_given(request),
            resolved=resolved.record() | _names(request),
            options=options,
            warnings=[*ignored, *warnings],
            priority=asked.priority,
            grid=asked.grid,
            work=float(resolved.steps * resolved.count * pixels(resolved)),
        )

    def checked(self, file: ModelFile, request: Request) -> tuple[ResolvedRequest, list[str]]:
        """The request with the model's defaults, and warnings. ValueError, as in `job`."""
        refiner = None if request.refiner is None else self.library.model(request.refiner).outline
        for tag in request.lora_tags:
            self.library.lora(tag.name)
        located = self.located(request)
        with _without_paths(located):
            model, skipped = knows_words(file.outline, located)
            resolved = resolve(model, located)
            self.check_limits(resolved)
            plan = planned(model, located, resolved, refiner)
        return resolved, [without_paths(text, located) for text in (*skipped, *plan.warnings)]

    def faster(self, file: ModelFile, request: Request) -> Request:
        """As `plan.faster`."""
        located = self.located(request)
        with _without_paths(located):
            found = faster(file.outline, located)
        names = ("forecast", "forecast_more")
        return request.model_copy(update={name: getattr(found, name) for name in names})

    def check_limits(self, request: ResolvedRequest) -> None:
        """ValueError: a request is beyond a limit of this server."""
        limits = self.limits
        _at_most("count", request.count, limits.count_limit)
        _at_most("steps", request.steps, limits.step_limit)
        if request.second_pass is not None:
            _at_most("hires_steps", request.second_pass.steps, limits.step_limit)
        if pixels(request) > limits.pixel_limit:
            raise ValueError(
                f"a picture must have at most {limits.pixel_limit:,} pixels on this server, got "
                f"{pixels(request):,}"
            )
        if request.picture is not None:
            left, top, right, bottom = request.extend
            width, height = request.picture.size
            extended = (width + left + right) * (height + top + bottom)
            if extended > limits.upload_pixels:
                raise ValueError(
                    f"a picture with its extension must have at most {limits.upload_pixels:,} pixels "
                    f"on this server, got {extended:,}"
                )

    def with_embeddings(self, request: Request) -> Request:
        """The request with the embeddings of the library that its prompts have as a word."""
        names = {path: name for name, path in self.library.embeddings().items()}
        found = tuple(names[path] for path in embeddings_named(request, names))
        return request.model_copy(update={"embeddings": request.embeddings + found})

    def read(self, file: ModelFile, request: Request) -> tuple[Model, ResolvedRequest]:
        """How a request's prompts are read: the model without its weights that knows the words of their
        embeddings, and the request with its defaults. ValueError: an embedding that does not fit."""
        located = self.located(self.with_embeddings(request))
        with _without_paths(located):
            model, _ = knows_words(file.outline, located)
            return model, resolve(model, located)

    def located(self, request: Request) -> Request:
        """The request with paths in place of names. ValueError: nothing has such a name."""
        places = {}
        for field, kind in file_fields(type(request)).items():
            value = getattr(request, field)
            if value == type(request).model_fields[field].default:
                continue
            if field == "hires_upscaler" and not hires.is_file(value):
                continue
            places[field] = with_files(value, partial(self._place, field, kind))
        return request.model_copy(update=places)

    def _place(self, field: str, kind: str, name: str) -> str:
        """The path of the file of this name. kind: as `option` has it. ValueError: there is none."""
        if kind == PICTURES:
            path = self.pictures.path(name)
            if path is None:
                raise ValueError(
                    FieldMessage(
                        f"{{{field}}}: there is no picture {{name!r}} here", name=name[:80]
                    )
                )
            return str(path)
        if kind == "models":
            return str(self.library.model(name).path)
        if kind == "loras":
            return str(self.library.lora(name))
        if kind == "embeddings":
            return str(self.library.embedding(name))
        if field == "hires_upscaler":
            try:
                return str(self.library.upscaler(name))
            except UnknownName:
                known = ", ".join((*hires.UPSCALERS, *upscaler_names(self.library)))
                said = FieldMessage("{hires_upscaler} must be one of {all}", all=known)
                raise ValueError(said) from None
        raise ValueError(FieldMessage(f"{{{field}}} must not be given on this server"))

    def task(self, job: Job) -> WorkerJob:
        """The job for a worker, with its files where they are now. ValueError: one is gone."""
        request = Request.model_validate(job.request)
        versus = job.options.get("versus")
        return WorkerJob(
            id=job.id,
            kind=job.kind,
            request=self.located(request),
            named=_names(request),
            model=_spec(self.library.model(job.model)),
            refiner=None if request.refiner is None else _spec(self.library.model(request.refiner)),
            versus=None if versus is None else self.located(Request.model_validate(versus)),
            previews=bool(job.options.get("previews")),
        )


def knows_words(model: Model, request: Request) -> tuple[Model, list[str]]:
    """The model whose tokenizer knows the words of the request's embeddings, and a warning for each word
    of another family. ValueError: a file is no embedding, or does not fit the model."""
    skipped: list[str] = []
    words = checkpoints.load_embeddings(request.embeddings, model, skipped)
    return reads_words(model, words), skipped


def upscaler_names(library: Library) -> list[str]:
    """The upscalers of a library as a request names them: with their ending."""
    return [f"{name}{path.suffix}" for name, path in library.upscalers().items()]


def pixels(request: ResolvedRequest) -> int:
    """Pixels of the largest picture of a run."""
    scale = 1.0 if request.second_pass is None else request.second_pass.scale
    return round(request.width * scale) * round(request.height * scale)


def _without_refiner(request: Request) -> Request:
    return request.model_copy(update={"refiner": None, "refiner_at": Request().refiner_at})


@contextmanager
def _without_paths(request: Request) -> Iterator[None]:
    """Errors about the files of a request have their names, not their paths."""
    try:
        yield
    except ValueError as error:
        if (text := without_paths(str(error), request)) == str(error):
            raise
        raise ValueError(text) from None


def _given(request: Request) -> dict[str, Any]:
    """The fields that differ from their defaults, as JSON values."""
    return request.model_dump(mode="json", exclude_defaults=True)


def _names(request: Request) -> dict[str, Any]:
    """The fields of a request that name files."""
    files = set(file_fields(type(request)))
    if not hires.is_file(request.hires_upscaler):
        files.discard("hires_upscaler")  # a method
    given = request.model_dump(mode="json", include=files)
    return {name: value for name, value in given.items() if value not in (None, [])}


def _spec(file: ModelFile) -> ModelSpec:
    return ModelSpec(file.name, file.path, file.version, file.prediction)


def _at_most(field: str, given: int, most: int) -> None:
    if given > most:
        raise ValueError(
            FieldMessage(
                f"{{{field}}} must be at most {{most}} on this server, got {{given}}",
                most=most,
                given=given,
            )
        )

"""``--like PICTURE``: repeat what a picture records, except for the options that are given.

A picture made here records its request and the files that were opened for it (`ModelFiles`), whose
paths `_recorded_paths` finds again. A picture made by another program records
only the names of its model, VAE and refiner, from which no file can be found: a warning names them,
and settings that do not exist here.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from pellucid.cli._model import default_model, find
from pellucid.cli._recorded_paths import found_again, searched, shareable
from pellucid.folders import Folder, embedded, name_of
from pellucid.messages import sentence
from pellucid.request import Request
from pellucid.safetensors_header import holds_gan
from pellucid.settings import embeddings_named, load_settings

if TYPE_CHECKING:
    from pellucid.checkpoints import Turns
    from pellucid.model import Model

Like = Annotated[
    Path | None,
    typer.Option(help="Repeat the settings of a picture, made here or by another program."),
]
OF_MODEL = ("prediction", "vae", "tiny_vae")
"""What is opened for one model and is of no use to another."""
ABOUT = ("template", "upscaled")
"""What is recorded of how a request or a picture came about, and is not repeated."""
MOST, SHOWN = 20, 80  # names that a warning shows, and letters of each


@dataclass(frozen=True)
class ModelFiles:
    """What is opened for a run, each by the option of that name; None: not given."""

    model: Path | None = None
    prediction: str | None = None
    vae: Path | None = None
    tiny_vae: Path | None = None
    lora_folder: Path | None = None

    def open(
        self, device: str, dtype: str, threads: int | None = None, in_turns: Turns = False
    ) -> Model:
        """The model with its other files; errors as in `open_model`."""
        from pellucid.opening import open_model

        gc.freeze()  # what was imported stays; looking through it again would take a tenth of a second
        return open_model(
            self.model,
            prediction=self.prediction,
            vae=self.vae,
            tiny_vae=self.tiny_vae,
            device=device,
            dtype=dtype,
            threads=threads,
            in_turns=in_turns,
        )

    def record(self, request: Request, name: str) -> dict[str, Any]:
        """What a picture is stored with: its request, the model's name, the files that mattered."""
        used = {key: getattr(self, field) for field, key in recorded_as().items()}
        if request.decoder != "tiny":
            del used["tiny_vae"]
        if not request.lora_tags:
            del used["lora_folder"]
        if self.model == embedded():
            del used["model_file"]
        files = {key: str(value) for key, value in used.items() if value is not None}
        return shareable(request.record() | {"model": name} | files)


def recorded_as() -> dict[str, str]:
    """The fields of `ModelFiles`, and their names in a picture."""
    return {each.name: each.name for each in fields(ModelFiles)} | {"model": "model_file"}


@dataclass(frozen=True)
class PictureRecord:
    """What a picture records: its request, the files of its model, and names without a file."""

    picture: Path | None = None
    request: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    model: str | None = None
    vae: str | None = None
    refiner: str | None = None
    unused: tuple[str, ...] = ()
    """Settings that do not exist here."""

    def over(self, given: ModelFiles) -> tuple[ModelFiles, list[str]]:
        """`given`, completed by what the picture records; and warnings.

        ValueError: a file that the picture names does not exist.
        """
        files = {n: v for n, v in self.files.items() if getattr(given, n) is None}
        warnings = []
        if self.unused:
            first = ", ".join(name[:SHOWN] for name in self.unused[:MOST])
            more = ", ..." if len(self.unused) > MOST else ""
            warnings.append(
                f"{self.picture} was made with settings that do not exist here and are ignored: "
                f"{first}{more}"
            )
        recorded = Path(self.files.get("model", "")).name
        other = given.model is not None and given.model.name != recorded
        if unused := [name for name in OF_MODEL if other and files.pop(name, None) is not None]:
            warnings.append(
                f"{self.picture} was made by another model than {given.model}, so its "
                f"{' and '.join(map(flag_of, unused))} {'is' if len(unused) == 1 else 'are'} ignored"
            )
        for name, value in files.items():
            if name != "prediction" and not Path(value).exists():
                form = "FOLDER" if name == "lora_folder" else "FILE"
                raise ValueError(
                    f"{self.picture} was made with {flag_of(name)} {value}, which does not exist "
                    f"here; {searched(self.picture or Path(), value)}; choose another with "
                    f"{flag_of(name)} {form}"
                )
        if self.vae is not None and given.vae is None:
            warnings.append(self._name_only("VAE", self.vae))
        paths: dict[str, Any] = {n: v if n == "prediction" else Path(v) for n, v in files.items()}
        return replace(given, **paths), warnings

    def missing(self, files: ModelFiles, model: str, request: Request) -> list[str]:
        """Warnings: the picture names a model or a refiner, and this run has none of that name."""
        warnings = []
        if files.model is None and self.model not in (None, model):
            warnings.append(self._name_only("model", str(self.model)))
        if self.refiner is not None and request.refiner is None:
            warnings.append(self._name_only("refiner", self.refiner))
        return warnings

    def _name_only(self, what: str, name: str) -> str:
        name = name[:SHOWN]
        option = f"--{what.lower()} FILE"
        return f"{self.picture} was made with the {what} {name}; choose it with {option}"


def with_settings(
    recorded: PictureRecord, files: ModelFiles, asked: Mapping[str, Any]
) -> tuple[ModelFiles, dict[str, Any]]:
    """The files of a run, and its request: what is missing is taken from the user's settings.

    What a picture records is whole, so that of the settings it only gets the folder of models, where
    a model of which another program recorded the name may be.
    """
    if recorded.picture is not None:
        if files.model is None and recorded.model not in (None, embedded().stem):
            with suppress(ValueError):  # a warning says later that it is missing
                path = load_settings().settings.folder("models").find(str(recorded.model))
                files = replace(files, model=path)
        fields = {**recorded.request, **asked}
        if fields.get("mask") is None and not any(fields.get("extend") or ()):
            fields.pop("only_masked", None)  # the picture and the mask are not in the record
        _check_recorded(recorded, asked)
        return files, fields | _upscaler(fields)
    files = replace(files, model=default_model()) if files.model is None else files
    name = name_of(embedded() if files.model is None else files.model)
    defaults = load_settings().settings.defaults_of(name)
    if prediction := defaults.pop("prediction", None):
        files = replace(files, prediction=files.prediction or prediction)
    vae, tiny_vae = defaults.pop("vae", None), defaults.pop("tiny_vae", None)
    if vae is not None and files.vae is None:
        files = replace(files, vae=find("vaes", vae))
    if tiny_vae is not None and files.tiny_vae is None:
        files = replace(files, tiny_vae=find("vaes", tiny_vae))
    own = defaults.pop("preset", None)
    if files.model is not None and holds_gan(files.model):
        return files, dict(asked)
    if own:
        from pellucid.presets import preset

        defaults = preset(own).given() | defaults
    fields = {**defaults, **asked}
    return files, fields | _upscaler(fields)


def _check_recorded(recorded: PictureRecord, asked: Mapping[str, Any]) -> None:
    """ValueError that names the picture: a recorded setting that is not replaced is wrong."""
    own = {name: value for name, value in recorded.request.items() if name not in asked}
    try:
        Request.model_validate({"prompt": ""} | own)
    except ValidationError as error:
        if error.errors()[0]["loc"]:
            raise ValueError(f"{recorded.picture}: {sentence(error, Request)}") from error


def _upscaler(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The field hires_upscaler with the path of the file that it names; {} if it names none."""
    from pellucid import hires

    name = asked.get("hires_upscaler")
    if not isinstance(name, str):
        return {}
    try:
        if not hires.is_file(hires.resolve(name)):
            return {}
    except ValueError as unknown:
        try:
            return {"hires_upscaler": str(find("upscalers", name))}
        except ValueError as error:
            raise ValueError(f"{unknown}; or a file: {error}") from None
    return {"hires_upscaler": str(find("upscalers", name))}


def with_named(files: ModelFiles, request: Request) -> tuple[ModelFiles, Request]:
    """The same, with paths for the names of LoRAs, embeddings and the refiner, with the folder of the
    LoRAs that prompts name, and with the embeddings whose names the prompts have.

    ValueError: a file that does not exist, or is no picture where one is needed.
    """
    from pellucid.request.fields import PICTURES, file_fields, files_in, with_files

    own, kinds = load_settings().settings, file_fields(type(request))
    pictures = [getattr(request, name) for name, kind in kinds.items() if kind == PICTURES]
    for name in (name for value in pictures for name in files_in(value)):
        _check_picture(name)
    paths = {
        field: with_files(getattr(request, field), partial(_path, kind))
        for field, kind in kinds.items()
        if kind not in (PICTURES, "upscalers")  # those of upscalers are `with_settings`'s
    }
    request = request.model_copy(update=paths)
    request = with_own_embeddings(request)
    if files.lora_folder is None and request.lora_tags:
        files = replace(files, lora_folder=own.loras)
    if files.lora_folder is not None:
        for tag in request.lora_tags:  # an error comes now, not after the model is loaded
            Folder(files.lora_folder, "LoRA").find(tag.name)
    return files, request


def with_own_embeddings(request: Request) -> Request:
    """The request with the embeddings of the user's folder that its prompts name."""
    files = load_settings().settings.folder("embeddings").files()
    found = tuple(str(path) for path in embeddings_named(request, files))
    return request.model_copy(update={"embeddings": request.embeddings + found})


@lru_cache(maxsize=1000)  # many lines of a file of prompts may name the same one
def _check_picture(name: str) -> None:
    """ValueError if it is no picture."""
    from pellucid.images.load import open_header

    open_header(name)[0].close()


def _path(kind: str, name: str) -> str:
    return str(find(kind, name))


def flag_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def read_like(picture: Path | None) -> PictureRecord:
    """What a picture records, None: nothing. ValueError: no picture, or one without a record."""
    if picture is None:
        return PictureRecord()
    from pellucid.images.metadata import read_metadata

    found = read_metadata(picture)
    if found.request is not None:
        return of_record(picture, found.request)
    settings = found.settings
    if settings is None:
        raise ValueError(f"{picture} does not say how it was made")
    if settings.problem is not None:
        raise ValueError(
            f"{picture} was made by {settings.program}, and its settings cannot be read: "
            f"{settings.problem}"
        )
    values = dict(settings.fields)
    names = {name: values.pop(name, None) for name in ("model", "vae", "refiner")}
    names = {name: value for name, value in names.items() if isinstance(value, str)}
    fields, unknown = _fields(values)
    return PictureRecord(picture, fields, unused=(*settings.unused, *unknown), **names)


def of_record(picture: Path, record: Mapping[str, Any]) -> PictureRecord:
    """What `ModelFiles.record` stored in `picture`. ValueError: a file's name that is no text."""
    names = recorded_as()
    record = found_again(picture, record)
    for key in (*names.values(), "model"):
        if not isinstance(record.get(key, ""), str):
            raise ValueError(f"{picture} records {key} {record[key]!r}, which must be a text")
    files = {name: record[key] for name, key in names.items() if key in record}
    others = {*names.values(), "model", *ABOUT}
    fields, unknown = _fields({name: v for name, v in record.items() if name not in others})
    model = None if "model" in files else record.get("model")
    return PictureRecord(picture, fields, files, model, unused=tuple(unknown))


def _fields(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Those that a request has, and the names of the others."""
    known = {name: value for name, value in values.items() if name in Request.model_fields}
    return known, [name for name in values if name not in known]

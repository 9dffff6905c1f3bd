"""The user's settings: folders, a model, names for pictures, and defaults for each model.

An environment variable takes precedence over the file, and the file over the defaults here. An
option of a command takes precedence over all of them. ::

    model = "sd15"              # config.toml; PELLUCID_MODEL has the same meaning
    models = "~/models"
    name = "{date}/{seed}-{prompt}"

    [defaults.sd15]             # fields of a request for this model; "sdxl*" is a pattern
    steps = 30
    vae = "vae-ft-mse-840000"
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import platformdirs
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pellucid import output_names
from pellucid.files import read_text
from pellucid.folders import PICTURES, Folder, name_of
from pellucid.messages import sentence
from pellucid.plugins import nearest
from pellucid.request import Request
from pellucid.request.request import instead_of

PREFIX = "PELLUCID_"
CONFIG = f"{PREFIX}CONFIG"  # the variable that names the file
OF_SERVE = f"{PREFIX}SERVE_"  # the variables of `pellucid serve` begin with this
SHOWN = 5  # names that a message lists


def _home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:  # ~nobody
        raise ValueError(f"{path}: {error}") from None


def _not_empty(name: str) -> str:
    if not name.strip():
        raise ValueError("it must not be empty")
    return name


def _is_path(value: Any) -> Any:
    if not isinstance(value, Path | str) or not str(value).strip():
        raise ValueError(f"it must be a path, such as '~/pictures', got {value!r}")
    return value


Place = Annotated[Path, BeforeValidator(_is_path), AfterValidator(_home)]


def _data(name: str) -> Any:
    """A folder in the platform's place for the data of a user."""
    return lambda: platformdirs.user_data_path("pellucid", appauthor=False) / name


class ModelDefaults(Request):
    """What is used for a model where a command does not say otherwise: fields of a request, and the
    other files of the model."""

    preset: str | None = None
    prediction: str | None = None
    vae: str | None = None
    tiny_vae: str | None = None


class Settings(BaseModel):
    """What a user has set. Relative paths are relative to the working folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Annotated[str, AfterValidator(_not_empty)] | None = None
    """The model without --model: a file, or a name in `models`. None: the one that ships."""
    models: Place = Field(default_factory=_data("models"))
    """The folder of models."""
    vaes: Place = Field(default_factory=_data("vaes"))
    """The folder of autoencoders."""
    loras: Place = Field(default_factory=_data("loras"))
    """The folder of LoRAs, which <lora:name:weight> in a prompt names."""
    embeddings: Place = Field(default_factory=_data("embeddings"))
    """The folder of embeddings. A prompt that has the name of one uses it."""
    upscalers: Place = Field(default_factory=_data("upscalers"))
    """The folder of upscalers."""
    wildcards: Place = Field(default_factory=_data("wildcards"))
    """The folder of word lists, which __name__ in a prompt names."""
    outputs: Place = Path("outputs")
    """Where results are written without --out."""
    name: Annotated[str, AfterValidator(output_names.checked)] = output_names.DEFAULT
    """The pattern of the names of pictures, as `output_names` reads it."""
    serve: dict[str, Any] = Field(default_factory=dict)
    """The table of `pellucid serve`, which checks it (`serve.configuration`)."""
    defaults: dict[str, ModelDefaults] = Field(default_factory=dict)
    """By the name of a model, or a pattern of names such as "sdxl*"."""

    def defaults_of(self, model: str) -> dict[str, Any]:
        """The fields of `ModelDefaults` that are set for a model; a later table counts more."""
        found: dict[str, Any] = {}
        for pattern, table in self.defaults.items():
            if fnmatchcase(model.lower(), pattern.lower()):
                found |= {name: getattr(table, name) for name in table.model_fields_set}
        return found

    def folder(self, field: str) -> Folder:
        """The folder of one kind: "models", "loras", ..."""
        is_one = is_embedding if field == "embeddings" else None
        return Folder(getattr(self, field), KINDS[field], is_one)

    def path_of(self, field: str, name: str) -> Path:
        """A file that an option names: a path if it exists, else a name in that folder.

        Raises ValueError if there is neither.
        """
        path = Path(name)
        if os.path.lexists(path):
            return path
        folder = self.folder(field)
        if not folder.path.is_dir():
            there = "is not a folder" if folder.path.exists() else "does not exist either"
            raise ValueError(
                f"{name} does not exist; expected a file, or a name in {folder.path}, which {there}"
            )
        try:
            return folder.find(name, complete=True)
        except ValueError as error:
            raise ValueError(f"{name} does not exist; {error}") from None


KINDS = {
    "models": "model",
    "vaes": "autoencoder",
    "loras": "LoRA",
    "embeddings": "embedding",
    "upscalers": "upscaler",
}


@dataclass(frozen=True)
class Loaded:
    """Settings, and where each of them came from."""

    settings: Settings
    origins: Mapping[str, str]
    """By the name of a setting: the file, the environment variable, or "default"."""
    file: Path
    """The file of settings, which need not exist."""
    unused: tuple[str, ...]
    """Environment variables that have the prefix and are no settings."""


def load_settings(environ: Mapping[str, str] | None = None) -> Loaded:
    """The settings of this user. ValueError: an unknown or wrong one, a file that cannot be read.

    environ: the environment variables; None: those of the process.
    """
    environ = os.environ if environ is None else environ
    chosen = environ.get(CONFIG)
    file = Path(chosen).expanduser() if chosen else config_file()
    values = _read(file) if chosen or file.exists() else {}
    origins = dict.fromkeys(values, str(file))
    _check(values, str(file))
    unused = []
    for variable, name, value in _variables(environ):
        if name in Settings.model_fields and name != "defaults":
            values[name], origins[name] = value, variable
            _check({name: value}, variable)
        elif name == "defaults":
            raise ValueError(f"{variable} cannot be a variable; [defaults] is a table of {file}")
        elif variable.startswith(OF_SERVE):
            unused.append(variable)
        elif near := difflib.get_close_matches(name, Settings.model_fields, 1, 0.75):
            raise ValueError(
                f"the environment variable {variable} is not known; {PREFIX}{near[0].upper()} is"
            )
        else:  # another program's: Kubernetes makes some for a service that is called pellucid
            unused.append(variable)
    every = {name: origins.get(name, "default") for name in Settings.model_fields}
    return Loaded(Settings.model_validate(values), every, file, tuple(unused))


def config_file() -> Path:
    """The platform's place for the settings of a user."""
    return platformdirs.user_config_path("pellucid", appauthor=False) / "config.toml"


def _variables(environ: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """The variable, the name of the setting, the value; an empty value is not one."""
    for variable in sorted(environ):
        if variable.startswith(PREFIX) and variable != CONFIG and environ[variable]:
            yield variable, variable.removeprefix(PREFIX).lower(), environ[variable]


def _read(file: Path) -> dict[str, Any]:
    try:
        text = read_text(file)
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"{file} is not valid TOML: it is nested too deep") from None
    except ValueError as error:
        raise ValueError(f"{file} is not valid TOML: {error}") from error


def _check(values: Mapping[str, Any], origin: str) -> None:
    """ValueError that names what is unknown or wrong, and where it is from."""
    _known(values, Settings, origin)
    tables = values.get("defaults", {})
    if not isinstance(tables, dict):
        raise ValueError(f"{origin}: defaults must be a table of tables, got {tables!r:.80}")
    for name, table in tables.items():
        place = f"{origin}: defaults.{name}"
        if not isinstance(table, dict):
            raise ValueError(
                f'{place} must be a table, such as [defaults."{name}"], got {table!r:.80}'
            )
        _known(table, ModelDefaults, place)
        _validate(ModelDefaults, table, place)
    _validate(Settings, {n: v for n, v in values.items() if n != "defaults"}, origin)


def _known(values: Mapping[str, Any], model: type[BaseModel], origin: str) -> None:
    for name in values:
        if name not in model.model_fields:
            near = f"nearest: {', '.join(nearest(name, model.model_fields)[:SHOWN])}"
            hint = instead_of(name) if model is ModelDefaults else near
            raise ValueError(f"{origin}: unknown setting {name!r}; {hint}")


def _validate(model: type[BaseModel], values: Mapping[str, Any], origin: str) -> None:
    try:
        model.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{origin}: {sentence(error, model)}") from error


def is_embedding(picture: Path) -> bool:
    """Whether an embedding is in a picture."""
    from pellucid.images.metadata.embedding import embedding_word

    return embedding_word(picture) is not None


def embeddings_named(request: Request, files: Iterable[Path]) -> list[Path]:
    """Those of the embeddings `files` that the prompts have as a word, other than the request's own.

    The word is the name of the file, and of a picture also the word in it.
    """
    prompts = "\n".join((*request.prompts, request.negative_prompt))
    own = {name_of(Path(path)) for path in request.embeddings}
    return [
        path
        for path in files
        if (name := name_of(path)) not in own
        and any(
            re.search(rf"(?<!\w){re.escape(word)}(?!\w)", prompts, re.IGNORECASE)
            for word in _words(name, path)
        )
    ]


def _words(name: str, path: Path) -> Iterator[str]:
    yield name
    if path.suffix.lower() in PICTURES:
        # Numpy and Pillow take long to import, and most folders have no pictures.
        from pellucid.images.metadata.embedding import embedding_word

        if (word := embedding_word(path)) is not None:
            yield word

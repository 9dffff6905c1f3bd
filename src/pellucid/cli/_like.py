"""``--like PICTURE``: as a picture was made, in all that is not asked for otherwise.

A picture made here carries its request, and what was opened for it (`Opening`): the model's file, and
what --prediction, --vae, --tiny-vae and --lora-folder named, if it was made with them. Files are
looked for under the path that was given then. A picture of A1111 has the names of its model, VAE and
refiner alone, from which no file can be known: that is said, and the options name them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid.cli._model import open_model

if TYPE_CHECKING:
    from pellucid.model import Model
    from pellucid.request import Request

OF_MODEL = ("prediction", "vae", "tiny_vae")
"""What is opened for one model and is of no use to another."""


@dataclass(frozen=True)
class Opening:
    """What was opened for a picture, each as the option of that name; None: nothing."""

    model: Path | None = None
    prediction: str | None = None
    vae: Path | None = None
    tiny_vae: Path | None = None
    lora_folder: Path | None = None

    def open(self, device: str, dtype: str) -> Model:
        """The model, with all that was named for it; errors as of `open_model`."""
        return open_model(
            self.model,
            prediction=self.prediction,
            vae=self.vae,
            tiny_vae=self.tiny_vae,
            device=device,
            dtype=dtype,
        )

    def record(self, request: Request, name: str) -> dict[str, Any]:
        """What a picture of this request, by the model of this name, is stored with: what was asked
        for, and what of all that was opened counted for it."""
        counted = {key: getattr(self, name) for name, key in stored_as().items()}
        if request.decoder != "tiny":
            del counted["tiny_vae"]
        if not request.lora_tags:
            del counted["lora_folder"]
        opened = {key: str(value) for key, value in counted.items() if value is not None}
        return request.record() | {"model": name} | opened


def stored_as() -> dict[str, str]:
    """The fields of `Opening`, and what they are called in a picture."""
    return {one.name: one.name for one in fields(Opening)} | {"model": "model_file"}


@dataclass(frozen=True)
class Told:
    """What a picture says: its request, what was opened for it, and names without a file."""

    picture: Path | None = None
    request: Mapping[str, Any] = field(default_factory=dict)
    opening: Mapping[str, str] = field(default_factory=dict)
    model: str | None = None
    vae: str | None = None
    refiner: str | None = None

    def over(self, asked: Opening) -> tuple[Opening, list[str]]:
        """`asked`, and where nothing was asked what the picture says; and warnings.

        ValueError if a file that the picture names is not there.
        """
        said = {n: v for n, v in self.opening.items() if getattr(asked, n) is None}
        warnings = []
        other = asked.model is not None and asked.model.name != Path(self.model_file).name
        if alien := [name for name in OF_MODEL if other and said.pop(name, None) is not None]:
            warnings.append(
                f"{self.picture} was made by another model than {asked.model}, so that its "
                f"{' and '.join(map(option, alien))} {'is' if len(alien) == 1 else 'are'} left out"
            )
        for name, value in said.items():
            if name != "prediction" and not Path(value).exists():
                raise ValueError(
                    f"{self.picture} was made with {option(name)} {value}, which is not there; "
                    f"{option(name)} {'FOLDER' if name == 'lora_folder' else 'FILE'} names another"
                )
        if self.vae is not None and asked.vae is None:
            warnings.append(f"{self.picture} was made with the VAE {self.vae}: --vae FILE names it")
        values: dict[str, Any] = {n: v if n == "prediction" else Path(v) for n, v in said.items()}
        return replace(asked, **values), warnings

    @property
    def model_file(self) -> str:
        """As it was given; "" if it is not told."""
        return self.opening.get("model", "")

    def other_refiner(self, request: Request) -> list[str]:
        """A warning if the picture names a refiner, and none was asked for."""
        if self.refiner is None or request.refiner is not None:
            return []
        return [f"{self.picture} was made with the refiner {self.refiner}: --refiner FILE names it"]

    def other_model(self, opening: Opening, name: str) -> list[str]:
        """A warning if the model called `name` was opened only because no other was named."""
        if opening.model is not None or self.model in (None, name):
            return []
        return [f"{self.picture} was made with the model {self.model}: --model FILE names it"]


def option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def read(picture: Path | None) -> Told:
    """What a picture says, None: nothing. ValueError if it is none, or does not say what made it."""
    if picture is None:
        return Told()
    from pellucid.images.metadata import read_metadata
    from pellucid.images.parameters import read_parameters
    from pellucid.request import Request
    from pellucid.samplers import SUFFIXES
    from pellucid.schedule import SPACINGS

    found = read_metadata(picture)
    if found.request is not None:
        return of_record(picture, found.request)
    if not found.parameters:
        raise ValueError(f"{picture} does not say what made it: it has no request inside")
    said = read_parameters(found.parameters)
    if "spacing" in said:  # labels such as "SGM Uniform"
        spacing = str(said["spacing"]).lower()
        said["spacing"] = spacing if spacing in SPACINGS else SUFFIXES.get(spacing)
    refiner = said.pop("refiner", None)  # a name; the request's is a file
    fields = _fields(said, Request)
    return Told(picture, fields, model=said.get("model"), vae=said.get("vae"), refiner=refiner)


def of_record(picture: Path, said: Mapping[str, Any]) -> Told:
    """What is told by `Opening.record`, which `picture` holds."""
    from pellucid.request import Request

    keys = stored_as().items()
    opening = {name: said[key] for name, key in keys if isinstance(said.get(key), str)}
    model = None if "model" in opening else said.get("model")
    return Told(picture, _fields(said, Request), opening, model)


def _fields(said: Mapping[str, Any], kind: type[Request]) -> dict[str, Any]:
    return {name: value for name, value in said.items() if name in kind.model_fields}

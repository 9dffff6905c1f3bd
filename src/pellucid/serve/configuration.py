"""The settings of a server, with their limits and what each does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from pellucid.computing import check_backend, dtype_named

GIB, MIB = 2**30, 2**20


def data_home() -> Path:
    """Where programs of this user keep their data (XDG base directories), and Pellucid in it."""
    home = os.environ.get("XDG_DATA_HOME", "")
    return (Path(home) if home else Path.home() / ".local" / "share") / "pellucid"


def _setting(help: str, default: Any = None, **limits: Any) -> Any:
    return Field(default, description=help, **limits)


class Configuration(BaseModel):
    """How a server runs. Raises pydantic's ValidationError, which is a ValueError."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    host: str = _setting("Address to listen on. Beyond loopback, a token is required.", "127.0.0.1")
    port: int = _setting("Port; 0 takes a free one.", 7860, ge=0, le=65535)
    token: str | None = _setting(
        "What clients must send. Made, and kept in the data folder, where it is needed.",
        min_length=16,
        max_length=200,
        pattern=r"^[A-Za-z0-9_\-.~]+$",
    )
    names: tuple[str, ...] = _setting("Further host names that clients may use.", ())
    origins: tuple[str, ...] = _setting("Web pages of other origins that may use the server.", ())

    data: Path = _setting("Folder of the queue, the history and the pictures.")
    models: tuple[Path, ...] = _setting("A folder of models.", ())
    loras: Path | None = _setting("The folder of LoRAs.")
    embeddings: Path | None = _setting("The folder of textual-inversion embeddings.")
    upscalers: Path | None = _setting("The folder of upscalers of the ESRGAN family.")
    model: str | None = _setting("The model for jobs that name none. Default: the included one.")
    predictions: dict[str, Literal["eps", "x0", "v", "flow"]] = _setting(
        "What the networks of models predict whose files do not say it, by name.", {}
    )

    devices: tuple[str, ...] = _setting("A device to draw on, with a worker each.", ("auto",))
    replicas: int = _setting("Workers of each device.", 1, ge=1, le=100)
    ray: bool = _setting(
        "Run the workers on the Ray cluster of RAY_ADDRESS, or on one that is started here.", False
    )
    dtype: str = _setting("float32, float16, bfloat16 or auto.", "auto")
    backend: str = _setting(
        "How networks are computed: eager, packed, fused, int8, openvino, openvino_int8; auto, the "
        "fastest of those that are exact; or fast, the fastest of all, which forecasts steps too.",
        "auto",
    )
    model_bytes: int = _setting(
        "Bytes of models that a worker keeps; the least recently used goes first.", 8 * GIB, ge=0
    )

    batch: int = _setting(
        "Pictures of several jobs that are drawn in one batch, where that is faster; 1: none.",
        8,
        ge=1,
        le=64,
    )
    queue_limit: int = _setting("Jobs that may wait.", 1000, ge=1, le=100_000)
    pixel_limit: int = _setting("Pixels of a picture that is drawn.", 2048 * 2048, ge=64)
    step_limit: int = _setting("Sampling steps of a job.", 200, ge=1, le=1000)
    count_limit: int = _setting("Pictures of a job.", 100, ge=1, le=1000)
    second_limit: float = _setting("Seconds that a job may take.", 3600.0, gt=0)
    body_limit: int = _setting("Bytes of a request.", 32 * MIB, ge=1024)
    upload_pixels: int = _setting("Pixels of a picture that is sent.", 40_000_000, ge=64)
    stop_seconds: float = _setting(
        "Seconds that running jobs have to finish when the server stops; then they wait for the "
        "next start.",
        10.0,
        ge=0,
    )
    log: Literal["text", "json"] = _setting("The form of the log.", "text")

    @field_validator("names", "origins", "models", "devices", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """An environment variable is one text, with commas."""
        return tuple(value.split(",")) if isinstance(value, str) else value

    @field_validator("dtype", "backend")
    @classmethod
    def _known(cls, name: str, field: ValidationInfo) -> str:
        """The names are those of the command line."""
        if field.field_name == "backend":
            return check_backend(name)
        dtype_named(name)
        return name

    @field_validator("data", mode="before")
    @classmethod
    def _filled(cls, data: Any) -> Any:
        return data_home() if data is None else data

"""How a network is computed: one file each, with `HELP`, `unsuitable(device)` and `prepare(model)`.

`unsuitable` says why a backend cannot be used here, None if it can; `prepare` gives the model as the
backend computes it. LoRAs change weights, so a model is prepared after they are applied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch

from pellucid import plugins
from pellucid.model import Model

if TYPE_CHECKING:
    from pellucid.request import Request

EAGER = "eager"
FAST = {"cpu": "int8", "cuda": "compiled"}
"""What `--fast` chooses, by the kind of device."""

Adapt = Callable[[Model, "Request"], tuple[Model, tuple[str, ...]]]
"""As in `pipeline`."""


class Choice(NamedTuple):
    """A backend, and what to say where it is not the one that was asked for."""

    name: str
    warnings: tuple[str, ...] = ()


def names() -> tuple[str, ...]:
    """The names of all backends."""
    return plugins.discover(__name__).names


def choose_backend(name: str, device: torch.device) -> Choice:
    """The backend by its name; "auto" is eager, "fast" the fastest one of a kind of device.

    One that cannot be used here is replaced by eager. ValueError for an unknown name.
    """
    if name in ("auto", "fast"):
        name = EAGER if name == "auto" else FAST.get(device.type, EAGER)
    known = plugins.discover(__name__)
    why = known[plugins.choose(name, known, "backend")].unsuitable(device)
    return Choice(name) if why is None else Choice(EAGER, (f"{why}; the backend is {EAGER}",))


def prepared(adapt: Adapt, choice: Choice) -> Adapt:
    """`adapt`, and then what the backend does to the model."""
    backend = plugins.discover(__name__)[choice.name]

    def adapted(model: Model, request: Request) -> tuple[Model, tuple[str, ...]]:
        model, unmatched = adapt(model, request)
        return backend.prepare(model), (*unmatched, *choice.warnings)

    return adapted

"""How a network is computed: one file each, with `HELP`, `unsuitable(device)` and
`prepare(model, rehearse)`.

`unsuitable` says why a backend cannot be used here, None if it can; `prepare` gives the model as the
backend computes it, and warnings. LoRAs change weights, so a model is prepared after they are
applied.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from pellucid import plugins
from pellucid.model import Model
from pellucid.nn import has_amx
from pellucid.runtime.devices import HOME, free_memory

if TYPE_CHECKING:
    from pellucid.request import Request

EAGER, PACKED, FUSED = "eager", "packed", "fused"
CHOICES: dict[str, dict[str, tuple[str, ...]]] = {
    "auto": {"cpu": (FUSED, "openvino", PACKED, EAGER)},
    "fast": {"cpu": (FUSED, "openvino_int8", "int8", "openvino", PACKED, EAGER)},
}
"""Names that stand for the first one of several that can be used, by the kind of device. On a CPU with
AMX, packed comes before OpenVINO."""
IN_8_BITS = ("openvino_int8", "int8")
"""Those that a CPU with AMX does not need: there bfloat16 takes no longer, and no preparation."""
LARGE = 10**8
"""Parameters of a network from which on OpenVINO, which first compiles it for seconds, is chosen,
and up to which fused is."""
ROOM = 4
"""Bytes for each parameter that must be free for backends that have a copy of the weights."""
NOT_COMPLETE = "is not complete"
"""What the reason says where a package is there that cannot be used."""

Adapt = Callable[[Model, "Request"], tuple[Model, tuple[str, ...]]]
"""As in `pipeline`."""

Rehearse = Callable[[Model], None]
"""Draws a little with a model, so that a backend sees what the layers get: `rehearsal.rehearse`."""

Prepared = tuple[Model, tuple[str, ...]]


class Unsuitable(ValueError):
    """A backend cannot compute this network."""


class BackendChoice(NamedTuple):
    """A backend, and what to say where it is not the one that was asked for."""

    name: str
    warnings: tuple[str, ...] = ()


def names() -> tuple[str, ...]:
    """The names of all backends."""
    return plugins.discover(__name__).names


def choose_backend(
    name: str,
    device: torch.device,
    parameters: int = LARGE,
    dtype: torch.dtype = torch.float32,
) -> BackendChoice:
    """The backend by its name; "auto" is the fastest that is as exact as the number type, "fast" the
    fastest of all. Where memory is short, neither is one that has a copy of the weights.

    One that cannot be used here is replaced by eager. parameters, dtype: of the network. ValueError for
    an unknown name.
    """
    known = plugins.discover(__name__)
    if name not in CHOICES:
        why = known[plugins.choose(name, known, "backend")].unsuitable(device)
        return (
            BackendChoice(name)
            if why is None
            else BackendChoice(EAGER, (f"{why}; the backend is {EAGER}",))
        )
    warnings: tuple[str, ...] = ()
    free = free_memory(HOME)
    room = free is None or free >= ROOM * parameters
    order = CHOICES[name].get(device.type, (EAGER,))
    if has_amx():
        fits = [each for each in order if each not in IN_8_BITS]
        order = tuple(sorted(fits, key=lambda each: each not in (FUSED, PACKED)))
    for each in order:
        if each.startswith("openvino") and not (room and parameters >= LARGE):
            continue
        if each in (FUSED, PACKED) and not (room and dtype == torch.bfloat16):
            continue
        if each == FUSED and parameters >= LARGE:
            continue
        why = known[each].unsuitable(device)
        if why is None:
            return BackendChoice(each, tuple(f"{text}; the backend is {each}" for text in warnings))
        if (each == "int8" or NOT_COMPLETE in why) and why not in warnings:
            warnings = (*warnings, why)
    return BackendChoice(EAGER, warnings)


@dataclass
class OnBackend:
    """`adapt`, and then what a backend does to the model; eager where the backend cannot compute it."""

    adapt: Adapt
    choice: BackendChoice
    rehearse: Rehearse
    name: str = ""
    """The backend of the last model."""

    def __call__(self, model: Model, request: Request) -> Prepared:
        model, unmatched = self.adapt(model, request)
        known = plugins.discover(__name__)
        self.name = self.choice.name
        try:
            model, warnings = known[self.name].prepare(model, self.rehearse)
        except Unsuitable as error:
            self.name = EAGER
            model, _ = known[EAGER].prepare(model, self.rehearse)
            warnings = (f"{error}; the backend is {EAGER}",)
        return model, (*unmatched, *self.choice.warnings, *warnings)


def release_except(networks: Collection[nn.Module]) -> None:
    """Free what backends keep for other networks than these."""
    from pellucid.runtime.backends import _compiled

    _compiled.release_except(networks)

"""The network by OpenVINO, an optional package, in the number type that the model has."""

from __future__ import annotations

from pellucid.model import Model
from pellucid.runtime.backends import Prepared, Rehearse, _compiled
from pellucid.runtime.backends._compiled import unsuitable

__all__ = ["HELP", "prepare", "unsuitable"]
HELP = "by OpenVINO, if it is installed; for large networks on a CPU"


def prepare(model: Model, rehearse: Rehearse) -> Prepared:
    """The model with the network as OpenVINO computes it; `model` stays as it is."""
    return _compiled.prepare(model, rehearse, int8=False)

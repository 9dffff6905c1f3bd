"""The network by OpenVINO, its large layers in 8 bits (W8A8).

A weight has one scale for each output channel. An input of a convolution has one scale and one zero
point for its layer, from what the layer gets while the model draws (`Rehearse`). So has an input of a
linear layer, unless the processor has AMX, which is as fast with the input in bfloat16. The layers
that stay as they are are those of `int8`.
"""

from __future__ import annotations

import torch

from pellucid.model import Model
from pellucid.runtime.backends import Prepared, Rehearse, _compiled
from pellucid.runtime.precision import native_int8

HELP = "by OpenVINO in 8 bits; for a CPU with VNNI"


def unsuitable(device: torch.device) -> str | None:
    """Why this cannot be used on a device; None if it can."""
    why = _compiled.unsuitable(device)
    if why is None and not native_int8():
        return "openvino_int8 needs a CPU with AVX-512 VNNI"
    return why


def prepare(model: Model, rehearse: Rehearse) -> Prepared:
    """The model with the network in 8 bits; `model` stays as it is."""
    return _compiled.prepare(model, rehearse, int8=True)

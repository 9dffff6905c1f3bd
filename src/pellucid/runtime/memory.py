"""Whether a model fits in memory: found out before it is loaded."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pellucid.messages import FieldMessage
from pellucid.runtime.devices import free_memory

GB = 1e9


def shortage(
    parameters: Mapping[str, int], dtype: torch.dtype, device: torch.device, work: int = 0
) -> FieldMessage | None:
    """What to say of a model that does not fit in the free memory; None if it fits.

    parameters: how many numbers each part has, as `checkpoints.describe(path)["parameters"]`.
    dtype: the number type that they are loaded in. work: bytes that are needed in addition. On a GPU
    the parts take turns and the largest one has to fit; on a CPU all of them. Where the free memory
    is not known, everything fits.
    """
    free = free_memory(device)
    if free is None:
        return None
    together = sum if device.type == "cpu" else max
    numbers = together(parameters.values())
    needed = numbers * dtype.itemsize + work
    if needed <= free:
        return None
    smaller = next(
        (
            name
            for name in ("bfloat16", "float16")
            if getattr(torch, name).itemsize < dtype.itemsize
            and numbers * getattr(torch, name).itemsize + work <= free
        ),
        None,
    )
    advice = "" if smaller is None else "; {dtype} {smaller} would fit"
    return FieldMessage(
        "the model needs {needed:.1f} GB of memory in {type}, and {free:.1f} GB are free" + advice,
        needed=needed / GB,
        free=free / GB,
        type=str(dtype).removeprefix("torch."),
        smaller=smaller,
    )

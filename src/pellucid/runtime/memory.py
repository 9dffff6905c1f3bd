"""Whether a model fits in memory: found out before it is loaded."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pellucid.messages import FieldMessage
from pellucid.runtime.devices import free_memory

GB = 1e9


OF_ONEDNN = "could not create a primitive"
"""What oneDNN says of any failure; with layers that have worked before, of too little memory."""


def ran_out(error: Exception) -> bool:
    """Whether an error says that memory did not suffice. Torch raises a RuntimeError on the CPU and a
    subclass on a GPU."""
    said = repr(error).lower()
    known = "memory" in said or OF_ONEDNN in said
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and known)


class DoesNotFit(ValueError):
    """A model needs more memory than is free; says how much."""


def fits_at_once(
    name: str,
    parts: Mapping[str, int],
    dtype: torch.dtype,
    device: torch.device,
    work: int | None = None,
) -> bool:
    """Whether all parts of a model fit on a device at the same time.

    False: only one after the other, as `devices.bring` brings them to a GPU. Where the free memory is
    not known, everything fits. name: the model's. parts: how many bytes each part needs. dtype: the
    number type of most of them. work: if given, the parts may come one after the other on a CPU too,
    where they do not fit without swap space next to so many bytes to compute with. Raises DoesNotFit:
    not even the largest one fits, or, on a CPU without `work`, not all of them. Swap space counts.
    """
    free, together = free_memory(device, swap=True), sum(parts.values())
    if free is None or together <= free:
        ready = None if work is None else free_memory(device)
        if work is None or ready is None or together + work <= ready:
            return True
    needed = together if device.type == "cpu" and work is None else max(parts.values())
    if free is None or needed <= free:
        return False
    half_fits = dtype.itemsize == 4 and needed // 2 <= free
    raise DoesNotFit(
        FieldMessage(
            "{name} needs {needed:.1f} GB of memory in {type}, and {free:.1f} GB are free"
            + ("; {dtype} bfloat16 would fit" if half_fits else ""),
            name=name,
            needed=needed / GB,
            free=free / GB,
            type=str(dtype).removeprefix("torch."),
        )
    )

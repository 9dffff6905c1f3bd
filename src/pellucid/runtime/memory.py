"""Whether a model fits in memory: found out before it is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from pellucid.messages import FieldMessage
from pellucid.runtime.devices import free_memory

GB = 1e9


OF_ONEDNN = "could not create a primitive"
"""What oneDNN says of any failure; with layers that have worked before, of too little memory."""
OF_THREADS = "can't start new thread"  # which takes address space


def ran_out(error: Exception) -> bool:
    """Whether an error says that memory did not suffice. Torch raises a RuntimeError on the CPU and a
    subclass on a GPU."""
    said = repr(error).lower()
    known = any(each in said for each in ("memory", OF_ONEDNN, OF_THREADS))
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and known)


class DoesNotFit(ValueError):
    """A model needs more memory than is free; says how much."""


@contextmanager
def said_of(name: str, needed: int, dtype: torch.dtype) -> Iterator[None]:
    """Where memory ends in the block, which reads so many bytes of a model, raises DoesNotFit."""
    try:
        yield
    except Exception as error:
        if not ran_out(error):
            raise
        raise DoesNotFit(
            FieldMessage(
                "{name} needs more memory than is free: memory ended while {needed:.1f} GB of it were "
                "read in {type}",
                name=name,
                needed=needed / GB,
                type=str(dtype).removeprefix("torch."),
            )
        ) from error


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
    digits = 2 if needed - free < 0.1 * GB else 1  # or both could be shown as one number
    raise DoesNotFit(
        FieldMessage(
            "{name} needs {needed} GB of memory in {type}, and {free} GB are free"
            + ("; {dtype} bfloat16 would fit" if half_fits else ""),
            name=name,
            needed=f"{needed / GB:.{digits}f}",
            free=f"{free / GB:.{digits}f}",
            type=str(dtype).removeprefix("torch."),
        )
    )

"""Whether a model fits in memory: found out before it is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

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


def wanted(error: Exception) -> str:
    """How much memory could not be had, as a part of a sentence; "" if an error does not say it."""
    found = re.search(r"allocate (?:(\d+) bytes|([\d.]+) (GiB|MiB))", str(error))
    if found is None:
        return ""
    count, number, unit = found.groups()
    size = float(count) if count else float(number) * (2**30 if unit == "GiB" else 2**20)
    return f", {size / GB:.1f} GB are needed at once"


class DoesNotFit(ValueError):
    """A model needs more memory than is free; says how much."""


@contextmanager
def said_of(name: str, needed: int, dtype: torch.dtype) -> Iterator[None]:
    """Raises DoesNotFit if memory runs out in the block, which reads so many bytes of a model."""
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


class Alternative(NamedTuple):
    """What may need less memory."""

    option: str
    """As in a `FieldMessage`: "{dtype} bfloat16"."""
    device: torch.device
    parts: Mapping[str, int]


def fits_at_once(
    name: str,
    parts: Mapping[str, int],
    dtype: torch.dtype,
    device: torch.device,
    work: int | None = None,
    alternatives: Iterable[Alternative] = (),
) -> bool:
    """Whether all parts of a model fit on a device at the same time.

    False: only one after the other, as `devices.bring` brings them to a GPU. Where the free memory is
    not known, everything fits. name: the model's. parts: how many bytes each part needs. dtype: the
    number type of most of them. work: if given, the parts may come one after the other on a CPU too,
    where they do not fit without swap space next to so many bytes to compute with. Raises DoesNotFit:
    not even the largest one fits, or, on a CPU without `work`, not all of them. It says which of the
    alternatives fits, or which needs least. Swap space counts.
    """
    free, together = free_memory(device, swap=True), sum(parts.values())
    if free is None or together <= free:
        ready = None if work is None else free_memory(device)
        if work is None or ready is None or together + work <= ready:
            return True
    needed = _least(parts, device, work)
    if free is None or needed <= free:
        return False
    digits = 2 if needed - free < 0.1 * GB else 1  # or both could be shown as one number
    raise DoesNotFit(
        FieldMessage(
            "{name} needs {needed} GB of memory in {type}, and {free} GB are free"
            + _instead(needed, alternatives, work),
            name=name,
            needed=f"{needed / GB:.{digits}f}",
            free=f"{free / GB:.{digits}f}",
            type=str(dtype).removeprefix("torch."),
        )
    )


def _least(parts: Mapping[str, int], device: torch.device, work: int | None) -> int:
    """Bytes without which a model cannot be used: those of its largest part, where they take turns."""
    return sum(parts.values()) if device.type == "cpu" and work is None else max(parts.values())


def _instead(needed: int, alternatives: Iterable[Alternative], work: int | None) -> str:
    """What fits in place of a model that needs so many bytes, as the end of a sentence."""
    least = ""
    for option, device, parts in alternatives:
        less, free = _least(parts, device, work), free_memory(device, swap=True)
        if free is None or less <= free:
            return f"; {option} would fit, with {less / GB:.1f} GB"
        if less < needed:
            needed, least = less, f"{option} needs {less / GB:.1f} GB, which does not fit either"
    return f"; {least or 'no other number type needs less'}"

"""The names of devices, number types and backends, and how many threads there may be.

They are checked here without torch, which takes seconds to import.
"""

from __future__ import annotations

import re

from pellucid.messages import FieldMessage
from pellucid.plugins import choose, discover

DTYPES = ("float32", "float16", "bfloat16")
SHORT = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""The number types as people name them, and as torch does."""
ORDERS = ("auto", "fast")
"""Names that stand for the first one of several backends that can be used."""
DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?|mps")
MAX_THREADS = 1024


def check_device(name: str) -> str:
    """`name`, if a machine can have such a device. ValueError for any other."""
    if not DEVICE.fullmatch(name):
        raise ValueError(
            FieldMessage(
                "{device} must be auto, cpu, cuda, cuda:NUMBER or mps, got {given!r}", given=name
            )
        )
    return name


def dtype_named(name: str) -> str:
    """torch's name of a number type, or "auto". ValueError for an unknown one."""
    whole = SHORT.get(name, name)
    if whole not in ("auto", *DTYPES):
        known = ", ".join(("auto", *DTYPES))
        raise ValueError(
            FieldMessage("{dtype} must be one of {known}, got {given!r}", known=known, given=name)
        )
    return whole


def backends() -> tuple[str, ...]:
    """The names of all backends."""
    return discover("pellucid.runtime.backends").names


def check_backend(name: str) -> str:
    """`name`, if it is a backend or one of `ORDERS`. ValueError for any other."""
    return choose(name, (*ORDERS, *backends()), "backend")


def check_threads(count: int) -> int:
    """`count`, if it is between 1 and MAX_THREADS. ValueError for any other."""
    if not 1 <= count <= MAX_THREADS:
        raise ValueError(
            FieldMessage(f"{{threads}} must be between 1 and {MAX_THREADS}, got {count}")
        )
    return count

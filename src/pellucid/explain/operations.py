"""The number of operations of a network, counted without computing anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

Module = TypeVar("Module", bound=nn.Module)


def on_meta(part: Module) -> Module:
    """A network of the same config on the meta device: shapes without numbers, and no memory.

    part: a module that is made from its `config` alone, as all parts of a model are.
    """
    make: Any = type(part)
    with torch.device("meta"):
        made: Module = make(part.config)
    return made


def count_operations(run: Callable[[], object]) -> int:
    """Multiplications and additions in the matrix products, convolutions and attention of `run`.

    `run` must work on the meta device. Elementwise operations such as norms and activations do not
    count; they are hundreds of times fewer.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())

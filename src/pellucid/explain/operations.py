"""How much a network has to compute, counted without computing it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

Part = TypeVar("Part", bound=nn.Module)


def shape_of(part: Part) -> Part:
    """A network of the same config on the meta device: shapes without numbers, and no memory.

    part: a module that is made from its `config` alone, as all of a model's are.
    """
    make: Any = type(part)
    with torch.device("meta"):
        made: Part = make(part.config)
    return made


def operations(run: Callable[[], object]) -> int:
    """The multiplications and additions in the products of matrices, the convolutions and the
    attention of `run`, which is to work on the meta device. What is done number by number, as norms
    and activations, is left out: it is hundreds of times less.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())

"""Every operation by itself, as PyTorch has it; works everywhere."""

from __future__ import annotations

import torch
from torch import nn

from pellucid.model import Model
from pellucid.runtime.backends import Prepared, Rehearse

HELP = "every operation by itself; works everywhere"


def unsuitable(device: torch.device) -> str | None:
    """Why this cannot be used on a device: always None."""
    return None


def prepare(model: Model, rehearse: Rehearse) -> Prepared:
    """The same model, its convolutions in channels_last, which is the fast layout on a CPU."""
    channels_last(model.backbone, model.vae, model.tiny_vae, model.second_stage)
    return model, ()


def channels_last(*parts: nn.Module | None) -> None:
    """Change the layout of convolutions, where it is another one."""
    layout = torch.channels_last
    for part in parts:
        weights = () if part is None else part.parameters()
        if not all(w.is_contiguous(memory_format=layout) for w in weights if w.ndim == 4):
            part.to(memory_format=layout)  # type: ignore[union-attr, call-overload]

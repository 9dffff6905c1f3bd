"""The models that a worker keeps in memory: by size, the least recently used goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import fields

from torch import Tensor, nn

from pellucid.model import Model
from pellucid.runtime import Runtime
from pellucid.runtime.backends import release_except
from pellucid.runtime.devices import (
    give_back_memory,
    given_up,
    is_read,
    takes_turns,
    weight_bytes,
)
from pellucid.runtime.memory import DoesNotFit


class Kept:
    """Models by key, together at most `limit` bytes; the one that is used is always kept."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._models: OrderedDict[Hashable, Model] = OrderedDict()

    def get(self, key: Hashable, load: Callable[[], Model]) -> Model:
        """The model of a key, loaded if it is not there; the others make room if it does not fit, or
        only in parts that take turns."""
        if key in self._models:
            self._models.move_to_end(key)
            return self._models[key]
        try:
            model = load()
            fits = not any(takes_turns(part) for part in Runtime(model).parts)
        except DoesNotFit:
            if not self._models:
                raise
            fits = False
        if not fits and self._models:
            model = None  # type: ignore[assignment]  # its memory is free too
            self.free(0)
            model = load()
        self._models[key] = model
        self.shrink()
        return model

    def shrink(self) -> None:
        """Drop models, the least recently used first, until the rest fits."""
        count = len(self._models)
        while len(self._models) > 1 and self.size() > self.limit:
            self._models.popitem(last=False)
        if len(self._models) < count:
            self.free(count)

    def free(self, most: int = 1) -> None:
        """Drop all models but the `most` that were used last, and return memory to the system."""
        while len(self._models) > most:
            self._models.popitem(last=False)
        release_except([model.backbone for model in self._models.values()])
        give_back_memory()

    def size(self) -> int:
        """Bytes of all weights; what models share counts once."""
        tensors: dict[int, Tensor] = {}
        copies = 0
        for model in self._models.values():
            for each in fields(model):
                part = getattr(model, each.name)
                if isinstance(part, nn.Module) and given_up(part):
                    copies += weight_bytes(part)
                elif isinstance(part, nn.Module) and is_read(part):
                    tensors |= {t.data_ptr(): t for t in (*part.parameters(), *part.buffers())}
        return copies + sum(t.numel() * t.element_size() for t in tensors.values())

    def __len__(self) -> int:
        return len(self._models)

"""Which number type to compute in, and what to do where half precision is not enough.

float16 ends at 65504. Some published networks go beyond it (the autoencoder of SDXL is known for
it), and the picture is then black. So results are looked at, and a part that fails is run again,
that part alone, in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from pellucid.diffusion import Conditioning

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
HALVES = (torch.float16, torch.bfloat16)
Result = TypeVar("Result", bound=Tensor | tuple[Tensor | None, ...])


@dataclass(frozen=True)
class Choice:
    """A number type for a device, and why, in words for a person."""

    device: torch.device
    dtype: torch.dtype
    why: str

    def __str__(self) -> str:
        return f"{self.device}, {str(self.dtype).removeprefix('torch.')}: {self.why}"


def choose_dtype(device: torch.device, name: str, file_dtype: torch.dtype) -> Choice:
    """The number type to compute in.

    name: "auto" or one of `DTYPES`. file_dtype: that of most of the file's weights. The rule of
    "auto": float32 on a CPU; on CUDA the file's own type if it is a half one that the card is
    made for, else bfloat16, else float16; on Apple's float16. ValueError for an unknown name.
    """
    if name != "auto":
        if name not in DTYPES:
            raise ValueError(f"dtype is {name!r}; choose one of auto, {', '.join(DTYPES)}")
        return Choice(device, DTYPES[name], "as asked")
    if device.type == "cpu":
        return Choice(device, torch.float32, "what a CPU computes fast and exactly")
    if device.type == "cuda":
        if file_dtype == torch.float16:
            return Choice(device, torch.float16, "the file's own type")
        if torch.cuda.is_bf16_supported(including_emulation=False):
            own = file_dtype == torch.bfloat16
            why = "the file's own type" if own else "half the memory with the range of float32"
            return Choice(device, torch.bfloat16, why)
        return Choice(device, torch.float16, "half the memory; this card has no bfloat16")
    if device.type == "mps":
        return Choice(device, torch.float16, "half the memory, and fast on Apple's devices")
    return Choice(device, torch.float32, "nothing is known of this device")


class NotFinite(ValueError):
    """A part gave infinity or NaN in float32 too. `latents` are what was to be decoded, if that
    was it: they can be saved, and decoded again otherwise."""

    def __init__(self, message: str, latents: Tensor | None = None) -> None:
        super().__init__(message)
        self.latents = latents


def dtype_of(part: nn.Module) -> torch.dtype:
    return next(part.parameters()).dtype


def finite(
    name: str, part: nn.Module, run: Callable[[], Result], latents: Tensor | None = None
) -> tuple[Result, str | None]:
    """What `run` gives, a tensor or several, and a warning if that took float32.

    run: calls `part`, with inputs cast to the type that `part` then has (`dtype_of`): where the
    result is not finite and `part` is in half precision, `part` is changed to float32, in place and
    for good, and `run` is called once more. NotFinite, naming `name` and holding `latents`, if
    there still are numbers that are not.
    """
    result = run()
    if _is_finite(result):
        return result, None
    before = dtype_of(part)
    if before in HALVES:
        part.float()
        result = run()
        if _is_finite(result):
            short = str(before).removeprefix("torch.")
            return result, f"{name} gave numbers that are not finite in {short}; it runs in float32"
    raise NotFinite(
        f"{name} gave numbers that are not finite, in float32 too: its weights are damaged or what "
        "went in is out of all bounds",
        latents,
    )


def _is_finite(result: Tensor | tuple[Tensor | None, ...]) -> bool:
    tensors = (result,) if isinstance(result, Tensor) else result
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors if tensor is not None)


@dataclass
class Float32Fallback:
    """A network, called as (x, t, cond), that goes over to float32 when it has to.

    `warnings` says so. x and cond may be of any type; the answer is of the network's.
    """

    network: nn.Module
    name: str = "the network"
    warnings: list[str] = field(default_factory=list)

    def __call__(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        def run() -> Tensor:
            dtype = dtype_of(self.network)
            pooled = None if cond.pooled is None else cond.pooled.to(dtype)
            # Not the sizes: 1080 is no number of bfloat16.
            told = replace(cond, tokens=cond.tokens.to(dtype), pooled=pooled)
            return self.network(x.to(dtype), t, told)

        answer, warning = finite(self.name, self.network, run)
        if warning is not None:
            self.warnings.append(warning)
        return answer

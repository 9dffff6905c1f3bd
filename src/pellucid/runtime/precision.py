"""Which number type to compute in, and the fallback to float32 where half precision is not enough.

float16 ends at 65504. Some published networks exceed it (the autoencoder of SDXL is known for it),
and the picture is then black. So results are checked, and a part whose results are not finite runs
again, that part alone, in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from pellucid import computing
from pellucid.nn import onednn_limit

if TYPE_CHECKING:
    from pellucid.diffusion import Conditioning

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in computing.DTYPES}
HALVES = (torch.float16, torch.bfloat16)
Result = TypeVar("Result", bound=Tensor | tuple[Tensor | None, ...])


@dataclass(frozen=True)
class PrecisionChoice:
    """A number type for a device, and the reason for it, as text for the user."""

    device: torch.device
    dtype: torch.dtype
    why: str

    def __str__(self) -> str:
        return f"{self.device}, {str(self.dtype).removeprefix('torch.')}: {self.why}"


def choose_dtype(device: torch.device, name: str, file_dtype: torch.dtype) -> PrecisionChoice:
    """The number type to compute in.

    name: "auto", one of `DTYPES`, or short for one. file_dtype: that of most of the file's weights.
    The rule of "auto": on a CPU bfloat16 if its products are native there, else float32; on CUDA the
    file's own type if it is a half one that the GPU supports, else bfloat16, else float16; on Apple's
    GPUs float16. ValueError for an unknown name.
    """
    if (named := computing.dtype_named(name)) != "auto":
        return PrecisionChoice(device, DTYPES[named], "as requested")
    if device.type == "cpu":
        if native_bfloat16():
            return PrecisionChoice(
                device, torch.bfloat16, "this CPU computes it faster than float32"
            )
        return PrecisionChoice(device, torch.float32, "the fastest type on this CPU")
    if device.type == "cuda":
        if file_dtype == torch.float16:
            return PrecisionChoice(device, torch.float16, "the file's own type")
        if torch.cuda.is_bf16_supported(including_emulation=False):
            own = file_dtype == torch.bfloat16
            why = "the file's own type" if own else "half the memory with the range of float32"
            return PrecisionChoice(device, torch.bfloat16, why)
        return PrecisionChoice(device, torch.float16, "half the memory; this GPU has no bfloat16")
    if device.type == "mps":
        return PrecisionChoice(device, torch.float16, "half the memory, and fast on Apple's GPUs")
    return PrecisionChoice(device, torch.float32, "unknown device type")


NO_VNNI = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE")
"""Values of ONEDNN_MAX_CPU_ISA that forbid AVX-512's instructions for 8 bits."""
BFLOAT16_ISA = ("AVX512_CORE_BF16", "AVX512_CORE_FP16", "AMX", "AVX10", "DEFAULT", "ALL")
"""Values of ONEDNN_MAX_CPU_ISA that allow instructions for bfloat16, and what contains them."""


def native_int8() -> bool:
    """Whether this CPU has AVX-512's instructions for 8 bits (VNNI), and oneDNN may use them."""
    able: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(able.get("avx512_vnni")) and onednn_limit() not in NO_VNNI


def native_bfloat16() -> bool:
    """Whether this CPU has instructions for products in bfloat16, and oneDNN may use them.

    Without them bfloat16 is slower than float32: 2.7 times in a training step.
    """
    if not any(isa in onednn_limit() for isa in BFLOAT16_ISA):
        return False
    # torch 2.10 and newer
    able: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


class NotFinite(ValueError):
    """A part gave infinity or NaN in float32 too. If it was a decoder, `latents` is its input, which
    can be saved and decoded again."""

    def __init__(self, message: str, latents: Tensor | None = None) -> None:
        super().__init__(message)
        self.latents = latents


def dtype_of(part: nn.Module) -> torch.dtype:
    """The number type of a part, which is that of its first weight."""
    return next(part.parameters()).dtype


def finite(
    name: str, part: nn.Module, run: Callable[[], Result], latents: Tensor | None = None
) -> tuple[Result, str | None]:
    """The result of `run`, a tensor or several, and a warning if it needed float32.

    run: calls `part`, with inputs cast to the type that `part` has at that time (`dtype_of`): if the
    result is not finite and `part` is in half precision, `part` is changed to float32, in place and
    for good, and `run` is called once more. Raises NotFinite, with `name` and `latents`, if the
    result is still not finite.
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
        f"{name} gave numbers that are not finite, in float32 too: its weights are damaged or its "
        "input is out of range",
        latents,
    )


def _is_finite(result: Tensor | tuple[Tensor | None, ...]) -> bool:
    tensors = (result,) if isinstance(result, Tensor) else result
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors if tensor is not None)


@dataclass
class Float32Fallback:
    """A network, called as (x, t, cond), that changes to float32 when half precision is not enough.

    It then adds to `warnings`. x and cond may be of any type; the output is of the network's.
    """

    network: nn.Module
    name: str = "the network"
    warnings: list[str] = field(default_factory=list)

    def __call__(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        def run() -> Tensor:
            dtype = dtype_of(self.network)
            pooled = None if cond.pooled is None else cond.pooled.to(dtype)
            # Not the sizes: bfloat16 cannot hold 1080.
            cast = replace(cond, tokens=cond.tokens.to(dtype), pooled=pooled)
            return self.network(x.to(dtype), t, cast)

        output, warning = finite(self.name, self.network, run)
        if warning is not None:
            self.warnings.append(warning)
        return output

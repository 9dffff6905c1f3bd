"""Which device to work on, how much memory is free there, and making room for what comes next."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import nn

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None  # type: ignore[assignment]

HOME = torch.device("cpu")  # the device that idle parts are offloaded to
THREADS = 300_000_000  # bytes of address space that threads reserve for stacks and small objects


def choose_device(name: str, best: Sequence[str] = ("cuda", "mps")) -> torch.device:
    """The device by its name: "cpu", "cuda", "cuda:1", "mps", or "auto".

    "auto" is the first of `best` that this machine has, else "cpu". ValueError for one that it does
    not have.
    """
    here = ["cpu"]
    if torch.cuda.is_available():
        here += ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        here.append("mps")
    if name == "auto":
        return torch.device(next((kind for kind in best if kind in here), "cpu"))
    if name not in here:
        why = ""
        if name.startswith("cuda") and len(here) == 1:
            built = torch.version.cuda or torch.version.hip
            why = "; PyTorch finds no GPU" if built else "; this PyTorch is for the CPU alone"
        raise ValueError(f"device must be one of auto, {', '.join(here)}, got {name!r}{why}")
    return torch.device(name)


def free_memory(device: torch.device, swap: bool = False) -> int | None:
    """Bytes of free memory; None where that is not known. swap: whether a CPU's swap space counts."""
    if device.type == "cuda":
        # Memory that the allocator holds but does not use is free too.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    if device.type == "cpu":
        known = [
            free
            for free in (_machine(swap), _address_space(), _control_group())
            if free is not None
        ]
        return min(known, default=None)
    return None


def _machine(swap: bool = False) -> int | None:
    """What this machine can give without swapping, or with it."""
    try:  # Linux; the names are missing elsewhere
        with open("/proc/meminfo", encoding="ascii") as lines:
            found = {name: rest for name, _, rest in (line.partition(":") for line in lines)}
        names = ("MemAvailable", "SwapFree") if swap else ("MemAvailable",)
        return sum(int(found[name].split()[0]) * 1024 for name in names)
    except (OSError, LookupError, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def _address_space() -> int | None:
    """What `ulimit -v` leaves to this process; None without such a limit."""
    if resource is None:
        return None
    try:
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit == resource.RLIM_INFINITY:
            return None
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
    return max(limit - used - THREADS, 0)


def _control_group(top: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What the limit of the control group (version 2) leaves, as in a container; None without one.

    A limit holds for all groups below it. Pages of files that are not in use can be taken back.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text("ascii").splitlines()
        here = next(line.removeprefix("0::/") for line in lines if line.startswith("0::"))
    except (OSError, ValueError, StopIteration):
        return None
    left = []
    for group in (top / here, *(top / here).parents):
        if not group.is_relative_to(top):
            break
        try:
            limit = int((group / "memory.max").read_text("ascii"))  # "max" if there is none
            used = int((group / "memory.current").read_text("ascii"))
            rows = (row.split() for row in (group / "memory.stat").read_text("ascii").splitlines())
            idle = next((int(count) for name, count in rows if name == "inactive_file"), 0)
            left.append(max(limit - used + idle, 0))
        except (OSError, ValueError):
            continue
    return min(left, default=None)


def weight_bytes(part: nn.Module) -> int:
    """Bytes of a part's parameters and buffers."""
    tensors = [*part.parameters(), *part.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def bring(
    part: nn.Module, others: Sequence[nn.Module], device: torch.device, work: int = 0
) -> list[nn.Module]:
    """Bring a part to the device where it works; the others make room if memory is short.

    Call it before each part's turn in a run: the text towers, the network, the decoder. others: the
    model's other parts. work: bytes that the part needs in addition to its weights. A part that has
    to make room goes to the CPU and stays there until it is brought itself, so that no part moves
    twice in a turn. Returns those that went. Nothing moves if the free memory is not known. If memory
    is still short, the part that follows fails or falls back to tiles, which need less. On a CPU
    nothing moves; parts that take turns there are read and let go (`take_turns`).
    """
    if device.type == "cpu":
        begin_turn(part)
        return []
    needed = work
    if not is_on(part, device):
        needed += weight_bytes(part)
    away: list[nn.Module] = []
    here = [other for other in others if other is not part and is_on(other, device)]
    while here and (free := free_memory(device)) is not None and free < needed:
        going = in_the_way(here, needed - free)
        here.remove(going)
        going.to(HOME)
        away.append(going)
        empty_cache(device)
    part.to(device)
    return away


def in_the_way(parts: Sequence[nn.Module], missing: int) -> nn.Module:
    """Which part goes first: the smallest one that is large enough, else the largest."""
    enough = [part for part in parts if weight_bytes(part) >= missing]
    return min(enough, key=weight_bytes) if enough else max(parts, key=weight_bytes)


def device_of(part: nn.Module) -> torch.device:
    """The device that a part is on, or will be when its turn comes; a GPU's has a number."""
    # A backend's copy of a network has the network inside.
    if any(map(takes_turns, (part, *part.children()))):
        return HOME
    return next(part.parameters()).device


def is_on(part: nn.Module, device: torch.device) -> bool:
    """Whether a part is on the device, or on any of its kind if that has no number."""
    here = device_of(part)
    return here.type == device.type and device.index in (None, here.index)


def empty_cache(device: torch.device) -> None:
    """Release memory that the allocator holds but does not use."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def give_back_memory() -> None:
    """Return memory that is no longer used to the system."""
    gc.collect()
    empty_cache(choose_device("auto"))
    if sys.platform == "linux":  # glibc keeps freed memory for later
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


# ---------------------------------------------------------------- turns on a CPU

Read = Callable[[nn.Module], None]
"""Gives a part its numbers, in the number type that it has."""
_reads: weakref.WeakKeyDictionary[nn.Module, Read] = weakref.WeakKeyDictionary()
"""The parts that take turns. A `Read` must not refer to its part, which would then stay forever."""
_sources: weakref.WeakKeyDictionary[nn.Module, tuple[Read, int]] = weakref.WeakKeyDictionary()
"""What reads a part that is in memory once more, and how often its numbers were changed until then."""
_given_up: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def take_turns(part: nn.Module, read: Read) -> None:
    """From now on a part is there in its turn only."""
    part.to("meta")
    _reads[part] = read


def read_again_by(part: nn.Module, read: Read) -> None:
    """Says how a part that is in memory can be read again."""
    _sources[part] = read, _changes(part)


def give_up(part: nn.Module) -> None:
    """Let a part go whose numbers something else has now; it is read again where it is needed itself.
    One that cannot be read again, or was changed since it was read, stays."""
    if part not in _reads:
        read, changes = _sources.get(part, (None, 0))
        if read is None or changes != _changes(part):
            return
        _reads[part] = read
    _given_up.add(part)
    part.to("meta")


def given_up(part: nn.Module) -> bool:
    """Whether something else has the numbers of a part, as a backend's copy of a network."""
    return part in _given_up


def _changes(part: nn.Module) -> int:
    return sum(parameter._version for parameter in part.parameters())


def takes_turns(part: nn.Module) -> bool:
    """Whether a part may be missing while others are in memory."""
    return part in _reads


def is_read(part: nn.Module) -> bool:
    """Whether a part has its numbers."""
    return next(part.parameters()).device.type != "meta"


def begin_turn(part: nn.Module) -> None:
    """The turn of a part begins: it is read, and those that are there in turn are let go before."""
    if part in _reads and is_read(part):
        return
    here = (part, *part.children())
    let_go(*(other for other in _reads if other not in here))
    if part in _reads:
        _reads[part](part)


@contextmanager
def reading(*parts: nn.Module) -> Iterator[None]:
    """All of these parts are there inside, for what copies them; they are let go afterwards."""
    missing = [part for part in parts if takes_turns(part) and not is_read(part)]
    try:
        for part in missing:
            _reads[part](part)
        yield
    finally:
        let_go(*missing)


def let_go(*parts: nn.Module) -> None:
    """Give back the memory of parts that take turns."""
    going = [part for part in parts if is_read(part)]
    for part in going:
        part.to("meta")
    if going:
        give_back_memory()

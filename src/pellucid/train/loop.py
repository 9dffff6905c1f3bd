"""What every training loop here shares: options, EMA, learning rate, saved state, progress.

The loops themselves stay visible in ``vae.py``, ``clip.py`` and ``diffusion.py``. Randomness is a
function of (seed, step, rank), never of what was drawn before, so a resumed run goes on bit for
bit where the unbroken one would have been.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pellucid.files import new_file
from pellucid.runtime.devices import choose_device

RANGES: dict[str, tuple[float, float]] = {
    "steps": (1, math.inf),
    "batch": (1, math.inf),
    "save_every": (1, math.inf),
    "sample_every": (-1, math.inf),
    "pool": (1, math.inf),
    "processes": (1, math.inf),
    "rank": (1, 1024),
    "rate": (0, math.inf),
    "r1": (0, math.inf),
    "token_loss": (0, math.inf),
    "ema": (0, 1),
    "drop": (0, 1),
    "decay_from": (0, 1),
    "seed": (0, 2**63 - 1),
}
"""The least and the most that an option of this name may be, in every loop."""

BAR = 24  # letters of a bar of progress
REDRAW = 0.2  # seconds until it is drawn again


def check(options: Any) -> None:
    """ValueError for an option of a loop that is not in its range, or is not finite."""
    for name, (least, most) in RANGES.items():
        value = getattr(options, name, least)
        if not (math.isfinite(value) and least <= value <= most):
            wanted = f"at least {least}" if most == math.inf else f"{least} to {most}"
            raise ValueError(f"{name} is {value}; {wanted} is wanted")


def say(line: str, *, replaced: bool = False) -> None:
    """A line of progress, on stderr; stdout is for results.

    replaced: the next line takes its place, on a terminal.
    """
    terminal = sys.stderr.isatty()
    erase = "\r\x1b[K" if terminal else ""
    sys.stderr.write(erase + line + ("" if terminal and replaced else "\n"))
    sys.stderr.flush()


def learning_rate(step: int, steps: int, peak: float, warmup: int, decay_from: float) -> float:
    """Linear warm-up, constant, then a cosine to zero over what is left after `decay_from`.

    Args:
        step: 0-based step of `steps`.
        warmup: steps until `peak` is reached.
        decay_from: fraction of the run at which the decay begins, 0..1.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    start = decay_from * steps
    if step < start:
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * (step - start) / max(steps - start, 1)))


def device_of(name: str) -> torch.device:
    """The device that an option names; "auto" is a GPU of NVIDIA's where there is one, else "cpu".

    ValueError for a device that is not there. Training on Apple's was not tried: it must be named.
    """
    return choose_device(name, best=("cuda",))


def autocast(device: torch.device) -> torch.autocast:
    """bf16 where it is fast: on CUDA, and on CPUs with instructions for it (newer x86 servers).

    On a CPU without them it trains 2.7 times slower than float32; with them, 1.6 times faster.
    """
    fast = device.type == "cuda"
    if device.type == "cpu":
        # torch 2.10 and newer
        able: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        fast = bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


class Ema:
    """Exponential moving average of a network's weights, with warm-up.

    decay_k = min(decay, (1 + k) / (10 + k)): the first weights, which are noise, are soon
    forgotten (as in TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.updates = 0
        self.weights = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        state = module.state_dict()
        names = [k for k in self.weights if self.weights[k].is_floating_point()]
        torch._foreach_lerp_([self.weights[k] for k in names], [state[k] for k in names], 1 - decay)

    def restore(self, weights: dict[str, Tensor], updates: int) -> None:
        """Go on from a saved average, on the device that this one lives on."""
        self.weights = {k: v.to(self.weights[k].device) for k, v in weights.items()}
        self.updates = updates

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Inside of the ``with``, the module has the averaged weights."""
        current = {k: v.clone() for k, v in module.state_dict().items()}
        module.load_state_dict(self.weights)
        try:
            yield
        finally:
            module.load_state_dict(current)


def rng_of(seed: int, step: int, rank: int = 0) -> np.random.Generator:
    """NumPy randomness of one step of one process."""
    return np.random.default_rng([seed, step, rank])


def generator_of(seed: int, step: int, rank: int = 0) -> torch.Generator:
    """Torch randomness (CPU) of one step of one process."""
    return torch.Generator().manual_seed(int(rng_of(seed, step, rank).integers(2**62)))


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write the whole state of a run, so that a kill never damages it. ValueError: a full disk."""
    with new_file(path, make_folder=True) as temporary, open(temporary, "wb") as file:
        torch.save(state, file)


def load_state(path: Path) -> dict[str, Any] | None:
    """The saved state, or None where there is none. Nothing in the file is executed.

    Tensors come back on the CPU, whatever device they were saved from.
    """
    if not path.is_file():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path}: not a saved training state ({error})") from error


def average_gradients(parameters: Iterable[nn.Parameter], world: int) -> None:
    """Mean of the gradients over all processes, in one message."""
    if world == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    torch.distributed.all_reduce(flat)
    flat /= world
    torch._foreach_copy_(
        gradients,
        [
            part.view_as(g)
            for part, g in zip(flat.split([g.numel() for g in gradients]), gradients, strict=True)
        ],
    )


class Report:
    """Progress on stderr: step, speed, time left, and what is measured.

    On a terminal a bar that moves; elsewhere, as in a log, a line every `every` steps.
    """

    def __init__(self, name: str, steps: int, start: int = 0, every: int = 50, quiet: bool = False):
        self.name, self.steps, self.start, self.every, self.quiet = name, steps, start, every, quiet
        self.began = self.shown = time.monotonic()

    def __call__(self, step: int, batch: int, **figures: float | Tensor) -> None:
        done, now = step + 1 - self.start, time.monotonic()
        last, terminal = step + 1 == self.steps, sys.stderr.isatty()
        due = now - self.shown > REDRAW if terminal else done % self.every == 0
        if self.quiet or not (due or last):
            return
        self.shown, seconds = now, now - self.began
        left = seconds / done * (self.steps - step - 1)
        text = "  ".join(f"{key} {float(value):.4f}" for key, value in figures.items())
        full = round(BAR * (step + 1) / self.steps)
        bar = "━" * full + "─" * (BAR - full) + " " if terminal else ""
        say(
            f"{self.name} {bar}{step + 1}/{self.steps}  {text}  {done * batch / seconds:.0f} "
            f"pictures/s  {left / 60:.1f} min left",
            replaced=not last,
        )

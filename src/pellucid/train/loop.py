"""What the training loops share: options, learning rate, averaged weights, saved state, progress.

The loops themselves stay visible, one file each. Randomness is a function of (seed, step, rank),
never of what was drawn before, so a resumed run continues bit for bit as the unbroken one would
have.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from pellucid.data import setting
from pellucid.files import new_file
from pellucid.progress import stage
from pellucid.runtime.devices import choose_device
from pellucid.runtime.memory import ran_out
from pellucid.runtime.precision import native_bfloat16

RANGES: dict[str, tuple[float, float]] = {
    "steps": (1, math.inf),
    "batch": (1, math.inf),
    "save_every": (1, math.inf),
    "sample_every": (-1, math.inf),
    "measure_every": (0, math.inf),
    "augment": (0, 1),
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
"""The least and the greatest value of an option of this name, in every loop."""

REDRAW = 0.2  # seconds between two lines of progress on a terminal

# The help of settings whose defaults differ.
STEPS, BATCH, RATE = "Updates of the network.", "Pictures in each update.", "Peak learning rate."
SAVE_EVERY = "Steps between two saves of the whole state."


@dataclass(frozen=True)
class RunOptions:
    """What can be set in every training loop. ValueError for a number that is out of range."""

    _: KW_ONLY
    steps: int = setting(1000, STEPS)
    batch: int = setting(32, BATCH)
    rate: float = setting(1e-3, RATE)
    save_every: int = setting(500, SAVE_EVERY)
    device: str = setting("auto", "auto (a GPU if there is one), cpu, cuda, cuda:1, mps.")
    seed: int = setting(0, "Random seed for initialisation, noise and batches.")
    resume: bool = setting(False, "Continue where the last run was saved.")

    def __post_init__(self) -> None:
        for name, (least, most) in RANGES.items():
            value = getattr(self, name, least)
            if not (math.isfinite(value) and least <= value <= most):
                allowed = f"at least {least}" if most == math.inf else f"between {least} and {most}"
                raise ValueError(f"{name} must be {allowed}, got {value}")


class Say(Protocol):
    """Where a loop reports: the command line shows it.

    share: None for a message; for a line of progress, which the next one may replace, how much of
    the run is done, 0..1. kept: whether the line stays where none can be replaced, as in a log.
    """

    def __call__(self, line: str, *, share: float | None = None, kept: bool = True) -> None: ...


def silent(line: str, *, share: float | None = None, kept: bool = True) -> None:
    """Reports nothing."""


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
    """The device of this name; "auto" is an NVIDIA GPU if there is one, else "cpu".

    ValueError for a missing device. Training on Apple's was not tried, so it must be named.
    """
    return choose_device(name, best=("cuda",))


def autocast(device: torch.device) -> torch.autocast:
    """bf16 where it is fast: on CUDA, and on CPUs with instructions for it (newer x86 servers).

    On a CPU without them it trains 2.7 times slower than float32; with them, 1.6 times faster.
    """
    fast = device.type == "cuda" or (device.type == "cpu" and native_bfloat16())
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


class Ema:
    """Exponential moving average of a network's weights, with warm-up.

    decay_k = min(decay, (1 + k) / (10 + k)): the first weights, which are noise, are soon
    forgotten (as in TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, module: nn.Module, decay: float):
        self.module, self.decay = module, decay
        self.updates = 0
        self.weights = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights that the network has now."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        state = self.module.state_dict()
        names = [k for k in self.weights if self.weights[k].is_floating_point()]
        torch._foreach_lerp_([self.weights[k] for k in names], [state[k] for k in names], 1 - decay)

    def restore(self, weights: dict[str, Tensor], updates: int) -> None:
        """Continue from a saved average, on the device of this one."""
        self.weights = {k: v.to(self.weights[k].device) for k, v in weights.items()}
        self.updates = updates

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the ``with`` block the network has the averaged weights."""
        current = {k: v.clone() for k, v in self.module.state_dict().items()}
        self.module.load_state_dict(self.weights)
        try:
            yield
        finally:
            self.module.load_state_dict(current)


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
    """The saved state, or None without a file. Nothing in the file is executed.

    Tensors come back on the CPU, independent of the device that they were saved from.
    """
    if not path.is_file():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged file can raise anything; torch's advice is to trust it
        raise ValueError(f"{path}: not a saved training state") from error


@contextmanager
def trained_state(path: Path, what: str, loop: str) -> Iterator[dict[str, Any]]:
    """The saved state of a trained part, from which the block makes the part.

    ValueError without a file, with the command that makes it, or where it is not the state of such a
    part, so that the block fails.
    """
    state = load_state(path)
    if state is None:
        raise ValueError(f"{path}: no trained {what} there; run `pellucid train {loop}` first")
    try:
        yield state
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        if ran_out(error):
            raise
        raise ValueError(
            f"{path} is not the {what} that `pellucid train {loop}` makes, but another file"
        ) from error


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def descend(
    optimizer: torch.optim.Optimizer, loss: Tensor, max_norm: float | None = 1.0, world: int = 1
) -> None:
    """One step of the optimizer. The gradients are averaged over `world` processes and clipped."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if world > 1:
        average_gradients([p.grad for p in parameters if p.grad is not None], world)
    if max_norm is not None:
        torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    optimizer.step()


def average_gradients(gradients: list[Tensor], world: int) -> None:
    """Replace gradients by their mean over all processes, in one message."""
    flat = torch.cat([g.flatten() for g in gradients])
    torch.distributed.all_reduce(flat)
    parts = (flat / world).split([g.numel() for g in gradients])
    torch._foreach_copy_(gradients, [p.view_as(g) for p, g in zip(parts, gradients, strict=True)])


class Stateful(Protocol):
    """What a run saves and restores: a network, an optimizer."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state_dict: Any, /) -> Any: ...


@dataclass(frozen=True)
class Saved:
    """What a run saves: its parts by name, and their average.

    facts: further values for the file. "made_of" must be the same when a run is resumed.
    """

    path: Path
    parts: Mapping[str, Stateful]
    ema: Ema | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


class Process(NamedTuple):
    """The number of this process among `world` of them; only 0 saves and reports."""

    rank: int
    world: int


ALONE = Process(0, 1)


class Run:
    """One run of a loop: its steps, its learning rate, its saved state and its progress.

    A killed or interrupted run leaves the state of its last save; with `options.resume` it continues
    from there, bit for bit as if unbroken (on a CPU, with the same options and number of threads).

    ::

        for step in run.steps(optimizer, warmup=100, decay_from=0.5):
            loss = ...
            run.update(optimizer, loss)
            run.report(loss=loss.detach())
            run.save_if_due()
    """

    def __init__(
        self,
        name: str,
        options: RunOptions,
        saved: Saved,
        say: Say = silent,
        every: int = 50,
        process: Process = ALONE,
    ) -> None:
        """
        Args:
            saved: with `options.resume` its file is read here.
            say: where the progress is reported.
            every: steps between two lines of progress in a log.

        Raises:
            ValueError: the saved state cannot be read, or is of a run with other options.
        """
        self.name, self.options, self.saved, self.process = name, options, saved, process
        self.say, self.every = say, every
        self.step = self.first = 0
        if options.resume and (state := load_state(saved.path)):
            self.restore(state)
        self.began = self.shown = time.monotonic()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state."""
        made_of, ema = self.saved.facts.get("made_of"), self.saved.ema
        others = (
            f"{self.saved.path} is from a run with other options and cannot be resumed with these"
        )
        if state.get("made_of", made_of) != made_of:
            raise ValueError(others)
        for name, part in self.saved.parts.items():
            if name in state:  # a part that is missing in the saved state starts untrained
                try:
                    part.load_state_dict(state[name])
                except (RuntimeError, ValueError) as error:  # of another size
                    raise ValueError(others) from error
        if ema is not None:
            ema.restore(state["ema"], state["updates"])
        self.first = state["step"]

    def steps(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        warmup: int = 0,
        decay_from: float = 1.0,
    ) -> Iterator[int]:
        """The steps that are left; `optimizer` gets the `learning_rate` of each."""
        total, peak = self.options.steps, self.options.rate
        for step in range(self.first, total):
            self.step = step
            if optimizer is not None:
                set_rate(optimizer, learning_rate(step, total, peak, warmup, decay_from))
            if step > self.first:
                yield step
                continue
            with stage(f"training, the first of {total - step:,} steps"):  # it may take minutes
                yield step

    def update(
        self, optimizer: torch.optim.Optimizer, loss: Tensor, max_norm: float | None = 1.0
    ) -> None:
        """One step of the optimizer and of the average; the gradients are clipped to `max_norm`."""
        descend(optimizer, loss, max_norm, self.process.world)
        self.average()

    def average(self) -> None:
        """Let the moving average follow the weights, in the process that saves them."""
        if self.saved.ema is not None and self.process.rank == 0:
            self.saved.ema.update()

    def report(self, **figures: float | Tensor) -> None:
        """Report step, speed, time left and these figures, if it is time to."""
        total, now = self.options.steps, time.monotonic()
        done = self.step + 1 - self.first
        kept = done % self.every == 0 or self.step + 1 == total
        if self.process.rank > 0 or not (kept or now - self.shown > REDRAW):
            return
        self.shown, seconds = now, now - self.began
        text = "  ".join(f"{key} {float(value):.4f}" for key, value in figures.items())
        speed = done * self.options.batch * self.process.world / seconds
        left = seconds / done * (total - self.step - 1)
        self.say(
            f"{self.name} {self.step + 1}/{total}  {text}  {speed:.0f} pictures/s  "
            f"{left / 60:.1f} min left",
            share=(self.step + 1) / total,
            kept=kept,
        )

    def due(self, every: int) -> bool:
        """Whether this is one step in `every`, or the last. 0: never; -1: whenever it is saved."""
        every = self.options.save_every if every < 0 else every
        last = self.step + 1 == self.options.steps
        return self.process.rank == 0 and every > 0 and ((self.step + 1) % every == 0 or last)

    def save_if_due(self) -> bool:
        """Save the whole state every `save_every` steps and at the end; whether it was saved."""
        due = self.due(self.options.save_every)
        if due:
            self.save()
        return due

    def save(self) -> None:
        """Save the whole state."""
        saved, ema = self.saved, self.saved.ema
        state: dict[str, Any] = {name: part.state_dict() for name, part in saved.parts.items()}
        if ema is not None:
            state |= {"ema": ema.weights, "updates": ema.updates}
        save_state(saved.path, {**state, **saved.facts, "step": self.step + 1})

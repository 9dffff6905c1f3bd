"""Time a picture as a person meets it: the whole command, and the steps alone.

    python benchmarks/generate.py [--model FILE] [--repeats 3] [--threads N]

Three figures: the wall time of `pellucid generate "a rabbit"` beside that of `python -c "import
torch"`, which nothing here can be faster than; 20 steps with guidance at the model's default size
after loading; and the peak memory of the command. The two commands take turns and the fastest of
the repeats counts, which other work on the machine disturbs least; for the same reason their CPU
time stands beside the clock's.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

STEPS = 20


class Cost(NamedTuple):
    """What a process took."""

    wall: float  # seconds
    cpu: float  # seconds, of all threads
    memory: int  # bytes at the peak


def cost(command: list[str], threads: int | None) -> Cost:
    """Run a command to its end. RuntimeError if it fails."""
    env = dict(os.environ)
    if threads is not None:
        env["OMP_NUM_THREADS"] = str(threads)
    with open(os.devnull, "wb") as quiet:
        start = time.perf_counter()
        process = os.posix_spawn(
            command[0], command, env, file_actions=[(os.POSIX_SPAWN_DUP2, quiet.fileno(), 1)]
        )
        _, status, usage = os.wait4(process, 0)  # of this child alone
        wall = time.perf_counter() - start
    if status != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in KiB, on macOS in bytes
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit)


def least(costs: list[Cost]) -> Cost:
    """The least time, and the most memory."""
    return Cost(min(c.wall for c in costs), min(c.cpu for c in costs), max(c.memory for c in costs))


def steps_alone(path: Path | None, repeats: int, threads: int | None) -> tuple[Cost, str]:
    """The least cost of one picture in 20 guided steps with a model that is loaded, and its size."""
    import torch

    from pellucid import checkpoints
    from pellucid.pipeline import Request, generate

    if threads is not None:
        torch.set_num_threads(threads)
    model = checkpoints.load(path)
    request = Request(prompt="a rabbit", seed=1, steps=STEPS)
    costs = []
    for _ in range(repeats + 1):  # the first warms up
        wall, cpu = time.perf_counter(), time.process_time()
        *_, last = generate(model, request)
        costs.append(Cost(time.perf_counter() - wall, time.process_time() - cpu, 0))
    done = last.request
    return least(costs[1:]), f"{done.width}x{done.height}, {done.sampler}, scale {done.guidance:g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="without it the model that ships with Pellucid")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of torch; without it torch chooses")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        generate = [sys.executable, "-m", "pellucid", "generate", "a rabbit", "--seed", "1"]
        generate += ["--steps", str(STEPS), "--out", folder]
        if options.model is not None:
            generate += ["--model", str(options.model)]
        commands = {"import torch": [sys.executable, "-c", "import torch"], "generate": generate}
        costs: dict[str, list[Cost]] = {name: [] for name in commands}
        for _ in range(options.repeats + 1):  # the first reads the files from disk
            for name, command in commands.items():
                costs[name].append(cost(command, options.threads))
    bare, whole = (least(costs[name][1:]) for name in commands)
    alone, what = steps_alone(options.model, options.repeats, options.threads)

    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load {load:.1f}; {what}; the least of {options.repeats}")
    print(f"import torch: {bare.wall:.2f} s ({bare.cpu:.2f} s CPU)")
    print(f"pellucid generate: {whole.wall:.2f} s ({whole.cpu:.2f} s CPU)")
    print(f"more than import torch: {whole.wall - bare.wall:.2f} s; the bar is 4 s")
    print(
        f"{STEPS} steps after loading: {alone.wall:.2f} s ({alone.cpu:.2f} s CPU); the bar is 2 s"
    )
    print(f"peak memory: {whole.memory / 1e9:.2f} GB; the bar is 1.2 GB")


if __name__ == "__main__":
    main()

"""Loading a Stable Diffusion 1.5 checkpoint: memory, and the time to the first step.

    python benchmarks/load.py [--width 1.0] [--repeats 1]

A file in the original layout is made on the spot, with the published shapes and random weights in
float16. The figures are each from a process of its own (`full_size.py` compares the numbers):

- the peak memory that loading in float16 adds, from an interpreter that has imported torch to a
  model that is ready, against the size of the file (the bar is 1.1);
- the wall time from the command to the first call of the U-Net, and to its return: of `pellucid
  generate` as it is and with --exact (float32), and of diffusers' `from_single_file` as it is, which is
  float32 (the bar for the first call is a third of theirs).
"""

from __future__ import annotations

import argparse
import compileall
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

MAKE, MEMORY, OURS, EXACT, THEIRS = "make", "memory", "pellucid", "pellucid --exact", "diffusers"
CALLED, RETURNED = "called", "returned"
PHASES = {CALLED: "was called", RETURNED: "had returned"}


def make(path: Path, folder: Path, width: float) -> None:
    """The checkpoint, and a folder of diffusers' with its configs, which diffusers asks for."""
    import torch

    from pellucid import checkpoints
    from pellucid.backbones.unet import SD15, UNet
    from pellucid.checkpoints.families.sd1 import FAMILY as SD1
    from pellucid.clip import TextTower
    from pellucid.model import Model
    from pellucid.tokenizer import Tokenizer
    from pellucid.vae import VAE

    torch.set_default_dtype(torch.float16)
    torch.manual_seed(0)
    widths = tuple(int(side * width) // 32 * 32 for side in SD15.block_out_channels)
    parts = (
        UNet(replace(SD15, block_out_channels=widths)),
        VAE(SD1.vae),
        TextTower(SD1.towers[0].config),
    )
    torch.set_default_dtype(torch.float32)
    backbone, vae, text = parts
    for part in parts:
        for parameter in part.parameters():
            if parameter.dim() == 1:  # norms that are not ones and zeros
                parameter.data += 0.1 * torch.randn_like(parameter)
    model = Model(
        backbone,
        vae,
        text,
        Tokenizer.clip(),
        SD1.schedule,
        "eps",
        "random",
        text_encoding=SD1.text_encoding,
        defaults=SD1.defaults_for("eps"),
    )
    checkpoints.save(model, path, to="ldm")
    checkpoints.save(model, folder, to="diffusers")
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()


def resident() -> int:
    """Bytes of this process's own memory and of mapped files, now and at the peak: the peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("the peak memory is read from Linux's /proc")


def memory(path: Path) -> None:
    """Prints the bytes that loading adds at the peak, with every weight touched."""
    import torch

    from pellucid import checkpoints
    from pellucid.tokenizer import Tokenizer

    Tokenizer.clip()  # which is the program's and not the file's
    before = resident()
    model = checkpoints.load(path, dtype=torch.float16)
    parts = (model.backbone, model.vae, model.text)
    for part in parts:
        for weight in part.parameters():
            weight.flatten()[:: 2**9].sum()  # every page
    print(json.dumps(resident() - before))


def first_call_ours(when: str, path: Path, folder: Path, *words: str) -> None:
    """The command, until the U-Net is called or has returned; then it ends."""
    import pellucid.__main__ as command
    from pellucid import diffusion

    predictor = diffusion.predictor

    def ending(network: Any, prediction: str) -> Any:
        def call(*inputs: Any) -> None:
            if when == RETURNED:
                network(*inputs)
            os._exit(0)

        return predictor(call, prediction)

    diffusion.predictor = ending  # before `pipeline` imports it
    sys.argv = ["pellucid", "generate", "a frog on stilts", "--model", str(path), "--seed", "1"]
    sys.argv += ["--out", str(folder), *words]
    command.main()


def first_call_theirs(when: str, path: Path, folder: Path) -> None:
    """The same in diffusers."""
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_single_file(
        str(path), config=str(folder), local_files_only=True, torch_dtype=torch.float32
    )
    if when == CALLED:
        pipeline.unet.register_forward_pre_hook(lambda *_: os._exit(0))
    pipeline.unet.register_forward_hook(lambda *_: os._exit(0))
    pipeline("a frog on stilts", generator=torch.Generator().manual_seed(1))


def compile_bytecode() -> None:
    """As an installer does; a checkout may be run without it (PYTHONDONTWRITEBYTECODE)."""
    package = importlib.util.find_spec("pellucid")
    assert package is not None
    for folder in package.submodule_search_locations or ():
        compileall.compile_dir(folder, quiet=1)


class Cost(NamedTuple):
    """What a task took, in seconds: by the clock, and of all its threads."""

    wall: float
    cpu: float
    output: str


def cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run(task: str, *words: object, script: str = __file__) -> Cost:
    """The cost and the output of a task of a script in a process of its own."""
    command = [sys.executable, script, "--task", task, *map(str, words)]
    start, cpu = time.perf_counter(), cpu_of_children()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    wall, cpu = time.perf_counter() - start, cpu_of_children() - cpu
    if done.returncode != 0:
        raise RuntimeError(f"{task} ended with {done.returncode}")
    return Cost(wall, cpu, done.stdout.strip().rpartition("\n")[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=float, default=1.0, help="of the U-Net; 1 is SD1.5's")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--when", choices=(CALLED, RETURNED), help=argparse.SUPPRESS)
    parser.add_argument("paths", nargs="*", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if options.task is not None:
        tasks = {
            MAKE: lambda *paths: make(*paths, options.width),
            MEMORY: memory,
            OURS: lambda *paths: first_call_ours(options.when, *paths),
            EXACT: lambda *paths: first_call_ours(options.when, *paths, "--exact"),
            THEIRS: lambda *paths: first_call_theirs(options.when, *paths),
        }
        tasks[options.task](*options.paths)
        return
    compile_bytecode()
    with tempfile.TemporaryDirectory() as room:
        path, folder = Path(room) / "sd15.safetensors", Path(room) / "configs"
        run(MAKE, path, folder, "--width", options.width)
        size = path.stat().st_size
        print(
            f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; a file of {size / 1e9:.2f} GB"
        )
        added = int(run(MEMORY, path).output)
        print(f"memory: {added / 1e9:.2f} GB at the peak, {added / size:.3f} times the file")
        for when in (CALLED, RETURNED):
            times: dict[str, list[float]] = {OURS: [], EXACT: [], THEIRS: []}
            for _ in range(options.repeats):  # they take turns; the least counts
                for name, found in times.items():
                    found.append(run(name, "--when", when, path, folder).wall)
            theirs = min(times[THEIRS])
            print(f"until the network {PHASES[when]} for the first time: {THEIRS} {theirs:.2f} s")
            for name in (OURS, EXACT):
                least = min(times[name])
                print(f"  {name} {least:.2f} s, {least / theirs:.2f} of it")


if __name__ == "__main__":
    main()

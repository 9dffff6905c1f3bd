"""Every measurement of speed and memory in one run: `make bench`.

    python benchmarks/bench.py [--out docs/benchmarks.json] [--only limits,unet] [--minutes 35] [--quick]

Each task runs in a process of its own and adds its figures to the JSON file; a second run goes on
with the tasks that are missing there. What is compared takes turns, A B A B; a figure has the median
and the least of its rounds, in seconds by the clock. diffusers, OpenVINO, OpenVINO GenAI and
stable-diffusion.cpp (stable-diffusion-cpp-python) take part where they are installed. OpenVINO reads
networks that were converted before: --openvino FOLDER, with sd15.xml and sd15_int8.xml, and GenAI a
folder of Stable Diffusion 1.5 as optimum-cli exports it: --genai FOLDER. --quick is a trial with thin
networks. docs/BENCHMARKS.md and its plot are written from
the JSON file at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BASE = "diffusers float32"
Rounds = dict[str, list[float]]


def clock(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def turns(works: Mapping[str, Callable[[], object]], rounds: int, warm: bool = True) -> Rounds:
    """The seconds of each in every round; the first round warms up and does not count."""
    found: Rounds = {name: [] for name in works}
    for i in range(rounds + warm):
        for name, work in works.items():
            seconds = clock(work)
            if i >= warm:
                found[name].append(seconds)
    return found


# ---------------------------------------------------------------- the machine


def limits(options: argparse.Namespace) -> dict[str, Any]:
    """Operations per second of single kernels, in 10^9: what a network could reach at most."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    from pellucid.nn import attend
    from pellucid.runtime.backends import int8

    def rate(operations: float, work: Callable[[], object]) -> float:
        work()
        return operations / min(clock(work) for _ in range(5)) / 1e9

    found = {}
    x, layer = torch.randn(2, 4096, 1280), nn.Linear(1280, 1280)
    image, conv = torch.randn(2, 640, 32, 32), nn.Conv2d(640, 640, 3, padding=1)
    image = image.to(memory_format=torch.channels_last)
    conv = conv.to(memory_format=torch.channels_last)
    q = torch.randn(2, 8, 4096, 40)
    many, more = 2.0 * x[..., 0].numel() * 1280 * 1280, 2.0 * 2 * 32 * 32 * 640 * 640 * 9
    if int8.unsuitable(x.device) is None:
        small = int8.Linear(layer, int8.Quantizer()), int8.Conv2d(conv, int8.Quantizer())
        found["matrix product, int8, with rounding"] = rate(many, lambda: small[0](x.clone()))
        found["convolution, int8, with rounding"] = rate(more, lambda: small[1](image.clone()))
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        a, b, c = x.to(dtype), image.to(dtype), q.to(dtype)
        layer, conv = layer.to(dtype), conv.to(dtype)
        found[f"matrix product, {name}"] = rate(many, lambda a=a, layer=layer: layer(a))
        found[f"convolution, {name}"] = rate(more, lambda b=b, conv=conv: conv(b))
        work = 4.0 * 16 * 4096 * 4096 * 40
        found[f"attention, fused, {name}"] = rate(
            work, lambda c=c: F.scaled_dot_product_attention(c, c, c)
        )
        found[f"attention, Pellucid, {name}"] = rate(work, lambda c=c: attend(c, c, c))
    return found


# ---------------------------------------------------------------- Stable Diffusion 1.5's parts


def unet(options: argparse.Namespace) -> dict[str, Any]:
    """A step of SD1.5's network, batch 2, 64x64 latents, random weights."""
    import torch
    from unet import reference

    from pellucid.backbones.unet import SD15, UNet
    from pellucid.diffusion import Conditioning
    from pellucid.runtime.backends import int8, packed

    thin, side = (96, 192, 384, 384), 64
    config = replace(SD15, block_out_channels=thin) if options.quick else SD15
    torch.manual_seed(0)
    x, tokens = torch.randn(2, 4, side, side), torch.randn(2, 77, 768)
    t = torch.tensor([500.0, 500.0])
    theirs, ours = reference(config).eval(), UNet(config).eval()
    ours.load_state_dict(theirs.state_dict(), assign=True)
    # A copy of the convolutions alone: diffusers keeps its own layout.
    fast = UNet(config).eval()
    fast.load_state_dict({k: w.clone() for k, w in theirs.state_dict().items()}, assign=True)
    fast.to(memory_format=torch.channels_last)
    half = UNet(config).eval().bfloat16()
    half.load_state_dict({k: w.bfloat16() for k, w in theirs.state_dict().items()}, assign=True)
    half.to(memory_format=torch.channels_last)
    works: dict[str, Callable[[], Any]] = {
        BASE: lambda: theirs(x, t, tokens).sample,
        "Pellucid float32 (--exact)": lambda: fast(x, t, Conditioning(tokens)),
        "Pellucid bfloat16": lambda: half(x.bfloat16(), t, Conditioning(tokens.bfloat16())),
    }
    if int8.unsuitable(x.device) is None:
        small = int8.quantized(half)
        works["Pellucid int8"] = lambda: small(x.bfloat16(), t, Conditioning(tokens.bfloat16()))
    inputs = x.bfloat16(), t, Conditioning(tokens.bfloat16())
    if packed.unsuitable(x.device) is None:
        quick = packed.Packed(half, packed.packed(half))
        works["Pellucid packed"] = lambda: quick(*inputs)
    works |= by_openvino(half, inputs)
    expected = works[BASE]().float()
    off = {
        name: float((work().float() - expected).norm() / expected.norm())
        for name, work in works.items()
    }
    works |= openvino(options, (x, t, tokens))
    return {"seconds": turns(works, 1 if options.quick else 3), "difference": off}


def by_openvino(network: Any, inputs: Any) -> dict[str, Callable[[], Any]]:
    """The backends openvino and openvino_int8; the ranges of the second are those of this input."""
    from pellucid.runtime.backends import _compiled, _ranges, int8

    if _compiled.unsuitable(inputs[0].device) is not None:
        return {}
    layers = int8.rounded_layers(network)
    found = _ranges.measured(network, layers, lambda network: network(*inputs))
    ranges = {layers[name].weight.data_ptr(): ends for name, ends in found.items()}
    networks = {
        "Pellucid openvino": _compiled.Compiled(network, False, {}),
        "Pellucid openvino_int8": _compiled.Compiled(network, True, ranges),
    }
    return {name: lambda made=made: made(*inputs) for name, made in networks.items()}


def openvino(options: argparse.Namespace, inputs: Any) -> dict[str, Callable[[], Any]]:
    """Networks that were converted before."""
    if options.openvino is None:
        return {}
    try:
        import openvino as ov
    except ImportError:
        return {}
    core, found = ov.Core(), {}
    for title, file, kind in (
        ("OpenVINO bfloat16", "sd15.xml", "bf16"),
        ("OpenVINO int8 (NNCF)", "sd15_int8.xml", "bf16"),
    ):
        path = options.openvino / file
        if path.is_file() and not options.quick:
            network = core.compile_model(
                path, "CPU", {"INFERENCE_PRECISION_HINT": kind, "PERFORMANCE_HINT": "LATENCY"}
            )
            arrays = [tensor.numpy() for tensor in inputs]
            found[title] = lambda network=network, arrays=arrays: network(arrays)
    return found


def vae(options: argparse.Namespace) -> dict[str, Any]:
    """Decoding to 512x512 with SD1.5's autoencoder, random weights."""
    import torch
    from diffusers import AutoencoderKL

    from pellucid.vae import SD_VAE, VAE

    side = 16 if options.quick else 64
    latents = torch.randn(1, 4, side, side)
    theirs = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=2,
        latent_channels=4,
    ).eval()
    ours, half = VAE(SD_VAE).eval(), VAE(SD_VAE).eval().bfloat16()
    for part in (ours, half):
        part.to(memory_format=torch.channels_last)
    works = {
        BASE: lambda: theirs.decode(latents).sample,
        "Pellucid float32 (--exact)": lambda: ours.decode(latents),
        "Pellucid bfloat16 (default)": lambda: half.decode(latents.bfloat16()),
    }
    return {"seconds": turns(works, 2)}


# ---------------------------------------------------------------- the shipped model


def shipped(options: argparse.Namespace) -> dict[str, Any]:
    """20 steps of the shipped model after loading, and how far its pictures are from float32's."""
    import numpy as np
    import torch

    from pellucid.data.emoji import concept_names
    from pellucid.opening import open_model
    from pellucid.pipeline import generate
    from pellucid.rehearsal import rehearse
    from pellucid.request import Request
    from pellucid.runtime.backends import EAGER, OnBackend, choose_backend
    from pellucid.runtime.precision import dtype_of
    from pellucid.runtime.threads import parameters_of

    cpu, draws = torch.device("cpu"), {}
    for name, dtype, backend, more in (
        ("float32 (--exact)", "float32", EAGER, {}),
        ("default", "auto", "auto", {}),
        ("--fast", "auto", "fast", {"forecast": True, "forecast_more": True}),
        ("--exact --forecast", "float32", EAGER, {"forecast": True}),
    ):
        model = open_model(None, device="cpu", dtype=dtype)
        choice = choose_backend(backend, cpu, parameters_of(model), dtype_of(model.backbone))
        model, _ = OnBackend(lambda model, _: (model, ()), choice, rehearse)(model, Request())

        def draw(prompt: str, steps: int = 20, model: Any = model, more: Any = more) -> Any:
            *_, last = generate(model, Request(prompt=prompt, seed=1, steps=steps, **more))
            return np.asarray(last.images[0], dtype=float)

        draws[name] = draw
    names = list(concept_names())[: 5 if options.quick else 100]
    prompts = [f"a {name}" for name in names]
    exact = [draws["float32 (--exact)"](prompt) for prompt in prompts]
    ratio: dict[str, list[float]] = {}
    for name in list(draws)[1:]:
        errors = [((draws[name](p) - e) ** 2).mean() for p, e in zip(prompts, exact, strict=True)]
        ratio[name] = [float(10 * np.log10(255**2 / max(error, 1e-3))) for error in errors]
    works = {f"{n}, 20 steps": lambda d=d: d("a rabbit") for n, d in draws.items()}
    works |= {f"{n}, 4 steps": lambda d=d: d("a rabbit", 4) for n, d in draws.items()}
    return {
        "seconds": turns(works, 5),
        "PSNR": {n: {"least": min(v), "mean": statistics.mean(v)} for n, v in ratio.items()},
        "prompts": len(prompts),
    }


BUSY = "while True: pass"
JOB = "import torch; torch.set_num_threads(2); a = torch.randn(512, 512)\nwhile True: a @ a"


def command(options: argparse.Namespace) -> dict[str, Any]:
    """The whole command for a picture of the shipped model, alone and next to busy neighbours."""
    from load import compile_bytecode

    compile_bytecode()
    with tempfile.TemporaryDirectory() as folder:
        draw = [sys.executable, "-m", "pellucid", "generate", "a rabbit", "--out", folder]
        commands = {
            "import torch": [sys.executable, "-c", "import torch"],
            "pellucid --help": [sys.executable, "-m", "pellucid", "--help"],
            "pellucid generate": draw,
            "pellucid generate --threads 2": [*draw, "--threads", "2"],
        }

        def works() -> dict[str, Callable[[], Any]]:
            return {
                name: lambda words=words: subprocess.run(words, capture_output=True, check=True)
                for name, words in commands.items()
            }

        rounds = 1 if options.quick else 3
        found = {"alone": turns(works(), rounds)}
        for title, code, count in (
            ("two busy loops", BUSY, 2),
            ("a torch job of two threads", JOB, 1),
        ):
            others = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
            try:
                time.sleep(3)
                found[title] = turns(works(), rounds, warm=False)
            finally:
                for other in others:
                    other.kill()
                    other.wait()
    return {"seconds": found}


# ---------------------------------------------------------------- loading, training, whole pictures


def script(name: str, *words: str) -> dict[str, Any]:
    """What another benchmark of this folder prints."""
    done = subprocess.run(
        [sys.executable, HERE / name, *words], capture_output=True, text=True, check=True
    )
    return {"text": done.stdout.strip().splitlines()}


def loading(options: argparse.Namespace) -> dict[str, Any]:
    """From the command to the first step of SD1.5, and the memory of loading."""
    return script("load.py", "--width", "0.3" if options.quick else "1", "--repeats", "2")


def training(options: argparse.Namespace) -> dict[str, Any]:
    """A training step of the shipped model's network, against diffusers'."""
    return script(
        "unet.py", "--shape", "emoji", "--bf16", "--repeats", "2" if options.quick else "5"
    )


def add_run(
    found: dict[str, Any], name: str, words: list[str], before: Callable[[], None] | None = None
) -> None:
    """Run a command and add its time and its memory. before: called in its process first."""
    start = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, preexec_fn=before)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise RuntimeError(f"{name} ended with {os.waitstatus_to_exitcode(status)}")
    found["seconds"][name] = [time.perf_counter() - start]
    found["peak bytes"][name] = usage.ru_maxrss * 1024


def picture(options: argparse.Namespace) -> dict[str, Any]:
    """A whole picture of SD1.5, 20 steps at 512x512, loaded from one file: time and peak memory."""
    from load import make

    side, steps = ("64", "2") if options.quick else ("512", "20")
    found: dict[str, Any] = {"seconds": {}, "peak bytes": {}}
    with tempfile.TemporaryDirectory() as room:
        path, folder = Path(room) / "sd15.safetensors", Path(room) / "configs"
        make(path, folder, 0.3 if options.quick else 1.0)
        ours = [
            sys.executable,
            "-m",
            "pellucid",
            "generate",
            "a frog on stilts",
            "--model",
            str(path),
        ]
        ours += ["--size", side, "--steps", steps, "--seed", "1", "--out", room]
        theirs = [sys.executable, __file__, "--diffusers", str(path), str(folder), side, steps]
        for name, words in (
            ("Pellucid --fast", [*ours, "--fast"]),
            ("Pellucid (default)", ours),
            ("Pellucid --backend openvino", [*ours, "--backend", "openvino"]),
            ("Pellucid --backend int8", [*ours, "--backend", "int8"]),
            ("Pellucid --backend eager", [*ours, "--backend", "eager"]),
            (BASE, theirs),
        ):
            add_run(found, name, words)
        add_peers(found, options, path, side, steps)
    return found


def add_peers(
    found: dict[str, Any], options: argparse.Namespace, path: Path, side: str, steps: str
) -> None:
    """Other programs that draw a whole picture, where they are installed; else why they do not."""
    found["not measured"] = {}
    for name, package, model in (
        ("stable-diffusion.cpp", "stable_diffusion_cpp", path),
        ("OpenVINO GenAI", "openvino_genai", options.genai),
    ):
        if importlib.util.find_spec(package) is None:
            found["not measured"][name] = f"{package} is not installed"
        elif model is None:
            found["not measured"][name] = "no folder was given (--genai)"
        else:
            words = [sys.executable, __file__, "--peer", package, str(model), side, steps]
            try:
                add_run(found, name, words)
            except RuntimeError as error:
                found["not measured"][name] = str(error)


LIMIT = 4 * 10**9
"""Bytes of address space, as `ulimit -v` limits it."""


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """A whole picture of SD1.5, 2 steps at 512x512, in 4 GB of address space."""
    import resource

    from load import make

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))

    side = "64" if options.quick else "512"
    found: dict[str, Any] = {"seconds": {}, "peak bytes": {}}
    with tempfile.TemporaryDirectory() as room:
        path = Path(room) / "sd15.safetensors"
        make(path, Path(room) / "configs", 0.3 if options.quick else 1.0)
        words = [sys.executable, "-m", "pellucid", "generate", "a frog", "--model", str(path)]
        words += ["--size", side, "--steps", "2", "--seed", "1", "--out", room]
        for name, more in (("default", []), ("--fast", ["--fast"])):
            add_run(found, name, [*words, *more], limited)
    return found


def with_diffusers(path: str, folder: str, side: str, steps: str) -> None:
    """What diffusers does at its defaults with a single file, from the command to the picture."""
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_single_file(
        path, config=folder, local_files_only=True, safety_checker=None
    )
    pipeline(
        "a frog on stilts",
        height=int(side),
        width=int(side),
        num_inference_steps=int(steps),
        generator=torch.Generator().manual_seed(1),
    )


def with_peer(package: str, model: str, side: str, steps: str) -> None:
    """What another program does at its defaults, from the command to the picture."""
    prompt, seed = "a frog on stilts", 1
    if package == "openvino_genai":
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # reports over the network
        import openvino_genai

        openvino_genai.Text2ImagePipeline(model, "CPU").generate(
            prompt, width=int(side), height=int(side), num_inference_steps=int(steps), rng_seed=seed
        )
        return
    from stable_diffusion_cpp import StableDiffusion

    StableDiffusion(model_path=model).generate_image(
        prompt=prompt, width=int(side), height=int(side), sample_steps=int(steps), seed=seed
    )


TASKS = {
    each.__name__: each
    for each in (limits, unet, vae, shipped, command, loading, training, picture, memory)
}


# ---------------------------------------------------------------- the report


def machine() -> dict[str, Any]:
    """Where this ran, and with which versions."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    import torch

    able = getattr(torch.cpu, "get_capabilities", dict)()
    versions = {}
    peers = ("openvino-genai", "stable-diffusion-cpp-python")
    for package in ("torch", "diffusers", "openvino", "nncf", *peers):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    flags = [f for f in ("avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16") if able.get(f)]
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "instructions": flags,
        "python": platform.python_version(),
        "versions": versions,
        "load before": os.getloadavg()[0],
    }


def table(rounds: Rounds, base: str | None = None) -> list[str]:
    """Median, least, and how many times as fast as `base`."""
    head = "| what | median, s | least, s |" + (
        f" least: times as fast as {base} |" if base else ""
    )
    lines = [head, "|---" * (head.count("|") - 1) + "|"]
    for name, seconds in rounds.items():
        row = f"| {name} | {statistics.median(seconds):.3g} | {min(seconds):.3g} |"
        if base:
            row += f" {min(rounds[base]) / min(seconds):.2f} |"
        lines.append(row)
    return lines


def report(found: Mapping[str, Any]) -> str:
    """docs/BENCHMARKS.md."""
    where = found["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in where["versions"].items())
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench` from [benchmarks.json](benchmarks.json). "
        f"Machine: {where['processor']}, {where['cores']} cores, "
        f"{', '.join(where['instructions']) or 'no special instructions'}; "
        f"Python {where['python']}, {versions}; load before the run {where['load before']:.1f}. "
        "What is compared took turns; weights of Stable Diffusion are random.",
        *(["", f"{where['note']}."] if "note" in where else []),
        *(["", "![A step of Stable Diffusion 1.5](benchmarks.svg)"] if plot(found) else []),
    ]
    for name, task in TASKS.items():
        if name not in found:
            continue
        data = found[name]
        assert task.__doc__
        lines += ["", f"## {task.__doc__.splitlines()[0].rstrip('.')}", ""]
        if "error" in data:
            lines.append(f"Not measured: {data['error']}")
            continue
        if name == "limits":
            lines += ["| kernel | 10^9 operations a second |", "|---|---|"]
            lines += [f"| {kernel} | {value:.0f} |" for kernel, value in data.items()]
        elif name == "command":
            for title, rounds in data["seconds"].items():
                lines += [f"{title.capitalize()}:", "", *table(rounds), ""]
        elif "text" in data:
            lines += ["```", *data["text"], "```"]
        else:
            base = BASE if BASE in data["seconds"] else None
            lines += table(data["seconds"], base)
        lines += _more(data)
    return "\n".join(lines) + "\n"


def _more(data: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, value in data.get("difference", {}).items():
        lines.append(f"- {name}: its output differs from diffusers' by {value:.1e} of its size")
    for name, value in data.get("PSNR", {}).items():
        lines.append(
            f"- {name}: {value['mean']:.1f} dB to float32's picture, at least {value['least']:.1f} dB, "
            f"on {data['prompts']} prompts"
        )
    for name, why in data.get("not measured", {}).items():
        lines.append(f"- {name} was not measured: {why}")
    for name, value in data.get("peak bytes", {}).items():
        lines.append(f"- {name}: {value / 1e9:.2f} GB of memory at the peak")
    return ["", *lines] if lines else []


def plot(found: Mapping[str, Any]) -> str | None:
    """A bar for each way to compute a step of SD1.5."""
    from html import escape

    if "seconds" not in found.get("unet", {}):
        return None
    rounds = {name: min(each) for name, each in found["unet"]["seconds"].items()}
    longest, bars = max(rounds.values()), []
    for i, (name, seconds) in enumerate(rounds.items()):
        y, width = 40 + 34 * i, 400 * seconds / longest
        colour = "#2a6f97" if name.startswith("Pellucid") else "#adb5bd"
        bars.append(
            f'<text x="230" y="{y + 17}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="240" y="{y}" width="{width:.1f}" height="24" fill="{colour}"/>'
            f'<text x="{width + 248:.1f}" y="{y + 17}">{seconds:.2f} s</text>'
        )
    height = 50 + 34 * len(rounds)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 {height}" font-family="sans-serif" '
        f'font-size="13"><rect width="720" height="{height}" fill="white"/><text x="10" y="22">A step '
        f"of Stable Diffusion 1.5's network, batch 2, 64x64 latents</text>{''.join(bars)}</svg>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks.json"))
    parser.add_argument("--only", default=",".join(TASKS), help="tasks, with commas")
    parser.add_argument(
        "--minutes", type=float, default=35, help="no task begins or runs after these"
    )
    parser.add_argument("--openvino", type=Path, help="folder of converted networks")
    parser.add_argument("--genai", type=Path, help="folder of a converted Stable Diffusion 1.5")
    parser.add_argument("--quick", action="store_true", help="thin networks, to try the run itself")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--diffusers", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--peer", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.out.is_dir():
        parser.error(f"--out must be a file, got the folder {options.out}")
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if options.diffusers is not None:
        with_diffusers(*options.diffusers)
        return
    if options.peer is not None:
        with_peer(*options.peer)
        return
    if options.task is not None:
        import torch

        torch.set_grad_enabled(False)
        print(json.dumps(TASKS[options.task](options)))
        return
    found = json.loads(options.out.read_text("utf-8")) if options.out.is_file() else {}
    found.setdefault("machine", machine())
    end = time.monotonic() + 60 * options.minutes
    for name in options.only.split(","):
        left = end - time.monotonic()
        if (name in found and "error" not in found[name]) or left < 5:
            continue
        words = [sys.executable, __file__, "--task", name, *(["--quick"] if options.quick else [])]
        if options.openvino is not None:
            words += ["--openvino", str(options.openvino)]
        if options.genai is not None:
            words += ["--genai", str(options.genai)]
        print(f"{name} ...", file=sys.stderr, flush=True)
        start = time.perf_counter()
        try:
            done = subprocess.run(
                words, stdout=subprocess.PIPE, text=True, check=True, timeout=left
            )
            found[name] = json.loads(done.stdout.strip().rpartition("\n")[2])
        except subprocess.TimeoutExpired:
            found[name] = {"error": "the time that was allowed ended first"}
        except (subprocess.SubprocessError, ValueError) as error:
            found[name] = {"error": f"it failed ({type(error).__name__})"}
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        options.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    options.out.with_name("BENCHMARKS.md").write_text(report(found), "utf-8")
    drawn = plot(found)
    if drawn is not None:
        options.out.with_suffix(".svg").write_text(drawn, "utf-8")


if __name__ == "__main__":
    main()

"""Train a LoRA: the model learns a few pictures, and what changed in it is kept as a small file.

The model itself does not change. Only its network learns, not its text towers, so the latents of
the pictures and the vectors of their captions are computed once.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pellucid import checkpoints
from pellucid.conditioning import StepConditioning, encode_prompts
from pellucid.data.imagefolder import Folder
from pellucid.diffusion import Conditioning, sample_t, training_loss
from pellucid.lora import Change, Lora, Matrix, attach
from pellucid.model import Model
from pellucid.runtime import Runtime
from pellucid.train.loop import (
    Report,
    autocast,
    check,
    device_of,
    generator_of,
    learning_rate,
    load_state,
    rng_of,
    save_state,
    say,
)
from pellucid.train.pictures import to_pixels


@dataclass(frozen=True)
class LoraOptions:
    """Options of ``pellucid train lora``."""

    data: str = ""
    """A folder of pictures with captions, as `data.imagefolder` reads it."""
    model: str = ""
    """A model file; "" is the small model that ships with the package."""
    prediction: str = ""
    """What the model predicts, where its file does not say it: eps or v of Stable Diffusion 2."""
    vae: str = ""
    """A file or folder whose autoencoder is used instead of the model's."""
    out: Path = Path("runs/lora.safetensors")
    """The file's name, less its ending, is the LoRA's. What a killed run goes on from is beside it."""
    rank: int = 8
    convs: bool = False
    """Change the convolutions too, not only the attention and what belongs to it (LoCon)."""
    steps: int = 500
    batch: int = 4
    rate: float = 1e-3
    """Of AdamW; for Stable Diffusion 1e-4 is usual."""
    drop: float = 0.1
    """Chance that a caption is replaced by the empty one, for guidance."""
    mirror: bool = True
    """Show the pictures mirrored too."""
    size: int = 0
    """What the pictures are scaled to; 0: what the model draws."""
    save_every: int = 100
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda, cuda:1, mps."""
    seed: int = 0
    resume: bool = False


def new_lora(network: nn.Module, rank: int, convs: bool, seed: int) -> dict[str, Change]:
    """A change that is zero, for the weights of all transformers, or of all linear layers and
    convolutions: up begins at zero, down as a layer of its own would (Hu et al. 2021, section 4.1).
    """
    draw = generator_of(seed, 0)
    changes = {}
    for name, module in network.named_modules():
        chosen = convs or "attentions." in name or "transformer_blocks." in name
        if chosen and isinstance(module, nn.Linear | nn.Conv2d):
            weight = module.weight
            bound = 1 / math.sqrt(math.prod(weight.shape[1:]))
            down = (2 * torch.rand(rank, *weight.shape[1:], generator=draw) - 1) * bound
            up = torch.zeros(weight.shape[0], rank, *[1] * (weight.ndim - 2))
            matrix = Matrix(*(nn.Parameter(t.to(weight.device)) for t in (up, down)))
            changes[f"{name}.weight"] = Change("LoRA", (matrix,))
    return changes


def factors(changes: dict[str, Change]) -> Iterator[nn.Parameter]:
    """The numbers that are trained."""
    for change in changes.values():
        for tensor in (change.matrices[0].a, change.matrices[0].b):
            assert isinstance(tensor, nn.Parameter)
            yield tensor


@dataclass(frozen=True)
class Pool:
    """Pictures and captions as the network sees them. Row 0 of `told` is the empty caption."""

    latents: Tensor  # (N, C, h, w), or (2 N, C, h, w) with the mirrored ones behind
    told: Conditioning  # (N + 1, L, D)

    def batch(self, index: Tensor, dropped: Tensor) -> tuple[Tensor, Conditioning]:
        """Latents (B, C, h, w) and conditioning; `dropped` (B,) bool have no caption."""
        caption = index % (len(self.told) - 1) + 1
        return self.latents[index], self.told[torch.where(dropped, 0, caption)]


@torch.no_grad()
def make_pool(model: Model, folder: Folder, mirror: bool) -> Pool:
    """Encode all pictures and captions, where the model is."""
    device = next(model.vae.parameters()).device
    latents = []
    for flip in (False, True) if mirror else (False,):
        for picture in folder.pixels:
            pixels = to_pixels([picture[:, ::-1].copy() if flip else picture])
            latents.append(model.vae.to_latents(pixels.to(device)))
    # A caption is not written in the grammar of prompts: its brackets are brackets.
    literal = [re.sub(r"([\\()\[\]:|])", r"\\\1", caption) for caption in folder.captions]
    told = encode_prompts(Runtime(model), ["", *literal])
    step = StepConditioning([(told, 1.0)], None).at_size(model, folder.size, folder.size)
    (cond, _), *_ = step.conds
    sizes = None if cond.sizes is None else cond.sizes.expand(len(told), -1)
    return Pool(torch.cat(latents), Conditioning(told.tokens, told.pooled, sizes))


@torch.no_grad()
def validation_loss(model: Model, network: nn.Module, pool: Pool, index: list[int]) -> float:
    """Mean loss over these pictures at eight fixed times with fixed noise."""
    every = torch.tensor(index).repeat(8)
    latents, cond = pool.batch(every, torch.zeros(len(every), dtype=torch.bool))
    eps = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(latents)
    t = ((torch.arange(8) + 0.5) / 8 * model.schedule.T).repeat_interleave(len(index))
    with autocast(latents.device):
        loss = training_loss(
            network, latents, cond, model.schedule, model.prediction, t.to(latents.device), eps
        )
    return float(loss.mean())


def train(options: LoraOptions) -> Path:
    """Run the loop; returns the path of the LoRA.

    A killed run leaves the state of its last save; with ``resume`` it goes on from there.
    Raises ValueError: no pictures, an option that makes no sense.
    """
    check(options)
    if options.out.suffix != ".safetensors" or options.out.is_dir():
        raise ValueError(f"out is {options.out}; a file that ends in .safetensors is wanted")
    if not options.data:
        raise ValueError("data is wanted: a folder of pictures with captions, data=FOLDER")
    device = device_of(options.device)
    model = checkpoints.load(
        options.model or None,
        device,
        prediction=options.prediction or None,
        vae=options.vae or None,
    )
    size = model.defaults.width if options.size == 0 else options.size
    unit = 8 * model.vae.config.downsample  # so that every level of the network halves evenly
    if size < unit or size % unit:
        raise ValueError(f"size is {size}; a multiple of {unit} is wanted, such as {4 * unit}")
    folder = Folder.load(Path(options.data), size)
    for part in (model.backbone, model.vae, model.text, model.text_2):
        if part is not None:
            part.requires_grad_(False)
    changes = new_lora(model.backbone, options.rank, options.convs, options.seed)
    lora = Lora(options.out.stem, {"backbone": changes})
    network = attach(model, [(lora, 1.0, 0.0)], live=True).backbone
    trained = list(factors(changes))
    optimizer = torch.optim.AdamW(trained, options.rate, weight_decay=0.01)
    pool = make_pool(model, folder, options.mirror)
    learnt, held = folder.split(False), folder.split(True)

    # With another stem than the LoRA's, or a prompt that names the LoRA would find two of them.
    path, first = options.out.with_suffix(".state.pt"), 0
    free = {"steps": 0, "save_every": 0, "resume": False}  # may change in between
    made_of = repr(asdict(options) | free)
    if options.resume and (state := load_state(path)):
        if state["made_of"] != made_of:
            raise ValueError(
                f"{path} is from a run with other options, which can't be gone on with"
            )
        for parameter, kept in zip(trained, state["factors"], strict=True):
            parameter.data.copy_(kept)
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    say(f"{len(folder.captions)} pictures, {sum(p.numel() for p in trained):,} numbers to learn")
    times = "logit_normal" if model.prediction == "flow" else "uniform"
    report = Report("lora", options.steps, first, every=20)
    average: float | Tensor = 1.0
    for step in range(first, options.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.steps, options.rate, 20, 0.7)
        rng, generator = rng_of(options.seed, step), generator_of(options.seed, step, 1)
        index = torch.from_numpy(rng.choice(learnt, options.batch))
        if options.mirror:
            index += len(folder.captions) * torch.from_numpy(rng.integers(2, size=options.batch))
        dropped = torch.from_numpy(rng.random(options.batch) < options.drop)
        latents, cond = pool.batch(index, dropped)
        t = sample_t(times, options.batch, model.schedule.T, generator).to(device)
        eps = torch.randn(latents.shape, generator=generator).to(latents)
        with autocast(device):
            loss = training_loss(
                network, latents, cond, model.schedule, model.prediction, t, eps
            ).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        average = 0.95 * average + 0.05 * loss.detach() if step > first else loss.detach()
        report(step, options.batch, loss=average)
        if (step + 1) % options.save_every == 0 or step + 1 == options.steps:
            state = {"factors": [p.detach().cpu() for p in trained], "made_of": made_of}
            save_state(path, state | {"optimizer": optimizer.state_dict(), "step": step + 1})
            say(f"  validation loss {validation_loss(model, network, pool, held):.4f}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.save_lora(lora, model, options.out, about(options, model, folder))
    return options.out


def about(options: LoraOptions, model: Model, folder: Folder) -> dict[str, str]:
    """What other programs show of a LoRA; all values are text."""
    return {
        "format": "pt",
        "ss_output_name": options.out.stem,
        "ss_sd_model_name": model.name,
        "ss_network_module": "pellucid",
        "ss_network_dim": str(options.rank),
        "ss_network_alpha": str(options.rank),
        "ss_num_train_images": str(len(folder.captions)),
        "ss_steps": str(options.steps),
        "ss_tag_frequency": json.dumps({Path(options.data).name: Counter(folder.captions)}),
    }

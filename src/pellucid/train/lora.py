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
from dataclasses import KW_ONLY, asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pellucid import checkpoints
from pellucid.conditioning import StepConditioning, encode_prompts
from pellucid.data import setting, to_pixels
from pellucid.data.imagefolder import ImageFolder
from pellucid.diffusion import Conditioning
from pellucid.lora import Change, Lora, Matrix, attach
from pellucid.model import Model
from pellucid.progress import each
from pellucid.runtime import Runtime
from pellucid.train import loop
from pellucid.train.objective import LossOptions, Objective


@dataclass(frozen=True)
class LoraOptions(LossOptions, loop.RunOptions):
    """Options of ``pellucid train lora``."""

    data: str = setting("", "A folder of pictures with captions, as `data.imagefolder` reads it.")
    model: str = setting("", 'A model file; "" is the small model that ships with the package.')
    prediction: str = setting(
        "", "What the model predicts, if its file does not say it: eps or v of Stable Diffusion 2."
    )
    vae: str = setting("", "A file or folder whose autoencoder is used instead of the model's.")
    out: Path = setting(
        Path("runs/lora.safetensors"),
        "The file's name, without its ending, is the LoRA's. The state of the run is next to it.",
    )
    rank: int = setting(8, "Rank of each change.")
    convs: bool = setting(
        False, "Change the convolutions too, not only attention and its layers (LoCon)."
    )
    _: KW_ONLY
    steps: int = setting(500, loop.STEPS)
    batch: int = setting(4, loop.BATCH)
    rate: float = setting(1e-3, "Peak of the learning rate; for Stable Diffusion 1e-4 is usual.")
    drop: float = setting(0.1, "Chance that a caption is replaced by the empty one, for guidance.")
    mirror: bool = setting(True, "Show the pictures mirrored too.")
    size: int = setting(0, "What the pictures are scaled to; 0: what the model draws.")
    save_every: int = setting(100, loop.SAVE_EVERY)


def new_lora(network: nn.Module, rank: int, convs: bool, seed: int) -> dict[str, Change]:
    """A change that is zero, for the weights of all transformers or, with `convs`, of all linear
    layers and convolutions. up begins at zero, down at random (Hu et al. 2021, section 4.1).
    """
    draw = loop.generator_of(seed, 0)
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
    """The parameters that are trained."""
    for change in changes.values():
        for tensor in (change.matrices[0].a, change.matrices[0].b):
            assert isinstance(tensor, nn.Parameter)
            yield tensor


@dataclass(frozen=True)
class CachedLatents:
    """Pictures and captions as the network gets them. Row 0 of `text` is the empty caption."""

    latents: Tensor  # (N, C, h, w), or (2 N, C, h, w) the mirrored ones last
    text: Conditioning  # (N + 1, L, D)

    def batch(self, index: Tensor, dropped: Tensor) -> tuple[Tensor, Conditioning]:
        """Latents (B, C, h, w) and conditioning; `dropped` (B,) bool have no caption."""
        caption = index % (len(self.text) - 1) + 1
        return self.latents[index], self.text[torch.where(dropped, 0, caption)]


@torch.no_grad()
def make_pool(model: Model, folder: ImageFolder, mirror: bool) -> CachedLatents:
    """Encode all pictures and captions, on the model's device."""
    device = next(model.vae.parameters()).device
    latents = []
    pictures = [*folder.pixels]
    pictures += [picture[:, ::-1].copy() for picture in pictures] if mirror else []
    for picture in each("encoding the pictures", pictures):
        latents.append(model.vae.to_latents(to_pixels([picture]).to(device)))
    # A caption is not written in the grammar of prompts: its brackets are brackets.
    literal = [re.sub(r"([\\()\[\]:|])", r"\\\1", caption) for caption in folder.captions]
    text = encode_prompts(Runtime(model), ["", *literal])
    step = StepConditioning([(text, 1.0)], None).at_size(model, folder.size, folder.size)
    (cond, _), *_ = step.conds
    sizes = None if cond.sizes is None else cond.sizes.expand(len(text), -1)
    return CachedLatents(torch.cat(latents), Conditioning(text.tokens, text.pooled, sizes))


def validation_loss(
    model: Model, network: nn.Module, pool: CachedLatents, index: list[int]
) -> float:
    """Mean loss over these pictures, each at eight fixed times with fixed noise."""
    every = torch.tensor(index).repeat_interleave(8)
    latents, cond = pool.batch(every, torch.zeros(len(every), dtype=torch.bool))
    return Objective(model.schedule, model.prediction).validation_loss(network, latents, cond)


def load_model(options: LoraOptions, device: torch.device) -> Model:
    """The model that is changed; none of its own weights will learn."""
    model = checkpoints.load(
        options.model or None,
        device,
        prediction=options.prediction or None,
        vae=options.vae or None,
    )
    for part in (model.backbone, model.vae, model.text, model.text_2):
        if part is not None:
            part.requires_grad_(False)
    return model


def load_pictures(options: LoraOptions, model: Model) -> ImageFolder:
    """The folder `data`. ValueError for a size that the model cannot draw."""
    size = model.drawn_size[0] if options.size == 0 else options.size
    unit = 8 * model.vae.config.downsample  # so that every level of the network halves evenly
    if size < unit or size % unit:
        raise ValueError(f"size must be a multiple of {unit}, such as {4 * unit}, got {size}")
    return ImageFolder.load(Path(options.data), size)


def train(options: LoraOptions, say: loop.Say = loop.silent) -> Path:
    """Run the loop; returns the path of the LoRA.

    Raises ValueError: no pictures, an option that makes no sense.
    """
    if options.out.suffix != ".safetensors" or options.out.is_dir():
        raise ValueError(f"out must be a file that ends in .safetensors, got {options.out}")
    if not options.data:
        raise ValueError("data must be a folder of pictures with captions: data=FOLDER")
    device = loop.device_of(options.device)
    model = load_model(options, device)
    folder = load_pictures(options, model)
    changes = new_lora(model.backbone, options.rank, options.convs, options.seed)
    lora = Lora(options.out.stem, {"backbone": changes})
    network = attach(model, [(lora, 1.0, 0.0)], live=True).backbone
    trained = nn.ParameterList(factors(changes))
    optimizer = torch.optim.AdamW(trained, options.rate, weight_decay=0.01)
    objective = Objective(
        model.schedule,
        model.prediction,
        options.weighting,
        options.noise,
        options.times,
        options.times_mean,
        options.times_uniform,
    )
    pool = make_pool(model, folder, options.mirror)
    learned, held = folder.split(False), folder.split(True)
    free = {"steps": 0, "save_every": 0, "resume": False}  # may change when a run is resumed
    saved = loop.Saved(
        # With the ending .state.safetensors a prompt that names the LoRA would find two of them.
        options.out.with_suffix(".state.pt"),
        {"factors": trained, "optimizer": optimizer},
        facts={"made_of": repr(asdict(options) | free)},
    )
    run = loop.Run("lora", options, saved, say, every=20)
    say(f"{len(folder.captions)} pictures, {sum(p.numel() for p in trained):,} numbers to learn")
    average: Tensor | None = None
    for step in run.steps(optimizer, warmup=20, decay_from=0.7):
        rng, generator = loop.rng_of(options.seed, step), loop.generator_of(options.seed, step, 1)
        index = torch.from_numpy(rng.choice(learned, options.batch))
        if options.mirror:
            index += len(folder.captions) * torch.from_numpy(rng.integers(2, size=options.batch))
        dropped = torch.from_numpy(rng.random(options.batch) < options.drop)
        loss = objective.loss(network, *pool.batch(index, dropped), generator)
        run.update(optimizer, loss)
        last = loss.detach()
        average = last if average is None else 0.95 * average + 0.05 * last
        run.report(loss=average)
        if run.save_if_due():
            say(f"  validation loss {validation_loss(model, network, pool, held):.4f}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.save_lora(lora, model, options.out, metadata(options, model, folder))
    return options.out


def metadata(options: LoraOptions, model: Model, folder: ImageFolder) -> dict[str, str]:
    """The metadata that other programs show of a LoRA; all values are text."""
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

"""Time the U-Net against diffusers' with the same weights, inputs and loop.

    python benchmarks/unet.py [--shape emoji|thin|sd15] [--device cuda] [--repeats 5] [--bf16]

Two figures: 20 DDIM steps with classifier-free guidance (both halves in one batch), and a training
step (forward, backward, fused AdamW for both). The two networks take turns and the fastest of the
repeats counts; on a CPU it is the process's CPU time, which other work on the machine disturbs less
than the clock.
A ratio above 1 means Pellucid is faster.
--bf16 trains both under autocast, as `pellucid train` does where the processor is fast in it.
diffusers is timed twice: as it comes, and with its weights in channels_last as Pellucid has them.
Shapes: the shipped model's network on 8x8 latents, without its text map and FiLM, which diffusers
does not have; SD1.5 at 3/10 of its width on 16x16; SD1.5 on 64x64.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from pellucid.backbones.unet import SD15, UNet, UNetConfig
from pellucid.diffusion import Conditioning
from pellucid.recipes import scenes
from pellucid.train import small_pictures

STEPS, SCALE = 20, 7.5
SHAPES = {  # config, latents on a side, batch of the training step, tokens
    "emoji": (
        replace(
            scenes.unet((96, 192)),
            in_channels=32,
            out_channels=32,
            cross_attention_dim=192,
            pooled_dim=0,
            map_channels=0,
            film=False,
        ),
        8,
        32,
        24,
    ),
    "thin": (replace(SD15, block_out_channels=(96, 192, 384, 384)), 16, 4, 77),
    "sd15": (SD15, 64, 2, 77),
}
Network = Callable[[Tensor, Tensor, Tensor], Tensor]  # x, t, tokens -> the noise


def reference(config: UNetConfig) -> UNet2DConditionModel:
    """diffusers' network of the same shape."""
    cross = [depth > 0 for depth in config.transformer_layers]
    return UNet2DConditionModel(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        down_block_types=["CrossAttnDownBlock2D" if c else "DownBlock2D" for c in cross],
        up_block_types=["CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(cross)],
        attention_head_dim=config.heads,
        cross_attention_dim=config.cross_attention_dim,
        use_linear_projection=config.use_linear_projection,
        norm_num_groups=config.norm_groups,
    )


@torch.no_grad()
def ddim(network: Network, x: Tensor, tokens: Tensor) -> Tensor:
    """20 steps with guidance; `tokens` (2, L, D) are those of no text and of the text."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, device=x.device) ** 2
    signal = (1 - betas).cumprod(0)
    for t in range(1000 - 1000 // STEPS + 1, 0, -1000 // STEPS):
        before = signal[max(t - 1000 // STEPS, 0)]
        times = torch.full((2,), float(t), device=x.device)
        uncond, cond = network(torch.cat([x, x]), times, tokens).chunk(2)
        eps = uncond + SCALE * (cond - uncond)
        x0 = (x - (1 - signal[t]).sqrt() * eps) / signal[t].sqrt()
        x = before.sqrt() * x0 + (1 - before).sqrt() * eps
    return x


def seconds(work: Callable[[str], object], name: str, device: str) -> float:
    """CPU time of one call, or wall time where another device works."""
    if device == "cpu":
        start = time.process_time()
        work(name)
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    work(name)
    torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="emoji")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    device = options.device
    config, side, batch, length = SHAPES[options.shape]

    torch.manual_seed(0)
    theirs, ours = reference(config).to(device), UNet(config).to(device)
    theirs_last = reference(config).to(device)
    ours.load_state_dict(theirs.state_dict())
    theirs_last.load_state_dict(theirs.state_dict())
    modules: dict[str, nn.Module] = {
        "pellucid": ours,
        "diffusers": theirs,
        "diffusers, channels_last": theirs_last,
    }
    networks: dict[str, Network] = {
        "pellucid": lambda x, t, tokens: ours(x, t, Conditioning(tokens)),
        "diffusers": lambda x, t, tokens: theirs(x, t, tokens).sample,
        "diffusers, channels_last": lambda x, t, tokens: theirs_last(x, t, tokens).sample,
    }
    for module in (ours, theirs_last):
        module.to(memory_format=torch.channels_last)
    small_pictures.prepare(ours)  # as `pellucid train` does
    optimizers = {
        name: torch.optim.AdamW(m.parameters(), 0.0, fused=True) for name, m in modules.items()
    }
    x = torch.randn(1, config.in_channels, side, side, device=device)
    tokens = torch.randn(2, length, config.cross_attention_dim, device=device)
    target = torch.randn(batch, config.in_channels, side, side, device=device)
    t = torch.linspace(1, 999, batch, device=device)

    def train(name: str) -> None:
        with torch.autocast(device, torch.bfloat16, enabled=options.bf16):
            guess = networks[name](target, t, tokens.repeat(batch // 2, 1, 1))
        loss = F.mse_loss(guess.float(), torch.ones_like(target))
        optimizers[name].zero_grad()
        loss.backward()
        optimizers[name].step()

    a, b, _ = (ddim(networks[name], x, tokens) for name in networks)
    print(f"difference of the pictures, relative: {float((a - b).abs().max() / b.abs().max()):.1e}")
    works: dict[str, Callable[[str], object]] = {
        f"{STEPS} DDIM steps": lambda name: ddim(networks[name], x, tokens),
        "training step": train,
    }
    for title, work in works.items():
        best = dict.fromkeys(networks, float("inf"))
        for _ in range(options.repeats + 1):  # the first warms up, and is never the fastest
            for name in networks:
                best[name] = min(best[name], seconds(work, name, device))
        for name, value in best.items():
            ratio = value / best["pellucid"]
            print(f"{title}: {name} {value:.3f} s, {ratio:.2f} times Pellucid's")


if __name__ == "__main__":
    main()

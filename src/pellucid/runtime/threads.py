"""How many threads to compute with.

A network whose step takes a millisecond gains nothing from a second thread, and loses much where
the cores are busy: the threads wait for each other at every layer.
"""

from __future__ import annotations

import os

import torch

from pellucid.model import Model

SMALL = 10**10
"""Parameters times places of the latents, up to which a step has one thread. The included model has
7 * 10**8, Stable Diffusion 1.5 at 512x512 has 3.5 * 10**12."""


def parameters_of(model: Model) -> int:
    """How many parameters the network has."""
    return sum(parameter.numel() for parameter in model.backbone.parameters())


def step_size(model: Model) -> int:
    """The network's parameters times the places of the latents, at the model's own size."""
    side = model.vae.config.downsample
    width, height = model.drawn_size
    return parameters_of(model) * (width // side) * (height // side)


def threads_for(model: Model) -> int:
    """How many threads suit a model at its own size; as many as are set if OMP_NUM_THREADS is."""
    if "OMP_NUM_THREADS" in os.environ or step_size(model) > SMALL:
        return torch.get_num_threads()
    return 1

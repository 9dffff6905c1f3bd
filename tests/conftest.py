"""Settings for all tests."""

from __future__ import annotations

import os

import pytest
import torch

# The references in the tests must not look for a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other


@pytest.fixture(autouse=True)
def _same_weights_every_time() -> None:
    """Networks that a test builds have the same random weights whichever tests ran before."""
    torch.manual_seed(0)

"""A network that OpenVINO computes, for the backends `openvino` and `openvino_int8`."""

from __future__ import annotations

import importlib.util
import sys
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.diffusion import Conditioning
from pellucid.model import Model
from pellucid.nn import has_amx
from pellucid.progress import stage
from pellucid.runtime.backends import NOT_COMPLETE, Prepared, Rehearse, Unsuitable, eager
from pellucid.runtime.backends._ranges import Ranges, ranges_of
from pellucid.runtime.devices import takes_turns
from pellucid.runtime.precision import HALVES, dtype_of

SIZES = 2
"""Compiled graphs that are kept, each for one size: both passes of a request. Each has a copy of the
weights."""
NETWORKS = 2
"""Networks that are kept: one and its refiner."""
SIDE = 16
"""Of the latents that a network is tried with."""
REPORTS = "openvino_telemetry"
"""A package that reports over the network that OpenVINO is used; OpenVINO does without it."""


def load() -> Any:
    """The package `openvino`, without its reports over the network. ImportError if it cannot be
    used."""
    before = sys.modules.get(REPORTS)
    if "openvino" not in sys.modules:
        sys.modules[REPORTS] = None  # type: ignore[assignment]
    try:
        import openvino

        openvino.Core  # noqa: B018 - a folder of that name is a package too
    except Exception as error:  # whatever a half installed package raises
        raise ImportError(f"openvino {NOT_COMPLETE} ({error})") from error
    finally:
        if before is None:
            sys.modules.pop(REPORTS, None)
        else:
            sys.modules[REPORTS] = before
    return openvino


def installed() -> bool:
    """Whether there is a package `openvino`, complete or not."""
    return importlib.util.find_spec("openvino") is not None


def unsuitable(device: torch.device) -> str | None:
    """Why OpenVINO cannot be used on a device; None if it can."""
    if device.type != "cpu":
        return f"openvino runs on a CPU here, not on {device.type}"
    if not installed():
        return "openvino is not installed: pip install pellucid[openvino]"
    try:
        load()
    except ImportError as error:
        return str(error)
    return None


_made: list[Compiled] = []
"""The last ones, so that the next request with the same model has them at once."""


@torch.no_grad()
def prepare(model: Model, rehearse: Rehearse, int8: bool) -> Prepared:
    """The model with the network as OpenVINO computes it, the rest as `eager` has it.

    Raises Unsuitable.
    """
    if takes_turns(model.backbone):
        raise Unsuitable("openvino needs the network in memory twice, and memory is short")
    if int8:  # the model draws a little by itself
        model, _ = eager.prepare(model, rehearse)
    else:  # a weight in channels_last would be copied
        eager.channels_last(model.vae, model.tiny_vae, model.second_stage)
    for made in _made:
        if made.network is model.backbone and made.int8 is int8:
            return replace(model, backbone=made), ()
    if not hasattr(model.backbone, "body"):
        raise Unsuitable("openvino does not know this kind of network")
    ranges, warnings = ranges_of(model, rehearse) if int8 else ({}, ())
    made = Compiled(model.backbone, int8, ranges)
    made.check()
    _made[:] = [*_made, made][-NETWORKS:]
    return replace(model, backbone=made), warnings


def release_except(networks: Collection[nn.Module]) -> None:
    """As `backends.release_except`."""
    _made[:] = [made for made in _made if any(made.network is each for each in networks)]


class Compiled(nn.Module):
    """A network whose `body` OpenVINO computes, one picture after the other.

    A graph is made for each size. Several pictures at once are no faster at sizes that are worth
    this, so one graph does for all batches, and a picture does not depend on the others of its
    batch. Where attention maps or gradients are asked for, or after the change to float32, the
    network computes itself.
    """

    def __init__(self, network: nn.Module, int8: bool, ranges: Ranges) -> None:
        super().__init__()
        self.network, self.int8, self.ranges = network, int8, ranges
        self.config: Any = getattr(network, "config")  # noqa: B009 - Module says it is a Tensor
        self.dtype = dtype_of(network)
        self.graphs: OrderedDict[tuple[torch.Size, ...], Any] = OrderedDict()

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning, record: Any = None) -> Tensor:
        """As the network's."""
        slopes = torch.is_grad_enabled() and (x.requires_grad or cond.tokens.requires_grad)
        if record is not None or slopes or dtype_of(self.network) != self.dtype:
            return self.network(x, t, cond, record)
        rows = zip(x.split(1), t.split(1), range(len(x)), strict=True)
        return torch.cat([self.one(row, time, cond[i : i + 1]) for row, time, i in rows])

    def one(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """As `forward`, for one picture."""
        network: Any = self.network
        inputs = [part.detach().float().contiguous() for part in network.embed(x, t, cond)]
        request, _ = self.graph(*inputs)
        out = request.infer([part.numpy() for part in inputs])[0]
        return torch.from_numpy(out.copy()).to(x.dtype)

    def check(self) -> None:
        """Raises Unsuitable if the network does something that cannot be written down."""
        from pellucid.runtime.backends import _graph

        config, dtype = self.config, self.dtype
        x = torch.zeros(1, config.in_channels, SIDE, SIDE, dtype=dtype)
        tokens = torch.zeros(1, 1, config.cross_attention_dim, dtype=dtype)
        pooled = torch.zeros(1, config.pooled_dim, dtype=dtype)
        sizes = torch.zeros(1, getattr(config, "size_count", 0))
        network: Any = self.network
        parts = network.embed(x, torch.zeros(1), Conditioning(tokens, pooled, sizes))
        graph = _graph.Graph()
        try:
            network.body(*(graph.input(part.shape) for part in parts))
        except _graph.Unsupported as error:
            raise Unsuitable(f"openvino cannot compute this network ({error})") from error

    def graph(self, *inputs: Tensor) -> Any:
        """What computes one picture of this size, made when it is first needed, and the graph, whose
        memory it uses."""
        shapes = tuple(part.shape for part in inputs)
        if shapes not in self.graphs:
            while len(self.graphs) >= SIZES:
                self.graphs.popitem(last=False)
            self.graphs[shapes] = self.compile(shapes)
        self.graphs.move_to_end(shapes)
        return self.graphs[shapes]

    def compile(self, shapes: tuple[torch.Size, ...]) -> Any:
        """Raises Unsuitable."""
        ov = load()
        from pellucid.runtime.backends import _graph

        # With float32 in the graph OpenVINO makes a copy of all weights in it; but the scales of
        # weights in 8 bits need its digits.
        whole = not self.int8 and self.dtype == torch.bfloat16
        kind = torch.bfloat16 if whole else torch.float32
        graph = _graph.Graph(self.ranges, not has_amx(), kind)
        network: Any = self.network
        try:
            made = graph.finish(network.body(*(graph.input(shape) for shape in shapes)))
            settings = {
                "INFERENCE_PRECISION_HINT": "bf16" if self.dtype in HALVES else "f32",
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "PERFORMANCE_HINT": "LATENCY",
                "ENABLE_CPU_PINNING": False,
            }
            with stage("compiling the network"):
                compiled = ov.Core().compile_model(made, "CPU", settings)
            return compiled.create_infer_request(), graph
        except (RuntimeError, _graph.Unsupported) as error:
            text = str(error).strip().rpartition("\n")[2]
            raise Unsuitable(f"openvino cannot compute this network ({text})") from error

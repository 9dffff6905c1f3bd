"""How diffusers' folders store each kind of backbone: one file each, with a `BACKBONE`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from pellucid import plugins
from pellucid.checkpoints.json_config import JsonConfig
from pellucid.clip import TextConfig


@dataclass(frozen=True)
class Backbone:
    """A kind of backbone.

    class_name: diffusers' name of the class. folder: its folder, and its entry in model_index.json.
    title: what messages call it. read: its config.json, and the configs of the text towers in order,
    -> its config here. write: its config here, and a side of the latents that it draws by default,
    -> config.json.
    """

    class_name: str
    folder: str
    title: str
    network: type[nn.Module]
    config: type
    read: Callable[[JsonConfig, Sequence[TextConfig]], Any]
    write: Callable[[Any, int], dict[str, Any]]


def known() -> tuple[Backbone, ...]:
    """Every backbone that a file here describes."""
    return tuple(module.BACKBONE for module in plugins.discover(__name__).values())


def of_config(config: Any) -> Backbone | None:
    """The kind of backbone that has this config; None if no file here describes it."""
    return next((backbone for backbone in known() if type(config) is backbone.config), None)

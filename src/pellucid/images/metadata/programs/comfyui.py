"""ComfyUI: a graph of nodes, which is followed from the sampler upwards.

``{"3": {"class_type": "KSampler", "inputs": {"seed": 5, "positive": ["6", 0], ...}}, "6": ...}``:
an input is a value, or a link to an output of another node. Only nodes that are understood are
followed; the graph of any other is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PureWindowsPath
from typing import Any

from pellucid.images.metadata.settings import RecordedSettings, is_json_object, json_object

PROGRAM = "ComfyUI"
TENSORART = "generation_data"  # says more than the graph next to it
SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced")
# Nodes that are read below, or change nothing that a request could say.
UNDERSTOOD = frozenset(
    {
        *(*SAMPLERS, "KSamplerSelect", "BasicScheduler", "RandomNoise", "CFGGuider", "BasicGuider"),
        *("CLIPTextEncode", "CLIPTextEncodeSDXL", "CLIPSetLastLayer", "ConditioningZeroOut"),
        "smZ CLIPTextEncode",
        *("CheckpointLoaderSimple", "UNETLoader", "CLIPLoader", "DualCLIPLoader", "VAELoader"),
        *("EmptyLatentImage", "EmptySD3LatentImage", "VAEDecode", "VAEDecodeTiled", "VAEEncode"),
        *("LoadImage", "Reroute", "Note", "MarkdownNote", "PreviewImage", "SaveImage"),
        *("SaveAnimatedWEBP", "SaveImageWebsocket", "PreviewAny"),
        *("PrimitiveString", "PrimitiveStringMultiline", "PrimitiveInt", "PrimitiveFloat"),
    }
)
# Here, the name of an embedding is a word by itself.
EMBEDDING = re.compile(r"\bembedding:([^\s,:()]+)", re.IGNORECASE)
ENDINGS = (".safetensors", ".pt", ".bin")
TEXTS = ("text", "string", "value", "prompt")
NUMBERS = ("value", "seed", "noise_seed", "int", "number")
Node = Mapping[str, Any]
Graph = Mapping[str, Node]


def matches(texts: Mapping[str, str]) -> bool:
    if TENSORART in texts:
        return False
    return _part(texts, "workflow") is not None or _part(texts, "prompt") is not None


def read(texts: Mapping[str, str]) -> RecordedSettings:
    text = _part(texts, "prompt")
    if text is None:
        raise ValueError("it holds a workflow for the editor and no graph that was run")
    graph = {name: node for name, node in json_object(text).items() if _is_node(node)}
    sampler = _sampler(graph)
    inputs = sampler["inputs"]
    fields: dict[str, Any] = {
        "steps": _number(graph, _at(graph, inputs, "sigmas", "steps")),
        "guidance": _number(graph, _at(graph, inputs, "guider", "cfg")),
        "sampler": _at(graph, inputs, "sampler", "sampler_name"),
        "spacing": _at(graph, inputs, "sigmas", "scheduler"),
        "seed": _number(graph, _at(graph, inputs, "noise", "noise_seed", "seed")),
        "model": _model(graph, _at(graph, inputs, "guider", "model")),
    }
    single = _at(graph, inputs, "guider", "conditioning")  # without guidance
    positive = _at(graph, inputs, "guider", "positive")
    fields |= _conditioning(graph, single if positive is None else positive, "positive")
    if single is not None:
        fields["guidance"] = 1.0
    else:
        negative = _at(graph, inputs, "guider", "negative")
        fields["negative_prompt"] = _conditioning(graph, negative, "negative")["prompt"]
    fields |= _latent(graph, inputs, _at(graph, inputs, "sigmas", "denoise"))
    for name in ("prompt", "negative_prompt"):
        if isinstance(fields.get(name), str):
            fields[name] = EMBEDDING.sub(lambda found: _stem(found[1]), fields[name])
    known = {name: value for name, value in fields.items() if value is not None}
    return RecordedSettings(known, tuple(_unused(graph, inputs, known)))


def _stem(name: str) -> str:
    path = PureWindowsPath(name)
    return path.stem if path.suffix.lower() in ENDINGS else path.name


def _part(texts: Mapping[str, str], name: str) -> str | None:
    """A JSON text of a PNG, or of a WebP, which has `prompt:{...}` in one of its EXIF tags; the graph
    alone can be a comment, as of the pictures that Civitai draws."""
    if name in texts:
        return texts[name] if name == "workflow" or texts[name].lstrip()[:1] in "{[" else None
    if name == "prompt":
        comments = (texts.get(key, "") for key in ("UserComment", "comment", "parameters"))
        graph = next((t for t in comments if "class_type" in t and is_json_object(t)), None)
        if graph is not None and any(map(_is_node, json_object(graph).values())):
            return graph
    start = f"{name}:"
    for text in texts.values():
        if text[: len(start)].lower() == start and text[len(start) :].lstrip().startswith("{"):
            return text[len(start) :]
    return None


def _is_node(node: Any) -> bool:
    return (
        isinstance(node, dict)
        and isinstance(node.get("class_type"), str)
        and isinstance(node.get("inputs"), dict)
    )


def _sampler(graph: Graph) -> Node:
    """The node that draws; of several the one that begins with noise alone."""
    nodes = [node for node in graph.values() if node["class_type"] in SAMPLERS]
    if len(nodes) > 1:
        nodes = [node for node in nodes if _source(graph, node["inputs"]) is not None]
    if not nodes:
        raise ValueError("none of its nodes is a sampler that is known here")
    if len(nodes) > 1:
        raise ValueError(f"its graph draws {len(nodes)} pictures")
    return nodes[0]


def _unused(graph: Graph, inputs: Mapping[str, Any], fields: Mapping[str, Any]) -> Iterator[str]:
    """Nodes that are not read here, further samplers, and a part of the steps."""
    classes = [node["class_type"] for node in graph.values()]
    yield from dict.fromkeys(name for name in classes if name not in UNDERSTOOD)
    if sum(name in SAMPLERS for name in classes) > 1:
        yield "a second sampler"
    if inputs.get("start_at_step"):
        yield "start_at_step"
    end, steps = inputs.get("end_at_step"), fields.get("steps")
    if isinstance(end, int) and isinstance(steps, int) and end < steps:
        yield "end_at_step"
    denoise = _number(graph, _at(graph, inputs, "sigmas", "denoise"))
    if "width" in fields and denoise not in (None, 1):
        yield "denoise"


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int)


def _chain(graph: Graph, link: Any, names: Sequence[str]) -> Iterator[Node]:
    """The nodes from a link upwards, each through the first of the inputs `names` that is a link."""
    visited: set[str] = set()
    while _is_link(link):
        name = str(link[0])
        if name in visited:
            raise ValueError("its nodes refer to each other in a circle")
        if name not in graph:
            raise ValueError(f"its node {name!r} is missing")
        visited.add(name)
        node = graph[name]
        yield node
        links = {key: value for key, value in node["inputs"].items() if _is_link(value)}
        only = next(iter(links.values()), None) if node["class_type"] == "Reroute" else None
        link = next((links[key] for key in names if key in links), only)


def _at(graph: Graph, inputs: Mapping[str, Any], link: str, *names: str) -> Any:
    """An input of the sampler, or of the node that the sampler's input `link` leads to."""
    for node in (None, *_chain(graph, inputs.get(link), (link,))):
        values = inputs if node is None else node["inputs"]
        for name in names:
            if name in values:
                return values[name]
    return None


def _number(graph: Graph, value: Any) -> Any:
    """A number, or that of the node it is linked to."""
    for node in _chain(graph, value, NUMBERS):
        for name in NUMBERS:
            if isinstance(node["inputs"].get(name), int | float):
                return node["inputs"][name]
    if _is_link(value):
        raise ValueError("a number of it comes from a node that is not known here")
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _text(graph: Graph, value: Any) -> str:
    """A text, or that of the node it is linked to."""
    if isinstance(value, str):
        return value
    for node in _chain(graph, value, TEXTS):
        for name in TEXTS:
            if isinstance(node["inputs"].get(name), str):
                return str(node["inputs"][name])
    raise ValueError("its prompt comes from a node that is not known here")


def _conditioning(graph: Graph, link: Any, side: str) -> dict[str, Any]:
    """The prompt that a conditioning was made of, and the layer of CLIP that was used."""
    for node in _chain(graph, link, ("conditioning", side)):
        inputs = node["inputs"]
        if node["class_type"] == "ConditioningZeroOut":
            return {"prompt": ""}
        if "text_g" in inputs and not inputs.get("text"):
            texts = {_text(graph, inputs[name]) for name in ("text_g", "text_l") if name in inputs}
            if len(texts) > 1:
                raise ValueError("its two text encoders read two prompts")
            return {"prompt": texts.pop()}
        if "text" in inputs and "clip" in inputs:
            layers = [
                above["inputs"]["stop_at_clip_layer"]
                for above in _chain(graph, inputs["clip"], ("clip",))
                if isinstance(above["inputs"].get("stop_at_clip_layer"), int)
            ]
            skip = {"clip_skip": -layers[0]} if layers else {}
            return {"prompt": _text(graph, inputs["text"])} | skip
    raise ValueError(f"its {side} conditioning is not made by CLIPTextEncode alone")


def _source(graph: Graph, inputs: Mapping[str, Any]) -> Node | None:
    """The empty latents that a sampler begins with; None: it begins with a picture."""
    first = None
    for node in _chain(graph, inputs.get("latent_image"), ("samples", "latent")):
        first = node
    if first is None or not {"width", "height"} <= set(first["inputs"]):
        return None
    return None if {"samples", "pixels", "image"} & set(first["inputs"]) else first


def _latent(graph: Graph, inputs: Mapping[str, Any], denoise: Any) -> dict[str, Any]:
    """The size of empty latents, or how much of a picture is redrawn."""
    node = _source(graph, inputs)
    if node is None:
        return {"strength": _number(graph, denoise)}
    return {name: _number(graph, node["inputs"][name]) for name in ("width", "height")}


def _model(graph: Graph, link: Any) -> str | None:
    """The file of the model, without its folder and its ending."""
    for node in _chain(graph, link, ("model",)):
        for name in ("ckpt_name", "unet_name"):
            if isinstance(node["inputs"].get(name), str):
                return PureWindowsPath(node["inputs"][name]).stem
    return None

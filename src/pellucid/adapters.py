"""The LoRAs and embeddings of a request, found by file or by name and applied to a model."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from pellucid import checkpoints, hires
from pellucid.folders import Folder
from pellucid.lora import Weighted, attach
from pellucid.messages import FieldMessage
from pellucid.model import Model
from pellucid.progress import stage
from pellucid.prompt import take_loras
from pellucid.rehearsal import rehearse
from pellucid.request import Request
from pellucid.runtime import Runtime, devices
from pellucid.runtime.backends import OnBackend, choose_backend
from pellucid.runtime.threads import parameters_of
from pellucid.textual_inversion import Embedding, with_words

SHOWN = 3  # keys or words that a warning names


def adapt(
    model: Model, request: Request, folder: Path | None = None, live: bool = False
) -> tuple[Model, tuple[str, ...]]:
    """The model with the LoRAs and embeddings of a request, and warnings of what did not match.

    folder: where the LoRAs are that <lora:name:weight> in a prompt names. live: as in
    `lora.attach`. `model` is not changed, so nothing has to be removed afterwards.
    Raises ValueError: a file or a name that does not exist, one of another family, a damaged one.
    """
    warnings: list[str] = []
    words = list(checkpoints.load_embeddings(request.embeddings, model, warnings))
    prompts = "\n".join((*request.prompts, request.negative_prompt)).lower()
    for file in dict.fromkeys(embedding.file for embedding in words):
        new = [embedding.word for embedding in words if embedding.file == file]
        if not any(word.lower() in prompts for word in new):
            said = ", ".join(map(repr, new[:SHOWN]))
            warnings.append(f"{file} has no effect: no prompt has its word, {said}")
    uses = [(Path(name), weight, text) for name, weight, text in request.loras]
    uses += [(find(tag.name, folder), tag.weight, tag.text_weight) for tag in request.lora_tags]
    if against := take_loras(request.negative_prompt)[1]:
        warnings.append(
            f"the LoRA {against[0].name!r} is in the negative prompt, where it has no effect"
        )
    loras: list[Weighted] = []
    bundled: dict[tuple[Path, str], Embedding] = {}  # a LoRA may be used twice
    for path, weight, text_weight in uses:
        with stage(f"loading {path.name}"):
            lora = checkpoints.load_lora(path, model)
        loras.append((lora, weight, text_weight))
        if weight == text_weight == 0:
            warnings.append(f"the LoRA {lora.name!r} has the weight 0 and does nothing")
        if (weight, text_weight) != (0, 0):
            bundled |= {(path, w): Embedding(w, v, str(path)) for w, v in lora.words.items()}
        if lora.unmatched:
            first = ", ".join(lora.unmatched[:SHOWN])
            more = "" if len(lora.unmatched) <= SHOWN else ", ..."
            count = len(lora.unmatched)
            keys = "1 key does" if count == 1 else f"{count} keys do"
            warnings.append(f"{path}: {keys} not match anything in this model: {first}{more}")
    words += bundled.values()
    upscaler = request.hires_upscaler
    if request.hires is not None and hires.must_open(upscaler, model.second_stage is not None):
        other = None if upscaler == hires.DIFFUSION else upscaler
        opened = checkpoints.load_upscaler(other, devices.device_of(model.vae))
        model = replace(model, upscaler=opened)
    changed = {part for lora, *_ in loras for part in lora.changes}
    changed |= model.towers.keys() if words else set()
    with devices.reading(*(getattr(model, part) for part in changed)):
        with stage("adding LoRAs to the model"):
            adapted = attach(model, loras, live)
        return with_words(adapted, words), tuple(dict.fromkeys(warnings))


def on_backend(
    model: Model, backend: str, folder: Path | None = None, live: bool = False
) -> OnBackend:
    """`adapt`, and then the network as a backend computes it: the `adapt` of `pipeline.generate`.

    backend: a name, "auto" or "fast", which are chosen now, as in `backends.choose_backend`; errors
    too. folder, live: as in `adapt`.
    """
    choice = choose_backend(
        backend, Runtime(model).device, parameters_of(model), Runtime(model).dtype
    )
    return OnBackend(partial(adapt, folder=folder, live=live), choice, rehearse)


def find(name: str, folder: Path | None) -> Path:
    """The LoRA that a prompt names, in `folder` or below, as `Folder.find` does."""
    if folder is None:
        raise ValueError(
            FieldMessage(
                "the prompt names the LoRA {lora!r}, and no folder of LoRAs is given ({lora_folder})",
                lora=name,
            )
        )
    return Folder(folder, "LoRA").find(name)

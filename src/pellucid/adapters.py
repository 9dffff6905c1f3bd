"""The LoRAs and embeddings of a request, found by file or by name and applied to a model."""

from __future__ import annotations

from pathlib import Path

from pellucid import checkpoints
from pellucid.lora import Weighted, attach
from pellucid.model import Model
from pellucid.plugins import choose
from pellucid.prompt import take_loras
from pellucid.request import Request
from pellucid.textual_inversion import Embedding, with_words

SUFFIXES = (".safetensors", ".pt", ".bin", ".ckpt")
SHOWN = 3  # keys or words that a warning names


def adapt(
    model: Model, request: Request, folder: Path | None = None, live: bool = False
) -> tuple[Model, tuple[str, ...]]:
    """The model with the LoRAs and embeddings of a request, and warnings of what did not match.

    folder: where the LoRAs are that <lora:name:weight> in a prompt names. live: as in
    `lora.attach`. `model` is not changed, so nothing has to be removed afterwards.
    Raises ValueError: a file or a name that does not exist, one of another family, a damaged one.
    """
    warnings = []
    words: list[Embedding] = []
    prompts = "\n".join((*request.prompts, request.negative_prompt)).lower()
    for file in request.embeddings:
        new = checkpoints.load_embedding(file, model)
        words += new
        if not any(embedding.word.lower() in prompts for embedding in new):
            said = ", ".join(repr(embedding.word) for embedding in new[:SHOWN])
            warnings.append(f"{file} has no effect: no prompt has its word, {said}")
    uses = [(Path(name), weight, text) for name, weight, text in request.loras]
    uses += [(find(tag.name, folder), tag.weight, tag.text_weight) for tag in request.lora_tags]
    if against := take_loras(request.negative_prompt)[1]:
        warnings.append(
            f"the LoRA {against[0].name!r} is in the negative prompt, where it has no effect"
        )
    loras: list[Weighted] = []
    for path, weight, text_weight in uses:
        lora = checkpoints.load_lora(path, model)
        loras.append((lora, weight, text_weight))
        if lora.unmatched:
            first = ", ".join(lora.unmatched[:SHOWN])
            more = "" if len(lora.unmatched) <= SHOWN else ", ..."
            count = len(lora.unmatched)
            keys = "1 key does" if count == 1 else f"{count} keys do"
            warnings.append(f"{path}: {keys} not match anything in this model: {first}{more}")
    return with_words(attach(model, loras, live), words), tuple(dict.fromkeys(warnings))


def find(name: str, folder: Path | None) -> Path:
    """The LoRA that a prompt names: the file of that name, without its ending, in `folder` or below.

    Raises ValueError that lists the nearest names.
    """
    if folder is None:
        raise ValueError(
            f"the prompt names the LoRA {name!r}, and no folder of LoRAs is given (lora_folder)"
        )
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; expected one with LoRAs")
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in SUFFIXES and path.is_file():
            files.setdefault(path.stem, []).append(path)
    if not files:
        raise ValueError(f"{folder} has no LoRA in it; the prompt names {name!r}")
    found = files[choose(name, files, f"LoRA in {folder} named")]
    if len(found) > 1:
        raise ValueError(f"there are two LoRAs named {name!r}: {found[0]} and {found[1]}")
    return found[0]

"""What a request puts on a model, LoRAs and new words, found by file or by name."""

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
SHOWN = 3  # how many keys or words a warning names


def adapt(
    model: Model, request: Request, folder: Path | None = None, live: bool = False
) -> tuple[Model, tuple[str, ...]]:
    """The model with the LoRAs and embeddings of a request, and warnings of what did not match.

    folder: where the LoRAs lie that <lora:name:weight> in a prompt names. live: as in
    `lora.attach`. `model` stays as it is, so there is nothing to take off again.
    Raises ValueError: a file or a name that is not there, one of another family, a damaged one.
    """
    warnings = []
    words: list[Embedding] = []
    prompts = "\n".join((*request.prompts, request.negative_prompt)).lower()
    for file in request.embeddings:
        new = checkpoints.load_embedding(file, model)
        words += new
        if not any(embedding.word.lower() in prompts for embedding in new):
            said = ", ".join(repr(embedding.word) for embedding in new[:SHOWN])
            warnings.append(f"{file} does nothing: no prompt has its word, {said}")
    uses = [(Path(name), weight, text) for name, weight, text in request.loras]
    uses += [(find(tag.name, folder), tag.weight, tag.text_weight) for tag in request.lora_tags]
    if against := take_loras(request.negative_prompt)[1]:
        warnings.append(
            f"the LoRA {against[0].name!r} stands in the negative prompt, where it does nothing"
        )
    loras: list[Weighted] = []
    for path, weight, text_weight in uses:
        lora = checkpoints.load_lora(path, model)
        loras.append((lora, weight, text_weight))
        if lora.unmatched:
            first = ", ".join(lora.unmatched[:SHOWN])
            more = "" if len(lora.unmatched) <= SHOWN else ", ..."
            count = len(lora.unmatched)
            keys, were = ("1 key is", "was") if count == 1 else (f"{count} keys are", "were")
            warnings.append(
                f"{path}: {keys} nothing of this model's and {were} left out: {first}{more}"
            )
    return with_words(attach(model, loras, live), words), tuple(dict.fromkeys(warnings))


def find(name: str, folder: Path | None) -> Path:
    """The LoRA that a prompt names: the file of that name, without its ending, in `folder` or below.

    Raises ValueError that lists the nearest names.
    """
    if folder is None:
        raise ValueError(
            f"the prompt asks for the LoRA {name!r}, and no folder of LoRAs is given (--lora-folder)"
        )
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; one with LoRAs is wanted")
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in SUFFIXES and path.is_file():
            files.setdefault(path.stem, []).append(path)
    if not files:
        raise ValueError(f"{folder} has no LoRA in it; {name!r} is wanted")
    found = files[choose(name, files, f"LoRA in {folder} named")]
    if len(found) > 1:
        raise ValueError(f"there are two LoRAs named {name!r}: {found[0]} and {found[1]}")
    return found[0]

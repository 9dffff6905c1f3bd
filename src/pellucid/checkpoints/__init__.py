"""Models on disk: one file here for each format, chosen by what a file holds and not by its name.

A format is a module with `matches(path) -> bool`, `read(path, device, dtype, prediction, vae) ->
Model`, `describe(path, prediction) -> dict`, without reading the weights, and, if it can be written,
`write(model, path, dtype)`, which gives what had no place there, in words.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from pellucid import plugins
from pellucid.diffusion import PREDICTIONS
from pellucid.gan import GAN
from pellucid.lora import Lora
from pellucid.model import Model
from pellucid.plugins import choose
from pellucid.textual_inversion import Embedding
from pellucid.tiny_vae import TinyVAE, wanted
from pellucid.vae import VAE, VAEConfig

HEADER_BYTES = 2**24  # of a safetensors file; those of the largest models have a sixth of it
BEGINNING = 200  # bytes that tell what a file is instead


class CheckpointError(ValueError):
    """A file that cannot be read as a model, or a model that cannot be written; the message says
    why."""


class UnknownPrediction(CheckpointError):
    """A model whose file does not say what its network predicts, which no one has said either."""

    def __init__(self, path: Path, title: str, silent: str) -> None:
        super().__init__(
            f"{path} is {title}, and {silent}: give --prediction eps (the 512 pixel models) or "
            "--prediction v (the 768 pixel models)"
        )


def load(
    path: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = torch.float32,
    prediction: str | None = None,
    vae: str | Path | None = None,
) -> Model:
    """The model in the file or folder `path`, on `device`, its weights as `dtype`, in eval mode.

    path: None is the model that ships with the package. dtype: None leaves every weight its own.
    prediction: what the network predicts, one of `diffusion.PREDICTIONS`, where the file does not
    say it; None asks the file. vae: a file or folder whose autoencoder the model gets, in place of
    its own or because it has none. Weights that are of `dtype` already stay in the file until they
    are used, so it must not be written over.

    Nothing in the file is run. Raises CheckpointError: no such file, truncated, of another kind,
    keys that are missing, unknown or of the wrong shape, no autoencoder, one of other latents;
    UnknownPrediction.
    """
    path = _exists(embedded() if path is None else path, "a checkpoint file")
    form = format_of(path)
    if prediction is not None:
        choose(prediction, PREDICTIONS, "prediction")
    if vae is not None:
        vae = _exists(vae, "an autoencoder")
    model: Model = form.read(path, device, dtype, prediction, vae)
    return model


def _exists(path: str | Path, wanted: str) -> Path:
    if not Path(path).exists():
        raise CheckpointError(f"{path} does not exist; {wanted} is wanted")
    return Path(path)


def format_of(path: Path) -> Any:
    """The module that reads `path`. Raises CheckpointError that says what it is instead."""
    for form in plugins.discover("pellucid.checkpoints").values():
        if form.matches(path):
            return form
    from pellucid.checkpoints import _configs, _families, _weights  # which import this module

    if path.is_dir():
        kind = _configs.class_of(path)
        told = "" if kind is None else f", but one part of a model, {kind[:80]}"
        raise CheckpointError(
            f"{path} is a folder, and not one of diffusers' with a model_index.json{told}; such a "
            "folder or a .safetensors file is wanted"
        )
    if holds_gan(path):
        raise CheckpointError(
            f"{path} is a GAN, which draws in one step and has no noise to take away; a diffusion "
            "model is wanted (`pellucid generate` and `pellucid info` take both)"
        )
    weights = _weights.open_weights(path)  # says what is wrong if it is no file of weights at all
    what = _families.what_is(weights)
    if what is not None:
        raise CheckpointError(f"{path} is {_families.not_a_model(what)}")
    raise CheckpointError(
        f"{path} has no 'pellucid' entry in its metadata, and its keys are no known model's: they "
        f"begin with {first_keys(weights)}"
    )


def first_keys(keys: Iterable[str], count: int = 3) -> str:
    """The first keys of a file for a message, of which none is long."""
    return ", ".join(key[:80] for key in itertools.islice(keys, count)) or "nothing"


def describe(path: str | Path, prediction: str | None = None) -> dict[str, Any]:
    """What can be said of the model in `path` without reading its weights.

    Something else that is known is described too, under "kind": an autoencoder, a LoRA, words of
    textual inversion, a GAN, ... Raises CheckpointError for what cannot be read.
    """
    from pellucid.checkpoints import _about, _tiny_vae, _vae, _weights  # which import this module

    path = _exists(path, "a checkpoint file")
    if is_tiny_vae(path):
        return _tiny_vae.describe(path)
    if holds_gan(path):
        from pellucid.checkpoints import _gan

        gan: dict[str, Any] = _gan.describe(path)
        return gan
    if _vae.matches(path):
        return _vae.describe(path)
    forms = plugins.discover("pellucid.checkpoints").values()
    form = next((form for form in forms if form.matches(path)), None)
    if path.is_file() and (form is None or _weights.is_pickle(path)):
        facts = _about.other(path)
        if facts is not None:
            return facts
    told: dict[str, Any] = format_of(path).describe(path, prediction)
    return {"name": path.name} | told


def type_of(path: str | Path) -> torch.dtype:
    """The type of most tensors of a model's file or folder, from its header."""
    commonest: torch.dtype = getattr(torch, next(iter(describe(path)["types"])))
    return commonest


def load_vae(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    like: VAEConfig | None = None,
) -> VAE:
    """The autoencoder in a file or folder of its own, or out of a whole model's.

    like: whose scale and shift of the latents it has where `path` is a file, which does not say
    them. Raises CheckpointError: no such file, no whole autoencoder in it.
    """
    from pellucid.checkpoints import _vae  # which imports this module

    return _vae.read(_exists(path, "an autoencoder"), device, dtype, like)


def is_tiny_vae(path: str | Path) -> bool:
    """Whether `path` is a file or folder with a tiny autoencoder, or half of one."""
    from pellucid.checkpoints import _tiny_vae

    return _tiny_vae.matches(Path(path))


def load_tiny_vae(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    of: VAEConfig | None = None,
) -> TinyVAE:
    """The tiny autoencoder in `path`: TAESD's own files, or a file or folder of diffusers'.

    of: the config of the autoencoder that it is to imitate. Raises CheckpointError: no such file,
    another kind of file, latents of another kind than `of` has, no decoder where `of` is given.
    """
    from pellucid.checkpoints import _tiny_vae

    asked = "a tiny autoencoder" if of is None else wanted(of)
    path = _exists(path, asked)
    tiny = _tiny_vae.read(path, device, dtype)
    if of is not None and tiny.config.latent_channels != of.latent_channels:
        raise CheckpointError(
            f"{path} is for {tiny.config.latent_channels} latent channels, and the model has "
            f"{of.latent_channels}; {asked} is wanted"
        )
    if of is not None and tiny.decoder is None:
        raise CheckpointError(f"{path} is the encoder alone; {asked} is wanted")
    return tiny


def tiny_vae_of(model: Model, path: str | Path) -> TinyVAE | None:
    """The tiny autoencoder that lies beside the model's file or folder `path`, or in it, under its
    published name, such as taesd_decoder.safetensors; None if there is none."""
    from pellucid.checkpoints import _tiny_vae

    found = _tiny_vae.beside(Path(path), model.vae.config)
    return None if found is None else load_tiny_vae(found, of=model.vae.config)


def load_lora(path: str | Path, model: Model) -> Lora:
    """The LoRA in a file, for `model`; `lora.attach` puts it on. Its tensors stay in the file until
    they are used, so it must not be written over.

    Raises CheckpointError: no such file, no LoRA, an incomplete one, one of another family.
    """
    from pellucid.checkpoints import _lora  # which imports this module

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; a LoRA's weights are wanted")
    return _lora.read(path, model)


def save_lora(
    lora: Lora, model: Model, path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a LoRA of `model` as one safetensors file with kohya's keys, which A1111 and diffusers
    read too. Raises CheckpointError if it is none of the plain kind or cannot be written."""
    from pellucid.checkpoints import _lora  # which imports this module

    _lora.write(lora, model, Path(path), metadata or {})


def describe_lora(path: str | Path) -> dict[str, Any]:
    """What can be said of a LoRA from its file alone. Raises CheckpointError if it is none."""
    from pellucid.checkpoints import _lora_about, _lora_file  # which import this module

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; a LoRA's weights are wanted")
    return _lora_about.describe(_lora_file.examine(path))


def load_embedding(path: str | Path, model: Model) -> tuple[Embedding, ...]:
    """The words in a file of textual inversion; `textual_inversion.with_words` gives them to `model`.

    Raises CheckpointError: no such file, no embedding, one of another family.
    """
    from pellucid.checkpoints import _embedding  # which imports this module

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; a textual-inversion embedding is wanted")
    return _embedding.read(path, model)


def holds_gan(path: str | Path) -> bool:
    """Whether `path` is a GAN's file, which `load_gan` reads and `load` does not."""
    from pellucid.checkpoints import _gan  # which imports this module

    return _gan.matches(Path(path))


def load_gan(
    path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> GAN:
    """The GAN in the file `path`, on `device`, in eval mode.

    Raises CheckpointError: no such file, a diffusion model or another thing, keys that do not fit.
    """
    from pellucid.checkpoints import _gan

    return _gan.read(Path(path), device, dtype)


def save_gan(gan: GAN, path: str | Path) -> None:
    """Write `gan` to `path`, whole or not at all. Raises CheckpointError if it cannot be."""
    from pellucid.checkpoints import _gan

    _gan.write(gan, Path(path))


def save(
    model: Model, path: str | Path, dtype: torch.dtype | None = None, to: str = "native"
) -> tuple[str, ...]:
    """Write `model` to `path` in the format `to`; what had no place there is told in words.

    dtype: None keeps the weights as they are. The file or folder appears whole or not at all.
    Raises CheckpointError if it cannot be written, or would be read as another model; ValueError
    for an unknown format.
    """
    forms = plugins.discover("pellucid.checkpoints")
    written = [name for name, form in forms.items() if hasattr(form, "write")]
    left_out: tuple[str, ...] = forms[choose(to, written, "format")].write(model, Path(path), dtype)
    return left_out


def embedded() -> Path:
    """Where the model that ships with the package is."""
    return Path(__file__).parents[1] / "weights" / "emoji.safetensors"


def read_header(path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file: key -> dtype, shape, data_offsets; `__metadata__`.

    Checked before anything else touches the file, because a download that stopped halfway and a
    pickle with the wrong name are what goes wrong most. Raises CheckpointError that says which it
    is.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; a .safetensors file is wanted")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(9)
        length = int.from_bytes(start[:8], "little")
        if size == 0:
            raise CheckpointError(f"{path} is empty; a .safetensors file is wanted")
        if len(start) < 9:
            raise CheckpointError(
                f"{path} is truncated or no safetensors file: it has only {size} bytes"
            )
        if start[8:] != b"{" or length > HEADER_BYTES:
            if start[0] == 0x80 or start[:4] == b"PK\x03\x04":
                raise CheckpointError(
                    f"{path} is a pickle (torch.save), whatever its name says; loading one could "
                    "run code. A safetensors file is wanted"
                )
            raise CheckpointError(f"{path} is {instead_of_weights(start + file.read(BEGINNING))}")
        text = start[8:] + file.read(length - 1)
    if len(text) < length:
        raise CheckpointError(
            f"{path} is truncated: its header is {length} bytes long, the file {size} bytes"
        )
    try:
        header = dict(json.loads(text))
        dict(header.get("__metadata__") or {})
        entries = [value for key, value in header.items() if key != "__metadata__"]
        if not all(isinstance(side, int) for entry in entries for side in entry["shape"]):
            raise ValueError("a shape is not made of integers")
        end = 8 + length + max((entry["data_offsets"][1] for entry in entries), default=0)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not a safetensors file: its header cannot be read"
        ) from error
    if end > size:
        raise CheckpointError(
            f"{path} is truncated: {end} bytes are announced, {size} are there; copy it again"
        )
    if end < size:
        raise CheckpointError(
            f"{path} is not a safetensors file: {size - end} bytes follow the end that it announces"
        )
    return header


def instead_of_weights(start: bytes) -> str:
    """What a file that begins so is, which is no safetensors file, and what is wanted."""
    if start.startswith(b"GGUF"):
        return "a GGUF file, which is not read; a .safetensors file is wanted"
    text = start.decode("utf-8", "replace").strip()
    if text.lower().startswith(("<!doctype html", "<html")):
        return "a web page, as a download that went wrong leaves behind; download the file itself"
    if text.startswith("version https://git-lfs"):
        return "Git LFS's note of where the weights are; `git lfs pull` fetches the weights"
    words = " ".join(text.split())
    if words and words[:-1].isprintable() and "\ufffd" not in words[:-1]:  # the last may be cut
        return f"a text and not a safetensors file, which is wanted: {words[:60]!r}"
    return "not a safetensors file; a checkpoint in that format is wanted"

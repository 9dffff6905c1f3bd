"""The models, LoRAs and embeddings in the server's folders, by name.

Clients name a file; only what a scan of the folders has found is opened, so no text from a client
becomes a path. A file that was moved inside its folder keeps its name and is found again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pellucid import checkpoints
from pellucid.folders import DIFFUSERS, PICTURES, is_preview
from pellucid.folders import WEIGHTS as SUFFIXES
from pellucid.model import Model
from pellucid.plugins import choose
from pellucid.settings import is_embedding

MODEL_SUFFIXES = (".safetensors", ".ckpt")


class UnknownName(ValueError):
    """No model, LoRA or embedding has this name. The message lists those that exist."""


@dataclass(frozen=True)
class ModelFile:
    """A model on the disk. version: changes when the file does."""

    name: str
    path: Path
    version: tuple[int, int]
    prediction: str | None = None

    @cached_property
    def outline(self) -> Model:
        """The model without its weights: shapes, settings, tokenizer, and the tiny autoencoder next
        to it. A request is checked with it.

        Raises ValueError: it is not a model, or is damaged. The message has its name, not its path.
        """
        try:
            model = checkpoints.load(self.path, "meta", None, self.prediction)
            if model.tiny_vae is None and (tiny := checkpoints.tiny_vae_of(model, self.path)):
                model.tiny_vae = tiny.to("meta")
            return model
        except ValueError as error:
            raise ValueError(str(error).replace(str(self.path), self.name)) from error

    @cached_property
    def is_gan(self) -> bool:
        """Whether it is the file of a GAN."""
        try:
            return self.path.is_file() and checkpoints.holds_gan(self.path)
        except ValueError:  # it is damaged
            return False


class Library:
    """What the configured folders hold. Safe to use from several threads."""

    def __init__(
        self,
        models: Iterable[Path] = (),
        loras: Path | None = None,
        embeddings: Path | None = None,
        predictions: Mapping[str, str] | None = None,
        upscalers: Path | None = None,
    ) -> None:
        self._folders = tuple(models)
        self._predictions = dict(predictions or {})
        self.lora_folder, self._embedding_folder = loras, embeddings
        self._upscaler_folder = upscalers
        self._lock = threading.Lock()
        self._models: dict[str, ModelFile] = {}
        self.scan()

    def scan(self) -> None:
        """Look into the folders of models again."""
        embedded = checkpoints.embedded()
        paths = {} if not embedded.exists() else {embedded.stem: embedded}
        for folder in self._folders:
            paths |= _named(folder, _models_in(folder), paths)
        found = {
            name: ModelFile(name, path, _version(path), self._predictions.get(name))
            for name, path in paths.items()
        }
        with self._lock:  # what has not changed keeps its outline
            known = {file: file for file in self._models.values()}
            self._models = {name: known.get(file, file) for name, file in found.items()}

    def models(self) -> list[ModelFile]:
        """Every file or folder that may be a model."""
        self.scan()
        return list(self._models.values())

    def first(self) -> ModelFile | None:
        """The first of `models`; the folders are looked into again only where it is gone."""
        file = next(iter(self._models.values()), None)
        if file is None or not file.path.exists():
            file = next(iter(self.models()), None)
        return file

    def model(self, name: str) -> ModelFile:
        """The model of this name, where it is now. Raises UnknownName."""
        file = self._models.get(name)
        if file is None or not file.path.exists() or _version(file.path) != file.version:
            self.scan()
            file = self._models.get(name)
        if file is None:
            raise _unknown(name, self._models, "model")
        return file

    def loras(self) -> dict[str, Path]:
        """The LoRAs by name."""
        return _weights_in(self.lora_folder)

    def lora(self, name: str) -> Path:
        """The file of a LoRA. Raises UnknownName."""
        return _chosen(name, self.loras(), "LoRA")

    def embeddings(self) -> dict[str, Path]:
        """The textual-inversion embeddings by name."""
        return _weights_in(self._embedding_folder, is_embedding)

    def embedding(self, name: str) -> Path:
        """The file of an embedding. Raises UnknownName."""
        return _chosen(name, self.embeddings(), "embedding")

    def upscalers(self) -> dict[str, Path]:
        """The upscalers of the ESRGAN family by name."""
        return _weights_in(self._upscaler_folder)

    def upscaler(self, name: str) -> Path:
        """The file of an upscaler. Raises UnknownName."""
        return _chosen(name, self.upscalers(), "upscaler")


def _models_in(folder: Path) -> list[Path]:
    """Files with a model's ending, and diffusers' folders, whose files are not listed."""
    found: list[Path] = []
    if not folder.is_dir():
        return found
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            found += [path] if (path / DIFFUSERS).is_file() else _models_in(path)
        elif path.suffix in MODEL_SUFFIXES:
            found.append(path)
    return found


def _weights_in(
    folder: Path | None, is_one: Callable[[Path], bool] = lambda picture: False
) -> dict[str, Path]:
    """is_one: whether a picture in the folder counts."""
    if folder is None or not folder.is_dir():
        return {}
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and (
            path.suffix in SUFFIXES
            or (path.suffix.lower() in PICTURES and not is_preview(path) and is_one(path))
        )
    ]
    return _named(folder, files, {})


def _named(folder: Path, paths: Iterable[Path], taken: Mapping[str, Path]) -> dict[str, Path]:
    """Files by their stems; of equal stems the later ones have their folders in the name."""
    named: dict[str, Path] = {}
    for path in paths:
        short = path.name if path.is_dir() else path.stem
        inside = path.relative_to(folder)
        whole = (inside if path.is_dir() else inside.with_suffix("")).as_posix()
        for name in (short, whole, inside.as_posix()):
            if name not in named and name not in taken:
                named[name] = path
                break
    return named


def _version(path: Path) -> tuple[int, int]:
    try:
        facts = (path / DIFFUSERS if path.is_dir() else path).stat()
    except OSError:
        return (0, 0)
    return (facts.st_mtime_ns, facts.st_size)


def _chosen(name: str, files: Mapping[str, Path], what: str) -> Path:
    for ending in ("", *SUFFIXES, *PICTURES):
        if (path := files.get(name.removesuffix(ending))) is not None:
            return path
    raise _unknown(name, files, what)


def _unknown(name: str, known: Iterable[str], what: str) -> UnknownName:
    known = list(known)
    if not known:
        return UnknownName(f"unknown {what} {name[:80]!r}; this server has none")
    try:
        choose(name[:80], known, what)
    except ValueError as error:
        return UnknownName(str(error))
    return UnknownName(f"unknown {what} {name[:80]!r}")

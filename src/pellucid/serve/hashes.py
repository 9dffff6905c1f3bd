"""The SHA-256 of model files, by which clients of A1111's API recognise a model."""

from __future__ import annotations

import hashlib
import json
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from pellucid.serve.library import ModelFile
from pellucid.serve.queue import Queue

PATIENCE = 1.0
"""Seconds that a reply waits for the hash of a file that is read for the first time."""


class Hashes:
    """Of each file it is computed once, in the background, and kept with the queue."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._reader = ThreadPoolExecutor(1, "hashes")
        self._lock = threading.Lock()
        self._begun: dict[ModelFile, Future[str | None]] = {}

    def of(self, file: ModelFile) -> str | None:
        """The hash in hexadecimal digits; None: it is a folder, or not known yet."""
        if file.path.is_dir():
            return None
        fact, version = f"sha256 {file.path}", list(file.version)
        stored: dict[str, Any] = json.loads(self._queue.fact(fact) or "{}")
        if stored.get("version") == version:
            return str(stored["sha256"])
        with self._lock:
            if file not in self._begun:
                self._begun[file] = self._reader.submit(_hash, file)
            begun = self._begun[file]
        with suppress(TimeoutError):
            if (digest := begun.result(PATIENCE)) is not None:
                self._queue.remember(fact, json.dumps({"version": version, "sha256": digest}))
            else:  # it may be readable the next time
                with self._lock:
                    self._begun.pop(file, None)
            return digest
        return None


def _hash(file: ModelFile) -> str | None:
    """None: it cannot be read."""
    with suppress(OSError), file.path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
    return None

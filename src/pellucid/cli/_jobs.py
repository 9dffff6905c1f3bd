"""What one command draws: one request, the lines of a file of prompts, or a request for each variation
of a prompt; and which of the pictures are there already."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from pellucid import messages
from pellucid.cli._like import ModelFiles, with_named
from pellucid.cli._options import option_of
from pellucid.files import decoded_text

if TYPE_CHECKING:
    from pellucid.request import Request, ResolvedRequest

TABLES = (".csv", ".tsv", ".xlsx", ".ods")  # endings of files whose lines are no prompts
LARGEST = 64_000_000  # bytes of a file of prompts
_OBJECT = r'\{\s*["}]'  # how one begins; {red|blue} is a variation


@dataclass(frozen=True)
class DrawJob:
    """A request, with the files that it needs."""

    files: ModelFiles
    request: Request
    template: str | None = None
    """The prompt before its variations were drawn."""
    place: str | None = None
    """The line that it is from, for messages."""

    def record(self, request: Request, name: str) -> dict[str, Any]:
        """What a picture of it is stored with. name: the model's."""
        template = {} if self.template is None else {"template": self.template}
        return self.files.record(request, name) | template


@dataclass(frozen=True)
class Jobs:
    """The jobs of a command, made when they are needed: a file may have very many lines.

    lines: the fields of each line, and its number; None: there is no file. dynamic: draw the
    variations of the prompts.
    """

    files: ModelFiles
    asked: Mapping[str, Any]
    file: str | None = None
    lines: tuple[tuple[int, Mapping[str, Any]], ...] = ()
    dynamic: bool = False

    def __iter__(self) -> Iterator[DrawJob]:
        if self.file is None:
            yield from self._of_fields({}, None)
        for number, fields in self.lines:
            place = f"{self.file}, line {number}"
            try:
                yield from self._of_fields(fields, place)
            except ValueError as error:
                raise ValueError(f"{place}: {sentence_of(error)}") from error

    def count(self) -> int:
        """How many pictures there are. ValueError: a line that is wrong, named by its number."""
        return sum(job.request.count for job in self)

    def _of_fields(self, fields: Mapping[str, Any], place: str | None) -> Iterator[DrawJob]:
        from pellucid.request import Request, chosen_seed

        request = Request.model_validate({**self.asked, **fields})
        if not self.dynamic:
            files, request = with_named(self.files, request)
            yield DrawJob(files, request, None, place)
            return
        first = chosen_seed(request)
        for i in range(request.count):
            drawn, template = _drawn(request, first + (i if request.walk is None else 0))
            part = drawn.model_copy(update={"seed": first}).part(i, 1)
            files, part = with_named(self.files, part)
            yield DrawJob(files, part, template, place)


def _drawn(request: Request, seed: int) -> tuple[Request, str | None]:
    """The request with the variations of its prompts drawn, and its prompt before that."""
    from pellucid.settings import load_settings
    from pellucid.variations import expand

    folder = load_settings().settings.wildcards
    texts = {n: expand(getattr(request, n), seed, folder) for n in ("prompt", "negative_prompt")}
    changed = texts["prompt"] != request.prompt
    valid = type(request).model_validate(dict(request) | texts)
    return valid, request.prompt if changed else None


def read_prompts(name: str) -> tuple[tuple[int, dict[str, Any]], ...]:
    """The lines of a file of prompts, "-": of standard input, each with its number.

    A line is a prompt, or a JSON object with fields of a request; blank lines and those that begin
    with "#" are left out. ValueError names the line that is wrong.
    """
    text = _read(name)
    if Path(name).suffix.lower() in TABLES:
        raise ValueError(
            f"{name} is a table; --prompts takes a text with a prompt in each line, or JSON objects"
        )
    if re.match(r"\s*(\[\s*)?\{\s*\"", text) and not re.match(
        _OBJECT, text.lstrip().split("\n")[0]
    ):
        raise ValueError(f"{name} is JSON of several lines or a list; each line must be one object")
    only_objects, lines = Path(name).suffix.lower() in (".jsonl", ".ndjson"), []
    # Not splitlines: JSON may have line separators of Unicode in its texts.
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip()
        if line and not line.startswith("#"):
            place = f"{name}, line {number}"
            if only_objects and not re.match(_OBJECT, line):
                raise ValueError(f"{place} must be a JSON object, got {line[:40]!r}")
            lines.append((number, _fields(line, place)))
    if not lines:
        raise ValueError(f"{name} has no prompts in it")
    return tuple(lines)


def _read(name: str) -> str:
    try:
        if name == "-":
            if sys.stdin is None:
                raise ValueError("standard input is closed")
            data = sys.stdin.buffer.read(LARGEST + 1)
        else:
            with Path(name).open("rb") as file:
                data = file.read(LARGEST + 1)
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from error
    if len(data) > LARGEST:
        raise ValueError(f"{name} is too large: more than {LARGEST // 1_000_000} MB")
    return decoded_text(data, name)


def _fields(line: str, place: str) -> dict[str, Any]:
    from pellucid.request import Request
    from pellucid.request.request import instead_of

    if not re.match(_OBJECT, line):
        return {"prompt": line}
    try:
        fields = json.loads(line)
    except RecursionError:
        raise ValueError(f"{place} begins as JSON and is nested too deep") from None
    except ValueError as error:
        raise ValueError(f"{place} begins as JSON and is not valid: {error}") from error
    for field_name in fields:
        if field_name not in Request.model_fields:
            raise ValueError(f"{place}: unknown field {field_name!r}; {instead_of(field_name)}")
    return dict(fields)


def sentence_of(error: ValueError) -> str:
    """The message of an error, with the names of options."""
    from pellucid.request import Request

    if isinstance(error, ValidationError):
        return messages.sentence(error, Request, option_of)
    return messages.written(messages.text_of(error), option_of)


# ---------------------------------------------------------------- what is there already


@dataclass
class PictureIndex:
    """The pictures in a folder, by what they record.

    A picture is the one that a job would make if it records the same request, model and files: the
    same seed where the request has one, any seed where it has none. Each counts once.
    """

    folder: Path
    found: dict[str, list[tuple[Path, int]]] = field(default_factory=dict)
    """The pictures of each record, with their seeds."""
    seeds: set[int] = field(default_factory=set)
    """Seeds that jobs ask for, whose pictures are not those of jobs without a seed."""
    taken: set[Path] = field(default_factory=set)
    last: Path | None = None
    """The picture that was taken last."""

    @classmethod
    def of(cls, folder: Path, jobs: Iterable[DrawJob] = ()) -> PictureIndex:
        """Reads what the pictures in a folder, and below it, record. jobs: those to come."""
        from pellucid.images.metadata import FORMATS, read_metadata

        made = cls(folder)
        for request in (job.request for job in jobs):
            if request.seed not in (None, -1):
                made.seeds.update(range(request.seed, request.seed + request.count))
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in FORMATS and path.is_file():
                try:
                    record = read_metadata(path).request
                except ValueError:
                    continue
                if record is not None:
                    for key in (_key(record), _key(record, seed=False)):
                        made.found.setdefault(key, []).append((path, record.get("seed", -1)))
        return made

    def take(self, record: Mapping[str, Any], seed: bool) -> Path | None:
        """A picture with this record that was not taken yet. seed: whether it counts."""
        paths = self.found.get(_key(record, seed), [])
        while paths:
            path, number = paths.pop()
            if path not in self.taken and (seed or number not in self.seeds):
                self.taken.add(path)
                self.last = path
                return path
        return None


def _key(record: Mapping[str, Any], seed: bool = True) -> str:
    kept = {name: value for name, value in record.items() if seed or name != "seed"}
    return ("seed " if seed else "any ") + json.dumps(kept, sort_keys=True)


def missing(
    request: Request,
    resolved: ResolvedRequest,
    seeded: bool,
    made: PictureIndex,
    record: Callable[[ResolvedRequest], dict[str, Any]],
) -> tuple[list[Request], list[Path]]:
    """The parts of a request that are not made yet, and the pictures of the others.

    seeded: whether the request was given a seed. resolved: as the model carries it out.
    """
    there: list[Path] = []
    left: list[int] = []
    for i in range(request.count):
        path = made.take(record(resolved.alone(i)), seeded)
        if path is None:
            left.append(i)
        else:
            there.append(path)
    if not seeded and request.walk is None:
        return ([request.part(0, len(left))] if left else []), there
    return [request.part(i, 1) for i in left] if there else [request], there

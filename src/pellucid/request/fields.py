"""What a field of a request is: its help, its group, how the command line writes it, its files.

The command line and the HTTP interfaces derive their options from these declarations, so that a new
field appears everywhere by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Literal, NamedTuple, cast, get_args, get_origin

from pydantic import BaseModel, Field

# Groups of fields: a panel of --help each. Fields without a group come first.
PICTURES = "pictures"  # files that are pictures, which no folder of the settings has
MODEL, START, MASK = "LoRAs and embeddings", "Picture to start from", "Mask"
SECOND, STEER, OUTPUT = "Second pass", "Noise and guidance", "Output"


class Choices(NamedTuple):
    """The values of a field that has a fixed list of them, read when they are needed."""

    names: Callable[[], Iterable[str]]


def option(
    help: str,
    default: Any = None,
    group: str = "",
    *,
    flag: str | None = "",
    form: str = "",
    files: str = "",
    needs: str | None = None,
    choices: Callable[[], Iterable[str]] | None = None,
    **limits: Any,
) -> Any:
    """A field of `Request`, with all that an interface has to know of it.

    help: one short sentence. group: the fields that it is shown with. flag: how the command line
    writes it, where that is not --the-name; without dashes it is an argument, None: it has none.
    Fields with the same flag are written together, as --size is. form: the format of
    its text, where it is not one word or number. files: what the files are that it names, if it names
    any: PICTURES, or the folder of the settings that they are in. An HTTP client never gives a path
    there. needs: the field without which this one does nothing. choices: gives its values, where they
    are a list that its type does not have. limits: as pydantic's Field takes them.
    """
    extra: dict[str, Any] = {
        "group": group,
        "flag": flag,
        "form": form,
        "files": files,
        "needs": needs,
    }
    field = Field(default, description=help, json_schema_extra=extra, **limits)
    if choices is not None:  # not in `extra`, which must be JSON
        field.metadata.append(Choices(choices))
    return field


def declared(request: BaseModel | type[BaseModel], name: str) -> dict[str, Any]:
    """What `option` says of a field: its group, flag, form, files, needs."""
    kind = request if isinstance(request, type) else type(request)
    return cast("dict[str, Any]", kind.model_fields[name].json_schema_extra or {})


def choices_of(request: type[BaseModel], name: str) -> Callable[[], list[str]] | None:
    """Gives the values of a field, as its type or `option` has them; None: it has no list of them."""
    field = request.model_fields[name]
    listed = next((each.names for each in field.metadata if isinstance(each, Choices)), None)
    if listed is not None:
        return lambda: list(listed())
    types = (field.annotation, *get_args(field.annotation))
    literal = next((each for each in types if get_origin(each) is Literal), None)
    return None if literal is None else lambda: list(get_args(literal))


@lru_cache
def needs_of(request: type[BaseModel]) -> dict[str, str]:
    """The fields that do nothing without another one, and that one."""
    needs = {name: declared(request, name).get("needs") for name in request.model_fields}
    return {name: need for name, need in needs.items() if need}


@lru_cache
def file_fields(request: type[BaseModel]) -> dict[str, str]:
    """The fields that name files, and what these are, as `option` has it."""
    kinds = {name: declared(request, name).get("files") for name in request.model_fields}
    return {name: kind for name, kind in kinds.items() if kind}


def files_in(value: Any) -> list[str]:
    """The names in the value of a field that names files, as `with_files` changes them."""
    found: list[str] = []

    def take(name: str) -> str:
        found.append(name)
        return name

    with_files(value, take)
    return found


def with_files(value: Any, change: Callable[[str], str]) -> Any:
    """The value of a field that names files, with other names: of one, of several, or of several with
    weights. What has another form stays as it is."""
    if isinstance(value, str):
        return change(value)
    if not isinstance(value, list | tuple):
        return value
    each = [
        type(entry)((with_files(entry[0], change), *entry[1:]))
        if isinstance(entry, list | tuple) and entry
        else with_files(entry, change)
        for entry in value
    ]
    return type(value)(each)

"""Messages about the fields of a request, in which each interface writes the fields in its own way.

A library function names the field, `mask_invert`; the command line names the option that was typed,
`--invert-mask`. `sentence` puts pydantic's errors into the words of all other messages.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

Name = Callable[[str], str]
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
SAYS = {
    "greater_than_equal": "at least {ge}",
    "greater_than": "above {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "below {lt}",
    "literal_error": "one of {expected}",
    "finite_number": "a finite number",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string_type": "text",
    "list_type": "a list",
}
"""What is allowed, by pydantic's names of errors or the beginnings of them."""
LONGEST = 80
"""Letters of a name that is not known."""


class FieldMessage(str):
    """A message with fields in it: `FieldMessage("{mask_invert} needs a {mask}")`.

    As a text it has the names of the fields. values: what else is in braces.
    """

    _template: str
    _values: dict[str, Any]

    def __new__(cls, template: str, **values: Any) -> FieldMessage:
        self = super().__new__(cls, template.format_map(_Names(str, values)))
        self._template, self._values = template, values
        return self

    def written(self, name: Name) -> str:
        """The message with each field as `name` writes it."""
        return self._template.format_map(_Names(name, self._values))


class _Names(dict[str, Any]):
    def __init__(self, name: Name, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.name = name

    def __missing__(self, field: str) -> str:
        return self.name(field)


def written(message: str, name: Name) -> str:
    """A message, with each field of a `FieldMessage` as `name` writes it."""
    return message.written(name) if isinstance(message, FieldMessage) else message


def sentence(error: ValidationError, model: type[BaseModel], name: Name = str) -> str:
    """The first of pydantic's errors of a `model`: `steps must be between 1 and 1000, got 0`.

    What is allowed is derived from the field. name: how a field is written.
    """
    first = error.errors()[0]
    place = first["loc"]
    if first["type"] == "value_error":  # a validator of ours
        message = written(text_of(first["ctx"]["error"]), name)
        named = not place or str(place[0]) in message
        return message if named else f"{name(str(place[0]))}: {message}"
    given = first["input"]
    shown = repr(given[:80]) if isinstance(given, str) else str(given)[:80]
    field = model.model_fields.get(str(place[0]))
    allowed = None if field is None else _allowed(field.annotation, field.metadata, place[1:])
    if allowed is None or first["type"] in ("missing", "extra_forbidden", "too_long"):
        where = ".".join(str(each)[:LONGEST] for each in (name(str(place[0])), *place[1:]))
        return of_value(error, where)
    return f"{name(str(place[0]))} must be {allowed}, got {shown}"


def of_value(error: ValidationError, where: str) -> str:
    """The first of pydantic's errors, of the value of which `where` is the name."""
    first = error.errors()[0]
    kind, given = first["type"], first["input"]
    shown = repr(given[:80]) if isinstance(given, str) else str(given)[:80]
    said = SAYS.get(kind, SAYS.get(kind.partition("_")[0]))
    if said is not None:
        return f"{where} must be {said.format(**first.get('ctx', {}))}, got {shown}"
    return f"{where}: {first['msg']}, got {shown}"


def text_of(error: BaseException) -> str:
    """The message of an error, which can be a `FieldMessage`."""
    (message,) = error.args if len(error.args) == 1 else (error,)
    return message if isinstance(message, str) else str(error)


def _allowed(annotation: Any, limits: list[Any], place: tuple[int | str, ...]) -> str | None:
    """What a field may be, or the part of it at `place`; None if that is not known."""
    kind, limits = _bare(annotation, limits)
    if place:
        parts = get_args(kind)
        if get_origin(kind) is not tuple or not isinstance(place[0], int):
            return None
        part = 0 if parts[-1] is Ellipsis else place[0]
        return None if part >= len(parts) else _allowed(parts[part], [], place[1:])
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    bounds = {
        n: v
        for each in limits
        for n in ("ge", "gt", "le", "lt")
        if (v := getattr(each, n, None)) is not None
    }
    if {"ge", "le"} <= bounds.keys():
        return f"between {bounds['ge']} and {bounds['le']}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    if bounds:
        return " and ".join(f"{words[n]} {bounds[n]}" for n in words if n in bounds)
    if any(getattr(each, "allow_inf_nan", True) is False for each in limits):
        return "a finite number"
    return KINDS.get(kind)


def _bare(annotation: Any, limits: list[Any]) -> tuple[Any, list[Any]]:
    """A type without None, and its limits with those that Annotated adds."""
    if get_origin(annotation) is Annotated:
        kind, *more = get_args(annotation)
        for each in more:
            limits = [*limits, *(each.metadata if isinstance(each, FieldInfo) else [each])]
        return _bare(kind, limits)
    if get_origin(annotation) in (Union, types.UnionType):
        (some,) = (each for each in get_args(annotation) if each is not type(None))
        return _bare(some, limits)
    return annotation, limits

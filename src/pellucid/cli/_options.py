"""The options of a request on the command line, derived from the fields of `Request`.

A field declares its help, its group and how it is written once, in request/request.py. Here that
becomes the parameters of a command, so that a new field is a new option of it by itself.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from pellucid.cli._complete import values_of
from pellucid.request import Request, fields
from pellucid.request.fields import declared

PANELS = ("", "Model", fields.MODEL, fields.START, fields.MASK, fields.SECOND, fields.STEER)
"""The order of the boxes of --help; others follow."""
NUMBERS: dict[Any, tuple[str, str]] = {
    int: ("INTEGER", "a whole number"),
    float: ("FLOAT", "a number"),
}
"""How --help and messages write a kind of number."""


def takes_request(
    *names: str, request: type[Request] = Request
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the options of these fields, or of all; it gets what was given as `asked`.

    asked: dict[str, Any], the command's first parameter: fields by name, without those that were
    not given.
    """
    options = options_of(request, names)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**given: Any) -> None:
            asked: dict[str, Any] = {}
            for option in options:
                value = given.pop(option.names[0])
                if value is not None and value != []:
                    asked |= option.read(value)
            command(asked, **given)

        _, *own = inspect.signature(command, eval_str=True).parameters.values()
        of_request = [option.parameter() for option in options]
        own = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
        parameters = sorted([*of_request, *own], key=_panel)
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return decorate


def option_of(field: str) -> str:
    """How the command line writes a field of a request: `--fill`, `--size (width)`.

    A field that has no option keeps its name. Any other name is that of an option of a command.
    """
    if field not in Request.model_fields:
        return f"--{field.replace('_', '-')}"
    for option in options_of(Request):
        if field in option.names:
            flag = option.flag.split()[0].split("/")[0]
            return flag if len(option.names) == 1 else f"{flag} ({field})"
    return field


def options_of(request: type[Request], names: Sequence[str] = ()) -> list[RequestOption]:
    """The options of these fields, or of all that have one, in the order of the fields."""
    by_flag: dict[str, list[str]] = {}
    for name in names or request.model_fields:
        flag = declared(request, name)["flag"]
        if flag is not None:
            by_flag.setdefault(flag or f"--{name.replace('_', '-')}", []).append(name)
    return [RequestOption(request, tuple(each), flag) for flag, each in by_flag.items()]


@dataclass(frozen=True)
class RequestOption:
    """One option of the command line: of one field, or of several with the same flag."""

    request: type[Request]
    names: tuple[str, ...]
    flag: str

    @property
    def form(self) -> str:
        return str(declared(self.request, self.names[0])["form"])

    @property
    def kind(self) -> Any:
        """The field's type, without None and limits."""
        return _bare(self.request.model_fields[self.names[0]].annotation)

    def parameter(self) -> inspect.Parameter:
        """As a parameter of a Typer command; None stands for an option that is not given."""
        kind, field = self.kind, self.request.model_fields[self.names[0]]
        text = field.description or ""
        # Numbers are texts for Typer, whose message does not say what was given.
        given: Any = Path if self.form == "FILE" else bool if kind is bool else str
        if len(self.names) > 1:
            given = str
        if get_origin(kind) is Literal:
            text += f" Choices: {', '.join(get_args(kind))}."
        if shown := self._default():
            text += f" Default: {shown}."
        if repeats(kind):
            given, text = list[given], f"{text} Repeatable."
        if self.flag.startswith("-"):
            info: Any = typer.Option(
                *self.flag.split(),
                help=text,
                autocompletion=values_of(self.request, self.names[0]),
                metavar=self._metavar(),
                rich_help_panel=declared(self.request, self.names[0])["group"] or None,
            )
        else:
            info = typer.Argument(help=text)
        annotation = Annotated[given | None, info]
        return inspect.Parameter(
            self.names[0], inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
        )

    def _metavar(self) -> str | None:
        if self.form:
            return self.form.split()[-1]
        return NUMBERS[self.kind][0] if self.kind in NUMBERS else None

    def _default(self) -> str:
        """The default in the form of the option; "" if it is none, or the model's."""
        default = self.request.model_fields[self.names[0]].default
        if default is None or default in ("", ()) or isinstance(default, bool):
            return ""
        values = default if isinstance(default, tuple) else (default,)
        return ",".join(f"{each:g}" if isinstance(each, float) else str(each) for each in values)

    def read(self, value: Any) -> dict[str, Any]:
        """The fields that this value sets. ValueError: a text that has not the option's form."""
        if len(self.names) > 1:
            return dict(zip(self.names, self._size(value), strict=True))
        return {self.names[0]: self._value(value)}

    def _value(self, value: Any) -> Any:
        if self.form == "FILE":
            return [str(each) for each in value] if isinstance(value, list) else str(value)
        if isinstance(value, list):
            return [self._row(text) for text in value]
        if self.kind in NUMBERS:
            try:
                return self.kind(value)
            except ValueError:
                what = NUMBERS[self.kind][1]
                raise ValueError(f"{self.flag} must be {what}, got {value!r}") from None
        return self._numbers(value) if get_origin(self.kind) is tuple else value

    def _size(self, text: str) -> tuple[int, int]:
        parts = text.lower().split("x")
        if len(parts) not in (1, 2) or not all(part.strip().isdecimal() for part in parts):
            raise self._wrong(text, " or one number, such as 64x64")
        return int(parts[0]), int(parts[-1])

    def _numbers(self, text: str) -> tuple[float, ...]:
        """As many numbers as the field has, with commas."""
        kinds, parts = [_bare(kind) for kind in get_args(self.kind)], text.split(",")
        try:
            return tuple(kind(part) for kind, part in zip(kinds, parts, strict=True))
        except ValueError:
            raise self._wrong(text) from None

    def _row(self, text: str) -> str | tuple[str | float, ...]:
        """TEXT, or TEXT:NUMBER, ... A number that is left out is as the one before, the first 1."""
        count = len(get_args(get_args(self.kind)[0])) - 1
        rest, numbers, is_file = text, list[float](), self.form.startswith("FILE")
        while len(numbers) < count:
            before, colon, last = rest.rpartition(":")
            try:
                number = float(last)
            except ValueError:
                if colon and not is_file:  # the name of a file may have a colon
                    raise self._wrong(text) from None
                break
            if not colon and is_file:
                raise self._wrong(text)
            if not colon:
                break
            numbers.insert(0, number)
            rest = before
        numbers = numbers or [1.0]
        return (rest, *numbers, *numbers[-1:] * (count - len(numbers))) if count > 0 else text

    def _wrong(self, text: str, more: str = "") -> ValueError:
        return ValueError(f"{self.flag} must be {self.form}{more}, got {text!r}")


def _bare(annotation: Any) -> Any:
    """A type without None and without what Annotated adds."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        (some,) = (each for each in get_args(annotation) if each is not type(None))
        return _bare(some)
    return annotation


def repeats(kind: Any) -> bool:
    return get_origin(kind) is tuple and get_args(kind)[-1] is Ellipsis


def _panel(parameter: inspect.Parameter) -> int:
    (info,) = parameter.annotation.__metadata__
    panel = info.rich_help_panel or ""
    return PANELS.index(panel) if panel in PANELS else len(PANELS)

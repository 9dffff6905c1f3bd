"""What the interfaces share: their engine, replies as JSON, and errors as a status, a message and a
field."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

from fastapi import Depends, FastAPI
from fastapi import Request as Call
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from pellucid.messages import LONGEST, sentence, text_of
from pellucid.request import Request
from pellucid.serve.engine import Engine, QueueFull

log = logging.getLogger(__name__)


async def engine_of(call: Call) -> Engine:
    """The engine of the interface that is called, which is in the `state` of its application."""
    engine: Engine = call.app.state.engine
    return engine


Server = Annotated[Engine, Depends(engine_of)]
"""A parameter of a route: the engine."""


class Json(JSONResponse):
    """JSON in ASCII, which can hold any text."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, separators=(",", ":")).encode()


class Problem(NamedTuple):
    """Why a request is refused. field: which part of it is the reason."""

    status: int
    message: str
    field: str | None = None
    retry_after: int | None = None
    code: str | None = None
    """A short name of the reason, for interfaces that have such."""


class Refused(Exception):
    """Raised by an interface to refuse a request."""

    def __init__(
        self, status: int, message: str, field: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.problem = Problem(status, message, field, code=code)


Shape = Callable[[Problem], Any]
"""A problem as the JSON of an interface."""


def reply(problem: Problem, shape: Shape) -> Response:
    """The reply to a refused request."""
    headers = {} if problem.retry_after is None else {"Retry-After": str(problem.retry_after)}
    return Json(shape(problem), problem.status, headers)


def problem_of(error: Exception) -> Problem:
    """The reply to an exception."""
    if isinstance(error, Refused):
        return error.problem
    if isinstance(error, QueueFull):
        return Problem(429, str(error), None, error.seconds)
    if isinstance(error, RequestValidationError):
        return _of_validation(error)
    if isinstance(error, HTTPException):
        return Problem(error.status_code, str(error.detail))
    if isinstance(error, ValidationError):
        return Problem(
            422, sentence(error, Request), str((error.errors()[0]["loc"] or ("",))[0]) or None
        )
    if isinstance(error, ValueError):
        return Problem(422, text_of(error))
    log.error("internal error", exc_info=error)
    return Problem(500, "internal error; the server's log has it")


class _Inside:
    """FastAPI's error with the place of each part inside the body, for `messages.sentence`."""

    def __init__(self, errors: list[dict[str, Any]]) -> None:
        self._errors = errors

    def errors(self) -> list[dict[str, Any]]:
        return self._errors


def _of_validation(error: RequestValidationError) -> Problem:
    first = dict(error.errors()[0])
    if first["type"] == "json_invalid":
        return Problem(400, f"the body is not JSON: {first.get('ctx', {}).get('error', '')}")
    if isinstance(first.get("input"), bytes):
        return Problem(415, "the body must be JSON; send Content-Type: application/json")
    place = [part for part in first["loc"] if part not in ("body", "query", "path")]
    if len(place) > 1 and place[0] == "request":
        del place[0]
    first["loc"] = tuple(place) or ("body",)
    message = sentence(_Inside([first]), Request)  # type: ignore[arg-type]
    return Problem(422, message, str(first["loc"][0])[:LONGEST])


def answer_errors(app: FastAPI, shape: Shape, statuses: Mapping[int, int] | None = None) -> None:
    """Register replies to all errors of an interface, in its own shape. statuses: those in place of
    which it has others."""
    others = statuses or {}

    async def answer(call: Call, error: Exception) -> Response:
        problem = problem_of(error)
        return reply(problem._replace(status=others.get(problem.status, problem.status)), shape)

    for kind in (HTTPException, RequestValidationError, ValueError, Refused, Exception):
        app.add_exception_handler(kind, answer)

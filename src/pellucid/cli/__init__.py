"""The command line, ``pellucid generate | info | ...``: one file here for each command.

Result paths go to stdout, everything else to stderr. Bad input is one sentence and exit status 2,
Ctrl-C is 130. Torch is imported inside the commands, so that ``--help`` is quick.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys

import typer

from pellucid import plugins
from pellucid.cli._app import app, fail, tell


def main() -> None:
    """The ``pellucid`` command: every expected error is a sentence, never a traceback."""
    for command in plugins.discover(__name__).values():
        assert command.__doc__  # importing it has put the command into the application
    try:
        status = app(standalone_mode=False)
        sys.stdout.flush()  # a full disk behind a ">" is met here, where it can be told
        if status == 130:  # Typer swallows Ctrl-C and returns this
            raise KeyboardInterrupt
        if isinstance(status, int) and status != 0:
            raise SystemExit(status)
    except (typer.Abort, KeyboardInterrupt):
        tell("stopped")
        raise SystemExit(130) from None
    except OSError as error:
        if error.errno in (errno.EPIPE, errno.ENOSPC) and error.filename is None:
            # Python flushes stdout once more at the end, and would complain once more.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:  # who read our output has left: `pellucid ... | head -1`
            raise SystemExit(1) from None
        where = "" if error.filename is None else f"{error.filename}: "
        fail(f"{where}{error.strerror or error}")
    except ValueError as error:
        fail(_sentence(error))
    except Exception as error:
        # Typer's own errors (an unknown option, say) know how to show themselves.
        if hasattr(error, "format_message"):
            message = error.format_message()
            if not message:  # without a command the help was shown
                raise SystemExit(2) from None
            fail(message.rstrip(".") + _hint(message, error))
        # Torch says so with a RuntimeError on the CPU and a sub-class of it on a GPU.
        if isinstance(error, MemoryError | RuntimeError) and "memory" in repr(error).lower():
            fail("there is not enough memory for this; a smaller size or count is wanted")
        raise


def _hint(message: str, error: Exception) -> str:
    """What else can be said about a command line that could not be read."""
    if message.endswith("?"):  # it has asked whether another command was meant
        return ""
    if "extra argument" in message:
        return "; a text of several words is written in quotes"
    context = getattr(error, "ctx", None)
    return "" if context is None else f"; see `{context.command_path} --help`"


def _sentence(error: ValueError) -> str:
    """What is wrong; of pydantic's errors the first, with its field and what was given."""
    if not hasattr(error, "errors"):
        return str(error)
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if not field:
        return message
    given = repr(str(first["input"])[:80])
    return f"{field}: {message}" + ("" if given in message else f" (given: {given})")

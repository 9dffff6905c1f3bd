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
from pydantic import ValidationError

from pellucid import messages, plugins
from pellucid.cli._app import app, fail, report
from pellucid.cli._bar import shown_progress
from pellucid.cli._options import option_of
from pellucid.cli._process import check_working_folder, stopped_by_signals, streams
from pellucid.request import Request


def main() -> None:
    """The ``pellucid`` command: every expected error is one sentence, never a traceback."""
    with streams(), stopped_by_signals():
        _run()


def _run() -> None:
    try:
        check_working_folder()
        for command in plugins.discover(__name__).values():
            assert command.__doc__  # importing it has put the command into the application
        completing = "_PELLUCID_COMPLETE" in os.environ  # a shell shows what stderr gets
        with contextlib.nullcontext() if completing else shown_progress():
            status = app(prog_name="pellucid", standalone_mode=False)
        sys.stdout.flush()  # a full disk behind a ">" fails here, where it can be reported
        if status == 130:  # Typer swallows Ctrl-C and returns this
            raise KeyboardInterrupt
        if isinstance(status, int) and status != 0:
            raise SystemExit(status)
    except (typer.Abort, KeyboardInterrupt):
        report("stopped")
        raise SystemExit(130) from None
    except OSError as error:
        if error.errno in (errno.EPIPE, errno.ENOSPC) and error.filename is None:
            # Python flushes stdout again at exit, which would fail again.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if (
            error.errno == errno.EPIPE
        ):  # the reader of our output has ended: `pellucid ... | head -1`
            raise SystemExit(1) from None
        where = "" if error.filename is None else f"{error.filename}: "
        fail(f"{where}{error.strerror or error}")
    except ValueError as error:
        fail(_sentence(error))
    except Exception as error:
        # Typer's own errors, such as an unknown option, format themselves.
        if hasattr(error, "format_message"):
            message = _of_value(error) or error.format_message()
            if not message:  # no command was given, and the help is shown
                raise SystemExit(2) from None
            fail(message.rstrip(".") + _hint(message, error))
        from pellucid.runtime.memory import ran_out, wanted

        if ran_out(error):
            fail(
                f"there is not enough memory for this{wanted(error)}; try a smaller size or count, or "
                "--dtype bfloat16"
            )
        raise


def _of_value(error: Exception) -> str | None:
    """The message about a number of an option that is none, in the words of all other messages."""
    cause, names = error.__cause__, getattr(getattr(error, "param", None), "opts", ())
    if not isinstance(cause, ValidationError) or not names:
        return None
    return messages.of_value(cause, max(names, key=len))


def _hint(message: str, error: Exception) -> str:
    """An addition to the message of a command line that cannot be parsed."""
    if message.endswith("?"):  # it already suggests another command
        return ""
    if "extra argument" in message:
        return "; quote a text of several words"
    context = getattr(error, "ctx", None)
    return "" if context is None else f"; see `{context.command_path} --help`"


def _sentence(error: ValueError) -> str:
    """The message; a request's fields are named by their options."""
    if isinstance(error, ValidationError):
        return messages.sentence(error, Request, option_of)
    return messages.text_of(error)

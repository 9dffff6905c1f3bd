"""The log of a server on stderr: a line for each event, as text or as JSON."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Literal

_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


class Formatter(logging.Formatter):
    """A record with its extra fields; nothing in it can begin a line of its own."""

    def __init__(self, form: Literal["text", "json"]) -> None:
        super().__init__()
        self.form = form

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields = {
            name: value
            for name, value in vars(record).items()
            if name not in _PLAIN and name[0] != "_"  # Ray adds one of these to all records
        }
        known = {"time": f"{at}Z", "level": record.levelname.lower(), "event": record.getMessage()}
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        if self.form == "json":
            return json.dumps(known | fields, default=str)
        pairs = " ".join(
            f"{name}={json.dumps(value, default=str)}" for name, value in fields.items()
        )
        event = json.dumps(known["event"])[1:-1]
        return " ".join(part for part in (known["time"], known["level"], event, pairs) if part)


def configure(form: Literal["text", "json"]) -> None:
    """Send the log of the server and of uvicorn to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter(form))
    for name in ("pellucid.serve", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)

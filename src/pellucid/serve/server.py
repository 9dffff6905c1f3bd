"""Running the application with uvicorn: where it listens, and how it stops."""

from __future__ import annotations

import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from pellucid.serve import logs
from pellucid.serve.app import application
from pellucid.serve.configuration import Configuration
from pellucid.serve.engine import Engine
from pellucid.serve.safety import is_loopback, token_of

CONNECTIONS = 1000
"""Requests at once; more get 503."""


class Server(uvicorn.Server):
    """Streams that never end by themselves end as soon as a signal comes."""

    def __init__(self, config: uvicorn.Config, engine: Engine) -> None:
        super().__init__(config)
        self.engine = engine

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came."""
        self.engine.stop_soon()
        super().handle_exit(sig, frame)


def run(
    configuration: Configuration, say: Callable[[str], None], warn: Callable[[str], None]
) -> None:
    """Serve until a signal comes. say: gets the address. warn: what the user should know.

    ValueError: an address that cannot be had, a data folder in use.
    """
    logs.configure(configuration.log)
    with bound(configuration) as listening:
        engine = Engine(configuration)
        token = token_of(configuration)
        config = uvicorn.Config(
            application(engine, token),
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=round(configuration.stop_seconds) + 5,
            limit_concurrency=CONNECTIONS,
        )
        port = listening.getsockname()[1]
        host = f"[{configuration.host}]" if ":" in configuration.host else configuration.host
        address = f"http://{host}:{port}/"
        say(address if token is None else f"{address}login?token={token}")
        if not is_loopback(configuration.host):
            warn("the connection is not encrypted; put a server with TLS in front of it")
        Server(config, engine).run([listening])


def bound(configuration: Configuration) -> socket.socket:
    """The socket that listens. ValueError: the address cannot be had."""
    host, port = configuration.host, configuration.port
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family, backlog=1024)
        # Its connections have this too. Without it the end of a reply can wait 40 ms for the client.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except OSError as error:
        raise ValueError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None

"""What every request has to pass: the Host and Origin headers, the token, the size of the body.

A page on another site can make a browser send requests to this server, also by giving its own name
this machine's address (DNS rebinding). Such requests have a foreign Host or Origin.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import logging
import secrets
import socket
import time
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pellucid.files import write_text
from pellucid.serve.configuration import Configuration

log = logging.getLogger("pellucid.serve.access")

COOKIE = "pellucid_token"
OPEN = ("/healthz", "/readyz", "/login")
"""Paths that need no token; /login checks it."""
BODY_SECONDS = 60.0
"""How long a client may take to send its request."""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "connect-src 'self'; font-src 'self'; frame-src 'self'; manifest-src 'self'; "
        "form-action 'none'; base-uri 'none'; frame-ancestors 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}

Refuse = Callable[[str, int, str], Response]
"""The reply to a request that is refused: path, status, message."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def token_of(configuration: Configuration) -> str | None:
    """The token that clients must send; None: none is needed.

    One that is made is kept in the data folder, where only its owner reads it.
    """
    if configuration.token is not None or is_loopback(configuration.host):
        return configuration.token
    path = configuration.data / "token"
    try:
        return path.read_text("ascii").strip() or _new_token(path)
    except FileNotFoundError:
        return _new_token(path)


def _new_token(path: Path) -> str:
    token = secrets.token_urlsafe(24)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_text(path, token)
    path.chmod(0o600)
    return token


class Guard:
    """Refuses what is not allowed, adds the headers of `HEADERS`, logs each request and reports it to
    `replied`."""

    def __init__(
        self,
        app: ASGIApp,
        configuration: Configuration,
        token: str | None,
        refuse: Refuse,
        replied: Callable[[str, int], None] = lambda method, status: None,
    ) -> None:
        self.replied = replied
        self.app, self.refuse, self.token = app, refuse, token
        self.limit = configuration.body_limit
        self.origins = frozenset(configuration.origins)
        names = {"localhost", configuration.host, *configuration.names}
        if not is_loopback(configuration.host):
            names.add(socket.gethostname())
        self.names = {name.lower() for name in names}  # as the host name of a parsed URL

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, id = time.monotonic(), 0, secrets.token_hex(8)

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers["X-Request-Id"] = id
                if "accept-ranges" in headers:
                    headers["Accept-Ranges"] = "none"
            await send(message)

        refused = self.check(scope)
        # No client needs a part of a file, and thousands of parts of one would be much work.
        scope["headers"] = [each for each in scope["headers"] if each[0] != b"range"]
        try:
            if refused is not None:
                await refused(scope, receive, sending)
            else:
                await self.app(scope, _Body(receive, self.limit), sending)
        finally:
            self.replied(scope["method"], status)
            log.info(
                "request",
                extra={
                    "request": id,
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "seconds": round(time.monotonic() - began, 4),
                },
            )

    def check(self, scope: Scope) -> Response | None:
        """The reply to a request that is refused before its body is read."""
        path, headers = scope["path"], Headers(scope=scope)
        host = headers.get("host", "")
        if not self.knows(host):
            return self.refuse(
                path, 403, f"the host name {host[:80]!r} is not one of this server's"
            )
        foreign = self.is_foreign(headers, scope["method"])
        if foreign is not None:
            return self.refuse(path, 403, foreign)
        if self.token is not None and path not in OPEN and not self.has_token(headers):
            reply = self.refuse(path, 401, "a token is required: Authorization: Bearer TOKEN")
            reply.headers["WWW-Authenticate"] = "Bearer"
            return reply
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit():
            return self.refuse(path, 400, "Content-Length must be a number")
        if int(length[:20]) > self.limit:
            return self.refuse(path, 413, f"a request must have at most {self.limit:,} bytes")
        return None

    def is_foreign(self, headers: Headers, method: str) -> str | None:
        """Why a browser's request is refused that a page of another origin made; None: it did not."""
        origin = headers.get("origin")
        if origin is not None:
            host = origin.partition("://")[2]
            own = origin in self.origins or (host != "" and host == headers.get("host"))
            return None if own else "requests from pages of other origins are not allowed"
        followed = headers.get("sec-fetch-mode") == "navigate" and method == "GET"  # a link
        if headers.get("sec-fetch-site") == "cross-site" and not followed:
            return "requests from pages of other sites are not allowed"
        return None

    def knows(self, host: str) -> bool:
        """Whether a Host header names this server: one of its names, or an address, which no foreign
        page can have."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self.names
        return True

    def has_token(self, headers: Headers) -> bool:
        """Whether the token is there: as a bearer token, the password of basic authentication, or a
        cookie."""
        kind, _, value = headers.get("authorization", "").partition(" ")
        given = value.strip() if kind.lower() == "bearer" else ""
        if kind.lower() == "basic":
            try:
                given = base64.b64decode(value, validate=True).decode().partition(":")[2]
            except (binascii.Error, ValueError):
                given = ""
        if not given:
            try:
                cookies = SimpleCookie(headers.get("cookie", ""))
                given = cookies[COOKIE].value if COOKIE in cookies else ""
            except CookieError:
                given = ""
        assert self.token is not None
        return secrets.compare_digest(given.encode(), self.token.encode())


class _Body:
    """Reads a body up to a size, and in a limited time; later messages take as long as they do."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self.receive, self.limit = receive, limit
        self.size, self.more = 0, True
        self.deadline = time.monotonic() + BODY_SECONDS

    async def __call__(self) -> Message:
        if not self.more:
            return await self.receive()
        try:
            async with asyncio.timeout(max(0.0, self.deadline - time.monotonic())):
                message = await self.receive()
        except TimeoutError:
            raise HTTPException(408, "the request took too long to arrive") from None
        self.size += len(message.get("body", b""))
        self.more = message.get("more_body", False)
        if self.size > self.limit:
            raise HTTPException(413, f"a request must have at most {self.limit:,} bytes")
        return message

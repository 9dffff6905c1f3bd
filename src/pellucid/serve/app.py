"""The whole server as one ASGI application: the interfaces, the studio, health, behind the guard."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib import resources

from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as Call
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from pellucid import plugins
from pellucid.serve import apis, documents
from pellucid.serve.engine import Engine
from pellucid.serve.metrics import CONTENT_TYPE, Metrics
from pellucid.serve.replies import Problem, reply
from pellucid.serve.safety import COOKIE, Guard


def interfaces(engine: Engine) -> dict[str, FastAPI]:
    """Every interface in apis/, by the path that it is under."""
    found = plugins.discover(apis.__name__).values()
    return {module.PREFIX: module.interface(engine) for module in found}


def application(engine: Engine, token: str | None = None) -> ASGIApp:
    """The server of an engine, which it starts and stops. token: what clients must send, if
    anything."""
    shapes = {module.PREFIX: module.shape for module in plugins.discover(apis.__name__).values()}
    mounted = interfaces(engine)
    docs = documents.page(mounted)

    def refuse(path: str, status: int, message: str) -> Response:
        shape = next((s for prefix, s in shapes.items() if path.startswith(f"{prefix}/")), None)
        if shape is None:
            return PlainTextResponse(f"{message}\n", status)
        return reply(Problem(status, message), shape)

    metrics = Metrics(engine)
    routes: list[BaseRoute] = [
        Route("/metrics", lambda call: Response(metrics.text(), media_type=CONTENT_TYPE)),
        Route("/docs", lambda call: HTMLResponse(docs, headers=DOCS_HEADERS)),
        *health(engine),
        *(Mount(prefix, app) for prefix, app in mounted.items()),
        *studio(token),
    ]
    app: ASGIApp = Starlette(routes=routes, lifespan=_lifespan(engine, metrics))
    app = Guard(app, engine.configuration, token, refuse, metrics.replied)
    if engine.configuration.origins:
        app = CORSMiddleware(
            app, engine.configuration.origins, allow_methods=["*"], allow_headers=["*"]
        )
    return app


DOCS_HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}


def _lifespan(
    engine: Engine, metrics: Metrics
) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def life(app: Starlette) -> AsyncIterator[None]:
        with engine.watch(metrics.take):
            engine.start()
            yield
            await run_in_threadpool(engine.stop)

    return life


def health(engine: Engine) -> list[Route]:
    """/healthz: the server answers. /readyz: it accepts jobs, and its workers are there."""

    async def healthz(call: Call) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(call: Call) -> Response:
        ready = engine.ready
        return PlainTextResponse("ready\n" if ready else "not ready\n", 200 if ready else 503)

    return [Route("/healthz", healthz), Route("/readyz", readyz)]


def studio(token: str | None) -> list[BaseRoute]:
    """The web page, where it is installed; /login?token=... lets a browser in."""

    async def login(call: Call) -> Response:
        answer = RedirectResponse("/", 303)
        if token is not None:
            given = call.query_params.get("token", "")
            if not secrets.compare_digest(given.encode(), token.encode()):
                return PlainTextResponse("the token is not right\n", 401)
            answer.set_cookie(COOKIE, token, httponly=True, samesite="strict", max_age=30 * 86400)
        return answer

    routes: list[BaseRoute] = [Route("/login", login)]
    folder = resources.files("pellucid") / "studio"
    if folder.is_dir():
        routes.append(Mount("/", StaticFiles(directory=str(folder), html=True)))
    else:
        routes.append(Route("/", lambda call: RedirectResponse("/docs")))
    return routes

"""The engine's events for asynchronous code, and as a stream of server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import Request as Call
from fastapi.concurrency import run_in_threadpool

from pellucid.serve.engine import Engine, Event
from pellucid.serve.queue import ENDED, Job

HELD = 1000
"""Events that wait for a slow client; steps beyond these are left out, nothing else."""
BEAT = 15.0
"""Seconds without an event after which a stream sends a comment, which keeps the connection open."""


@asynccontextmanager
async def watching(engine: Engine, id: str | None = None) -> AsyncIterator[asyncio.Queue[Event]]:
    """The events of a job, or of all, as they come. The server's stop is among them."""
    loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

    def put(event: Event) -> None:
        if event.kind != "step" or events.qsize() < HELD:
            events.put_nowait(event)

    def take(event: Event) -> None:
        if id is None or event.kind in ("queue", "stopping") or event.id == id:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(put, event)

    with engine.watch(take):
        if engine.stopping:
            put(Event("stopping"))
        yield events


async def ended(engine: Engine, id: str) -> Job | None:
    """The job when it has ended; None: the server stops, or the job was deleted."""
    async with watching(engine, id) as events:
        job = await run_in_threadpool(engine.queue.job, id)
        while job is not None and job.state not in ENDED:
            event = await events.get()
            if event.kind == "stopping":
                job = await _at_the_end(engine, id, events)
            elif event.kind in ("job", "deleted"):
                job = event.job or await run_in_threadpool(engine.queue.job, id)
        return job


async def _at_the_end(engine: Engine, id: str, events: asyncio.Queue[Event]) -> Job | None:
    """The job if it still ends while the server stops."""
    with suppress(TimeoutError):
        async with asyncio.timeout(engine.configuration.stop_seconds):
            while (await events.get()).kind not in ("job", "deleted"):
                pass
    job = await run_in_threadpool(engine.queue.job, id)
    return job if job is not None and job.state in ENDED else None


async def ended_or_left(engine: Engine, id: str, call: Call) -> Job | None:
    """As `ended`; a client that goes away cancels its job."""
    job, left = asyncio.create_task(ended(engine, id)), asyncio.create_task(_left(call))
    try:
        await asyncio.wait((job, left), return_when=asyncio.FIRST_COMPLETED)
        if not job.done():
            await run_in_threadpool(engine.leave, id)
        return await job
    except asyncio.CancelledError:
        engine.leave(id)  # at once: what is cancelled can await nothing more
        raise
    finally:
        for task in (job, left):
            task.cancel()


async def _left(call: Call) -> None:
    while (await call.receive())["type"] != "http.disconnect":
        pass


def written(kind: str, data: Any) -> bytes:
    """One server-sent event."""
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode()

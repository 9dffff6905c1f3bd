"""The HTTP interfaces are files, each found by itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from pellucid.serve import apis
from pellucid.serve.app import application
from pellucid.serve.engine import Engine

INTERFACE = '''
"""One operation: draw a picture, and say how it ended."""

from fastapi import FastAPI
from fastapi import Request as Call
from fastapi.concurrency import run_in_threadpool

from pellucid.request import Request
from pellucid.serve import events
from pellucid.serve.acceptance import Asked
from pellucid.serve.replies import answer_errors

PREFIX = "/plain"


def shape(problem):
    return problem.message


def interface(engine):
    app = FastAPI(title="Plain", description="One operation.")
    answer_errors(app, shape)

    @app.post("/draw")
    async def draw(call: Call, prompt: str, steps: int = 1):
        """Draw a picture."""
        asked = Asked(Request(prompt=prompt, steps=steps), api="plain")
        (job,) = await run_in_threadpool(engine.submit, asked)
        ended = await events.ended_or_left(engine, job.id, call)
        return {"state": ended.state, "pictures": [each.picture for each in ended.pictures]}

    return app
'''


def test_an_interface_is_one_new_file(
    running: TestClient, engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It draws, has its own shape of errors, also for what the guard refuses, and is listed."""
    (tmp_path / "plain.py").write_text(INTERFACE)
    monkeypatch.setattr(apis, "__path__", [*apis.__path__, str(tmp_path)])
    try:
        client = TestClient(application(engine, "a token"), raise_server_exceptions=False)
        assert client.post("/plain/draw").json().startswith("a token is required")
        client.headers["Authorization"] = "Bearer a token"
        made = client.post("/plain/draw", params={"prompt": "a rabbit"}).json()
        assert made["state"] == "done" and engine.pictures.path(made["pictures"][0]) is not None
        refused = client.post("/plain/draw", params={"prompt": "a rabbit", "steps": 0})
        assert refused.status_code == 422
        assert refused.json() == "steps must be between 1 and 1000, got 0"
        assert "POST /plain/draw" in client.get("/docs").text
    finally:
        vars(apis).pop("plain", None)
        sys.modules.pop(f"{apis.__name__}.plain", None)

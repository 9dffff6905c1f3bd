"""Whatever fits the OpenAPI documents, and whatever nearly does, gets an answer and no internal error.

SCHEMA_CASES=1000 python -m pytest tests/serve/test_schema.py     the long run, 1,000 for each interface
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from sending import LONG
from starlette.testclient import TestClient

from pellucid.serve.app import interfaces
from pellucid.serve.engine import Engine

CASES = int(os.environ.get("SCHEMA_CASES", "25"))
ENDLESS = ("/events",)
"""Streams that end only when the server stops."""
SMALL = {"step_limit": 3, "count_limit": 2, "pixel_limit": 32 * 32}


@pytest.mark.parametrize("prefix", ["/api", "/v1", "/sdapi/v1"])
def test_no_internal_error(
    prefix: str,
    client: TestClient,
    engine: Engine,
    address: str,
    drawn: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = engine.acceptance.limits.model_copy(update=SMALL)
    monkeypatch.setattr(engine.acceptance, "limits", limits)
    job = drawn({"prompt": "a rabbit", "seed": 1})
    ids = {"jobs": job["id"], "pictures": job["pictures"][0]["id"]}
    document = interfaces(engine)[prefix].openapi()
    schema = schemathesis.openapi.from_dict(document)
    operations = [each.ok() for each in schema.get_all_operations()]
    operations = [each for each in operations if each.path not in ENDLESS]
    kinds = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    seen: dict[str, set[int]] = {each.label: set() for each in operations}

    @settings(
        max_examples=CASES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def answered(data: st.DataObject) -> None:
        operation = data.draw(st.sampled_from(operations))
        case = data.draw(operation.as_strategy(generation_mode=data.draw(st.sampled_from(kinds))))
        known = ids.get(operation.path.split("/")[1])
        if "id" in (case.path_parameters or {}) and known and data.draw(st.booleans()):
            case.path_parameters["id"] = known
        try:
            reply = case.call(base_url=address + prefix, timeout=LONG)
        finally:
            engine.paused = False
        seen[operation.label].add(reply.status_code)
        assert reply.status_code < 500, (case.as_curl_command(), reply.text)

    answered()
    assert any(status < 300 for statuses in seen.values() for status in statuses)

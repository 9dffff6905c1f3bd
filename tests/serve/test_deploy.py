"""What is in deploy/ fits the command, and the Dockerfile is without a finding of hadolint."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text("utf-8")


def printed(call: Any, words: list[str]) -> dict[str, Any]:
    """The settings of a server."""
    status, out, _ = call(*words[1:], "--print-config")
    assert status == 0
    found: dict[str, Any] = json.loads(out)
    return found


def test_the_unit_starts_the_server(call: Any) -> None:
    unit = (DEPLOY / "pellucid.service").read_text("utf-8")
    (start,) = re.findall(r"^ExecStart=(.*)", unit, re.MULTILINE)
    settings = printed(call, shlex.split(start))
    assert (settings["data"], settings["log"]) == ("/var/lib/pellucid", "json")
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)", unit, re.MULTILINE)
    assert int(seconds) > settings["stop_seconds"] + 5  # else a graceful stop is cut short


def test_the_image_starts_the_server(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in re.findall(r"(PELLUCID_\w+)=(\S+)", DOCKERFILE):
        monkeypatch.setenv(name, value)
    (start,) = re.findall(r"^ENTRYPOINT (.*)", DOCKERFILE, re.MULTILINE)
    settings = printed(call, json.loads(start))
    assert (settings["host"], settings["port"]) == ("0.0.0.0", 7860)
    assert (settings["data"], settings["models"]) == ("/data", ["/models"])


def test_the_image_has_what_it_copies() -> None:
    kept = (DEPLOY.parent / ".dockerignore").read_text("utf-8").split("\n")
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
    for name in " ".join(copied).split():
        assert (DEPLOY.parent / name).exists() and f"!{name}" in kept, name


def test_the_dockerfile_has_no_finding() -> None:
    program = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("hadolint is not installed")
    found = subprocess.run(
        [program, DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout) == (0, "")

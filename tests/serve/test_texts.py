"""The examples of the texts for programs, run against a server."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

DOCS = Path(__file__).parents[2] / "docs"
TEXTS = ("native_api.md", "serving.md")


def examples(kind: str) -> list[str]:
    """The examples of a language that speak to a server."""
    found = [
        block
        for text in TEXTS
        for block in re.findall(
            rf"^```{kind}\n(.*?)^```", (DOCS / text).read_text("utf-8"), re.M | re.S
        )
    ]
    return [block for block in found if ":7860" in block or "port=7860" in block]


@pytest.mark.parametrize("number", range(3))
def test_an_example_in_python_draws_a_picture(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    code = examples("python")
    assert len(code) == 3
    monkeypatch.chdir(tmp_path)
    code = [each.replace("7860", address.rpartition(":")[2]).replace("256", "16") for each in code]
    exec(code[number], {})
    with Image.open("rabbit.png") as image:
        assert image.size > (0, 0)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_lines_with_curl_get_replies(address: str, tmp_path: Path) -> None:
    environment, seen = dict(os.environ), set()
    for line in "".join(examples("sh")).replace("\\\n", " ").splitlines():
        words = line.replace("localhost:7860", address.removeprefix("http://")).partition("  #")[0]
        if not words.startswith("curl"):
            continue
        done = subprocess.run(
            ["bash", "-c", words.replace("curl ", "curl --fail-with-body ", 1)],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=environment,
        )
        assert done.returncode == 0, (words, done.stdout)
        seen.add(re.findall(r"localhost:7860(/\w+/?\w+)", line)[0])
        if done.stdout.startswith("{"):
            reply = json.loads(done.stdout)
            environment["ID"] = reply.get("id", environment.get("ID", ""))
            if reply.get("pictures"):
                environment["PICTURE"] = reply["pictures"][0]["id"]
    assert {"/api/jobs", "/api/pictures", "/v1/images", "/v1/models", "/sdapi/v1"} <= seen
    with Image.open(tmp_path / "rabbit.png") as image:
        assert image.format == "PNG"

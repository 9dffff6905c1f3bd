"""The page at /docs: the operations of each interface, from its OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from fastapi import FastAPI

STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
code{font-family:ui-monospace,monospace}dt{margin-top:.8rem}dd{margin-left:1.5rem}"""


def page(interfaces: Mapping[str, FastAPI]) -> str:
    """The page. interfaces: by the path that they are under."""
    parts = []
    for prefix, app in interfaces.items():
        document = app.openapi()
        title = escape(document["info"]["title"])
        parts.append(
            f'<h2>{title}</h2><p>{escape(app.description)} <a href="{prefix}/openapi.json">'
            f"{prefix}/openapi.json</a></p><dl>"
        )
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                name = f"{method.upper()} {prefix}{path}"
                words = operation.get("description", operation.get("summary", ""))
                parts.append(f"<dt><code>{escape(name)}</code></dt><dd>{escape(words)}</dd>")
        parts.append("</dl>")
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Pellucid: interfaces</title>'
        f"<style>{STYLE}</style><h1>Interfaces</h1>{''.join(parts)}</html>"
    )

"""What a merged model's file says of how it was made."""

from __future__ import annotations

import json
from typing import Any

from pellucid.checkpoints.weights import CheckpointSource

ENTRY = "pellucid_merge"
"""Its metadata entry: JSON with `method`, `shares` by part, and `models`, each with `name`, `path` and
`sha256`."""


def said(source: CheckpointSource) -> dict[str, Any]:
    """The recipe in words, for `describe`; {} if the file has none, or one that cannot be read."""
    try:
        recipe = json.loads(source.metadata[ENTRY])
        models = ", ".join(str(model["path"]) for model in recipe["models"])
        shares = "; ".join(
            f"{part} {', '.join(f'{share:g}' for share in shares)}"
            for part, shares in recipe["shares"].items()
        )
        return {"merged": f"{recipe['method']} of {models}; shares: {shares}"}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}

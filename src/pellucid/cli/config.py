"""``pellucid config``: the settings, and where each came from."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from pellucid.cli._app import app, report, show, show_json
from pellucid.settings import OF_SERVE, load_settings


@app.command()
def config(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show your settings: each value, and whether the file or the environment gave it.

    The file is config.toml in the platform's folder for settings, or the file that the environment
    variable PELLUCID_CONFIG names. The variable PELLUCID_MODELS sets `models`, and so on; options
    take precedence over variables, and variables over the file.
    """
    found = load_settings()

    values = found.settings.model_dump(mode="json", exclude={"defaults"})
    values["defaults"] = {
        name: table.model_dump(mode="json", exclude_unset=True)
        for name, table in found.settings.defaults.items()
    }
    if as_json:
        rows = {n: {"value": v, "from": found.origins[n]} for n, v in values.items()}
        facts = {"file": str(found.file), "exists": found.file.exists(), "settings": rows}
        show_json(json.dumps(facts, indent=1))
        return
    show(f"{found.file}{'' if found.file.exists() else ' (does not exist)'}")
    tables = {"serve": values.pop("serve")} if values["serve"] else {}
    tables |= {f"defaults of {name}": table for name, table in values.pop("defaults").items()}
    values.pop("serve", None)
    width = max(map(len, values))
    for name, value in values.items():
        text = "the included one" if value is None else value
        show(f"{name:<{width}}  {text}  ({found.origins[name]})")
    for name, table in tables.items():
        shown = ", ".join(f"{field} {json.dumps(value)}" for field, value in table.items())
        show(f"{name}: {shown or 'none'}")
    for variable in (each for each in found.unused if not each.startswith(OF_SERVE)):
        report(f"the environment variable {variable} is not a setting")

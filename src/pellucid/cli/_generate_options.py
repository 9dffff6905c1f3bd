"""The options of ``pellucid generate`` that are not fields of a request."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pellucid.cli._complete import completion_of
from pellucid.cli._files import OUTPUTS, OVERWRITE
from pellucid.request.fields import MODEL, OUTPUT


def _in_panel(panel: str, help: str, *flags: str) -> Any:
    return typer.Option(*flags, help=help, rich_help_panel=panel)


def _presets() -> list[str]:
    from pellucid import presets

    return presets.names()


PresetName = Annotated[
    str | None,
    typer.Option(
        help="Recommended settings of a few-step model (lcm, turbo, lightning, hyper, ...). "
        "Other options override them.",
        autocompletion=completion_of(_presets),
    ),
]
Prompts = Annotated[
    str | None,
    typer.Option(
        help="A file with a prompt, or JSON with fields of a request, in each line; - is stdin.",
        metavar="FILE",
    ),
]
Ray = Annotated[
    bool, typer.Option("--ray", help="Spread the lines of --prompts over a Ray cluster.")
]
Dynamic = Annotated[
    bool,
    typer.Option(
        "--dynamic", help="Draw variations: {red|blue}, 2$$ of them, __animal__ from a list."
    ),
]
LiveLora = Annotated[
    bool, _in_panel(MODEL, "Add LoRAs at every step: slower, less memory.", "--live-lora")
]
Out = Annotated[
    str | None,
    _in_panel(
        OUTPUT,
        "A folder, or a file that ends in .png, .jpg or .webp. Default: the folder of your "
        f"settings, else {OUTPUTS}.",
    ),
]
Name = Annotated[
    str | None,
    _in_panel(OUTPUT, "Names of pictures in the folder, such as {date}/{seed}-{prompt}.", "--name"),
]
Resume = Annotated[
    bool,
    _in_panel(OUTPUT, "Leave out pictures that the folder has: with the same record.", "--resume"),
]
Overwrite = Annotated[bool, _in_panel(OUTPUT, OVERWRITE, "--overwrite")]
Grid = Annotated[bool, _in_panel(OUTPUT, "Also write all pictures side by side as one.", "--grid")]
Film = Annotated[
    bool, _in_panel(OUTPUT, "Also write all steps, as a strip and as a film.", "--film")
]
Preview = Annotated[
    str, _in_panel(OUTPUT, "How a film shows a step: linear, tiny, vae; auto is a fast one.")
]
Show = Annotated[bool, _in_panel(OUTPUT, "Also draw the pictures in the terminal.", "--show")]
AsJson = Annotated[bool, _in_panel(OUTPUT, "Results as JSON on stdout.", "--json")]

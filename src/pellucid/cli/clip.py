"""``pellucid clip``: the similarity of pictures and texts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pellucid.cli._app import app, report
from pellucid.cli._model import ModelFile, Vae, open_parts
from pellucid.cli._page import AsJson, Out, Overwrite, deliver, page_output
from pellucid.files import read_text

if TYPE_CHECKING:
    from pellucid.model import Model


@app.command()
def clip(
    pictures: Annotated[
        list[Path], typer.Argument(help="One or more pictures.", metavar="PICTURE...")
    ],
    text: Annotated[
        list[str] | None, typer.Option(help="A text to compare; repeatable.", metavar="TEXT")
    ] = None,
    words: Annotated[
        str,
        typer.Option(
            help="Where the nearest words are looked for: concepts (those of the emoji), vocabulary "
            "(of the tokenizer), or a file with a word in each line."
        ),
    ] = "concepts",
    model: ModelFile = None,
    vae: Vae = None,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Explain CLIP: the similarity of pictures and texts, and each picture's nearest words."""
    from pellucid.images.load import open_image

    output = page_output(out, as_json, overwrite)
    named = [(picture.name, open_image(picture)) for picture in pictures]
    listed = None if words in ("concepts", "vocabulary") else _listed(words)

    from pellucid.explain.clip import compare_pictures
    from pellucid.explain.parts_page import similarity_html

    loaded = open_parts(model, vae)
    pairs: list[tuple[str, str]] = []
    if listed is None:
        listed, pairs = _known(words, loaded)
    found = compare_pictures(loaded, named, text or [], listed, pairs)
    for given, end in zip(found.texts, found.left_out, strict=True):
        if end:
            report(f"{given[:40]!r} is too long for {found.model}; left out: {end[:40]!r}")
    deliver(found, lambda: similarity_html(found), output, f"{pictures[0].stem}-clip", as_json)


def _known(source: str, model: Model) -> tuple[list[str], list[tuple[str, str]]]:
    """The words to search, and pairs of names for one thing where they are known."""
    if source == "vocabulary":
        return model.tokenizer.whole_words(), []
    from pellucid.data.emoji import phrases

    return phrases()


def _listed(source: str) -> list[str]:
    """The words of a file."""
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"--words must be concepts, vocabulary or a file of words, got {source!r}")
    lines = read_text(path).split("\n")
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise ValueError(f"{source} contains no words; write a word in each line")
    return found

"""``pellucid clip``: how near pictures and texts are to each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pellucid.cli._app import app, tell
from pellucid.cli._model import ModelFile, Vae, open_parts
from pellucid.cli._page import JSON_HELP, OUT_HELP, deliver, page_path

if TYPE_CHECKING:
    from pellucid.model import Model


@app.command()
def clip(
    pictures: Annotated[list[Path], typer.Argument(help="One or more pictures.")],
    text: Annotated[list[str] | None, typer.Option(help="A text to compare; repeatable.")] = None,
    words: Annotated[
        str,
        typer.Option(
            help="Where the nearest words are looked for: concepts (those of the emoji), "
            "vocabulary (of the tokenizer), or a file with one on each line."
        ),
    ] = "concepts",
    model: ModelFile = None,
    vae: Vae = None,
    out: Annotated[Path | None, typer.Option(help=OUT_HELP)] = None,
    as_json: Annotated[bool, typer.Option("--json", help=JSON_HELP)] = False,
) -> None:
    """A page of how like each other pictures and texts are, and of each picture's nearest words."""
    from pellucid.explain import parts_page as page
    from pellucid.explain.clip import look
    from pellucid.images.load import open_image

    path = page_path(out, as_json, pictures[0], "clip")
    opened = [(picture.name, open_image(picture)) for picture in pictures]
    loaded = open_parts(model, vae)
    found = look(loaded, opened, text or [], _words(words, loaded))
    for said, end in zip(found.texts, found.left_out, strict=True):
        if end:
            tell(f"{said[:40]!r} is too long for {found.model}; left out is {end[:40]!r}")
    deliver(found, lambda: page.similarity_html(found), path, as_json)


def _words(source: str, model: Model) -> list[str]:
    if source == "vocabulary":
        return model.tokenizer.whole_words()
    if source == "concepts":
        from pellucid.data.emoji import concept_names, with_article

        return [with_article(name) for name in concept_names()]
    path = Path(source)
    if not path.is_file():
        raise ValueError(
            f"--words is {source!r}; concepts, vocabulary or a file of words is wanted"
        )
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{source} is not a text file; one word on each line is wanted") from None
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise ValueError(f"{source} has no words in it; one word on each line is wanted")
    return found

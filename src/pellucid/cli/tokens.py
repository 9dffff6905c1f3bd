"""``pellucid tokens``: how a prompt is read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from pellucid.cli._app import app, report, show, show_json
from pellucid.cli._like import with_own_embeddings
from pellucid.cli._model import ModelFile, Vae, open_parts
from pellucid.cli._options import takes_request


@app.command()
@takes_request("embeddings", "steps", "seed")
def tokens(
    asked: dict[str, Any],
    prompt: Annotated[str, typer.Argument(help="A prompt, as for generate.")],
    model: ModelFile = None,
    vae: Vae = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show the tokens of a prompt: their numbers and weights, their chunks, the steps that use them."""
    from pellucid import checkpoints
    from pellucid.conditioning import reading
    from pellucid.plan import prompt_warnings
    from pellucid.request import Request, resolve
    from pellucid.textual_inversion import with_words

    request = with_own_embeddings(Request(prompt=prompt, **asked))
    loaded = open_parts(model, vae)
    skipped: list[str] = []
    loaded = with_words(loaded, checkpoints.load_embeddings(request.embeddings, loaded, skipped))
    resolved = resolve(loaded, request)
    for warning in (*skipped, *prompt_warnings(loaded, resolved, [resolved.steps])):
        report(warning)
    seeded = request.seed not in (None, -1)
    facts = {"model": loaded.name} | reading(loaded.tokenizer, resolved, seeded)
    if as_json:
        show_json(json.dumps(facts, indent=1))
        return
    for line in _lines(facts):
        show(line)
    if resolved.open_styles and not seeded:
        styles = ", ".join(resolved.open_styles)
        show(f"each seed adds one of the styles {styles} to it; --seed N shows that of seed N")


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    yield f"{facts['model']} reads {facts['chunk_size']} tokens at a time; {facts['steps']} steps"
    for lora in facts["loras"]:
        weights = f"{lora['weight']:g} in the network, {lora['text_weight']:g} in the text towers"
        yield f"LoRA {lora['name']}: {weights}"
    for region in facts["regions"]:
        left, top, width, height = (region[name] for name in ("left", "top", "width", "height"))
        yield (
            f"region {left:.0%} to {left + width:.0%} across, {top:.0%} to {top + height:.0%} down: "
            f"{_shown(region['prompt'])}"
        )
    if facts["ground"] is not None:
        yield "painted behind it: #{:02x}{:02x}{:02x}".format(*facts["ground"])
    several = len(facts["prompts"]) > 1
    for number, prompt in enumerate(facts["prompts"], start=1):
        if several:
            yield f"\nprompt {number}, weight {prompt['weight']:g}"
        for reading in prompt["readings"]:
            if len(prompt["readings"]) > 1:
                spans = [f"{a}" if a == b else f"{a}-{b}" for a, b in reading["steps"]]
                yield f"\nsteps {', '.join(spans)}: {_shown(reading['text'].strip())}"
            yield f"{'chunk':>5}  {'id':>6}  {'weight':>7}  token"
            for chunk, own in enumerate(reading["chunks"], start=1):
                for token in own:
                    yield (
                        f"{chunk:>5}  {token['id']:>6}  {token['weight']:>7.4g}  "
                        f"{_shown(token['token'])}"
                    )
                if not own:
                    yield f"{chunk:>5}  {'':>6}  {'':>7}  (empty)"


def _shown(text: str) -> str:
    """A text on a terminal: with escapes where it holds what cannot be printed."""
    return text if text.isprintable() else repr(text)[1:-1]

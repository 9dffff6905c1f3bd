"""From prompts to what the network is told: chunks, weights, towers, and what changes on the way.

The network gets the vector of every token, for cross-attention, and one vector for the whole, which
joins the time embedding. A tower reads a row of tokens at a time; a longer prompt is cut into
chunks, which are read one by one and then stand behind each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Set
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.clip import TextTower
from pellucid.diffusion import Conditioning, normalized
from pellucid.guidance import interpolate
from pellucid.model import Emphasis, Model
from pellucid.prompt import each_step, parse, split_and, take_loras
from pellucid.request import Request
from pellucid.runtime import Runtime
from pellucid.tokenizer import Tokenizer

MAX_WEIGHT = 100.0
# A chunk of 75 tokens ends at a comma if one is among its last 20; a smaller one likewise.
COMMA_REACH = 20 / 75
# What SDXL's refiner is told of the beauty of the picture, and of what it is to keep away from.
SCORE, NEGATIVE_SCORE = 6.0, 2.5


# ---------------------------------------------------------------- tokens and chunks


class Token(NamedTuple):
    id: int
    text: str
    weight: float


def chunked(tokenizer: Tokenizer, prompt: str) -> list[list[Token]]:
    """The tokens of a prompt of one step, in chunks of at most context_length - 2; at least one.

    Raises ValueError for a weight that is not finite, or beyond `MAX_WEIGHT`.
    """
    chunks: list[list[Token]] = []
    later = {number for numbers in tokenizer.words.values() for number in numbers[1:]}
    for runs in parse(prompt):
        tokens: list[Token] = []
        for text, weight in runs:
            check_weight(text, weight)
            pieces = zip(tokenizer.encode(text), tokenizer.tokens(text), strict=True)
            tokens += [Token(number, piece, weight) for number, piece in pieces]
        chunks += _cut(tokens, tokenizer.context_length - 2, later)
    while len(chunks) > 1 and not chunks[-1]:  # BREAK at the end
        chunks.pop()
    return chunks


def long_prompt_warning(
    tokenizer: Tokenizer, prompt: str, steps: int, second: int = 0
) -> str | None:
    """How a prompt is read that is too long for one row of a tower; None of one that is not."""
    texts = {
        text
        for part, _ in split_and(take_loras(prompt)[0])
        for text in each_step(part, steps, second)
    }
    each = [chunked(tokenizer, text) for text in texts]
    chunks = max(each, key=lambda chunks: sum(map(len, chunks)), default=[])
    count, room = sum(map(len, chunks)), tokenizer.context_length - 2
    if count <= room:
        return None
    return (
        f"the prompt that begins with {prompt.strip()[:20]!r} has {count:,} tokens, and is read in "
        f"{len(chunks)} chunks of at most {room}"
    )


def check_weight(text: str, weight: float) -> None:
    """ValueError for a weight that is not finite, or beyond `MAX_WEIGHT`."""
    if not abs(weight) <= MAX_WEIGHT:
        raise ValueError(
            f"the weight of {text.strip()[:80]!r} is {weight:g}; a number from {-MAX_WEIGHT:g} to "
            f"{MAX_WEIGHT:g} is wanted"
        )


def _cut(tokens: Sequence[Token], room: int, later: Set[int]) -> Iterator[list[Token]]:
    """later: the numbers that stand for the second and further vectors of a word, which is not cut
    unless it is longer than a chunk."""
    start = 0
    while len(tokens) - start > room:
        end = start + room
        if tokens[end].text != ",":
            near = range(end - 1, end - 1 - int(COMMA_REACH * room), -1)
            end = next((i + 1 for i in near if tokens[i].text == ","), end)
        while tokens[end].id in later and end > start:
            end -= 1
        end = end if end > start else start + room
        yield list(tokens[start:end])
        start = end
    yield list(tokens[start:])


def rows(tokenizer: Tokenizer, chunks: Sequence[Sequence[Token]], pad: int) -> Tensor:
    """Chunks as rows of a tower: bos, the tokens, eos, `pad` ...; (N, context_length) int64."""
    ids = torch.full((len(chunks), tokenizer.context_length), pad, dtype=torch.int64)
    for row, chunk in zip(ids, chunks, strict=True):
        numbers = [tokenizer.bos, *(token.id for token in chunk), tokenizer.eos]
        row[: len(numbers)] = torch.tensor(numbers)
    return ids


# ---------------------------------------------------------------- through the towers


@torch.no_grad()
def encode_captions(
    text: TextTower, tokenizer: Tokenizer, captions: Sequence[str], words: bool = False
) -> Conditioning:
    """Captions as they stand, one row each: tokens (B, context_length, width), pooled (B, P).

    This is what a model is trained with. words: pooled is that of `model.TextEncoding`'s "words". What
    does not fit in the row is left out.
    """
    ids = tokenizer(captions).to(next(text.parameters()).device)
    out = text(ids)
    pooled = out.pooled if out.projected is None else out.projected
    if words:
        summed = sum_of_words(text, ids, torch.ones(ids.shape))
        pooled = torch.cat([pooled, F.layer_norm(summed, summed.shape[-1:])], dim=-1)
    return Conditioning(out.hidden, pooled)


def sum_of_words(tower: TextTower, ids: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of the vectors of what stands between bos and eos, (N, width).

    ids, weights: (N, L).
    """
    ends = (ids == tower.config.eos).int().argmax(dim=1, keepdim=True)
    places = torch.arange(ids.shape[1], device=ids.device)
    counts = weights.to(ids.device) * ((places > 0) & (places < ends))
    vectors = tower.text_model.embeddings.token_embedding(ids)  # (N, L, width)
    return (vectors * counts.to(vectors).unsqueeze(-1)).sum(dim=1)


@torch.no_grad()
def encode_prompts(
    runtime: Runtime,
    prompts: Sequence[str],
    clip_skip: int | None = None,
    emphasis: Emphasis | None = None,
) -> Conditioning:
    """Prompts of one step, of any length: tokens (B, L, width), pooled (B, P).

    Every prompt gets as many chunks as the longest has; the pooled text is that of the first one.
    clip_skip: the last layer that the tower was trained with (1), the one before (2), ...;
    emphasis: as in `model.TextEncoding`. None: as the model was trained.
    Raises ValueError for a layer that is not there, and for weights that `chunked` refuses.
    """
    model = runtime.model
    towers = [model.text] if model.text_2 is None else [model.text, model.text_2]
    reading = model.text_encoding
    layer = reading.layer if clip_skip is None else reading.left_out - clip_skip
    how = reading.emphasis if emphasis is None else emphasis
    layers = min(tower.config.layers for tower in towers)
    lowest, highest = 1 + reading.left_out, layers + reading.left_out
    if clip_skip is not None and not lowest <= clip_skip <= highest:
        without = f" (the last {reading.left_out} is left out)" if reading.left_out else ""
        raise ValueError(
            f"clip_skip is {clip_skip}; the text tower of {model.name} has {layers} layers"
            f"{without}, so a number from {lowest} to {highest} is wanted"
        )
    each = [chunked(model.tokenizer, prompt) for prompt in prompts]
    most = max(map(len, each))
    chunks = [chunk for own in each for chunk in [*own, *[[]] * (most - len(own))]]
    weights = weights_of(chunks, model.tokenizer.context_length)
    pads = reading.pads if reading.pads else (model.tokenizer.pad,) * len(towers)
    hidden, pooled = [], []
    for tower, pad in zip(towers, pads, strict=True):
        ids = rows(model.tokenizer, chunks, pad)
        out = runtime.encode_text(tower, ids, layer, reading.final_norm)
        hidden.append(emphasized(out.hidden, weights, how))
        whole = out.pooled if out.projected is None else out.projected
        pooled.append(whole[::most])  # of the first chunk
        if reading.pooled == "words":
            here = ids.to(out.pooled.device)
            summed = sum_of_words(tower, here, weights).unflatten(0, (-1, most)).sum(dim=1)
            pooled.append(F.layer_norm(summed, summed.shape[-1:]))
    tokens = torch.cat(hidden, dim=-1)  # (B * most, context_length, width)
    tokens = tokens.unflatten(0, (-1, most)).flatten(1, 2)  # (B, most * context_length, width)
    filled = max(reading.width - tokens.shape[-1], 0)
    tokens = F.pad(tokens, (0, filled, 0, reading.blank))
    return Conditioning(tokens, pooled[-1] if reading.pooled == "last" else torch.cat(pooled, -1))


def weights_of(chunks: Sequence[Sequence[Token]], length: int) -> Tensor:
    """The weight of every token, (N, length); 1 for bos, eos and padding."""
    weights = torch.ones(len(chunks), length)
    for row, chunk in zip(weights, chunks, strict=True):
        row[1 : len(chunk) + 1] = torch.tensor([token.weight for token in chunk])
    return weights


def emphasized(hidden: Tensor, weights: Tensor, emphasis: Emphasis) -> Tensor:
    """hidden (N, L, D), each token times its weight (N, L).

    "original" then brings each chunk's mean back to what it was, as A1111 does; "no_norm" does not.
    """
    weighted = hidden * weights.to(hidden).unsqueeze(-1)
    if emphasis == "no_norm":
        return weighted
    before, after = (x.float().mean((1, 2), keepdim=True) for x in (hidden, weighted))
    return weighted * torch.where(after == 0, 1.0, before / after).to(hidden)


# ---------------------------------------------------------------- on the way


class StepConditioning(NamedTuple):
    """What guidance is told at one step, each of a batch of 1; `uncond` is None if it needs none."""

    conds: list[tuple[Conditioning, float]]
    uncond: Conditioning | None

    def at_size(self, model: Model, width: int, height: int) -> StepConditioning:
        """The same with the size of the picture in pixels, where the backbone asks for that."""
        uncond = None if self.uncond is None else _sized(model, self.uncond, width, height, True)
        conds = [(_sized(model, cond, width, height, False), w) for cond, w in self.conds]
        return StepConditioning(conds, uncond)


def _sized(
    model: Model, cond: Conditioning, width: int, height: int, negative: bool
) -> Conditioning:
    """SDXL's size conditions: original size, top and left of the crop, target size; the refiner's
    fifth and last is a score of beauty (Podell et al. 2023, section 2.2)."""
    config: Any = getattr(model.backbone, "config", None)
    if not getattr(config, "size_conditions", False):
        return cond
    score = NEGATIVE_SCORE if negative else SCORE
    last = (score,) if config.size_count == 5 else (height, width)
    numbers = [height, width, 0, 0, *last]
    sizes = torch.tensor([numbers] * len(cond), dtype=torch.float32, device=cond.tokens.device)
    return replace(cond, sizes=sizes)


def conditioning_schedule(
    runtime: Runtime, request: Request, steps: int, second: int = 0
) -> list[StepConditioning]:
    """What is wanted and what is not at each of `steps`, and then of `second` steps.

    Mixed prompts are shares of 1; what AND joins is added up with its weights, and need not be 1.
    On a walk each is of a batch of `request.count`, image by image.
    Raises ValueError for weights that make no sense, and for AND with a mix of embeddings or a walk.
    """
    if steps + second == 0:
        return []
    prompts = [(request.prompt, 1.0), *request.mix]
    if request.walk is not None:
        prompts.append((request.walk, 1.0))
    shares = normalized([weight for _, weight in prompts])
    wanted: list[tuple[list[str], float]] = []
    for (prompt, _), share in zip(prompts, shares, strict=True):
        for text, weight in split_and(take_loras(prompt)[0]):
            check_weight(text, weight)
            wanted.append((each_step(text, steps, second), share * weight))
    weights = [weight for _, weight in wanted]
    if request.mix_by == "embedding" and len(wanted) > len(prompts):
        raise ValueError("AND does not go with mix_by 'embedding'; 'noise' does")
    if request.walk is not None and len(wanted) > len(prompts):
        raise ValueError("AND does not go with walk")
    unwanted = each_step(request.negative_prompt, steps, second)
    guided = request.guidance != 1 or not math.isclose(sum(weights), 1)

    texts = [text for each, _ in wanted for text in each]
    texts = list(dict.fromkeys([*texts, *unwanted] if guided else texts))
    together = encode_prompts(runtime, texts, request.clip_skip, request.emphasis)
    together = together.to(runtime.device, runtime.dtype)
    vectors = {text: together[i : i + 1] for i, text in enumerate(texts)}

    def at(step: int) -> StepConditioning:
        conds = [(vectors[each[step]], weight) for each, weight in wanted]
        if request.walk is not None:
            (here, _), (there, _) = conds
            stops = [interpolate(here, there, share) for share in request.walk_positions]
            conds = [(Conditioning.cat(stops), 1.0)]
        elif request.mix_by == "embedding":
            conds = [(Conditioning.mix(conds), 1.0)]
        if not guided:
            return StepConditioning(conds, None)
        against = vectors[unwanted[step]]
        if runtime.model.text_encoding.zero_empty and not unwanted[step]:
            against = against.map(torch.zeros_like)
        return StepConditioning(conds, against)

    return [at(step) for step in range(steps + second)]

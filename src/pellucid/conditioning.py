"""Encodes prompts as conditioning: chunks, weights, text encoders, prompts that change between steps.

The network gets the vector of every token, for cross-attention, and one vector for the whole text,
which is added to the time embedding. A text tower encodes a row of tokens; a longer prompt is cut
into chunks, which are encoded one by one and then concatenated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Set
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.clip import TextTower
from pellucid.diffusion import Conditioning, normalized
from pellucid.guidance import interpolate
from pellucid.messages import FieldMessage
from pellucid.model import Emphasis, Model
from pellucid.prompt import CLOSE, each_step, parse, split_and, take_loras, without_style
from pellucid.request import ResolvedRequest
from pellucid.runtime import Runtime
from pellucid.tokenizer import Tokenizer

MAX_WEIGHT = 100.0
# A chunk of 75 tokens ends at a comma if one is among its last 20; a smaller one likewise.
COMMA_REACH = 20 / 75
# Aesthetic scores for the SDXL refiner, for the prompt and for the negative prompt.
AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5


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
            pieces = tokenizer.pieces(text)
            tokens += [Token(piece.number, piece.text, weight) for piece in pieces]
        chunks += _cut(tokens, tokenizer.context_length - 2, later)
    while len(chunks) > 1 and not chunks[-1]:  # BREAK at the end
        chunks.pop()
    return chunks


def long_prompt_warning(
    tokenizer: Tokenizer, prompt: str, steps: int, second: int = 0
) -> str | None:
    """Says that a prompt is too long for one row of a text tower; None for one that is not."""
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
            f"the weight of {text.strip()[:80]!r} must be from {-MAX_WEIGHT:g} to {MAX_WEIGHT:g}, got "
            f"{weight:g}"
        )


def _cut(tokens: Sequence[Token], room: int, later: Set[int]) -> Iterator[list[Token]]:
    """later: the ids of the second and further vectors of an embedding, which is not cut unless it is
    longer than a chunk."""
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


def token_rows(tokenizer: Tokenizer, chunks: Sequence[Sequence[Token]], pad: int) -> Tensor:
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
    """Captions as plain text, one row each: tokens (B, context_length, width), pooled (B, P).

    A model is trained with this. words: pooled as in `model.TextEncoding`'s "words". Tokens that do
    not fit in the row are left out.
    """
    ids = tokenizer(captions).to(next(text.parameters()).device)
    out = text(ids)
    pooled = out.pooled if out.projected is None else out.projected
    if words:
        summed = sum_of_words(text, ids, torch.ones(ids.shape))
        pooled = torch.cat([pooled, F.layer_norm(summed, summed.shape[-1:])], dim=-1)
    return Conditioning(out.hidden, pooled)


def sum_of_words(tower: TextTower, ids: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of the embeddings of the tokens between bos and eos, (N, width).

    ids, weights: (N, L).
    """
    ends = (ids == tower.config.eos).int().argmax(dim=1, keepdim=True)
    positions = torch.arange(ids.shape[1], device=ids.device)
    counts = weights.to(ids.device) * ((positions > 0) & (positions < ends))
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
    Raises ValueError for a layer that does not exist, and for weights that `chunked` refuses.
    """
    model, settings = runtime.model, runtime.model.text_encoding
    towers = list(model.towers.values())
    layer = layer_of(model, towers, clip_skip)
    how = settings.emphasis if emphasis is None else emphasis
    each = [chunked(model.tokenizer, prompt) for prompt in prompts]
    most = max(map(len, each))
    chunks = [chunk for own in each for chunk in [*own, *[[]] * (most - len(own))]]
    weights = token_weights(chunks, model.tokenizer.context_length)
    pads = settings.pads if settings.pads else (model.tokenizer.pad,) * len(towers)
    hidden, pooled = [], []
    for tower, pad in zip(towers, pads, strict=True):
        ids = token_rows(model.tokenizer, chunks, pad)
        out = runtime.encode_text(tower, ids, layer, settings.final_norm)
        hidden.append(emphasized(out.hidden, weights, how))
        whole = out.pooled if out.projected is None else out.projected
        pooled.append(whole[::most])  # of the first chunk
        if settings.pooled == "words":
            here = ids.to(out.pooled.device)
            summed = sum_of_words(tower, here, weights).unflatten(0, (-1, most)).sum(dim=1)
            pooled.append(F.layer_norm(summed, summed.shape[-1:]))
    tokens = torch.cat(hidden, dim=-1)  # (B * most, context_length, width)
    tokens = tokens.unflatten(0, (-1, most)).flatten(1, 2)  # (B, most * context_length, width)
    missing = max(settings.width - tokens.shape[-1], 0)
    tokens = F.pad(tokens, (0, missing, 0, settings.blank))
    return Conditioning(tokens, pooled[-1] if settings.pooled == "last" else torch.cat(pooled, -1))


def layer_of(model: Model, towers: Sequence[TextTower], clip_skip: int | None) -> int:
    """The layer of the towers that is used, as `TextTower.forward` takes it. See `encode_prompts`."""
    settings = model.text_encoding
    if clip_skip is None:
        return settings.layer
    layers = min(tower.config.layers for tower in towers)
    lowest, highest = 1 + settings.left_out, layers + settings.left_out
    if not lowest <= clip_skip <= highest:
        without = f" (the last {settings.left_out} is left out)" if settings.left_out else ""
        raise ValueError(
            FieldMessage(
                "{clip_skip} must be from {lowest} to {highest}, got {given}: the text tower of "
                "{model} has {layers} layers{without}",
                lowest=lowest,
                highest=highest,
                given=clip_skip,
                model=model.title,
                layers=layers,
                without=without,
            )
        )
    return settings.left_out - clip_skip


def token_weights(chunks: Sequence[Sequence[Token]], length: int) -> Tensor:
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


# ---------------------------------------------------------------- from step to step


class StepConditioning(NamedTuple):
    """The conditioning of one step: of a batch of 1, or of one for each image. `uncond`, of 1, is None
    where it is not needed."""

    conds: list[tuple[Conditioning, float | Tensor]]
    """Of the prompts, with their weights, as `guidance.ClassifierFree` takes them."""
    uncond: Conditioning | None
    """Of the negative prompt."""

    def at_size(self, model: Model, width: int, height: int) -> StepConditioning:
        """The same with the size of the picture in pixels, if the backbone takes it."""
        uncond = None if self.uncond is None else _sized(model, self.uncond, width, height, True)
        conds = [(_sized(model, cond, width, height, False), w) for cond, w in self.conds]
        return StepConditioning(conds, uncond)

    @staticmethod
    def cat(parts: Sequence[tuple[StepConditioning, int]]) -> StepConditioning:
        """One batch for the pictures of several requests, each of one prompt. parts: the conditioning
        of each, and how many pictures it has."""
        cond = Conditioning.cat([_of_images(part.conds[0][0], count) for part, count in parts])
        unconds = [part.uncond.repeat(count) for part, count in parts if part.uncond is not None]
        return StepConditioning([(cond, 1.0)], Conditioning.cat(unconds) if unconds else None)


def _of_images(cond: Conditioning, count: int) -> Conditioning:
    """A conditioning of all images, or one of each, as one of each."""
    return cond if len(cond) == count else cond.repeat(count)


def _sized(
    model: Model, cond: Conditioning, width: int, height: int, negative: bool
) -> Conditioning:
    """SDXL's size conditions: original size, top and left of the crop, target size; the refiner's
    fifth and last is an aesthetic score (Podell et al. 2023, section 2.2)."""
    config = model.config
    if not getattr(config, "size_conditions", False):
        return cond
    score = NEGATIVE_AESTHETIC_SCORE if negative else AESTHETIC_SCORE
    last = (score,) if config.size_count == 5 else (height, width)
    numbers = [height, width, 0, 0, *last]
    sizes = torch.tensor([numbers] * len(cond), dtype=torch.float32, device=cond.tokens.device)
    return replace(cond, sizes=sizes)


def conditioning_schedule(
    runtime: Runtime, request: ResolvedRequest, steps: int, second: int = 0
) -> list[StepConditioning]:
    """The conditioning of each of `steps`, and then of `second` steps of a second pass.

    Prompts that are mixed have weights that add up to 1; prompts that AND joins keep theirs. On a
    walk, each conditioning or each weight is a batch of `request.count`, image by image; so are the
    conditionings where seeds have their styles, or the pictures of other requests are in the batch.
    With regions, the batch has the first region of every image, then the second, as
    `regions.Regional` calls the network.
    Raises ValueError for weights that make no sense, and for AND with a mix of embeddings or a walk.
    """
    if steps + second == 0:
        return []
    if request.others:
        counts = [each.count for each in request.members]
        schedules = [conditioning_schedule(runtime, e, steps, second) for e in request.members]
        return [
            StepConditioning.cat(list(zip(each, counts, strict=True)))
            for each in zip(*schedules, strict=True)
        ]
    weighted = weighted_prompts(request)
    prompts = [  # the texts of the images, for each step
        (list(zip(*(each_step(t, steps, second) for t in request.styled(text)), strict=True)), w)
        for text, w in weighted
    ]
    negative = each_step(request.read(take_loras(request.negative_prompt)[0]), steps, second)
    guided = request.guidance != 1 or not add_up(prompts)
    texts = [text for by_step, _ in prompts for images in by_step for text in images]
    if request.open_styles:  # in every batch as many chunks as the longest style needs
        every = [each for text, _ in weighted for each in request.in_every_style(text)]
        parts = [text for each in every for text in each_step(each, steps, second)]
        texts.append(max(parts, key=lambda text: len(chunked(runtime.model.tokenizer, text))))
    texts = list(dict.fromkeys([*texts, *negative] if guided else texts))
    together = encode_prompts(runtime, texts, request.clip_skip, request.emphasis)
    together = together.to(runtime.device, runtime.dtype)
    encoded = {text: together[i : i + 1] for i, text in enumerate(texts)}

    @cache  # steps with the same texts share one conditioning
    def of_images(texts: tuple[str, ...]) -> Conditioning:
        return Conditioning.cat([encoded[text] for text in texts])

    def at(step: int) -> StepConditioning:
        given = [(of_images(by_step[step]), weight) for by_step, weight in prompts]
        conds = _added_up(request, given, runtime.device)
        if not guided:
            return StepConditioning(conds, None)
        uncond = encoded[negative[step]]
        if runtime.model.text_encoding.zero_empty and not negative[step]:
            uncond = uncond.map(torch.zeros_like)
        return StepConditioning(conds, uncond)

    return [at(step) for step in range(steps + second)]


def _added_up(
    request: ResolvedRequest, given: Sequence[tuple[Conditioning, float]], device: torch.device
) -> list[tuple[Conditioning, float | Tensor]]:
    """The conditionings of a step that guidance adds up, and their weights, from those of the prompts:
    of a walk, of the regions and of a mix of embeddings they are made of several."""
    if request.walk is not None:
        (here, _), (there, _) = given
        if request.walk_by == "estimates":
            shares = torch.tensor(request.walk_positions).view(-1, 1, 1, 1).to(device)
            return [(here, 1 - shares), (there, shares)]
        stops = [interpolate(here, there, share) for share in request.walk_positions]
        return [(Conditioning.cat(stops), 1.0)]
    if request.regions:
        # After all regions, where a style counts more, come all of them without it.
        size = len(request.regions)
        groups = [given[i : i + size] for i in range(0, len(given), size)]
        return [
            (
                Conditioning.cat([_of_images(each, request.count) for each, _ in group]),
                math.fsum(weight for _, weight in group),
            )
            for group in groups
        ]
    if request.mix and request.mix_by == "embedding":
        return [(Conditioning.mix(given), 1.0)]
    return [*given]


def weighted_prompts(request: ResolvedRequest) -> list[tuple[str, float]]:
    """The prompts that are added up, or those of the regions, and their weights. See
    `conditioning_schedule`."""
    if request.regions:
        texts = [request.read(each.prompt) for each in request.regions]
        return by_style(request, [(text, 1 / len(texts)) for text in texts])
    weights = [1.0, *(weight for _, weight in request.mix)]
    weights += [1.0] * (len(request.prompts) - len(weights))  # of a walk
    weighted = []
    for prompt, share in zip(request.prompts, normalized(weights), strict=True):
        for text, weight in split_and(take_loras(prompt)[0]):
            check_weight(text, weight)
            weighted.append((request.read(text), share * weight))
    if len(weighted) > len(request.prompts):
        if request.mix_by == "embedding":
            raise ValueError(
                FieldMessage("AND cannot be combined with {mix_by} 'embedding', only with 'noise'")
            )
        if request.walk is not None:
            raise ValueError(FieldMessage("AND cannot be combined with {walk}"))
    return by_style(request, weighted) if len(weighted) == 1 else weighted


def by_style(request: ResolvedRequest, prompts: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Prompts and their weights, of which the styles count more: c + s (c - c without its style)."""
    more = request.style_guidance or 0.0
    bare = [without_style(text) for text, _ in prompts]
    if not more or request.guidance == 1 or None in bare:
        return prompts
    styled = [(text, weight * (1 + more)) for text, weight in prompts]
    plain = [
        (text, -more * weight) for text, (_, weight) in zip(bare, prompts, strict=True) if text
    ]
    return styled + plain


def add_up(prompts: Sequence[tuple[Any, float]]) -> bool:
    """Whether the weights add up to 1, so that the negative prompt counts in guidance alone."""
    return math.isclose(sum(weight for _, weight in prompts), 1)


# ---------------------------------------------------------------- reading a prompt


def reading(tokenizer: Tokenizer, request: ResolvedRequest, seeded: bool) -> dict[str, Any]:
    """What `conditioning_schedule` makes of the prompt of a request, as plain values: its prompts with
    their weights, the texts that their steps use, and the chunks and tokens of each; the regions that
    are drawn by themselves; and the open styles.

    seeded: with the style of its first seed; False: with none. ValueError for weights that make no
    sense."""
    steps, open_styles = request.steps, request.open_styles
    if not seeded:
        request = request.model_copy(update={"open_styles": ()})
    text, loras = take_loras(request.prompt)
    prompts = []
    for part, weight in split_and(text):
        check_weight(part, weight)
        each = each_step(request.styled(request.read(part))[0], steps)
        readings = [
            {
                "steps": _ranges([step for step, at in enumerate(each, start=1) if at == distinct]),
                "text": distinct.replace(CLOSE, ""),
                "chunks": [
                    [{"token": t.text, "id": t.id, "weight": round(t.weight, 6)} for t in chunk]
                    for chunk in chunked(tokenizer, distinct)
                ],
            }
            for distinct in dict.fromkeys(each)
        ]
        prompts.append({"weight": weight, "readings": readings})
    regions = [r._replace(prompt=request.styled(r.prompt)[0]) for r in request.regions]
    return {
        "chunk_size": tokenizer.context_length - 2,
        "steps": steps,
        "loras": [lora._asdict() for lora in loras],
        "prompts": prompts,
        "regions": [region._asdict() for region in regions],
        "ground": None if request.layout is None else request.layout.ground,
        "open_styles": list(open_styles),
    }


def _ranges(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Rising numbers as ranges: 1, 2, 3, 7 -> (1, 3), (7, 7)."""
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ranges

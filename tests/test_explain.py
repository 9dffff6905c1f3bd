"""The record of a run: it changes nothing, costs nothing when not asked for, and tells the truth."""

from __future__ import annotations

import ast
import base64
import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pellucid import cascade, checkpoints
from pellucid.backbones.mmdit import SD3_MEDIUM
from pellucid.backbones.unet import SD15, SDXL, UNet, UNetConfig
from pellucid.cascade import SuperResolution, SuperResolutionConfig
from pellucid.diffusion import Conditioning
from pellucid.explain.run import Explanation, Recorder, explain, page, page_data, recorder
from pellucid.explain.run.record import Near, Word, project
from pellucid.explain.run.sections import in_order, meaning, network
from pellucid.explain.run.words import compared, whole_words, words_of
from pellucid.explain.text_vectors import text_vectors
from pellucid.explain.word_space import WordSpace
from pellucid.gan import GAN, GANConfig, Generator
from pellucid.images.metadata import save_image
from pellucid.images.pixels import to_pil
from pellucid.lora import Change, Lora, Matrix, attach
from pellucid.model import Model
from pellucid.pipeline import Progress, generate
from pellucid.request import Request

REQUEST = Request(prompt="a red apple", seed=5, steps=4, guidance=3.0)


@pytest.fixture(scope="module")
def told(model: Model) -> Explanation:
    return explain(model, REQUEST, ["rabbit", "apple", "red"])


def drawn(model: Model, request: Request) -> list[Progress]:
    return list(generate(model, request))


@pytest.mark.parametrize(
    "sampler", ["euler", "euler_ancestral", "dpmpp_2m", "ddim_cfgpp", "heun", "dpmpp_sde"]
)
def test_the_record_is_of_the_run_that_would_have_been(model: Model, sampler: str) -> None:
    request = REQUEST.model_copy(update={"sampler": sampler})
    plain, told = drawn(model, request), explain(model, request)
    assert plain[-1].images is not None
    assert told.picture.tobytes() == plain[-1].images[0].tobytes()
    assert len(told.steps) == len(plain) == 4
    for step, progress in zip(told.steps, plain, strict=True):
        assert progress.parts is not None
        torch.testing.assert_close(step.after, progress.x[0])
        torch.testing.assert_close(step.x0, progress.parts.guided[0])
        assert step.level_after == progress.level
        guided = step.uncond + 3 * (step.cond - step.uncond)
        torch.testing.assert_close(step.x0, guided)
        # What it saw is made of its own estimate and its own noise.
        for x0, eps in ((step.cond, step.eps_cond), (step.uncond, step.eps_uncond)):
            again = step.level.alpha * x0 + step.level.sigma * eps
            torch.testing.assert_close(again, step.x, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(step.difference, step.eps_cond - step.eps_uncond)
    if sampler != "heun":
        assert [step.evaluations for step in told.steps] == [1] * 4 or sampler == "dpmpp_sde"
    else:  # two looks, but one from pure noise and one to the clean picture
        assert [step.evaluations for step in told.steps] == [1, 2, 2, 1]


def test_estimates_belong_to_what_was_seen(model: Model) -> None:
    """The last look of a step of Heun is at the step's end; its estimate is of that, not of x."""
    request = REQUEST.model_copy(update={"sampler": "heun"})
    told = explain(model, request)
    step = told.steps[1]
    assert step.level == step.level_after
    with torch.no_grad():
        t = torch.tensor([step.level.t])
        output = model.backbone(step.x[None], t, told.text)[0]
    expected = step.level.alpha * step.x - step.level.sigma * output  # v
    expected = expected / (step.level.alpha**2 + step.level.sigma**2)
    torch.testing.assert_close(step.cond, expected, atol=1e-5, rtol=1e-5)


def test_the_start_is_the_noise_of_the_seed(model: Model, told: Explanation) -> None:
    noise = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(told.start, noise)
    assert torch.equal(told.start, told.steps[0].x)


def test_recording_leaves_the_model_as_it_was(model: Model) -> None:
    parts = [part for part in (model.backbone, model.text, model.vae) if part is not None]
    before = [dict(vars(part)) for part in parts]
    recording = Recorder(model, REQUEST)
    next(recording.run())
    assert [dict(vars(part)) for part in parts] == before
    # The recorded parts are copies, and their weights the same tensors.
    assert recording.model.backbone is not model.backbone
    for mine, theirs in zip(
        recording.model.backbone.parameters(), model.backbone.parameters(), strict=True
    ):
        assert mine is theirs


def test_seconds_are_those_of_the_parts(told: Explanation) -> None:
    assert set(told.seconds) == {"text", "network", "decoder", "rest"}
    assert all(seconds > 0 for seconds in told.seconds.values())
    total = sum(step.seconds for step in told.steps)
    assert told.seconds["network"] == pytest.approx(total)


@pytest.fixture(scope="module")
def large(model: Model) -> tuple[Model, Explanation]:
    """A model with a second stage, and a run that enlarges twice."""
    torch.manual_seed(0)
    stage = SuperResolution(
        SuperResolutionConfig(block_out_channels=(8,), embedding=4, residual_scale=2)
    ).eval()
    defaults = replace(model.defaults, width=64, height=64)
    made = replace(model, second_stage=stage, defaults=defaults)
    return made, explain(made, REQUEST.model_copy(update={"width": 96, "height": 96}))


def test_the_second_stage_is_recorded(large: tuple[Model, Explanation]) -> None:
    model, run = large
    assert model.second_stage is not None
    first, last = run.upscaling
    assert (first.t, last.t) == (1000, 500) and run.seconds["upscaler"] > 0
    assert first.small.shape == (3, 16, 16) and first.x.shape == (3, 64, 64)
    with torch.no_grad():
        *_, made = cascade.sample(model.second_stage, first.small[None], first.x[None])
    torch.testing.assert_close(made.before[0], last.x)
    expected = cascade.to_large(last.residual[None], last.small[None], model.second_stage.config)
    torch.testing.assert_close(made.large, expected)
    *_, drawn = generate(model, REQUEST)
    assert drawn.images is not None and drawn.images[0].size == (64, 64)
    assert np.array_equal(np.asarray(to_pil(made.large[0])), np.asarray(drawn.images[0]))
    assert len(json.loads(json.dumps(run.record()))["upscaling"]) == 2


def test_the_page_shows_the_second_stage(
    large: tuple[Model, Explanation], told: Explanation
) -> None:
    model, run = large
    text, _ = page.page(model, [run])
    data = embedded_record(text)["runs"][0]["sections"]["upscaler"]
    assert [step["u"] for step in data["steps"]] == [1, 0.5] and data["small"] != data["bicubic"]
    assert "residual r" in text and "def to_residual" in text
    alone, _ = page.page(model, [told])  # at the size of the first stage
    assert 'id="upscaler"' not in alone


def test_words_are_the_tokens_that_the_tower_reads(model: Model, told: Explanation) -> None:
    ids = model.tokenizer(["a red apple"])[0]
    assert [ids[word.place].item() for word in told.steps[0].words] == [
        word.id for word in told.steps[0].words
    ]
    assert "".join(word.text for word in told.steps[0].words) == "aredapple"


def test_long_prompts_are_chunks(model: Model) -> None:
    told = explain(model, REQUEST.model_copy(update={"prompt": "a red apple " * 3}))
    length = model.tokenizer.context_length
    words = told.steps[0].words
    assert told.text.tokens.shape[1] == 2 * length < len(words) + 4 + length
    # The last word of the first row, and behind end and start the first of the second.
    assert [word.place for word in words][length - 3 : length - 1] == [length - 2, length + 1]
    assert all(step.maps[0].shape[-1] == len(words) + 1 for step in told.steps)


def test_weights_and_a_prompt_that_changes(model: Model) -> None:
    prompt = "a [(red:1.5):apple:2] AND a rabbit"
    told = explain(model, REQUEST.model_copy(update={"prompt": prompt}))
    texts = ["".join(word.text for word in step.words) for step in told.steps]
    assert texts == ["ared", "ared", "aapple", "aapple"]
    assert {w.weight for w in told.steps[0].words} == {1.0, 1.5}
    assert [len(words) for words in told.texts()] == [len(step.words) for step in told.steps[1:3]]
    text, _ = page.page(model, [told])
    assert [step["text"] for step in embedded_record(text)["runs"][0]["steps"]] == [0, 0, 1, 1]


def test_looks_between_steps_read_what_they_are_told(model: Model) -> None:
    """Heun looks again at the end of a step, where the next prompt begins."""
    request = REQUEST.model_copy(update={"prompt": "[red:apple:2]", "sampler": "heun"})
    texts = ["".join(word.text for word in step.words) for step in explain(model, request).steps]
    assert texts == ["red", "apple", "apple", "apple"]


def test_words_are_compared_with_words(model: Model, told: Explanation) -> None:
    """Each that means something alone, with words that are encoded alone as well."""
    red, apple = told.near
    assert (red.word, apple.word) == ("red", "apple")
    for near in told.near:
        (first, cosine), *others = near.others
        assert first == near.word and cosine == pytest.approx(1)
        assert all(cosine < 0.999 for _, cosine in others)
    near, space = compared(model, told.steps[0].words, ["rabbit", "red", "apple"], [("red", "red")])
    vectors = text_vectors(model, ["rabbit", "red", "apple"])
    pairs = [float(vectors[i] @ vectors[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert space is not None and space.count == 3 and space.same == pytest.approx(1)
    assert space.median == pytest.approx(sorted(pairs)[1], abs=1e-5)
    assert space.low <= space.median <= space.high and len(near) == 2
    assert compared(model, told.steps[0].words, [], []) == ((), None)
    assert compared(model, told.steps[0].words, ["rabbit"], [])[1] is None


@pytest.mark.parametrize(
    ("prompt", "words", "content"),
    [
        ("a red apple", [0, 1, 2], ["red", "apple"]),
        ("an apple, the (rabbit:1.3) on it", None, ["apple", "rabbit"]),
        ("the", None, ["the"]),  # it is all there is
    ],
)
def test_which_tokens_are_one_word(
    model: Model, prompt: str, words: list[int] | None, content: list[str]
) -> None:
    tokens = words_of(model, prompt)
    if words:
        assert [token.word for token in tokens] == words
    _, whole = whole_words(model, prompt)
    assert [token.whole for token in tokens] == [whole[token.word] for token in tokens]
    assert whole == re.findall(r"\w+|,", re.sub(r"[(]|:1.3[)]", "", prompt))
    numbers = dict.fromkeys(token.word for token in tokens if token.content)
    assert [whole[number] for number in numbers] == content


@pytest.mark.parametrize(
    ("same", "nearest", "said", "not_said"),
    [
        (0.95, 0.9, ["nearer to each other than most words", "nearer than 19 of 20"], "judge"),
        (0.2, 0.7, ["does not know", "as near as two names"], "learnt which words"),
        (0.95, 0.4, ["no nearer than many pairs"], "nearer than 19"),
        (None, 0.9, ["nearer than 19 of 20"], "Two names"),
    ],
)
def test_what_is_said_of_clip_follows_from_the_numbers(
    same: float | None, nearest: float, said: list[str], not_said: str
) -> None:
    space = WordSpace(count=3, low=-0.4, median=0.1, high=0.5, same=same)
    near = (Near("rabbit", (("rabbit", 1.0), ("bicycle", nearest), ("sun", 0.0))),)
    text = meaning.learnt(near, space)
    assert all(words in text for words in said) and not_said not in text
    assert f"“bicycle”, with {nearest:.2f}" in text
    assert meaning.learnt((), None) == ""


# ---------------------------------------------------------------- attention maps


def test_maps_are_the_networks(model: Model, told: Explanation) -> None:
    step = told.steps[1]
    maps: list[Tensor] = []
    with torch.no_grad():
        model.backbone(step.x[None], torch.tensor([step.level.t]), told.text, maps)
    assert len(maps) == len(step.maps)
    places = [word.place for word in told.steps[0].words]
    for kept, whole in zip(step.maps, maps, strict=True):
        torch.testing.assert_close(kept[..., :-1].float(), whole[0][..., places], atol=1e-3, rtol=0)
        torch.testing.assert_close(
            kept.float().sum(-1), torch.ones(kept.shape[:-1]), atol=2e-3, rtol=0
        )


def test_large_maps_keep_their_mean_and_shape() -> None:
    words = [Word("w", 0, 1.0, place, place, "w", content=True) for place in (1, 2)]
    maps = recorder.WordAttention(words, (), average=True)
    weights = torch.rand(2, 3, 64, 32, 5).softmax(-1)
    maps.append(weights)
    (kept,) = maps.kept
    assert kept.shape == (1, 16, 8, 3)
    one = weights[0].mean(0)
    torch.testing.assert_close(
        kept[0, ..., 0].float().mean(), one[..., 1].mean(), atol=1e-3, rtol=0
    )
    block = one[:4, :4, 2].mean()
    torch.testing.assert_close(kept[0, 0, 0, 1].float(), block, atol=1e-3, rtol=0)


def test_heads_are_averaged_where_memory_would_not_do(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "MAPS_BYTES", 100)
    told = explain(model, REQUEST)
    assert [step.maps[0].shape[0] for step in told.steps] == [2, 1, 1, 1]  # known after the first
    text, _ = page.page(model, [told])
    assert "layer 1" in text


@torch.no_grad()
def test_maps_equal_those_of_diffusers(model: Model) -> None:
    """SD1.5's shape, thinner, with random weights: every layer and head of a whole run's steps."""
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import Attention

    shape = replace(
        SD15, block_out_channels=(32, 64, 96, 96), heads=(4,) * 4, cross_attention_dim=16
    )
    theirs = UNet2DConditionModel(
        block_out_channels=shape.block_out_channels,
        attention_head_dim=4,
        cross_attention_dim=16,
        layers_per_block=2,
    ).eval()
    ours = UNet(shape).eval()
    ours.load_state_dict(theirs.state_dict())
    told = explain(replace(model, backbone=ours), REQUEST)

    class Keep:
        """An attention processor, as diffusers documents them, that keeps the cross maps."""

        def __init__(self) -> None:
            self.maps: list[Tensor] = []

        def __call__(
            self,
            attn: Attention,
            hidden_states: Tensor,
            encoder_hidden_states: Tensor | None = None,
            attention_mask: Tensor | None = None,
        ) -> Tensor:
            context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            q = attn.head_to_batch_dim(attn.to_q(hidden_states))
            k = attn.head_to_batch_dim(attn.to_k(context))
            v = attn.head_to_batch_dim(attn.to_v(context))
            scores = attn.get_attention_scores(q, k, attention_mask)
            if encoder_hidden_states is not None:
                self.maps.append(scores)  # (heads, places, tokens)
            return attn.to_out[0](attn.batch_to_head_dim(scores @ v))

    keep = Keep()
    theirs.set_attn_processor(keep)
    places = [word.place for word in told.steps[0].words]
    for step in told.steps:
        keep.maps.clear()
        theirs(step.x[None], step.level.t, told.text.tokens)
        assert len(keep.maps) == len(step.maps) == 16
        for mine, reference in zip(step.maps, keep.maps, strict=True):
            expected = reference.unflatten(1, mine.shape[1:3])[..., places]
            torch.testing.assert_close(mine[..., :-1].float(), expected, atol=2e-4, rtol=2e-3)


# ---------------------------------------------------------------- other tasks, bad input


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "start.png"
    save_image(Image.new("RGB", (16, 16), "orange"), path)
    return str(path)


def test_from_a_picture_and_in_two_passes(model: Model, picture: str) -> None:
    half = explain(model, REQUEST.model_copy(update={"image": picture, "strength": 0.5}))
    assert len(half.steps) == 2
    large = explain(model, REQUEST.model_copy(update={"hires": 2.0}))
    way, guesses = large.trails(large.places)
    assert large.steps[-1].after.shape == (4, 16, 16) != large.start.shape
    assert way.shape == (len(large.steps) + 1, 4 * 16 * 16) and len(guesses) == len(large.steps)
    page.page(model, [half, large])


def test_the_page_tells_what_is_special_of_a_run(
    model: Model, told: Explanation, picture: str
) -> None:
    other = REQUEST.model_copy(update={"image": picture, "prompt": "a rabbit AND a red apple"})
    for explanation, special in ((told, False), (explain(model, other), True)):
        text, _ = page.page(model, [explanation])
        (run,) = embedded_record(text)["runs"]
        assert (run["imageToImage"], run["several"]) == (special, special)
        assert ("This run started from a picture" in text) == special
        assert ("every number in them is random" in text) != special


def test_a_long_prompt_is_cut_in_the_title(model: Model) -> None:
    told = explain(model, REQUEST.model_copy(update={"prompt": "a red apple " * 20}))
    text, _ = page.page(model, [told])
    title = re.search("<title>(.*)</title>", text)
    assert title and title[1].endswith(" …” was drawn") and len(title[1]) < 120


def test_what_is_put_on_the_model_is_watched_too(model: Model) -> None:
    """A LoRA comes before the watching: the record is of the changed network."""
    shape = model.backbone.get_parameter("conv_out.weight").shape
    change = Change("full", (Matrix(torch.ones(shape)),))
    lora = Lora("brighter", {"backbone": {"conv_out.weight": change}})

    def adapt(model: Model, request: Request) -> tuple[Model, tuple[str, ...]]:
        return attach(model, [(lora, 0.1, 0.1)]), ("half of it did not match",)

    *_, plain = generate(model, REQUEST, adapt)
    told = explain(model, REQUEST, adapt=adapt)
    assert "half of it did not match" in told.warnings
    torch.testing.assert_close(told.steps[-1].after, plain.x[0])
    assert not torch.allclose(told.steps[-1].after, drawn(model, REQUEST)[-1].x[0])


def test_mixed_prompts_show_the_first(model: Model) -> None:
    mixed = REQUEST.model_copy(update={"mix": (("a rabbit", 1.0),)})
    plain = explain(model, REQUEST).steps[0]
    step = explain(model, mixed).steps[0]
    torch.testing.assert_close(step.maps[0], plain.maps[0], atol=1e-3, rtol=0)
    assert not torch.allclose(step.cond, plain.cond)


def test_bad_input(model: Model, picture: str) -> None:
    with pytest.raises(ValueError, match="no tokens"):
        explain(model, Request(prompt=""))
    with pytest.raises(ValueError, match="no tokens"):
        explain(model, Request(prompt="  "))
    with pytest.raises(ValueError, match="count must be 1 to explain a picture, got 2"):
        explain(model, Request(prompt="a rabbit", count=2))
    with pytest.raises(ValueError, match="strength is 0"):
        explain(model, Request(prompt="a rabbit", image=picture, strength=0.0))
    with pytest.raises(ValueError, match="not finished"):
        Recorder(model, REQUEST).explanation()
    with pytest.raises(ValueError, match="one or two"):
        page.page(model, [])


def test_without_cross_attention(model: Model) -> None:
    assert isinstance(model.backbone, UNet)
    config = replace(model.backbone.config, transformer_layers=(0, 0), mid_transformer_layers=0)
    bare = replace(model, backbone=UNet(config).eval(), name="bare")
    told = explain(bare, REQUEST)
    assert told.steps[0].maps == ()
    assert any("bare has no cross-attention" in warning for warning in told.warnings)
    assert "bare has no cross-attention" in page.page(bare, [told])[0]


# ---------------------------------------------------------------- as data, and as a page


def unpacked(value: dict[str, Any]) -> np.ndarray:
    data = base64.b64decode(value["data"])
    return np.frombuffer(data, np.dtype(value["dtype"]).newbyteorder("<")).reshape(value["shape"])


def test_the_record_as_json(told: Explanation) -> None:
    record = json.loads(json.dumps(told.record()))
    assert record["request"]["seed"] == 5
    evaluations = [step.evaluations for step in told.steps]
    assert [step["evaluations"] for step in record["steps"]] == evaluations
    for step, written in zip(told.steps, record["steps"], strict=True):
        for name in ("x", "x0", "cond", "uncond", "eps_cond", "eps_uncond", "after"):
            assert np.array_equal(unpacked(written[name]), getattr(step, name).numpy())
        for weights, packed in zip(step.maps, written["maps"], strict=True):
            assert np.array_equal(unpacked(packed), weights.numpy())
    assert np.array_equal(unpacked(record["text"]["tokens"]), told.text.tokens[0].numpy())
    assert record["texts"] == [[vars(word) for word in told.steps[0].words]]


def test_a_flat_way_is_projected_as_it_is() -> None:
    torch.manual_seed(1)
    flat = torch.randn(9, 2) @ torch.linalg.qr(torch.randn(6, 2)).Q.T + 3
    (first, second), shares = project([flat[:4], flat[4:]])
    torch.testing.assert_close(torch.cdist(first, second), torch.cdist(flat[:4], flat[4:]))
    assert sum(shares) == pytest.approx(1)
    (point,), _ = project([torch.ones(1, 3)])
    assert point.shape == (1, 2)


def embedded_record(text: str) -> dict[str, Any]:
    start = text.index('id="record">') + len('id="record">')
    return dict(json.loads(text[start : text.index("</script>", start)]))


def test_the_page_asks_for_nothing_and_breaks_out_of_nothing(model: Model) -> None:
    evil = "</script><script>alert(1)</script> \u2028 $record"
    told = explain(model, REQUEST.model_copy(update={"prompt": evil}))
    text, left_out = page.page(model, [told])
    assert left_out == "" and embedded_record(text)["runs"][0]["prompt"] == evil
    assert "<script>alert" not in text
    assert not re.search(
        r"""(src|href)\s*=\s*["']?(?!data:)[a-z]*:?//|url\(|@import|fetch\(""", text
    )


def test_every_step_fits_if_it_can(model: Model, told: Explanation) -> None:
    text, left_out = page.page(model, [told, told])
    runs = embedded_record(text)["runs"]
    assert left_out == "" and len(runs) == 2 and len(runs[0]["steps"]) == 4
    assert len(text.encode()) <= page.LIMIT
    # Numbers are in steps of 1/127 of the largest.
    x = told.steps[2].eps_cond
    packed = runs[0]["steps"][2]["eps"]
    values = np.frombuffer(base64.b64decode(packed["data"]), np.int8).reshape(packed["shape"])
    error = values / 127 * packed["largest"] - x.numpy()
    assert np.abs(error).max() <= packed["largest"] / 254 * 1.01


def test_too_many_steps_for_the_page(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    told = explain(model, REQUEST.model_copy(update={"steps": 30}))
    whole, _ = page.page(model, [told])
    monkeypatch.setattr(page, "LIMIT", len(whole) - 40_000)
    text, left_out = page.page(model, [told])
    record = embedded_record(text)
    numbers = [step["number"] for step in record["runs"][0]["steps"]]
    assert "of 30 is shown" in left_out and record["note"] == left_out
    assert numbers[0] == 1 and numbers[-1] == 30 and len(numbers) < 30
    assert len(text.encode()) <= page.LIMIT
    monkeypatch.setattr(page, "LIMIT", 1000)
    with pytest.raises(ValueError, match="more than 5 MB"):
        page.page(model, [told])


def test_it_opens_where_the_guidance_is_seen(model: Model, told: Explanation) -> None:
    record = embedded_record(page.page(model, [told])[0])
    steps = record["runs"][0]["steps"]
    seen = [step["seen"] if step["alpha"] > 0 else 0 for step in steps]
    assert record["opening"] == 1 + seen.index(max(seen)) and max(seen) > 0
    shown = page_data.PageData(model, told).pictures(1)
    a, b = (np.asarray(shown[name], float) for name in ("cond", "uncond"))
    assert steps[1]["seen"] == pytest.approx(np.abs(a - b).mean(), abs=0.01)
    plain = explain(model, REQUEST.model_copy(update={"guidance": 1.0}))
    record = embedded_record(page.page(model, [plain])[0])
    assert record["opening"] == 2 and all(s["seen"] == 0 for s in record["runs"][0]["steps"])


def test_excerpts_of_the_source_are_python(model: Model, told: Explanation) -> None:
    text, _ = page.page(model, [told])
    excerpts = [
        unescape(code) for code in re.findall(r"<pre tabindex='0'><code>(.*?)</code>", text, re.S)
    ]
    assert len(excerpts) >= len(embedded_record(text)["sections"])
    for excerpt in excerpts:
        (function,) = ast.parse(excerpt).body
        assert isinstance(function, ast.FunctionDef)
        body = excerpt.splitlines()[-1]
        assert body.startswith("    ")


def test_each_section_has_its_box_and_its_place(model: Model, told: Explanation) -> None:
    text, _ = page.page(model, [told])
    listed = [section["name"] for section in embedded_record(text)["sections"]]
    # This model has no second stage, and this run one thing on white.
    sections = [name for name in in_order() if name not in ("upscaler", "layers")]
    assert listed == re.findall(r'<section id="(\w+)">', text) == sections
    orders = [module.SECTION.order for module in in_order().values()]
    assert orders == sorted(set(orders))


def test_a_section_that_a_run_does_not_have_is_left_out(
    model: Model, told: Explanation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "content", lambda model, run: None)
    text, _ = page.page(model, [told])
    assert 'id="network"' not in text and "network.js" not in text
    assert "network" not in embedded_record(text)["runs"][0]["sections"]


@pytest.mark.parametrize("config", [SD15, SDXL])
def test_the_drawing_of_a_u_net_has_the_shapes_of_the_network(
    config: UNetConfig, told: Explanation
) -> None:
    """Compared with the network itself, run on the meta device."""
    drawn = network.unet(config, 64, 48)
    with torch.device("meta"):
        net = UNet(config)
        shapes: list[tuple[int, ...]] = []
        for level in [*net.down_blocks, net.mid_block, *net.up_blocks]:
            for block in level.resnets:
                block.register_forward_hook(lambda *a: shapes.append(tuple(a[2].shape[1:])))
        cond = Conditioning(
            torch.empty(1, 77, config.cross_attention_dim),
            torch.empty(1, config.pooled_dim) if config.pooled_dim else None,
            torch.empty(1, config.size_count) if config.size_conditions else None,
        )
        net(torch.empty(1, 4, 48, 64), torch.zeros(1), cond)
    levels = drawn["levels"]
    shown = [[level["channels"], *level["size"][::-1]] for level in levels]
    going_down = [
        one for one, level in zip(shown, levels, strict=True) for _ in range(level["down"])
    ]
    going_up = [one for one, level in zip(shown, levels, strict=True) for _ in range(level["up"])][
        ::-1
    ]
    middle = 2 * shown[-1:]
    assert [list(shape) for shape in shapes] == [*going_down, *middle, *going_up]
    for i, level in enumerate(levels):
        assert level["skips"] == len(net.up_blocks[len(levels) - 1 - i].resnets)
        depths = [len(a.transformer_blocks) for a in net.down_blocks[i].attentions]
        assert depths == [level["attention"]] * (level["down"] if level["attention"] else 0)


def test_the_drawing_of_a_transformer() -> None:
    drawn = network.mmdit(SD3_MEDIUM, 128, 96)
    assert drawn["patches"] == [64, 48] and drawn["layers"] == 24 and drawn["width"] == 1536


def test_details_get_less_and_less() -> None:
    rungs = list(page_data.details(40))
    assert rungs[0] == page_data.Detail() and rungs[-1].every == 39
    assert rungs[-1].steps(40) == [0, 39]
    assert page_data.Detail(every=3).steps(8) == [0, 3, 6, 7]


# ---------------------------------------------------------------- the command


def test_command(
    call: Any,
    monkeypatch: pytest.MonkeyPatch,
    model_file: Path,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ("--model", model_file, "--steps", 2)
    status, out, _ = call("explain", "a rabbit", "--seed", 3, *common)
    assert status == 0
    name = out.strip()
    assert Path(name) == Path("outputs/a-rabbit-3-explain.html") and Path(name).is_file()

    pair = ("--versus", "a red apple", "--versus-guidance", 2, "--out", "two.html")
    assert call("explain", "a rabbit", *pair, *common)[0] == 0
    first, second = embedded_record(Path("two.html").read_text("utf-8"))["runs"]
    assert (first["prompt"], second["prompt"]) == ("a rabbit", "a red apple")
    assert second["guidance"] == 2 and first["start"] == second["start"]

    status, out, _ = call("explain", "a rabbit", "--json", *common)
    assert status == 0
    (record,) = json.loads(out)["explanations"]
    assert record["request"]["prompt"] == "a rabbit" and len(record["steps"]) == 2


def test_command_like_a_picture(
    call: Any,
    monkeypatch: pytest.MonkeyPatch,
    model: Model,
    model_file: Path,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    *_, last = generate(model, REQUEST)
    assert last.images is not None
    save_image(last.images[0], "apple.png", last.request.record())
    status, out, _ = call("explain", "--like", "apple.png", "--model", model_file, "--json")
    assert status == 0
    (record,) = json.loads(out)["explanations"]
    assert record["request"] == last.request.record()
    assert not Path("outputs").exists()  # JSON alone writes nothing


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "explain needs a prompt or --like PICTURE"),
        (("",), "has no tokens"),
        (("a rabbit", "--versus", " "), "--versus must not be empty"),
        (("a rabbit", "--out", "x.pdf"), "ends in .html"),
        (("--like", "plain.png"), "does not say how it was made"),
        (("--like", "missing.png"), "missing.png is not a file"),
        (("a rabbit", "--versus-guidance", "nan"), "guidance"),
    ],
)
def test_command_with_bad_input(
    refused: Any,
    monkeypatch: pytest.MonkeyPatch,
    model_file: Path,
    tmp_path: Path,
    words: tuple[str, ...],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("plain.png")
    assert sentence in refused("explain", *words, "--model", model_file, "--steps", 1)


def test_command_with_a_gan(refused: Any, tmp_path: Path) -> None:
    path = tmp_path / "gan.safetensors"
    small = GANConfig(size=28, latent=4, generator_width=4, discriminator_width=4)
    checkpoints.save_gan(GAN(Generator(small).eval(), "anything"), path)
    assert "is a GAN, which draws in one step" in refused("explain", "a rabbit", "--model", path)

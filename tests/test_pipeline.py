"""From a request to pictures, with a tiny random model."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor, nn

from pellucid import pipeline, samplers
from pellucid.images.metadata import read_metadata, save_image
from pellucid.latents import first_noise, first_pass
from pellucid.model import Model
from pellucid.noise import generators
from pellucid.pipeline import Progress, Request, generate, generate_in_batches, resolve
from pellucid.preview import preview
from pellucid.runtime import Runtime
from pellucid.runtime.precision import NotFinite, dtype_of
from pellucid.schedule import Schedule
from pellucid.vae import VAE, VAEConfig


def run(model: Model, **fields: Any) -> Progress:
    request = Request.model_validate({"prompt": "a red apple", "seed": 1} | fields)
    *_, last = generate(model, request)
    return last


def differ(a: Progress, b: Progress) -> float:
    return float((a.x - b.x).abs().max())


@pytest.mark.parametrize("seed", [None, -1])
def test_without_a_seed_all_batches_follow_one_that_is_chosen(
    model: Model, monkeypatch: pytest.MonkeyPatch, seed: int | None
) -> None:
    monkeypatch.setattr(pipeline, "CPU_BATCH", (2, 2**15))
    request = Request(prompt="an apple", seed=seed, count=5, steps=1)
    steps = generate_in_batches(model, request)
    seeds = [seed for step in steps if step.step == step.steps for seed in step.seeds]
    assert seeds == [seeds[0] + i for i in range(5)] and seeds[0] != -1


def test_every_step_is_told(model: Model) -> None:
    steps = list(generate(model, Request(prompt="a rabbit", seed=3, steps=4)))
    assert [(step.step, step.steps) for step in steps] == [(i, 4) for i in (1, 2, 3, 4)]
    assert [step.images is None for step in steps] == [True, True, True, False]
    assert steps[-1].level.sigma == 0
    for step in steps:
        assert step.x.shape == step.x0.shape == (1, 4, 8, 8)
        assert step.difference is not None and step.difference.abs().max() > 0
    assert steps[-1].images is not None and steps[-1].images[0].size == (16, 16)
    assert preview(model, steps[0].x0)[0].size == (16, 16)


def test_same_seed_same_picture_other_seed_another(model: Model) -> None:
    assert differ(run(model), run(model)) == 0
    assert differ(run(model), run(model, seed=2)) > 0.1
    assert differ(run(model), run(model, prompt="a rabbit")) > 1e-4


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "dpmpp_2m_sde", "lcm"])
def test_a_picture_does_not_depend_on_its_batch(model: Model, sampler: str) -> None:
    batch = run(model, sampler=sampler, count=3)
    assert batch.seeds == (1, 2, 3)
    for i, seed in enumerate(batch.seeds):
        alone = run(model, sampler=sampler, seed=seed)
        # Not to the last bit: kernels add in another order for another batch.
        torch.testing.assert_close(batch.x[i : i + 1], alone.x, rtol=1e-4, atol=1e-4)


def test_a_random_seed_is_recorded(model: Model) -> None:
    for seed in (None, -1):
        first = run(model, seed=seed)
        assert first.request.seed is not None and first.request.seed >= 0
        assert differ(first, run(model, seed=first.request.seed)) == 0


def test_the_recorded_request_makes_the_picture_again(model: Model) -> None:
    first = run(model, steps=None)
    assert (first.request.steps, first.request.width) == (3, 16)
    *_, again = generate(model, Request.model_validate_json(first.request.model_dump_json()))
    assert differ(first, again) == 0


def test_other_sizes_also_odd_latents(model: Model) -> None:
    last = run(model, width=24, height=10)
    assert last.images is not None and last.images[0].size == (24, 10)


def test_no_guidance_has_no_difference(model: Model) -> None:
    difference = run(model, guidance=1).difference
    assert difference is not None and difference.abs().max() == 0


def test_negative_prompt_and_empty_prompt(model: Model) -> None:
    assert differ(run(model), run(model, negative_prompt="a rabbit")) > 1e-4
    difference = run(model, prompt="").difference
    assert difference is not None
    torch.testing.assert_close(difference, torch.zeros_like(difference), rtol=0, atol=1e-4)


@pytest.mark.parametrize("by", ["embedding", "noise"])
def test_mix(model: Model, by: str) -> None:
    mixed = run(model, mix=[("a rabbit", 1)], mix_by=by)
    assert differ(mixed, run(model)) > 1e-5
    assert differ(mixed, run(model, prompt="a rabbit")) > 1e-5
    same = run(model, mix=[("a red apple", 3)], mix_by=by)
    torch.testing.assert_close(same.x, run(model).x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("by", ["embeddings", "estimates"])
def test_a_walk_from_one_prompt_to_another(model: Model, by: str) -> None:
    way = run(model, walk="a rabbit", walk_by=by, count=3, guidance=2.0)
    assert way.seeds == (1, 1, 1)
    ends = [run(model, guidance=2.0), run(model, prompt="a rabbit", guidance=2.0)]
    for i, end in ((0, ends[0]), (2, ends[1])):
        torch.testing.assert_close(way.x[i : i + 1], end.x, atol=1e-5, rtol=1e-4)
        assert (way.x[1] - end.x).abs().max() > 1e-4
    for i in range(3):
        alone = run(model, **way.request.alone(i).record())
        torch.testing.assert_close(alone.x, way.x[i : i + 1], atol=1e-5, rtol=1e-4)


def test_a_walk_by_estimates_is_a_mix_with_other_weights(model: Model) -> None:
    way = run(model, walk="a rabbit", walk_by="estimates", count=5)
    for i, weight in ((1, 1 / 3), (2, 1), (3, 3)):
        mixed = run(model, mix=[("a rabbit", weight)])
        torch.testing.assert_close(way.x[i : i + 1], mixed.x, atol=1e-5, rtol=1e-4)


def test_a_walk_goes_as_the_model_says(model: Model) -> None:
    assert run(model, walk="a rabbit").request.walk_by == "embeddings"
    other = replace(model, defaults=replace(model.defaults, walk_by="estimates"))
    assert run(other, walk="a rabbit").request.walk_by == "estimates"
    assert run(other, walk="a rabbit", walk_by="embeddings").request.walk_by == "embeddings"
    assert "walk_by" not in run(other).request.record()


def test_a_walk_of_prompts_of_different_lengths(model: Model) -> None:
    way = run(model, prompt="a", walk="a red apple, " * 20, count=2, negative_prompt="a rabbit")
    assert torch.isfinite(way.x).all()
    assert (way.x[0] - way.x[1]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mix": [("a", 1.0)]}, "walk and mix cannot be combined"),
        ({"prompt": "a AND b"}, "AND cannot be combined"),
    ],
)
def test_what_does_not_go_with_a_walk(model: Model, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        run(model, walk="a rabbit", **fields)


def test_variation(model: Model) -> None:
    there = run(model, variation_seed=7, variation_strength=1.0)
    torch.testing.assert_close(there.x, run(model, seed=7).x, rtol=1e-4, atol=1e-4)
    near = run(model, variation_seed=7, variation_strength=0.1)
    assert 0 < differ(near, run(model)) < differ(there, run(model))


def test_image_to_image(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "start.png"
    Image.new("RGB", (40, 30), "red").save(path)
    kept = run(model, image=str(path), strength=0)
    assert kept.images is not None and kept.images[0].getpixel((3, 3)) == (255, 0, 0)
    half = run(model, image=str(path), strength=0.5, steps=10)
    assert half.steps == 5
    # At full strength a flow begins with nothing but noise: the picture is forgotten.
    assert differ(run(model, image=str(path), strength=1), run(model)) == 0


def test_clip_guidance(model: Model) -> None:
    assert differ(run(model), run(model, clip_guidance=100)) > 1e-5
    with pytest.raises(ValueError, match="ddim_cfgpp"):
        run(model, clip_guidance=100, sampler="ddim_cfgpp")


def test_cfgpp_tells_its_parts(model: Model) -> None:
    difference = run(model, sampler="ddim_cfgpp", guidance=0.6).difference
    assert difference is not None and difference.abs().max() > 0


def test_stopping_to_iterate_cancels(model: Model) -> None:
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    hook = model.backbone.register_forward_hook(count)
    try:
        steps = generate(model, Request(prompt="a rabbit", steps=1000))
        next(steps)
        del steps
    finally:
        hook.remove()
    assert calls <= 2


def test_a_long_prompt_is_told(model: Model) -> None:
    assert run(model, prompt="a red apple").warnings == ()
    (told,) = run(model, prompt="a rabbit, " * 1000, steps=1).warnings
    assert "'a rabbit, a rabbit, '" in told and "chunks of at most 6" in told
    (told,) = run(model, negative_prompt="[a:" + "red " * 9 + ":1]", steps=2).warnings
    assert "has 9 tokens" in told


def test_all_of_a_long_prompt_counts(model: Model) -> None:
    long = "a rabbit " + "apple " * 30  # six pieces fit into a row of the tower
    last = run(model, prompt=long)
    assert differ(last, run(model, prompt=long + "red")) > 1e-5
    assert differ(last, run(model, prompt=long, negative_prompt="apple")) > 1e-5


def test_weights_count(model: Model) -> None:
    plain = run(model, prompt="a red apple")
    assert differ(plain, run(model, prompt="a (red:1.5) apple")) > 1e-5
    assert differ(plain, run(model, prompt="a (red:1.0) apple")) == 0
    assert differ(plain, run(model, negative_prompt="(red:1.5)", prompt="a red apple")) > 1e-5
    original = run(model, prompt="a (red:1.5) apple", emphasis="original")
    assert differ(original, run(model, prompt="a (red:1.5) apple")) > 1e-5
    with pytest.raises(ValueError, match="the weight of 'red' must be from -100 to 100, got inf"):
        run(model, prompt="a (red:inf) apple")
    with pytest.raises(ValueError, match="the weight of 'red' must be from -100 to 100, got nan"):
        run(model, prompt="(red:nan)")
    with pytest.raises(ValueError, match="the weight of 'a' must be from -100 to 100, got 1e"):
        run(model, prompt="a:1e30 AND b")
    with pytest.raises(ValidationError, match="emphasis"):
        run(model, emphasis="loud")


def test_clip_skip(model: Model) -> None:
    assert differ(run(model), run(model, clip_skip=1)) == 0
    with pytest.raises(
        ValueError,
        match=r"clip_skip must be from 1 to 1, got 2: .* tiny has 1 layers",
    ):
        run(model, clip_skip=2)


# ---------------------------------------------------------------- prompts that change on the way


def test_a_prompt_that_changes(model: Model) -> None:
    """The first steps are those of the one prompt, and all begin from the same noise."""
    asked = [{"prompt": p} for p in ("[a rabbit:a red apple:2]", "[a rabbit:a red apple:0.5]")]
    for fields in asked:
        mine = list(generate(model, Request.model_validate({"seed": 1, "steps": 4} | fields)))
        first = list(generate(model, Request(prompt="a rabbit", seed=1, steps=4)))
        close = [torch.allclose(a.x, b.x, atol=1e-5) for a, b in zip(mine, first, strict=True)]
        assert close == [True, True, False, False]
    whole = run(model, steps=4, prompt="[a rabbit:a red apple:0]")
    assert differ(whole, run(model, steps=4, prompt="a red apple")) < 1e-5


def test_what_is_not_read_is_told(model: Model) -> None:
    last = run(model, prompt="a [rabbit:1.3] apple", negative_prompt="[blue|red]", steps=1)
    unused = [w.split(" in the prompt is not used in any of the ")[0] for w in last.warnings]
    assert unused == ["'rabbit'", "'red'"]
    assert run(model, prompt="a [rabbit:0.5] apple").warnings == ()


def test_prompts_in_turns(model: Model) -> None:
    turns = run(model, steps=2, prompt="[a rabbit|a red apple]")
    once = run(model, steps=2, prompt="[a rabbit:a red apple:1]")
    assert differ(turns, once) < 1e-5
    assert differ(turns, run(model, steps=2, prompt="a rabbit")) > 1e-5


@pytest.mark.parametrize("sampler", samplers.names())
def test_every_sampler_takes_a_prompt_that_changes(model: Model, sampler: str) -> None:
    fields = {"sampler": sampler, "steps": 4, "guidance": 1.5}
    changing = run(model, prompt="[a rabbit:a red apple:2]", negative_prompt="[blue|]", **fields)
    assert torch.isfinite(changing.x).all()
    assert differ(changing, run(model, prompt="a rabbit", **fields)) > 1e-6


def test_steps_of_the_second_pass_follow_on(model: Model) -> None:
    """A share above 1 and a number above the first pass's steps are in the second pass."""
    fields = {"steps": 2, "hires": 2.0, "hires_steps": 4}
    late = run(model, prompt="[a rabbit:a red apple:1.5]", **fields)
    assert differ(late, run(model, prompt="[a rabbit:a red apple:4]", **fields)) < 1e-5
    assert differ(late, run(model, prompt="a rabbit", **fields)) > 1e-5
    first = run(model, prompt="[a rabbit:a red apple:1.0]", **fields)
    assert differ(first, run(model, prompt="[a rabbit:a red apple:2]", **fields)) < 1e-5


def test_prompts_that_are_added_up(model: Model) -> None:
    both = run(model, prompt="a rabbit AND a red apple :-0.5")
    assert differ(both, run(model, prompt="a rabbit")) > 1e-5
    assert differ(run(model, prompt="a rabbit:0.5 AND a rabbit:0.5"), run(model)) > 1e-5
    halves = run(model, prompt="a rabbit:0.5 AND a red apple:0.5")
    assert differ(halves, run(model, prompt="a rabbit", mix=[("a red apple", 1.0)])) < 1e-5
    none = run(model, prompt="a rabbit:0 AND a red apple:0", negative_prompt="blue")
    assert differ(none, run(model, prompt="blue", guidance=1)) < 1e-4
    with pytest.raises(ValueError, match="AND cannot be combined with mix_by"):
        run(model, prompt="a AND b", mix_by="embedding")


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 10**6}, "steps"),
        ({"guidance": float("nan")}, "guidance"),
        ({"guidance": float("inf")}, "guidance"),
        ({"seed": 2**70}, "seed"),
        ({"seed": -2}, "seed"),
        ({"seed": 2**63 - 1, "count": 2}, r"seed \+ count - 1 must be at most"),
        ({"count": 0}, "count"),
        ({"width": 0}, "width"),
        ({"height": 10**5}, "height"),
        ({"strength": 1.5}, "strength"),
        ({"mix": [("a", float("nan"))]}, "mix"),
        ({"interval": (0.8, 0.2)}, "interval"),
        ({"colour": "red"}, "colour"),
        ({"spacing": "karas"}, "nearest first: karras"),
        ({"sampler": "ueler"}, "nearest first: euler"),
        ({"noise": "gausian"}, "nearest first: gaussian"),
    ],
)
def test_bad_fields(fields: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        Request(**fields)


def test_what_this_model_cannot_do(model: Model) -> None:
    with pytest.raises(ValueError, match="width must be a multiple of 2, such as 16, got 17"):
        resolve(model, Request(width=17))
    with pytest.raises(ValueError, match="no eta"):
        run(model, eta=0.5, sampler="euler")
    with pytest.raises(ValueError, match=r"absent\.png"):
        run(model, image="absent.png")


def passes(model: Model, **fields: Any) -> list[int]:
    """The batch of each call of the network in a run."""
    batches: list[int] = []

    def note(_: Any, inputs: tuple[torch.Tensor, ...], __: Any) -> None:
        batches.append(len(inputs[0]))

    hook = model.backbone.register_forward_hook(note)
    try:
        run(model, **fields)
    finally:
        hook.remove()
    return batches


def test_what_guidance_costs(model: Model) -> None:
    assert passes(model, steps=2, guidance=1, negative_prompt="a rabbit") == [1, 1]
    assert passes(model, steps=2, guidance=3) == [2, 2]
    assert passes(model, steps=2, guidance=3, count=3) == [6, 6]
    # Outside of the interval there is no second pass. A flow begins at progress 0.
    assert passes(model, steps=4, guidance=3, interval=(0.3, 1)) == [1, 1, 2, 2]


SPACINGS_OF_A_FLOW = ("trailing", "linspace", "uniform", "karras", "exponential", "beta")


@pytest.mark.parametrize("spacing", SPACINGS_OF_A_FLOW)
@pytest.mark.parametrize("sampler", samplers.names())
def test_every_sampler_with_every_spacing(model: Model, sampler: str, spacing: str) -> None:
    last = run(model, sampler=sampler, spacing=spacing)
    assert (last.request.sampler, last.request.spacing) == (sampler, spacing)
    assert last.images is not None and last.x.isfinite().all()
    assert last.x.std() > 1e-3 and last.level.sigma == 0


def test_a_spacing_that_a_flow_does_not_have(model: Model) -> None:
    with pytest.raises(ValueError, match="does not reach pure noise"):
        run(model, spacing="leading")


@pytest.mark.parametrize("variation", [{}, {"variation_strength": 0.5, "variation_seed": 9}])
def test_each_picture_of_a_batch_can_be_made_alone(model: Model, variation: dict[str, Any]) -> None:
    batch = run(model, count=3, **variation)
    assert batch.images is not None
    for i, picture in enumerate(batch.images):
        *_, alone = generate(model, batch.request.alone(i))
        assert alone.images is not None
        levels = [np.asarray(image).astype(int) for image in (picture, alone.images[0])]
        assert np.abs(levels[0] - levels[1]).max() <= 1
    with pytest.raises(ValueError, match="image must be between 0 and 2, got 3"):
        batch.request.alone(3)


def test_no_variation_is_the_same(model: Model) -> None:
    assert differ(run(model, variation_seed=7, variation_strength=0), run(model)) == 0


def test_image_to_image_of_several(model: Model, tmp_path: Path) -> None:
    path = str(tmp_path / "start.png")
    Image.new("RGB", (16, 16), "red").save(path)
    for strength in (0, 0.5):
        last = run(model, image=path, strength=strength, steps=4, count=2)
        assert last.images is not None and len(last.images) == 2
        assert last.x.shape == last.x0.shape == (2, 4, 8, 8)
    assert passes(model, image=path, strength=0, steps=4) == []
    assert len(passes(model, image=path, strength=0.29, steps=100)) == 29
    (warning,) = run(model, image=path, strength=0.1, steps=4).warnings
    assert "rounds down to 0:" in warning


def test_a_network_that_breaks_is_told(model: Model) -> None:
    hook = model.backbone.register_forward_hook(lambda *call: call[2] * float("nan"))
    try:
        with pytest.raises(
            ValueError, match="the network gave numbers that are not finite, in float32"
        ):
            run(model)
    finally:
        hook.remove()


@pytest.mark.parametrize("part", ["backbone", "vae"])
def test_what_half_precision_cannot_do_is_done_in_float32(model: Model, part: str) -> None:
    """Only the part that failed goes over, the picture is whole, and the user is told."""
    half = replace(
        model,
        backbone=copy.deepcopy(model.backbone).half(),
        vae=copy.deepcopy(model.vae).half(),
        text=copy.deepcopy(model.text).half(),
    )
    failing = half.backbone if part == "backbone" else half.vae.decoder

    def overflow(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output * 1e38 if output.dtype == torch.float16 else output

    failing.register_forward_hook(overflow)
    last = run(half, guidance=1)
    name = "the network" if part == "backbone" else "the decoder"
    assert [w for w in last.warnings if "float32" in w] == [
        f"{name} gave numbers that are not finite in float16; it runs in float32"
    ]
    kinds = [dtype_of(half.backbone), dtype_of(half.vae)]
    other = torch.float16
    assert kinds == ([torch.float32, other] if part == "backbone" else [other, torch.float32])
    assert last.images is not None and last.images[0].getextrema() != ((0, 0),) * 3


def test_latents_that_cannot_be_decoded_come_with_the_error(model: Model) -> None:
    broken = replace(model, vae=copy.deepcopy(model.vae))
    broken.vae.decoder.register_forward_hook(lambda *call: call[2] * float("nan"))
    with pytest.raises(NotFinite, match="the decoder gave") as error:
        run(broken)
    assert error.value.latents is not None
    assert torch.equal(error.value.latents, run(model).x)


def test_the_request_in_a_picture_makes_it_again(model: Model, tmp_path: Path) -> None:
    first = run(model, negative_prompt="a rabbit", sampler="DPM++ 2M Karras", mix=[("red", 0.5)])
    assert first.images is not None
    save_image(first.images[0], tmp_path / "a.png", first.request.model_dump(mode="json"))
    *_, again = generate(model, Request.model_validate(read_metadata(tmp_path / "a.png").request))
    assert again.request == first.request and again.images is not None
    assert again.images[0].tobytes() == first.images[0].tobytes()


def test_cfgpp_has_a_guidance_of_its_own(model: Model) -> None:
    assert resolve(model, Request(sampler="ddim_cfgpp")).guidance == 0.6
    assert resolve(model, Request(sampler="ddim_cfgpp", guidance=0.9)).guidance == 0.9
    assert resolve(model, Request()).guidance == 2.0


def test_clip_guidance_keeps_no_graph(model: Model) -> None:
    parts = run(model, clip_guidance=100).parts
    assert parts is not None and not any(part.requires_grad for part in parts)


def test_clip_guidance_needs_a_tower(model: Model) -> None:
    with pytest.raises(ValueError, match="picture tower"):
        run(replace(model, vision=None), clip_guidance=100)


def latent_diffusion(model: Model, **defaults: Any) -> Model:
    """As Stable Diffusion: 4 channels at an eighth of the size, and its schedule."""
    config = VAEConfig(block_out_channels=(8,) * 4, layers_per_block=1, norm_groups=4)
    changed = replace(model.defaults, width=512, height=512, **defaults)
    return replace(
        model, vae=VAE(config).eval(), schedule=Schedule(), prediction="eps", defaults=changed
    )


@pytest.mark.parametrize("seed", range(10))
def test_the_noise_that_a_seed_means_elsewhere(model: Model, seed: int) -> None:
    stable = latent_diffusion(model, spacing="leading")
    request = resolve(stable, Request(seed=seed))
    expected = torch.randn((1, 4, 64, 64), generator=torch.Generator().manual_seed(seed))
    streams = generators(seed, 1)
    assert torch.equal(first_noise(Runtime(stable), request, (512, 512), streams), expected)
    # Where Stable Diffusion's own samplers begin, and where k-diffusion's do.
    level = stable.schedule.levels(20, "leading")[0]
    for spacing, scale in (("leading", 1), ("uniform", level.sigma)):
        asked = request.model_copy(update={"spacing": spacing})
        begin = first_pass(Runtime(stable), asked, None, level)
        assert torch.equal(begin.x, scale * expected)


def test_a_large_model_keeps_the_size_of_a_picture(model: Model, tmp_path: Path) -> None:
    path = str(tmp_path / "start.png")
    Image.new("RGB", (77, 40), "red").save(path)
    stable = latent_diffusion(model)

    def size(model: Model, **fields: Any) -> tuple[int | None, int | None]:
        request = resolve(model, Request(**fields))
        return request.width, request.height

    assert size(stable) == (512, 512)
    assert size(stable, image=path) == (72, 40)
    assert size(stable, image=path, width=64) == (64, 40)
    assert size(stable, image=path, extend=(0, 2, 1, 0)) == (78, 42)
    assert size(stable, image=path, extend=(0, 2, 1, 0), only_masked=True) == (512, 512)
    assert size(model, image=path) == (16, 16)  # a small one draws what it was trained on
    with pytest.raises(ValueError, match="width must be a multiple of 8, such as 80, got 77"):
        size(stable, image=path, width=77)
    assert size(stable, image=path, extend=(0, 2, 1, 0), height=48) == (72, 48)
    with pytest.raises(ValueError, match="height must be a multiple of 8, such as 48, got 44"):
        size(stable, image=path, extend=(0, 2, 1, 0), height=44)
    wide = str(tmp_path / "wide.png")
    Image.new("1", (5000, 8)).save(wide)
    with pytest.raises(ValueError, match=r"wide\.png makes a width of 5000; at most 4096"):
        size(stable, image=wide)
    assert size(stable, image=wide, width=64) == (64, 8)


def test_a_rounded_size_is_said(model: Model, tmp_path: Path) -> None:
    path = str(tmp_path / "start.png")
    Image.new("RGB", (77, 40), "red").save(path)
    stable = latent_diffusion(model)
    last = run(stable, image=path, strength=0)
    assert last.images is not None and last.images[0].size == (72, 40)
    nothing, warning = last.warnings
    assert "77x40" in warning and "72x40" in warning
    assert nothing == "strength 0 returns the picture unchanged"
    assert run(stable, image=path, strength=0, width=72, height=40).warnings == (nothing,)
    assert run(model, image=path, strength=0).warnings == (nothing,)


def test_what_does_nothing_is_told(model: Model) -> None:
    asked = {"strength": 0.5, "mask_grow": 2, "hires_steps": 3, "variation_seed": 4}
    assert run(model, **asked).warnings == (
        "strength does nothing without image",
        "mask_grow does nothing without mask",
        "hires_steps does nothing without hires",
        "variation_seed does nothing without variation_strength",
    )
    assert run(model, variation_seed=4, variation_strength=0.1).warnings == ()
    assert run(model, mask_blur=Request().mask_blur).warnings == ()


def test_what_does_nothing_is_not_recorded() -> None:
    plain = Request(prompt="a rabbit", seed=1).record()
    assert {"prompt", "seed", "steps", "mix"} <= set(plain)
    assert not {"strength", "mask", "extend", "padding", "mask_blur", "hires_steps"} & set(plain)
    assert "strength" in Request(image="a.png").record()
    masked = Request(image="a.png", mask="m.png", hires_steps=3, padding=9)
    assert "mask_blur" in masked.record() and "hires_steps" not in masked.record()
    assert masked.idle()["padding"] == "only_masked" and "padding" not in masked.record()
    assert masked.model_copy(update={"only_masked": True}).record()["padding"] == 9
    for request in (Request(image="a.png", extend=(1, 2, 3, 4)), Request(hires=2, hires_steps=3)):
        assert Request.model_validate(request.record()) == request

"""The opened autoencoder and CLIP, against numbers that are worked out in another way."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pellucid import nn as blocks
from pellucid.backbones.mmdit import MMDiT, MMDiTConfig
from pellucid.clip import CLIP, TextTower, retrieve
from pellucid.conditioning import encode_captions
from pellucid.data.emoji import concept_names
from pellucid.evaluate.evaluation import read_prompts
from pellucid.explain import autoencoder, clip
from pellucid.explain import parts_page as page
from pellucid.explain.autoencoder import Cost, RoundTrip
from pellucid.explain.clip import Similarity
from pellucid.explain.operations import count_operations, on_meta
from pellucid.html.numbers import people
from pellucid.images.pixels import to_pil, to_tensor
from pellucid.model import Model
from pellucid.tokenizer import Tokenizer


def photo(width: int = 40, height: int = 30, turn: int = 0) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([255 * x / width, 255 * y / height, 200 * (x > width / 2)], axis=-1)
    return Image.fromarray(np.roll(pixels, turn, axis=-1).astype(np.uint8))


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("size", "fitted", "said"),
    [
        ((64, 32), (64, 32), "64x32"),
        ((70, 41), (64, 40), "70x41, cropped to 64x40"),
        ((3, 5), (8, 8), "3x5, scaled to 8x13, cropped to 8x8"),
        ((2048, 1024), (1448, 720), "2048x1024, scaled to 1448x724, cropped to 1448x720"),
        ((1, 2000), (8, 16000), "1x2000, scaled to 8x16000"),
    ],
)
def test_a_picture_is_made_to_fit(
    size: tuple[int, int], fitted: tuple[int, int], said: str
) -> None:
    image, words = autoencoder.fit_to_latents(photo(*size), 8)
    assert image.size == fitted and words == said


def test_cropping_takes_the_middle() -> None:
    image = photo(20, 10)
    middle = np.asarray(image)[1:9, 2:18]
    assert np.array_equal(np.asarray(autoencoder.fit_to_latents(image, 8)[0]), middle)


# ---------------------------------------------------------------- the round trip


@pytest.fixture(scope="module")
def trip(model: Model) -> RoundTrip:
    return autoencoder.round_trip(model, photo(), "photo.png")


def test_the_round_trip_is_that_of_the_autoencoder(trip: RoundTrip, model: Model) -> None:
    assert trip.picture.size == (40, 30) and trip.fitted == "40x30"
    latents = model.vae.to_latents(to_tensor(trip.picture)[None])
    decoded = to_pil(model.vae.to_pixels(latents)[0])
    assert np.array_equal(np.asarray(decoded), np.asarray(trip.decoded))
    error = np.asarray(decoded, float) - np.asarray(trip.picture, float)
    assert trip.psnr == pytest.approx(10 * math.log10(255**2 / np.square(error).mean()), abs=1e-3)
    assert trip.largest == np.abs(error).max()
    shown = np.asarray(trip.difference, float)
    assert np.abs(shown - np.abs(error) * 255 / trip.largest).max() <= 0.51
    for found, numbers in zip(trip.channels, latents[0], strict=True):
        assert found.mean == pytest.approx(numbers.mean().item(), abs=1e-5)
        assert found.deviation == pytest.approx(numbers.std(correction=0).item(), abs=1e-5)
        assert found.picture.size == (20, 15)
        grey = ((numbers - numbers.mean()) / numbers.std(correction=0) / 3).clamp(-1, 1)
        shown = np.asarray(found.picture, float)
        assert np.abs(shown - 127.5 * (grey[..., None].numpy() + 1)).max() <= 0.51


def test_a_large_picture_goes_through_in_tiles(
    trip: RoundTrip, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = type(model.vae.decoder).tiled

    def counted(self: Any, z: Tensor, tile_size: int) -> Tensor:
        calls.append(tile_size)
        return real(self, z, tile_size)

    monkeypatch.setattr(type(model.vae.decoder), "tiled", counted)
    monkeypatch.setattr(autoencoder, "WHOLE_BYTES", 0)
    again = autoencoder.round_trip(model, photo(), "photo.png")
    assert len(calls) == 1
    assert np.abs(np.asarray(again.decoded, int) - np.asarray(trip.decoded, int)).max() <= 1


def test_nothing_lost_is_infinite(model: Model, well_formed: Callable[[str], None]) -> None:
    """An autoencoder that is the identity, by its linear shortcut alone."""
    whole = np.eye(3, dtype=np.float32)
    config = replace(
        model.vae.config,
        latent_channels=3,
        block_out_channels=(8,),
        shortcut=True,
        scaling_factor=1,
    )
    vae = type(model.vae)(config)
    vae.set_shortcut(torch.tensor(whole), torch.tensor(whole), torch.zeros(3))
    unet = type(model.backbone)(replace(model.backbone.config, in_channels=3, out_channels=3))
    trip = autoencoder.round_trip(replace(model, vae=vae.eval(), backbone=unet.eval()), photo())
    assert trip.psnr == math.inf and trip.largest == 0
    assert trip.colours is not None
    assert np.array_equal(np.asarray(trip.colours), np.asarray(trip.picture))
    assert RoundTrip.model_validate_json(trip.model_dump_json()).psnr == math.inf
    well_formed(page.round_trip_html(trip))


# ---------------------------------------------------------------- operations


def by_hand(part: nn.Module, run: Callable[[], object]) -> int:
    """Two for each weight that a number meets, and the two products of each attention."""
    total = 0

    def weights(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        weight = module.weight
        assert isinstance(weight, Tensor)
        per_output = weight.shape[1:].numel()
        total += 2 * output.numel() * per_output

    def products(module: nn.Module, inputs: tuple[Any, ...], kwargs: Any, output: Tensor) -> None:
        nonlocal total
        x = inputs[0]
        if isinstance(module, blocks.PictureAttention):
            places, width, seen = x.shape[2] * x.shape[3], x.shape[1], x.shape[2] * x.shape[3]
        else:
            context = inputs[1] if len(inputs) > 1 and inputs[1] is not None else x
            places, width, seen = x.shape[1], module.to_q.out_features, context.shape[1]
        total += 4 * len(x) * places * seen * width

    hooks = []
    for module in part.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            hooks.append(module.register_forward_hook(weights))
        if isinstance(module, blocks.Attention | blocks.PictureAttention):
            hooks.append(module.register_forward_hook(products, with_kwargs=True))
    run()
    for hook in hooks:
        hook.remove()
    return total


def test_operations_are_those_counted_by_hand(trip: RoundTrip, model: Model) -> None:
    cond = encode_captions(model.text, model.tokenizer, [""])
    t = torch.zeros(1)
    found = trip.cost
    x = torch.randn(1, 4, 15, 20)
    assert found.latent_operations == by_hand(model.backbone, lambda: model.backbone(x, t, cond))
    y = torch.randn(1, 4, 30, 40)
    assert found.pixel_operations == by_hand(model.backbone, lambda: model.backbone(y, t, cond))
    pixels = torch.randn(1, 3, 30, 40)
    assert found.encode == by_hand(model.vae, lambda: model.vae.encode(pixels))
    assert found.decode == by_hand(model.vae, lambda: model.vae.decode(x))
    assert (found.pixel_values, found.latent_values) == (3 * 40 * 30, 4 * 20 * 15)
    assert (found.pixel_bytes, found.latent_bytes) == (3600, 2400)
    assert found.evaluations == 2 * 3  # three steps with guidance


def test_costs_have_one_name_in_json_and_older_files_are_read(trip: RoundTrip) -> None:
    written = trip.cost.model_dump(mode="json")
    assert set(written) == set(Cost.model_fields)
    names = {
        "latent_operations": "latent_look",
        "pixel_operations": "pixel_look",
        "evaluations": "looks",
    }
    older = {names.get(name, name): value for name, value in written.items()}
    assert Cost.model_validate(older) == trip.cost == Cost.model_validate(written)


def test_counting_needs_no_memory(model: Model) -> None:
    network = on_meta(model.backbone)
    assert all(parameter.is_meta for parameter in network.parameters())
    cond = encode_captions(model.text, model.tokenizer, [""]).to("meta")
    x = torch.empty(1, 4, 4096, 4096, device="meta")  # its attention would have 2^48 numbers
    assert count_operations(lambda: network(x, torch.zeros(1, device="meta"), cond)) > 2**50


def test_a_transformer_without_places_for_pixels(
    model: Model, well_formed: Callable[[str], None]
) -> None:
    config = MMDiTConfig(
        in_channels=4,
        out_channels=4,
        layers=1,
        heads=2,
        head_width=8,
        cross_attention_dim=16,
        pooled_dim=12,
        sample_size=8,
        max_patches=8,
    )
    transformer = replace(model, backbone=MMDiT(config).eval())
    found = autoencoder.round_trip(transformer, photo(32, 32))
    assert found.cost.pixel_operations is None and found.cost.latent_operations > 0
    text = page.round_trip_html(found)
    well_formed(text)
    assert "too large" in text


# ---------------------------------------------------------------- CLIP


@pytest.fixture(scope="module")
def found(model: Model) -> Similarity:
    pictures = [("one.png", photo()), ("<two>.png", photo(30, 50, turn=1))]
    words = ["a rabbit", "an apple", "red", "a red rabbit"]
    return clip.compare_pictures(model, pictures, ["a red apple", "a rabbit"], words)


def test_cosines_are_those_of_clip(found: Similarity, model: Model) -> None:
    assert model.vision is not None
    both = CLIP(model.text, model.vision)
    pixels = torch.stack([to_tensor(seen.picture) for seen in found.pictures])
    expected = retrieve(both, pixels, model.tokenizer(found.texts)).similarity
    cosines = torch.tensor(found.cosines)
    torch.testing.assert_close(cosines[:2, 2:], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(cosines, cosines.T)
    torch.testing.assert_close(cosines.diagonal(), torch.ones(4))
    assert cosines[0, 1] == pytest.approx(
        torch.cosine_similarity(*both.embed_images(pixels), dim=0).item(), abs=1e-5
    )


def test_the_nearest_words_are_the_nearest(found: Similarity, model: Model) -> None:
    texts = ["a rabbit", "an apple", "red", "a red rabbit"]
    again = clip.compare_pictures(model, [("one", photo())], texts)
    expected = sorted(zip(again.cosines[0][1:], texts, strict=True), reverse=True)
    near = found.pictures[0].nearest
    assert [n.word for n in near] == [word for _, word in expected]
    assert [n.cosine for n in near] == pytest.approx([cosine for cosine, _ in expected], abs=1e-5)
    many = clip.compare_pictures(
        model, [("one", photo())], words=[f"a{'b' * i}" for i in range(150)]
    )
    assert len(many.pictures[0].nearest) == clip.NEAREST and many.words == 150


def test_a_text_that_is_cut_is_told(model: Model, well_formed: Callable[[str], None]) -> None:
    long = "a rabbit a rabbit a rabbit a rabbit a rabbit"
    found = clip.compare_pictures(model, [("one", photo())], [long, "a", ""])
    assert found.left_out[0] is not None and long.endswith(found.left_out[0])
    assert found.left_out[1] is None
    text = page.similarity_html(found)
    well_formed(text)
    assert "Too long for tiny" in text and "The nearest words" not in text
    assert text.count("<i>no words</i>") == 2  # a row and a column


def test_texts_are_compared_with_words(found: Similarity, model: Model) -> None:
    _, rabbit = found.text_nearest
    assert rabbit[0].word == "a rabbit" and rabbit[0].cosine == pytest.approx(1)
    assert found.space is not None and found.space.count == 4 and found.space.same is None
    text = page.similarity_html(found)
    assert "Two different words of the 4 have a median cosine" in text
    assert all(sentence in text for sentence in found.space.sentences())
    other = rabbit[1]
    assert (
        f"The nearest other word to “a rabbit” is “{other.word}”, with {other.cosine:.2f}" in text
    )
    for i, picture in enumerate(found.pictures):
        best = max((2, 3), key=lambda j: found.cosines[i][j])
        said = f"“{found.texts[best - 2]}” is nearest to {picture.name}"
        assert escape(said) in text


def test_models_and_numbers_that_cannot_be_compared(model: Model) -> None:
    one = [("one", photo())]
    with pytest.raises(ValueError, match="tiny has no vision tower"):
        clip.compare_pictures(replace(model, vision=None), one)
    plain = TextTower(replace(model.text.config, projection=None))
    with pytest.raises(ValueError, match="does not project"):
        clip.compare_pictures(replace(model, text=plain), one)
    with pytest.raises(ValueError, match="0 pictures and 1 texts"):
        clip.compare_pictures(model, [], ["a"])
    with pytest.raises(ValueError, match="at most 100"):
        clip.compare_pictures(model, one, ["a"] * 100)


@pytest.mark.parametrize("name", ["own", "CLIP's"])
def test_words_of_a_vocabulary_are_one_piece_each(name: str, model: Model) -> None:
    tokenizer = model.tokenizer if name == "own" else Tokenizer.clip()
    words = tokenizer.whole_words()
    assert words == sorted(set(words))
    assert ("rabbit" in words, "ab" in words) == (name != "own" or "rabbit" in words, False)
    if name != "own":
        assert len(words) > 20_000
    assert all(len(tokenizer.encode(word)) == 1 for word in words[:: max(1, len(words) // 200)])


def test_concepts_have_the_names_that_prompts_use() -> None:
    names = concept_names()
    assert len(names) == len(set(names)) > 100
    assert {prompt.concept for prompt in read_prompts("common")} <= set(names)


# ---------------------------------------------------------------- records and pages


def test_records_go_to_json_and_back(trip: RoundTrip, found: Similarity) -> None:
    text = trip.model_dump_json()
    assert RoundTrip.model_validate_json(text).model_dump_json() == text
    text = found.model_dump_json()
    assert Similarity.model_validate_json(text).model_dump_json() == text


def test_pages_have_everything_and_need_nothing(
    trip: RoundTrip, found: Similarity, well_formed: Callable[[str], None]
) -> None:
    text = page.round_trip_html(trip)
    well_formed(text)
    assert text.count("<img ") == 3 + (trip.colours is not None) + 4
    assert f">{people(trip.cost.latent_operations)}<" in text and "40x30" in text
    text = page.similarity_html(found)
    well_formed(text)
    assert text.count("rgba(") == 16 and text.count("<img ") == 2 * 2 + 2
    assert "&lt;two&gt;.png" in text and "<two>" not in text
    assert "30x50, its middle at 16x16" in text


# ---------------------------------------------------------------- the commands


def test_the_commands(
    call: Any,
    monkeypatch: pytest.MonkeyPatch,
    model_file: Path,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    photo().save("a.png")
    photo(turn=1).convert("P").save("b.gif")
    round_trip = ("autoencoder", "a.png", "--model", model_file)
    command = ("clip", "a.png", "b.gif", "--model", model_file, "--text", "a rabbit")
    for words in (round_trip, command):
        name = f"outputs/a-{words[0]}.html"
        assert call(*words) == (0, f"{name}\n", "")
        assert Path(name).stat().st_size > 1000
    status, out, _ = call(*round_trip, "--json")
    assert status == 0
    assert RoundTrip.model_validate_json(out).source == "a.png"
    Path("words.txt").write_text("rabbit\n\n apple \n")
    for source, count in (("concepts", len(concept_names())), ("words.txt", 2)):
        status, out, _ = call(*command, "--json", "--words", source)
        assert status == 0
        found = Similarity.model_validate_json(out)
        assert found.words == count and found.texts == ("a rabbit",)
    assert [seen.name for seen in found.pictures] == ["a.png", "b.gif"]
    assert call(*command, "--json", "--words", "vocabulary")[0] == 0
    status, _, err = call(*command, "--json", "--text", "a red apple " * 9)
    assert status == 0 and "is too long for tiny; left out:" in err
    assert sorted(path.name for path in Path("outputs").iterdir()) == [
        "a-autoencoder.html",
        "a-clip.html",
    ]
    # A name that is taken gets a number, --out is a folder or a file, and none is lost.
    assert call(*round_trip)[1] == "outputs/a-autoencoder-2.html\n"
    assert call(*round_trip, "--out", "new/folder")[1] == "new/folder/a-autoencoder.html\n"
    page = Path("new/page.html")
    assert call(*round_trip, "--out", page)[0] == 0
    before = page.read_bytes()
    status, out, err = call(*command, "--out", page)
    assert (status, out) == (2, "") and "page.html exists; --overwrite replaces it" in err
    assert page.read_bytes() == before
    assert call(*command, "--out", page, "--overwrite")[0] == 0 and page.read_bytes() != before


@pytest.mark.parametrize("command", ["autoencoder", "clip"])
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("none.png",), "none.png is not a file"),
        (("text.png",), "text.png is not a picture"),
        (("half.png",), "half.png is truncated or damaged"),
        (("large.png",), "large.png is too large: 20000x2 pixels"),
        (("photo.png", "--out", "a.pdf"), "ends in .html"),
    ],
)
def test_bad_pictures_are_one_sentence(
    refused: Any,
    command: str,
    words: tuple[str, ...],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    model_file: Path,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.png").write_text("not a picture")
    Image.new("RGB", (20_000, 2)).save("large.png")
    photo().save("photo.png")
    Path("half.png").write_bytes(Path("photo.png").read_bytes()[:90])
    assert sentence in refused(command, *words, "--model", model_file)
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("vocabulry", "concepts, vocabulary or a file"),
        ("a.png", "a.png, line 1: the text must be UTF-8"),
        ("empty.txt", "empty.txt contains no words; write a word in each line"),
    ],
)
def test_bad_words_are_one_sentence(
    refused: Any,
    source: str,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    model_file: Path,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    photo().save("a.png")
    Path("empty.txt").write_text("\n \n")
    assert sentence in refused("clip", "a.png", "--words", source, "--model", model_file)

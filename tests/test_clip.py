"""CLIP against Hugging Face's, on tiny random towers; loss and retrieval by their definitions."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from pellucid.clip import (
    CLIP,
    SD1_TEXT,
    SD2_TEXT,
    SDXL_TEXT,
    TextConfig,
    TextTower,
    VisionConfig,
    VisionTower,
    contrastive_loss,
    retrieve,
)

transformers = pytest.importorskip("transformers")

TEXT = TextConfig(99, 12, 32, 3, 4, 48, projection=20, eos=98)
VISION = VisionConfig(16, 4, 32, 3, 4, 48, projection=20)


def hf_text_config(config: TextConfig) -> transformers.CLIPTextConfig:
    return transformers.CLIPTextConfig(
        vocab_size=config.vocab_size,
        max_position_embeddings=config.context_length,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.mlp_width,
        hidden_act=config.activation,
        projection_dim=config.projection or 512,
        bos_token_id=97,
        eos_token_id=config.eos,
        pad_token_id=1,
    )


def hf_vision_config(config: VisionConfig) -> transformers.CLIPVisionConfig:
    return transformers.CLIPVisionConfig(
        image_size=config.image_size,
        patch_size=config.patch_size,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.mlp_width,
        hidden_act=config.activation,
        projection_dim=config.projection,
    )


def random_ids() -> torch.Tensor:
    ids = torch.randint(1, 90, (3, 12), generator=torch.Generator().manual_seed(1))
    ids[:, 0] = 97
    for row, end in enumerate((4, 7, 11)):
        ids[row, end:] = 98
    return ids


def random_pixels(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1


def shake(module: torch.nn.Module) -> None:
    """Fresh norms and biases are ones and zeros, which would hide one that is left out."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_text_tower_equals_transformers(activation: str) -> None:
    config = dataclasses.replace(TEXT, activation=activation)
    theirs = transformers.CLIPTextModelWithProjection(hf_text_config(config)).eval()
    shake(theirs)
    ours = TextTower(config).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    ids = random_ids()
    with torch.no_grad():
        expected = theirs(ids, output_hidden_states=True)
        hidden, _, projected = ours(ids)
        skipped = ours(ids, layer=-2).hidden
        bare = ours(ids, layer=-2, final_norm=False).hidden
    assert (hidden - expected.last_hidden_state).abs().max() <= 1e-5
    assert (projected - expected.text_embeds).abs().max() <= 1e-5
    assert (bare - expected.hidden_states[-2]).abs().max() <= 1e-5
    norm = theirs.text_model.final_layer_norm
    assert (skipped - norm(expected.hidden_states[-2])).abs().max() <= 1e-5


def test_text_tower_without_projection_equals_transformers() -> None:
    config = dataclasses.replace(TEXT, projection=None)
    theirs = transformers.CLIPTextModel(hf_text_config(config)).eval()
    shake(theirs)
    ours = TextTower(config).eval()
    prefixed = {
        name if name.startswith("text_model.") else f"text_model.{name}": value
        for name, value in theirs.state_dict().items()
    }
    ours.load_state_dict(prefixed, strict=True)
    with torch.no_grad():
        expected = theirs(random_ids())
        output = ours(random_ids())
    assert output.projected is None
    assert (output.hidden - expected.last_hidden_state).abs().max() <= 1e-5
    assert (output.pooled - expected.pooler_output).abs().max() <= 1e-5


def test_vision_tower_equals_transformers() -> None:
    theirs = transformers.CLIPVisionModelWithProjection(hf_vision_config(VISION)).eval()
    shake(theirs)
    ours = VisionTower(VISION).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    with torch.no_grad():
        difference = ours(random_pixels()) - theirs(random_pixels()).image_embeds
    assert difference.abs().max() <= 1e-5


def test_clip_and_its_loss_equal_transformers() -> None:
    config = transformers.CLIPConfig(
        text_config=hf_text_config(TEXT).to_dict(),
        vision_config=hf_vision_config(VISION).to_dict(),
        projection_dim=20,
    )
    theirs = transformers.CLIPModel(config).eval()
    shake(theirs)
    weights = theirs.state_dict()
    ours = CLIP(TEXT, VISION).eval()
    ours.text.load_state_dict({k: v for k, v in weights.items() if k.startswith("text")})
    ours.vision.load_state_dict({k: v for k, v in weights.items() if k.startswith("vis")})
    ours.load_state_dict({"logit_scale": weights["logit_scale"]}, strict=False)
    pixels, ids = random_pixels(), random_ids()
    with torch.no_grad():
        expected = theirs(ids, pixels, return_loss=True)
        logits = ours(pixels, ids)
        loss = contrastive_loss(ours.embed_images(pixels), ours.embed_texts(ids), ours.scale)
    assert (logits - expected.logits_per_image).abs().max() <= 1e-4  # logits are scaled by 14
    assert (loss - expected.loss).abs() <= 1e-5


def test_pixels_are_normalised_as_the_tower_was_trained() -> None:
    mean, std = (0.48, 0.45, 0.4), (0.26, 0.27, 0.28)
    plain = VisionTower(VISION)
    other = VisionTower(dataclasses.replace(VISION, mean=mean, std=std))
    other.load_state_dict(plain.state_dict())
    pixels = random_pixels()
    normalised = ((pixels + 1) / 2 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(
        3, 1, 1
    )
    torch.testing.assert_close(other(pixels), plain(normalised))


@pytest.mark.parametrize(
    ("config", "count"),
    [(SD1_TEXT, 123_060_480), (SD2_TEXT, 354_032_640), (SDXL_TEXT, 694_659_840)],
)
def test_published_sizes(config: TextConfig, count: int) -> None:
    with torch.device("meta"):
        tower = TextTower(config)
    assert sum(parameter.numel() for parameter in tower.parameters()) == count


def test_later_tokens_do_not_change_earlier_ones() -> None:
    tower = TextTower(TEXT).eval()
    ids = random_ids()
    changed = ids.clone()
    changed[:, -1] = 5
    with torch.no_grad():
        before, after = tower(ids).hidden, tower(changed).hidden
    torch.testing.assert_close(before[:, :-1], after[:, :-1])
    assert not torch.allclose(before[:, -1], after[:, -1])


def test_padding_does_not_change_the_pooled_vector() -> None:
    tower = TextTower(TEXT).eval()
    ids = random_ids()[:1]
    with torch.no_grad():
        torch.testing.assert_close(tower(ids[:, :5]).projected, tower(ids).projected)


def test_contrastive_loss_by_hand() -> None:
    images = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), dim=1)
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    a, b = 1.0, 1 / math.sqrt(2)  # similarities: [[1, 0], [b, b]]
    by_row = (math.log(1 + math.exp(-a)) + math.log(2)) / 2
    by_column = (math.log(1 + math.exp(b - a)) + math.log(1 + math.exp(-b))) / 2
    loss = contrastive_loss(images, texts, 1.0)
    assert loss.item() == pytest.approx((by_row + by_column) / 2, abs=1e-6)


def test_same_pairs_are_not_pushed_apart() -> None:
    images = F.normalize(random_pixels(4).flatten(1)[:, :6], dim=1).requires_grad_()
    texts = F.normalize(random_pixels(8).flatten(1)[4:, :6], dim=1)
    everything = torch.ones(4, 4, dtype=torch.bool)
    assert contrastive_loss(images, texts, 10.0, everything).item() == pytest.approx(0, abs=1e-6)
    nothing = torch.eye(4, dtype=torch.bool)
    torch.testing.assert_close(
        contrastive_loss(images, texts, 10.0, nothing), contrastive_loss(images, texts, 10.0)
    )
    some = nothing.clone()
    some[0, 1] = True
    loss = contrastive_loss(images, texts, 10.0, some)
    loss.backward()
    assert loss < contrastive_loss(images, texts, 10.0)
    assert images.grad is not None and images.grad.isfinite().all()


def test_scale_is_learnt_and_at_most_100() -> None:
    model = CLIP(TEXT, VISION)
    assert model.scale.item() == pytest.approx(1 / 0.07)
    model(random_pixels(), random_ids()).sum().backward()
    assert model.logit_scale.grad is not None
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    assert model.scale.item() == 100


def test_training_pairs_pictures_with_texts() -> None:
    torch.manual_seed(0)
    model = CLIP(TEXT, VISION)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    pixels, ids = random_pixels(), random_ids()
    losses = []
    for _ in range(25):
        loss = contrastive_loss(model.embed_images(pixels), model.embed_texts(ids), model.scale)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert retrieve(model, pixels, ids).ranks.tolist() == [0, 0, 0]


def test_retrieval_in_batches() -> None:
    model = CLIP(TEXT, VISION).eval()
    pixels, ids = random_pixels(5), random_ids()
    whole, parts = retrieve(model, pixels, ids), retrieve(model, pixels, ids, batch_size=2)
    torch.testing.assert_close(whole.similarity, parts.similarity)
    assert whole.similarity.shape == (5, 3)
    for text in range(3):
        order = whole.similarity[:, text].argsort(descending=True).tolist()
        assert order.index(text) == whole.ranks[text]


def test_more_texts_than_pictures() -> None:
    result = retrieve(CLIP(TEXT, VISION).eval(), random_pixels(2), random_ids())
    assert result.similarity.shape == (2, 3)
    assert result.ranks[2] == -1 and (result.ranks[:2] >= 0).all()


def test_errors_name_the_input() -> None:
    with pytest.raises(ValueError, match="layer is -5"):
        TextTower(TEXT)(random_ids(), layer=-5)
    with pytest.raises(ValueError, match="at most 12"):
        TextTower(TEXT)(torch.ones(1, 13, dtype=torch.int64))
    with pytest.raises(ValueError, match="16x16"):
        VisionTower(VISION)(torch.zeros(1, 3, 8, 16))
    with pytest.raises(ValueError, match="patch_size 5"):
        VisionTower(dataclasses.replace(VISION, patch_size=5))
    with pytest.raises(ValueError, match="heads 5"):
        TextTower(dataclasses.replace(TEXT, heads=5))
    with pytest.raises(ValueError, match="choose gelu"):
        TextTower(dataclasses.replace(TEXT, activation="relu"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be equal"):
        CLIP(dataclasses.replace(TEXT, projection=8), VISION)

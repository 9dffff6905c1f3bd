"""CLIP: pictures and texts in one space (Radford et al. 2021, arXiv:2103.00020).

Two transformers, one for texts and one for pictures, each end in a vector; they are trained so that
the vectors of a picture and of its caption point the same way. Diffusion uses the text half to read
the prompt. Parameter names are those of Hugging Face's CLIP, so that published weights load as they
are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["gelu", "quick_gelu"]


@dataclass(frozen=True)
class TextConfig:
    """The shape of a text tower. `eos` is the token whose place gives the pooled vector."""

    vocab_size: int = 4096
    context_length: int = 24
    width: int = 256
    layers: int = 6
    heads: int = 4
    mlp_width: int = 1024
    activation: Activation = "gelu"
    projection: int | None = 256  # None: no projection to the space of the pictures
    eos: int = 4095
    norm_eps: float = 1e-5


@dataclass(frozen=True)
class VisionConfig:
    """The shape of a vision tower. `mean` and `std` are those of pixels in [0, 1] that it was
    trained with."""

    image_size: int = 64
    patch_size: int = 8
    width: int = 256
    layers: int = 6
    heads: int = 4
    mlp_width: int = 1024
    activation: Activation = "gelu"
    projection: int = 256
    channels: int = 3
    norm_eps: float = 1e-5
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)


# OpenAI's ViT-L/14: the text tower of SD1, and the first one of SDXL.
SD1_TEXT = TextConfig(
    49408, 77, 768, 12, 12, 3072, activation="quick_gelu", projection=None, eos=49407
)
# OpenCLIP's ViT-H/14. SD2 reads its last layer but one.
SD2_TEXT = TextConfig(49408, 77, 1024, 24, 16, 4096, projection=1024, eos=49407)
# OpenCLIP's ViT-bigG/14, the second text tower of SDXL.
SDXL_TEXT = TextConfig(49408, 77, 1280, 32, 20, 5120, projection=1280, eos=49407)


class TextOutput(NamedTuple):
    hidden: Tensor  # (B, L, width), one vector per token, from the layer that was asked for
    pooled: Tensor  # (B, width), the last layer's vector at eos, after the final norm
    projected: Tensor | None  # (B, projection), comparable with pictures; None without a projection


class CLIPAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        q, k, v = (
            proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, L, width / heads)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        x = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.out_proj(x.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        if activation not in ("gelu", "quick_gelu"):
            raise ValueError(f"activation {activation!r} is unknown; choose gelu or quick_gelu")
        self.quick = activation == "quick_gelu"
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        x = x * torch.sigmoid(1.702 * x) if self.quick else F.gelu(x)
        return self.fc2(x)


class Layer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: TextConfig | VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.self_attn = CLIPAttention(config.width, config.heads)
        self.layer_norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = MLP(config.width, config.mlp_width, config.activation)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), causal)
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    def __init__(self, config: TextConfig | VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        # CLIP's initialisation: each of the 2 * layers branches adds little to the sum at first.
        branch = (2 * config.layers) ** -0.5
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name:
                std = config.width**-0.5
                if name.endswith("fc1.weight"):
                    std = (2 * config.width) ** -0.5
                elif not name.endswith("out_proj.weight"):
                    std *= branch
                nn.init.normal_(parameter, std=std)


class TextEmbeddings(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.context_length, config.width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]


class TextTransformer(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(config)
        self.encoder = Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.width, eps=config.norm_eps)


class TextTower(nn.Module):
    """Reads a prompt: a causal transformer over its tokens."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = TextTransformer(config)
        self.text_projection: nn.Linear | None = None
        if config.projection is not None:
            self.text_projection = nn.Linear(config.width, config.projection, bias=False)
            nn.init.normal_(self.text_projection.weight, std=config.width**-0.5)

    def forward(self, ids: Tensor, layer: int = -1, final_norm: bool = True) -> TextOutput:
        """ids: (B, L) int64 with L <= context_length; every row must hold `config.eos`.

        layer chooses what `hidden` is: -1 the last layer, -2 the one before ("clip skip 2"), and so
        on; final_norm says whether the final layer norm is applied to it. SD1: -1 with the norm;
        SD2: -2 with it; SDXL: -2 without. `pooled` and `projected` are always the last layer's.
        Raises ValueError for a layer that does not exist.
        """
        count = self.config.layers
        if not -count - 1 <= layer <= -1:
            raise ValueError(f"layer is {layer}; there are -1 (last) to {-count - 1} (embeddings)")
        if ids.shape[1] > self.config.context_length:
            raise ValueError(
                f"ids are {ids.shape[1]} tokens long; at most {self.config.context_length} fit"
            )
        model = self.text_model
        x = model.embeddings(ids)  # (B, L, width)
        hidden = x
        for index, block in enumerate(model.encoder.layers):
            x = block(x, causal=True)
            if index == count + layer:
                hidden = x
        last = model.final_layer_norm(x)
        if final_norm:
            hidden = last if layer == -1 else model.final_layer_norm(hidden)
        # Padding may repeat eos, so it is the first one that ends the text.
        at = (ids == self.config.eos).int().argmax(dim=1)
        pooled = last[torch.arange(len(ids), device=ids.device), at]
        projected = None if self.text_projection is None else self.text_projection(pooled)
        return TextOutput(hidden, pooled, projected)


class VisionEmbeddings(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        patches = (config.image_size // config.patch_size) ** 2
        self.class_embedding = nn.Parameter(torch.empty(config.width))
        nn.init.normal_(self.class_embedding, std=config.width**-0.5)
        self.patch_embedding = nn.Conv2d(
            config.channels, config.width, config.patch_size, config.patch_size, bias=False
        )
        self.position_embedding = nn.Embedding(patches + 1, config.width)
        nn.init.normal_(self.patch_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.02)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # (B, patches, width)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1)
        return x + self.position_embedding.weight


class VisionTransformer(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(
            config.width, eps=config.norm_eps
        )  # the published spelling
        self.encoder = Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.width, eps=config.norm_eps)


class VisionTower(nn.Module):
    """Looks at a picture: a ViT (Dosovitskiy et al. 2020, arXiv:2010.11929) over its patches and
    one class token."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        if config.image_size % config.patch_size:
            raise ValueError(
                f"image_size {config.image_size} is no multiple of patch_size {config.patch_size}"
            )
        self.config = config
        self.vision_model = VisionTransformer(config)
        self.visual_projection = nn.Linear(config.width, config.projection, bias=False)
        nn.init.normal_(self.visual_projection.weight, std=config.width**-0.5)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels: (B, channels, image_size, image_size) in [-1, 1]; returns (B, projection), not
        normalised."""
        size = self.config.image_size
        if pixels.shape[-2:] != (size, size):
            raise ValueError(f"pixels are {tuple(pixels.shape)}; this tower takes {size}x{size}")
        mean = pixels.new_tensor(self.config.mean).view(-1, 1, 1)
        std = pixels.new_tensor(self.config.std).view(-1, 1, 1)
        model = self.vision_model
        x = model.embeddings(((pixels + 1) / 2 - mean) / std)  # (B, patches + 1, width)
        x = model.pre_layrnorm(x)
        for layer in model.encoder.layers:
            x = layer(x, causal=False)
        return self.visual_projection(model.post_layernorm(x[:, 0]))


class CLIP(nn.Module):
    """Both towers and the temperature of their agreement, which is learnt too.

    A published CLIP loads tower by tower: the keys `text_*` into `text`, `vis*` into `vision`, and
    `logit_scale`.
    """

    def __init__(self, text: TextConfig | TextTower, vision: VisionConfig | VisionTower) -> None:
        super().__init__()
        self.text = text if isinstance(text, TextTower) else TextTower(text)
        self.vision = vision if isinstance(vision, VisionTower) else VisionTower(vision)
        if self.text.config.projection != self.vision.config.projection:
            raise ValueError(
                f"the text tower projects to {self.text.config.projection} and the vision tower to "
                f"{self.vision.config.projection}; they must be equal"
            )
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @property
    def scale(self) -> Tensor:
        """What similarities are multiplied by, at most 100 (section 2.5 of the paper)."""
        return self.logit_scale.exp().clamp(max=100)

    def embed_texts(self, ids: Tensor) -> Tensor:
        """ids (B, L) -> (B, projection), each of length 1."""
        return F.normalize(self.text(ids).projected, dim=-1)

    def embed_images(self, pixels: Tensor) -> Tensor:
        """pixels (B, channels, S, S) in [-1, 1] -> (B, projection), each of length 1."""
        return F.normalize(self.vision(pixels), dim=-1)

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """The similarity of every picture to every text, (images, texts), times the scale."""
        return self.scale * self.embed_images(pixels) @ self.embed_texts(ids).T


def contrastive_loss(
    images: Tensor, texts: Tensor, scale: Tensor | float, same: Tensor | None = None
) -> Tensor:
    """The symmetric contrastive loss (figure 3 of the paper).

    images, texts: (N, D) of length 1, row i of one belongs to row i of the other. scale: the
    inverse temperature. same: (N, N) bool, True where picture i fits caption j as well (two rabbits
    in one batch); such pairs are left out instead of being pushed apart. Returns a scalar.
    """
    logits = scale * images @ texts.T  # (N, N), row = picture
    if same is not None:
        itself = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(same & ~itself, float("-inf"))
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


class Retrieval(NamedTuple):
    similarity: Tensor  # (images, texts), cosines
    # (texts,) the place, 0 = best, of picture i among all for text i; -1: there is no picture i
    ranks: Tensor


@torch.no_grad()
def retrieve(model: CLIP, images: Tensor, texts: Tensor, batch_size: int = 64) -> Retrieval:
    """Zero-shot retrieval: compares every picture with every text, in batches.

    images (N, channels, S, S) in [-1, 1]; texts (M, L) token numbers. `similarity.argmax(1)`
    classifies pictures by texts; `(ranks < 5).float().mean()` is recall at 5 where text i describes
    picture i.
    """
    seen = torch.cat([model.embed_images(part) for part in images.split(batch_size)])
    read = torch.cat([model.embed_texts(part) for part in texts.split(batch_size)])
    similarity = seen @ read.T  # (N, M)
    paired = min(similarity.shape)
    own = similarity.diagonal()
    ranks = torch.full((similarity.shape[1],), -1, dtype=torch.int64)
    ranks[:paired] = (similarity[:, :paired] > own).sum(0).cpu()
    return Retrieval(similarity, ranks)

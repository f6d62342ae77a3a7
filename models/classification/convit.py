"""ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases (https://arxiv.org/abs/2103.10697).

A vision transformer whose first blocks mix, by a learned gate per head, two kinds of attention: one that
compares contents, and one that knows nothing but how far apart query and key lie, and starts as a
convolution would. The class token joins the patches only after these blocks. The network is timm's,
whose names are the authors' own.

What depends on positions alone is the same for every picture: `settle` computes it once for serving.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.models.convit import GPSA, ConVit
from torch import nn
from torch.nn import functional as F

from models import imagenet
from models.architecture import Architecture, Source, Variant
from models.demo import shapes
from models.layers.classifier import Classifier
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, Licence, Paper, Task

PUBLISHED = "https://dl.fbaipublicfiles.com/convit"

# name: (title in the paper, heads, width of a head, multiply-adds, top-1 of ImageNet-1k, weights published)
_SIZES: dict[str, tuple[str, int, int, float, float, bool]] = {
    "tiny": ("ConViT-Ti", 4, 48, 1e9, 73.1, True),
    "tiny-plus": ("ConViT-Ti+", 4, 64, 2e9, 76.7, False),
    "small": ("ConViT-S", 9, 48, 5.4e9, 81.3, True),
    "small-plus": ("ConViT-S+", 9, 64, 10e9, 82.2, False),
    "base": ("ConViT-B", 16, 48, 17e9, 82.4, True),
    "base-plus": ("ConViT-B+", 16, 64, 30e9, 82.5, False),
}


class SettledAttention(nn.Module):
    """Gated positional self-attention of trained weights, with the attention to positions computed beforehand.

    Maps tokens [B, `tokens`, C] to [B, `tokens`, C] as the module it is made from.
    """

    positions: torch.Tensor
    content: torch.Tensor

    def __init__(self, attention: GPSA, tokens: int) -> None:
        super().__init__()
        self.heads = attention.num_heads
        self.qk, self.v, self.proj = attention.qk, attention.v, attention.proj
        with torch.no_grad():
            gate = attention.gating_param.sigmoid()[:, None, None]
            scores = attention.pos_proj(attention.get_rel_indices(tokens))[0]  # query, key, head
            positions = gate * scores.permute(2, 0, 1).softmax(dim=-1)
        self.register_buffer("positions", positions, persistent=False)
        self.register_buffer("content", 1 - gate, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        q, k = self.qk(x).view(batch, tokens, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        v = (
            self.v(x).view(batch, tokens, self.heads, -1).transpose(1, 2)
        )  # B, heads, tokens, C / heads
        # Both kinds of attention sum to 1, and so does their mixture: nothing is left to normalise.
        mixed = self.content * F.scaled_dot_product_attention(q, k, v) + self.positions @ v
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


def settle(network: ConVit) -> ConVit:
    """Replace the positional attention of a loaded network by its settled form, in place."""
    for block in network.blocks:
        if isinstance(block.attn, GPSA):
            block.attn = SettledAttention(block.attn, network.num_patches).eval()
    return network


def _variants() -> dict[str, Variant]:
    variants = [
        Variant(
            "demo",
            config={
                "image_size": 64,
                "patch_size": 8,
                "heads": 4,
                "head_width": 24,
                "depth": 4,
                "local_blocks": 3,
                "num_classes": len(shapes.LABELS),
            },
            image=imagenet.squashed(64),
            labels=shapes.LABELS,
            demo=True,
        )
    ]
    variants += [
        Variant(
            name,
            config={
                "image_size": 224,
                "patch_size": 16,
                "heads": heads,
                "head_width": head_width,
                "depth": 12,
                "local_blocks": 10,
                "num_classes": 1000,
            },
            image=imagenet.evaluation(224),
            labels=imagenet.labels(),
            sources=(Source(f"{PUBLISHED}/convit_{name}.pth"),) if released else (),
            metrics=imagenet.top1(score, title),
            flops=int(flops),
            notes=() if released else ("The authors published no weights of this size.",),
        )
        for name, (title, heads, head_width, flops, score, released) in _SIZES.items()
    ]
    return {variant.name: variant for variant in variants}


@register
class ConViTArchitecture(Architecture):
    """ConViT for the classification of images."""

    slug = "convit"
    title = "ConViT"
    task = Task.CLASSIFICATION
    paper = Paper(
        slug="convit",
        title="ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases",
        year=2021,
        arxiv="2103.10697",
    )
    origin = "library"
    # Headers of the authors' files still name CC-BY-NC and refer to the LICENSE file, which is Apache-2.0.
    licence = Licence(code="Apache-2.0", weights="Apache-2.0")
    variants = _variants()

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the network; `local_blocks` of its `depth` blocks have positional attention."""
        return ConVit(
            img_size=config["image_size"],
            patch_size=config["patch_size"],
            num_classes=config["num_classes"],
            embed_dim=config["head_width"],  # timm multiplies it by the number of heads
            depth=config["depth"],
            num_heads=config["heads"],
            mlp_ratio=config.get("mlp_ratio", 4.0),
            qkv_bias=config.get("qkv_bias", False),
            norm_layer=partial(nn.LayerNorm, eps=config.get("norm_eps", 1e-6)),
            local_up_to_layer=config["local_blocks"],
            use_pos_embed=config.get("position_table", True),
        )

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        assert isinstance(network, ConVit)
        return Classifier(settle(network), card, device)

"""TurboViT: Generating Fast Vision Transformers via Generative Architecture Search (https://arxiv.org/abs/2308.11421).

A hierarchical transformer with narrow stages that a search chose for low latency. Early stages attend
inside windows, late ones over the whole map; between stages the queries are max-pooled, which
halves the map. The authors published no network. Blocks are those of Hiera
(https://arxiv.org/abs/2306.00989, timm's implementation), which a file from the authors' laboratory uses
under this name; the arrangement follows that file and the sizes that the paper states.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.models.hiera import HieraBlock, PatchEmbed, Reroll, Unroll
from torch import nn

from models import imagenet
from models.architecture import Architecture, StateDict, Variant, unwrapped
from models.demo import shapes
from models.layers.classifier import Classifier
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, Licence, Paper, Task

POOL = (2, 2)
STRIDE = (4, 4)
_norm = partial(nn.LayerNorm, eps=1e-6)


class TurboViT(nn.Module):
    """Stages of blocks with windowed (`windowed`) or global attention. Maps [B, 3, H, W] to logits [B, num_classes].

    `image_size`: (H, W). `stem_dim`: width of patches and position table; the first block condenses it to `dims[0]`.
    `window`: sides of the first stage's windows in tokens, which pooling shrinks along with the map;
    after `pools` stages the map is pooled. Tokens lie in `unroll`'s order: those to be pooled together, and
    those of one window, at equal distances.
    """

    def __init__(
        self,
        image_size: Sequence[int],
        stem_dim: int,
        dims: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int],
        windowed: Sequence[bool],
        num_classes: int,
        window: Sequence[int] = (8, 8),
        pools: int = 3,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(3, stem_dim, (7, 7), STRIDE, (3, 3))
        count = math.prod(side // stride for side, stride in zip(image_size, STRIDE, strict=True))
        self.pos_embed = nn.Parameter(torch.zeros(1, count, stem_dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        schedule = [POOL] * (len(depths) - 1)
        self.stage_ends = [sum(depths[: i + 1]) - 1 for i in range(len(depths))]
        self.unroll = Unroll(tuple(image_size), STRIDE, schedule)
        self.reroll = Reroll(tuple(image_size), STRIDE, schedule, self.stage_ends, pools)

        blocks: list[nn.Module] = []
        previous, tokens = stem_dim, math.prod(window)
        for stage, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            for index in range(depth):
                first = stage > 0 and index == 0
                pool = math.prod(POOL) if first and stage <= pools else 1
                tokens //= pool
                blocks.append(
                    HieraBlock(
                        previous,
                        dim,
                        heads[stage],
                        mlp_ratio,
                        norm_layer=_norm,
                        q_stride=pool,
                        window_size=tokens,
                        # A stage's first block still sees the keys of the stage before.
                        use_mask_unit_attn=windowed[stage - 1 if first else stage],
                    )
                )
                previous = dim
        self.blocks = nn.Sequential(*blocks)
        self.norm = _norm(dims[-1])
        self.head = nn.Linear(dims[-1], num_classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.unroll(self.patch_embed(image) + self.pos_embed)  # B, N, C
        x = self.blocks(x)  # B, N / 64, C
        return self.head(self.norm(x.mean(1)))


def _config(stem_dim: int, depths: tuple[int, ...]) -> dict[str, Any]:
    return {
        "image_size": (224, 224),
        "stem_dim": stem_dim,
        "dims": (64, 128, 256, 512),
        "depths": depths,
        "heads": (1, 2, 4, 8),
        "windowed": (True, True, False, False),
        "num_classes": 1000,
    }


def _variants() -> dict[str, Variant]:
    variants = [
        Variant(
            "demo",
            config={
                "image_size": (64, 64),
                "stem_dim": 32,
                "dims": (24, 48, 80, 112),
                "depths": (1, 1, 2, 1),
                "heads": (1, 2, 4, 8),
                "windowed": (True, True, False, False),
                "num_classes": len(shapes.LABELS),
            },
            image=imagenet.squashed(64),
            labels=shapes.LABELS,
            demo=True,
        ),
        Variant(
            "genvit-2427",
            config=_config(96, (1, 2, 8, 2)),
            image=imagenet.evaluation(224, crop=0.9),
            labels=imagenet.labels(),
            notes=(
                "The default of the laboratory's file; whether it is the network of the paper is not known. "
                "No weights are published.",
            ),
        ),
        Variant(
            "plain",
            config=_config(64, (1, 2, 7, 2)),
            image=imagenet.evaluation(224, crop=0.9),
            labels=imagenet.labels(),
            flops=2_200_000_000,
            notes=(
                "The arrangement that comes closest to the paper's figures (12.7 million parameters, 2.2 billion "
                "multiply-adds, with which the authors reach 82.1 % on ImageNet-1k); depths are inferred. "
                "No weights are published.",
            ),
        ),
    ]
    return {variant.name: variant for variant in variants}


@register
class TurboViTArchitecture(Architecture):
    """TurboViT for the classification of images."""

    slug = "turbovit"
    title = "TurboViT"
    task = Task.CLASSIFICATION
    paper = Paper(
        slug="turbovit",
        title="TurboViT: Generating Fast Vision Transformers via Generative Architecture Search",
        year=2023,
        arxiv="2308.11421",
    )
    origin = "after the paper"
    licence = Licence(code="Apache-2.0", weights="none published")
    variants = _variants()

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        return TurboViT(**config)

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Open a checkpoint as Hiera's authors wrap it (`model_state`) and rename its classifier."""
        state = unwrapped(checkpoint.get("model_state", checkpoint))
        return {
            name.replace("head.projection.", "head.", 1): value for name, value in state.items()
        }

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return Classifier(network, card, device)

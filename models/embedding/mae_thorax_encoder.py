"""The encoders of the masked autoencoders for thorax disease, as embeddings (https://arxiv.org/abs/2210.12843).

The encoder as it leaves the pre-training on X-rays without labels, or that of a fine-tuned classifier. The vector is the
mean of the patches, as the classifier's head reads it. `models/classification/mae_thorax.py` has the paper's story.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from models import imagenet
from models.architecture import StateDict, Variant
from models.classification._mae_thorax_network import LayerNorm
from models.classification.mae_thorax import (
    BY_HAND,
    DRAWINGS_ONLY,
    SIZES,
    MAEThoraxArchitecture,
    x_ray_input,
)
from models.layers.embedder import Embedder
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, Task

# What a file of the pre-training, or of a classifier, holds beside the encoder.
_BESIDE = ("decoder_", "mask_token", "head.")


class Encoder(VisionTransformer):
    """timm's transformer without a head; pictures [B, 3, S, S] of the size it was built for.

    `fine_tuned`: one norm after the mean of the patches, as in the classifiers, else one of every token.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        dim: int,
        depth: int,
        heads: int,
        fine_tuned: bool,
    ) -> None:
        super().__init__(
            img_size=image_size,
            patch_size=patch_size,
            embed_dim=dim,
            depth=depth,
            num_heads=heads,
            global_pool="avg",
            fc_norm=fine_tuned,
            norm_layer=LayerNorm,
            num_classes=0,
        )

    def represent(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean of the patches [B, dim] and the map of patch tokens [B, h, w, dim]."""
        patches = self.forward_features(image)[:, self.num_prefix_tokens :]
        vector = self.fc_norm(patches.mean(1))
        return vector, patches.unflatten(1, self.patch_embed.grid_size)


def _variants() -> dict[str, Variant]:
    demo = {"image_size": 64, "patch_size": 8, "dim": 96, "depth": 4, "heads": 4}
    variants = [
        Variant(
            "demo",
            config=demo | {"fine_tuned": False},
            image=imagenet.squashed(64),
            notes=(DRAWINGS_ONLY,),
            demo=True,
        )
    ]
    for name, (_, dim, heads, seen, _) in SIZES.items():
        sizes = {"image_size": 224, "patch_size": 16, "dim": dim, "depth": 12, "heads": heads}
        for fine_tuned in (False, True):
            made = "of a fine-tuned classifier" if fine_tuned else f"pre-trained on {seen} X-rays"
            variants.append(
                Variant(
                    f"{name}-fine-tuned" if fine_tuned else name,
                    config=sizes | {"fine_tuned": fine_tuned},
                    image=x_ray_input(),
                    notes=(BY_HAND, f"The encoder {made}."),
                )
            )
    return {variant.name: variant for variant in variants}


@register
class MAEThoraxEncoder(MAEThoraxArchitecture):
    """Vision transformers that turn chest X-rays into vectors."""

    slug = "mae-thorax-encoder"
    title = "MAE for thorax disease (encoder)"
    task = Task.EMBEDDING
    activation = "softmax"
    variants = _variants()

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the encoder from `Encoder`'s arguments."""
        return Encoder(**config)

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Unwrap a checkpoint, resize its positions, and leave out the decoder or the classifier's head."""
        state = super().translate(checkpoint, config)
        return {name: value for name, value in state.items() if not name.startswith(_BESIDE)}

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return Embedder(network, card, device)

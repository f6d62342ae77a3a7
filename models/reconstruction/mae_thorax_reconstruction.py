"""Masked autoencoders for thorax disease, as they are pre-trained (https://arxiv.org/abs/2210.12843).

Nine tenths of the patches of a chest X-ray are hidden; the encoder sees the rest, and a small decoder predicts all
pixels. The classifiers made from the encoder are `models/classification/mae_thorax.py`, which has the paper's story.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models import imagenet
from models.architecture import Architecture, Variant
from models.classification._mae_thorax_network import (
    HIDDEN,
    PRETRAINING,
    MaskedAutoencoder,
    Masking,
)
from models.classification.mae_thorax import BY_HAND, DRAWINGS_ONLY, LICENCE, PAPER, x_ray_input
from models.layers.restorer import Restorer, parameters
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, Task


class RestoringAutoencoder(MaskedAutoencoder):
    """The autoencoder with its patches hidden from outside."""

    def hide(self, size: tuple[int, int], share: float, stream: torch.Generator) -> torch.Tensor:
        """Hide whole patches; the number that is left is rounded down, to one at least."""
        rows, columns = self.grid
        order = torch.rand(rows * columns, generator=stream).argsort()
        kept = max(1, int(rows * columns * (1 - share)))
        hidden = torch.ones(rows * columns, dtype=torch.bool)
        hidden[order[:kept]] = False
        return (
            hidden.unflatten(0, self.grid)
            .repeat_interleave(self.patch_size, 0)
            .repeat_interleave(self.patch_size, 1)
        )

    def restore(self, image: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Predict the pictures from the patches that are not hidden, equally many in each."""
        step = self.patch_size
        by_patch = hidden[:, ::step, ::step].flatten(1)  # B, N
        # Visible patches first, each kind in the order of the picture.
        order = by_patch.int().argsort(dim=1, stable=True)
        kept = order[:, : int((~by_patch[0]).sum())]
        chosen = Masking(kept, order.argsort(dim=1), by_patch.to(image.dtype))
        return self.picture(self.decode(self.encode(image, chosen.kept), chosen.restore))


_DEMO = {"image_size": 64, "patch_size": 8, "dim": 96, "depth": 4, "heads": 4}


def _variants() -> dict[str, Variant]:
    variants = [
        Variant(
            "demo",
            config=_DEMO | {"decoder_dim": 48, "decoder_depth": 1, "decoder_heads": 4},
            image=imagenet.squashed(64),
            parameters=parameters(0.75),
            notes=(DRAWINGS_ONLY,),
            demo=True,
        )
    ]
    variants += [
        Variant(
            name,
            config=config,
            image=x_ray_input(),
            parameters=parameters(HIDDEN),
            notes=(BY_HAND,),
        )
        for name, config in PRETRAINING.items()
    ]
    return {variant.name: variant for variant in variants}


@register
class MAEThoraxReconstruction(Architecture):
    """Masked autoencoders that complete chest X-rays."""

    slug = "mae-thorax-reconstruction"
    title = "MAE for thorax disease (pre-training)"
    task = Task.RECONSTRUCTION
    paper = PAPER
    origin = "own"
    licence = LICENCE
    variants = _variants()

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the autoencoder from `MaskedAutoencoder`'s arguments."""
        return RestoringAutoencoder(**config)

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return Restorer(network, card, device)

"""Multi-Dimensional Hyena for Spatial Inductive Bias (https://arxiv.org/abs/2309.13600).

A DeiT whose attention is replaced, in all blocks or in half of them, by gated convolutions over the whole map. The
kernel, as large as the map, is not stored: a small network with sine activations computes it from the positions, and an
exponential decay per channel makes near positions count more. Such a convolution looks up and left only;
every second block turns the map upside down and back for it, so that all positions meet.

Two traits of the authors' code (Itamarzimm/HyenaND), which weights trained with it need: the long convolution is divided
by twice the side of the map, and without a class token the prediction is read from the first patch.
Names are theirs; they publish no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from models import imagenet
from models.architecture import Architecture, Variant
from models.classification._hyena_nd_network import HyenaTransformer, Method
from models.demo import shapes
from models.layers.classifier import Classifier
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, Licence, Paper, Task, WeightsRecord

# DeiT's sizes: (width, heads)
_SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}
# The 40 attributes of CelebA, in the order of the data set's list.
_CELEBA = (
    "5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose "
    "Black_Hair Blond_Hair Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee "
    "Gray_Hair Heavy_Makeup High_Cheekbones Male Mouth_Slightly_Open Mustache Narrow_Eyes "
    "No_Beard Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks Sideburns Smiling "
    "Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace "
    "Wearing_Necktie Young"
)
CELEBA = tuple(name.replace("_", " ") for name in _CELEBA.split())


def _variants() -> dict[str, Variant]:
    variants = [
        Variant(
            "demo",
            config={
                "image_size": 64,
                "patch_size": 8,
                "dim": 88,
                "depth": 4,
                "heads": 4,
                "filter_width": 32,
                "num_classes": len(shapes.LABELS),
            },
            image=imagenet.squashed(64),
            labels=shapes.LABELS,
            demo=True,
        )
    ]
    methods: dict[str, Method] = {"": "hyena2d", "-hybrid": "hyena2dattn"}
    for size, (dim, heads) in _SIZES.items():
        for suffix, method in methods.items():
            config = {
                "image_size": 224,
                "patch_size": 16,
                "dim": dim,
                "depth": 12,
                "heads": heads,
                "method": method,
            }
            image = imagenet.evaluation(224)
            variants += [
                Variant(
                    f"deit-{size}{suffix}",
                    config=config | {"num_classes": 1000},
                    image=image,
                    labels=imagenet.labels(),
                ),
                Variant(
                    f"deit-{size}{suffix}-celeba",
                    config=config | {"num_classes": len(CELEBA)},
                    image=image,
                    labels=CELEBA,
                    thresholds=dict.fromkeys(CELEBA, 0.5),
                    notes=("Attributes of faces: each label has a probability of its own.",),
                ),
            ]
    return {variant.name: variant for variant in variants}


@register
class HyenaNDArchitecture(Architecture):
    """DeiT with two-dimensional Hyena operators for the classification of images."""

    slug = "hyena-nd"
    title = "Hyena N-D"
    task = Task.CLASSIFICATION
    paper = Paper(
        slug="hyena-nd",
        title="Multi-Dimensional Hyena for Spatial Inductive Bias",
        year=2024,
        arxiv="2309.13600",
    )
    origin = "own"
    licence = Licence(code="Apache-2.0", weights="none published")
    variants = _variants()

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the network for square pictures of `image_size`; the kernels are tied to that size."""
        return HyenaTransformer(**config)

    def card(
        self,
        variant: str,
        *,
        id: str | None = None,
        weights: WeightsRecord,
        labels: tuple[str, ...] | None = None,
        **changes: Any,
    ) -> Card:
        """Return the card; the attributes of CelebA do not exclude each other."""
        card = super().card(variant, id=id, weights=weights, labels=labels, **changes)
        if variant.endswith("-celeba"):
            return card.model_copy(update={"activation": "sigmoid"})
        return card

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return Classifier(network, card, device)

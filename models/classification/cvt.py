"""CvT: Introducing Convolutions to Vision Transformers (https://arxiv.org/abs/2103.15808).

A transformer in three stages that needs no position table: tokens come from overlapping strided
convolutions, and queries, keys and values each pass a depthwise 3x3 convolution first, with stride 2
for keys and values, which leaves a quarter of them. A class token joins in the last stage only.

The network is transformers', with one correction: the authors train and evaluate with the sigmoid
approximation of GELU, where the library has the exact function. Weights are those of the authors,
whose names `translate` maps, or the same in the library's form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CvtConfig, CvtForImageClassification
from transformers.activations import QuickGELUActivation

from models import imagenet
from models.architecture import Architecture, Source, StateDict, Variant, unwrapped
from models.demo import shapes
from models.layers.classifier import Classifier
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, Licence, Paper, Task

# name: (title, widths, heads, depths)
_SIZES = {
    "13": ("CvT-13", (64, 192, 384), (1, 3, 6), (1, 2, 10)),
    "21": ("CvT-21", (64, 192, 384), (1, 3, 6), (1, 4, 16)),
    "w24": ("CvT-W24", (192, 768, 1024), (3, 12, 16), (2, 2, 20)),
}
# (size, resolution, multiply-adds, training, top-1 of ImageNet-1k). Training `22k-1k`: ImageNet-22k, then 1k.
_PUBLISHED = (
    ("13", 224, 4.5e9, "1k", 81.6),
    ("21", 224, 7.1e9, "1k", 82.5),
    ("13", 384, 16.3e9, "1k", 83.0),
    ("21", 384, 24.9e9, "1k", 83.3),
    ("13", 384, 16.3e9, "22k-1k", 83.3),
    ("21", 384, 24.9e9, "22k-1k", 84.9),
    ("w24", 384, 193.2e9, "22k-1k", 87.6),
)
_NOTES = {"w24": ("The paper's abstract gives a top-1 accuracy of 87.7 %, its table 87.6 %.",)}

# Parts of the authors' names and what they are in transformers, in the order of replacement.
_NAMES = (
    (r"^stage(\d+)\.", r"cvt.encoder.stages.\1."),
    (r"\.patch_embed\.proj\.", ".embedding.convolution_embeddings.projection."),
    (r"\.patch_embed\.norm\.", ".embedding.convolution_embeddings.normalization."),
    (r"\.blocks\.(\d+)\.", r".layers.\1."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.attn\.", ".attention.attention."),
    (r"\.(conv_proj|proj)_q\.", r".\1_query."),
    (r"\.(conv_proj|proj)_k\.", r".\1_key."),
    (r"\.(conv_proj|proj)_v\.", r".\1_value."),
    (r"\.conv_proj_(\w+)\.conv\.", r".conv_proj_\1.convolution_projection.convolution."),
    (r"\.conv_proj_(\w+)\.bn\.", r".conv_proj_\1.convolution_projection.normalization."),
    (r"\.conv_proj_", ".convolution_projection_"),
    (r"\.proj_", ".projection_"),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"^norm\.", "layernorm."),
    (r"^head\.", "classifier."),
)


class CvT(CvtForImageClassification):
    """transformers' network with the authors' activation. Maps [B, 3, H, W] to logits [B, classes]."""

    def __init__(self, config: CvtConfig) -> None:
        super().__init__(config)
        for stage in self.cvt.encoder.stages:
            for layer in stage.layers:
                layer.intermediate.activation = QuickGELUActivation()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = super().forward(image, return_dict=True).logits
        return logits


def official_to_transformers(name: str) -> str:
    """Return transformers' name of an entry of the authors' checkpoints; its own names stay as they are."""
    if name.startswith(("cvt.", "layernorm.", "classifier.")):
        return name
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _variants() -> dict[str, Variant]:
    variants = [
        Variant(
            "demo",
            config={
                "dims": (24, 48, 96),
                "heads": (1, 2, 4),
                "depths": (1, 2, 3),
                "mlp_ratio": 4.0,
                "num_classes": len(shapes.LABELS),
            },
            image=imagenet.squashed(64),
            labels=shapes.LABELS,
            demo=True,
        )
    ]
    for size, resolution, flops, training, score in _PUBLISHED:
        title, dims, heads, depths = _SIZES[size]
        repository = f"cvt-{size}" + ("-384" if resolution == 384 else "")
        repository += "-22k" if training == "22k-1k" else ""
        variants.append(
            Variant(
                f"{size}-{training}-{resolution}",
                config={
                    "dims": dims,
                    "heads": heads,
                    "depths": depths,
                    "mlp_ratio": 4.0,
                    "num_classes": 1000,
                },
                image=(imagenet.evaluation if resolution == 224 else imagenet.squashed)(resolution),
                labels=imagenet.labels(),
                sources=(Source(f"hf://microsoft/{repository}/pytorch_model.bin"),),
                metrics=imagenet.top1(score, f"{title}, {training}, {resolution}x{resolution}"),
                flops=int(flops),
                notes=_NOTES.get(size, ()),
            )
        )
    return {variant.name: variant for variant in variants}


@register
class CvTArchitecture(Architecture):
    """CvT for the classification of images."""

    slug = "cvt"
    title = "CvT"
    task = Task.CLASSIFICATION
    paper = Paper(
        slug="cvt",
        title="CvT: Introducing Convolutions to Vision Transformers",
        year=2021,
        arxiv="2103.15808",
    )
    origin = "library"
    licence = Licence(code="MIT", weights="MIT")
    variants = _variants()

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the three stages of `dims`, `heads` and `depths`; the library wants stage i deeper than i."""
        return CvT(
            CvtConfig(
                embed_dim=list(config["dims"]),
                num_heads=list(config["heads"]),
                depth=list(config["depths"]),
                mlp_ratio=[config["mlp_ratio"]] * len(config["dims"]),
                drop_path_rate=[0.0] * len(config["dims"]),
                num_labels=config["num_classes"],
            )
        )

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Map the authors' names to transformers'; a checkpoint of the library comes through unchanged."""
        return {
            official_to_transformers(name): value for name, value in unwrapped(checkpoint).items()
        }

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return Classifier(network, card, device)

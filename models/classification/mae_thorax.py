"""Masked autoencoders for thorax disease (https://arxiv.org/abs/2210.12843).

A plain vision transformer learns from chest X-rays without labels: nine tenths of the patches are hidden and
predicted from the rest (`_mae_thorax_network.py`). Fine-tuned, it finds diseases as well as
convolutional networks, which it does not after training on photographs. The head reads the mean of the
patches; the class token takes part in attention only. The classifier is timm's
`VisionTransformer`, whose names are the authors' own; the networks that the paper compares it with are
torchvision's.

Findings on chest X-rays do not exclude each other: each has a probability of its own. Only the classes
of COVIDx exclude each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torchvision
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from models import imagenet
from models.architecture import Architecture, StateDict, Variant, unwrapped
from models.classification._mae_thorax_network import LayerNorm
from models.demo import radiographs
from models.layers.classifier import Classifier
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, ImageInput, Licence, Metric, Paper, Task, WeightsRecord

CHEST_X_RAY14 = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
CHEXPERT = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")
COVIDX = ("normal", "positive", "pneumonia", "COVID-19")

# name: (name in the paper, labels, metric)
_DATASETS = {
    "nih": ("ChestX-ray14", CHEST_X_RAY14, "mean AUC"),
    "chexpert": ("CheXpert", CHEXPERT, "mean AUC"),
    "covidx": ("COVIDx", COVIDX, "accuracy"),
}
# name: (title, width, heads, X-rays seen in pre-training, per cent on each data set)
SIZES = {
    "vit-small": ("ViT-S/16", 384, 6, "0.3 M", {"nih": 82.3, "chexpert": 89.2, "covidx": 95.2}),
    "vit-base": ("ViT-B/16", 768, 12, "0.5 M", {"nih": 83.0, "chexpert": 89.3, "covidx": 95.3}),
}
# What the paper compares with, all on ChestX-ray14: (network, pre-training): (title, mean AUC)
_COMPARED = {
    ("vit-small", "imagenet"): ("ViT-S/16, supervised on ImageNet", 79.6),
    ("vit-small", "imagenet-mae"): ("ViT-S/16, MAE on ImageNet", 78.6),
    ("densenet121", "imagenet"): ("DenseNet-121, supervised on ImageNet", 82.2),
    ("densenet121", "mae"): ("DenseNet-121, MAE on 0.3 M X-rays", 81.2),
    ("densenet121", "moco"): ("DenseNet-121, MoCo v2 on 0.3 M X-rays", 80.6),
    ("resnet50", "moco"): ("ResNet-50, MoCo v2 on ImageNet", 80.9),
    ("resnet50", "byol"): ("ResNet-50, BYOL on ImageNet", 81.0),
    ("resnet50", "swav"): ("ResNet-50, SwAV on ImageNet", 81.5),
}

_RESEARCH = "A network of research, not a medical device: no threshold of a finding is published."
BY_HAND = "The authors' weights lie on Google Drive; download them by hand and add the file."
DRAWINGS_ONLY = "It has seen drawings only: its answers about a patient mean nothing."
_MERGED = (
    "The published accuracy counts `positive` and `pneumonia` as one class of three, after the best "
    "of the four outputs is taken."
)


def x_ray_input() -> ImageInput:
    """Return the evaluation of all networks: grey pictures as RGB, mean and deviation of X-rays."""
    return imagenet.evaluation(224).model_copy(update={"mean": (0.5056,) * 3, "std": (0.252,) * 3})


def _configuration(network: str, classes: int) -> dict[str, Any]:
    if network not in SIZES:
        return {"convolutional": network, "num_classes": classes}
    _, dim, heads, _, _ = SIZES[network]
    return {
        "image_size": 224,
        "patch_size": 16,
        "dim": dim,
        "depth": 12,
        "heads": heads,
        "num_classes": classes,
    }


def _variant(network: str, dataset: str, suffix: str, value: float, note: str) -> Variant:
    title, labels, metric = _DATASETS[dataset]
    notes = (BY_HAND, _RESEARCH)
    return Variant(
        f"{network}-{dataset}{suffix}",
        config=_configuration(network, len(labels)),
        image=x_ray_input(),
        labels=labels,
        metrics=(Metric(name=metric, value=value, dataset=title, origin="published", note=note),),
        notes=(*notes, _MERGED) if dataset == "covidx" else notes,
    )


def _variants() -> dict[str, Variant]:
    variants = [
        Variant(
            "demo",
            config={
                "image_size": 64,
                "patch_size": 8,
                "dim": 96,
                "depth": 4,
                "heads": 4,
                "num_classes": len(radiographs.FINDINGS),
            },
            image=imagenet.squashed(64),
            labels=radiographs.FINDINGS,
            notes=(DRAWINGS_ONLY,),
            demo=True,
        )
    ]
    variants += [
        _variant(network, dataset, "", value, f"{title}, MAE on {seen} X-rays")
        for network, (title, _, _, seen, values) in SIZES.items()
        for dataset, value in values.items()
    ]
    variants += [
        _variant(network, "nih", f"-{training}", value, note)
        for (network, training), (note, value) in _COMPARED.items()
    ]
    return {variant.name: variant for variant in variants}


PAPER = Paper(
    slug="mae-thorax",
    title="Delving into Masked Autoencoders for Multi-Label Thorax Disease Classification",
    year=2022,
    arxiv="2210.12843",
)
# The authors' files of networks come from Meta's MAE, which forbids commercial use.
LICENCE = Licence(code="Apache-2.0, in part CC-BY-NC-4.0", weights="none stated", commercial=False)


@register
class MAEThoraxArchitecture(Architecture):
    """Vision transformers that find thorax diseases on chest X-rays."""

    slug = "mae-thorax"
    title = "MAE for thorax disease"
    task = Task.CLASSIFICATION
    paper = PAPER
    origin = "library"
    licence = LICENCE
    activation = "sigmoid"
    variants = _variants()

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the transformer, or the `convolutional` network of that name in torchvision.

        `class_token`: the head reads the class token in place of the mean of the patches.
        """
        if "convolutional" in config:
            return torchvision.models.get_model(
                config["convolutional"], weights=None, num_classes=config["num_classes"]
            )
        return VisionTransformer(
            img_size=config["image_size"],
            patch_size=config["patch_size"],
            embed_dim=config["dim"],
            depth=config["depth"],
            num_heads=config["heads"],
            mlp_ratio=config.get("mlp_ratio", 4.0),
            qkv_bias=config.get("qkv_bias", True),
            global_pool="token" if config.get("class_token") else "avg",
            norm_layer=LayerNorm,
            num_classes=config["num_classes"],
        )

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Unwrap a checkpoint; positions of another resolution are resized as in the authors' code."""
        state = unwrapped(checkpoint)
        positions = state.get("pos_embed")
        if positions is not None and "image_size" in config:
            side = config["image_size"] // config["patch_size"]
            state["pos_embed"] = resample_abs_pos_embed(positions, [side, side], antialias=False)
        return state

    def card(
        self,
        variant: str,
        *,
        id: str | None = None,
        weights: WeightsRecord,
        labels: tuple[str, ...] | None = None,
        **changes: Any,
    ) -> Card:
        """Return the card; the classes of COVIDx exclude each other."""
        card = super().card(variant, id=id, weights=weights, labels=labels, **changes)
        if variant.endswith("-covidx"):
            return card.model_copy(update={"activation": "softmax"})
        return card

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return Classifier(network, card, device)

"""Mask2Former (https://arxiv.org/abs/2112.01527) with Swin, by transformers.

Queries look for segments: each predicts a class, or none, and a mask, by a decoder that attends only within the mask it
has so far, to features of three scales from a deformable-attention encoder. Classes and masks together give what
belongs to each class (semantic) or which segments there are (panoptic).

Network, pre-processing and published weights are those of transformers (facebook/mask2former-swin-*), and so are
the rules by which masks become segments; but for one: there each piece of stuff can take the number of a
thing, here numbers are never given twice.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from models import panoptic
from models.architecture import Architecture, Source, StateDict, Variant, unwrapped
from models.demo.segmented import CLASSES
from models.layers.segmenter import Segmentation, Segmenter, resized, semantic
from models.panoptic import Classes
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, ImageInput, Licence, Metric, Paper, Task

if TYPE_CHECKING:
    from transformers import Mask2FormerForUniversalSegmentation

PREFIX = "network."
# Names in the published files, written before transformers 5, and now; of the backbone only.
_BACKBONE = "model.pixel_level_module.encoder."
_RENAMED = (
    (r"^(encoder|embeddings)\.", r"swin.\1."),
    (r"attention\.self\.(query|key|value)\.", lambda found: f"attention.{found[1][0]}_proj."),
    (r"attention\.self\.(relative_position_bias_table)", r"attention.relative_position_bias.\1"),
    (r"attention\.output\.dense", "attention.o_proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
)
# Of files that are no part of the network: what training weighs classes by, and tables that are computed.
_UNUSED = re.compile(r"criterion\.|.*\.relative_position_index$")


@dataclass(frozen=True)
class Queries:
    """What the queries found in one picture of `size` (height, width): logits of classes [Q, C + 1] and of masks [Q, h, w]."""

    classes: Tensor
    masks: Tensor
    size: tuple[int, int]


class Mask2Former(nn.Module):
    """transformers' network and the rules by which its queries become segments."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.network = build(config)
        # Only training needs it, and the file would hold its weights of the classes.
        del self.network.criterion
        self.rules = Rules()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map normalised pictures to logits of classes [B, Q, C + 1] and of masks [B, Q, h, w]."""
        found = self.network(pixel_values=image)
        return found.class_queries_logits, found.masks_queries_logits

    def predict(self, image: Tensor, depths: Sequence[int]) -> Sequence[Queries]:
        size = (image.shape[2], image.shape[3])
        return [
            Queries(classes, masks, size)
            for classes, masks in zip(*(each.float() for each in self(image)), strict=True)
        ]

    def decide(self, predicted: Queries, size: tuple[int, int]) -> Segmentation:
        return self.rules.decide(predicted, size)


def build(config: Mapping[str, Any]) -> Mask2FormerForUniversalSegmentation:
    """Return the network with random weights: `backbone` are arguments of `SwinConfig`, `head` of `Mask2FormerConfig`."""
    # Takes seconds to import, which only those who build this should spend.
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    stages = [f"stage{index}" for index in range(1, 5)]
    made = Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(
            backbone_config=SwinConfig(**config["backbone"], out_features=stages),
            num_labels=config["num_classes"],
            **config["head"],
        )
    )
    # The backbone gives the norms of its stages; this one's result nobody takes.
    made.model.pixel_level_module.encoder.swin.layernorm = nn.Identity()
    return made


@dataclass(frozen=True)
class Rules:
    """How queries become segments; the numbers are transformers' defaults.

    `things`: classes of which there may be several segments; those of the others are joined. Panoptic segments
    need a class with a score above `score`, and more than the share `overlap` of the pixels that
    they claim with a score-weighted probability of `mask`; the rest belong to stronger ones.
    """

    panoptic: bool = False
    things: Collection[int] = ()
    score: float = 0.5
    mask: float = 0.5
    overlap: float = 0.8

    def decide(self, queries: Queries, size: tuple[int, int]) -> Segmentation:
        """Return the segments of a picture at `size`."""
        masks = resized(queries.masks, queries.size).sigmoid()
        if self.panoptic:
            return self._merged(queries.classes, masks, size)
        probabilities = queries.classes.softmax(-1)[:, :-1]
        return semantic(torch.einsum("qc,qhw->chw", probabilities, masks), size, activation="none")

    def _merged(self, classes: Tensor, masks: Tensor, size: tuple[int, int]) -> Segmentation:
        scores, labels = classes.softmax(-1).max(-1)
        kept = (labels != classes.shape[1] - 1) & (scores > self.score)
        scores, labels, masks = scores[kept], labels[kept], masks[kept]
        # One after the other, so that memory does not grow with the number of segments.
        strongest = torch.full(size, -torch.inf, device=masks.device)
        owner = torch.zeros(size, dtype=torch.int64, device=masks.device)
        claimed = []
        for number, mask in enumerate(masks):
            weighted = resized(mask[None], size)[0] * scores[number]
            claimed.append(int((weighted >= self.mask).sum()))
            owner = torch.where(weighted > strongest, number, owner)
            strongest = torch.maximum(weighted, strongest)
        owned = owner.flatten().bincount(minlength=len(masks)).tolist()
        found = torch.zeros(size, dtype=torch.int32, device=masks.device)
        rows: list[tuple[int, int, float]] = []
        stuff: dict[int, int] = {}
        for number, label in enumerate(labels.tolist()):
            if not (owned[number] and claimed[number]):
                continue
            if owned[number] / claimed[number] <= self.overlap:
                continue
            id = stuff.get(label)
            if id is None:
                id = len(rows) + 1
                rows.append((id, label, float(scores[number])))
                if label not in self.things:
                    stuff[label] = id
            found[owner == number] = id
        return Segmentation(found, rows)


_SWIN = {
    "tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
    "large": {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)},
}
_WINDOWS = {"tiny": 7, "small": 7, "base": 12, "large": 12}

# Published models: (backbone, data set, task): published figure, in per cent
_PUBLISHED = {
    ("tiny", "coco", "panoptic"): 53.2,
    ("small", "coco", "panoptic"): 54.6,
    ("base", "coco", "panoptic"): 55.1,
    ("large", "coco", "panoptic"): 57.8,
    ("tiny", "ade", "semantic"): 47.7,
    ("small", "ade", "semantic"): 51.3,
    ("base", "ade", "semantic"): 52.4,
    ("base-IN21k", "ade", "semantic"): 53.9,
    ("large", "ade", "semantic"): 56.1,
    ("large", "ade", "panoptic"): 48.1,
    ("tiny", "cityscapes", "semantic"): 82.1,
    ("small", "cityscapes", "semantic"): 82.6,
    ("base-IN21k", "cityscapes", "semantic"): 83.3,
    ("large", "cityscapes", "semantic"): 83.3,
    ("tiny", "cityscapes", "panoptic"): 63.9,
    ("small", "cityscapes", "panoptic"): 64.8,
    ("base-IN21k", "cityscapes", "panoptic"): 66.1,
    ("large", "cityscapes", "panoptic"): 66.6,
}
_CLASSES = {
    "coco": ("COCO", panoptic.coco),
    "ade": ("ADE20K", panoptic.ade20k),
    "cityscapes": ("Cityscapes", panoptic.cityscapes),
}
_THRESHOLDS = {"score": 0.5, "mask": 0.5, "overlap": 0.8}
_DEMO = {
    "backbone": {
        "embed_dim": 16,
        "depths": (1, 1, 2, 1),
        "num_heads": (1, 2, 4, 8),
        "window_size": 4,
        "mlp_ratio": 2.0,
        "drop_path_rate": 0.0,
    },
    "head": {
        "feature_size": 32,
        "mask_feature_size": 32,
        "hidden_dim": 32,
        "encoder_feedforward_dim": 64,
        "encoder_layers": 1,
        "decoder_layers": 3,
        "num_attention_heads": 2,
        "dim_feedforward": 64,
        "num_queries": 10,
        "train_num_points": 256,
    },
    "num_classes": len(CLASSES),
}


def _published(backbone: str, data: str, task: str, figure: float) -> Variant:
    size = backbone.partition("-")[0]
    name, known = _CLASSES[data]
    classes: Classes = known()
    merges = task == "panoptic"
    return Variant(
        f"{backbone}-{data}-{task}".lower(),
        config={
            "backbone": _SWIN[size] | {"window_size": _WINDOWS[size], "drop_path_rate": 0.3},
            "head": {"num_queries": 200 if merges and size == "large" else 100},
            "num_classes": len(classes.labels),
        },
        image=ImageInput(height=384, width=384, resize="squash", interpolation="bilinear"),
        labels=classes.labels,
        segmentation="panoptic" if merges else "semantic",
        things=classes.things,
        thresholds=_THRESHOLDS if merges else {},
        sources=(
            Source(f"hf://facebook/mask2former-swin-{backbone}-{data}-{task}/pytorch_model.bin"),
        ),
        metrics=(
            Metric(
                name="PQ" if merges else "mIoU",
                value=figure,
                dataset=name,
                origin="published",
                note="by the authors' code on pictures of the paper's larger size",
            ),
        ),
        notes=("Pictures are squashed to 384 x 384, as the published pre-processing has it.",),
    )


def _variants() -> dict[str, Variant]:
    variants = [
        Variant(
            "demo",
            config=_DEMO,
            image=ImageInput(height=96, width=96, resize="squash", interpolation="bilinear"),
            labels=CLASSES,
            segmentation="panoptic",
            things=tuple(range(1, len(CLASSES))),
            thresholds=_THRESHOLDS,
            demo=True,
        )
    ]
    variants += [_published(*key, figure) for key, figure in _PUBLISHED.items()]
    return {variant.name: variant for variant in variants}


@register
class Mask2FormerArchitecture(Architecture):
    """Mask2Former with Swin backbones, semantic and panoptic."""

    slug = "mask2former"
    title = "Mask2Former"
    task = Task.SEGMENTATION
    paper = Paper(
        slug="mask2former",
        title="Masked-attention Mask Transformer for Universal Image Segmentation",
        year=2021,
        arxiv="2112.01527",
    )
    origin = "library"
    licence = Licence(code="Apache-2.0", weights="CC-BY-NC-4.0", commercial=False)
    variants = _variants()
    max_batch = 8
    preferred_batches = (2, 4, 8)

    def network(self, config: Mapping[str, Any]) -> Mask2Former:
        return Mask2Former(config)

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Give the backbone's entries of files that transformers wrote their present names."""
        state = unwrapped(checkpoint)
        if all(name.startswith(PREFIX) for name in state):
            return state
        return {
            PREFIX + _current_name(name): value
            for name, value in state.items()
            if not _UNUSED.match(name)
        }

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        assert isinstance(network, Mask2Former)
        network.rules = Rules(
            panoptic=card.segmentation == "panoptic", things=card.things, **card.thresholds
        )
        return Segmenter(network, card, device)


def _current_name(name: str) -> str:
    if not name.startswith(_BACKBONE):
        return name
    local = name.removeprefix(_BACKBONE)
    for old, new in _RENAMED:
        local = re.sub(old, new, local)
    return _BACKBONE + local

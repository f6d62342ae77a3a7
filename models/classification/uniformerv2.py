"""UniFormerV2: Spatiotemporal Learning by Arming Image ViTs with Video UniFormer (https://arxiv.org/abs/2211.09552).

CLIP's image transformer stays as it is and works frame by frame. Small depthwise convolutions along
time inside its blocks (where motion is the question) let neighbouring frames talk; after its last
blocks one token of the whole video looks at all places of all frames, and is mixed, channel by
channel, with the mean of the frames' own class tokens. The network is written here
(`_uniformerv2_network.py`) with the names of the authors' checkpoints
(https://github.com/OpenGVLab/UniFormerV2), where the weights come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from models.architecture import Architecture, Source, StateDict, Variant, unwrapped
from models.classification._uniformerv2_network import UniFormerV2
from models.demo import motions
from models.layers.video_classifier import VideoClassifier
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, ClipInput, ImageInput, Licence, Metric, Paper, Task

MEAN, STD = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)
_STORE = "https://pjlab-gvm-data.oss-cn-shanghai.aliyuncs.com/uniformerv2"
_PREFIX = "backbone."

# name: (letters, patch, resolution, width, layers, heads)
_BACKBONES: dict[str, tuple[str, int, int, int, int, int]] = {
    "b16": ("B/16", 16, 224, 768, 12, 12),
    "l14": ("L/14", 14, 224, 1024, 24, 16),
    "l14-336": ("L/14@336", 14, 336, 1024, 24, 16),
}
# name: (dataset, classes, folder of the store, the file's name of it)
_DATASETS: dict[str, tuple[str, int, str, str]] = {
    "k400": ("Kinetics-400", 400, "k400", "k400"),
    "k600": ("Kinetics-600", 600, "k600", "k600"),
    "k700": ("Kinetics-700", 700, "k700", "k700"),
    "k710": ("Kinetics-710", 710, "k710", "k710"),
    "mit": ("Moments in Time V1", 339, "mitv1", "mit"),
    "ssv1": ("Something-Something V1", 174, "sthv1", "sthv1"),
    "ssv2": ("Something-Something V2", 174, "sthv2", "sthv2"),
    "anet": ("ActivityNet", 200, "anet", "anet"),
    "hacs": ("HACS", 200, "hacs", "hacs"),
}
_LABELS = (
    "The labels' order is the authors' own and is not shipped here; give the list with the weights, or "
    "answers say `class N`."
)


@dataclass(frozen=True)
class _Row:
    """One line of the authors' table. `before`: CLIP was first trained on Kinetics-710."""

    data: str
    backbone: str
    frames: int
    top1: float | None
    crops: int = 3
    clips: int = 4
    before: bool = False
    frozen: bool = False


def _kinetics(data: str, *scores: float) -> tuple[_Row, ...]:
    """Return the rows of one of the Kinetics sets, which are alike."""
    long = {"clips": 2, "before": True}
    return (
        _Row(data, "b16", 8, scores[0]),
        _Row(data, "b16", 8, scores[1], before=True),
        _Row(data, "l14", 8, scores[2], before=True),
        _Row(data, "l14", 16, scores[3], before=True),
        _Row(data, "l14", 32, scores[4], **long),
        _Row(data, "l14-336", 32, scores[5], **long),
        _Row(data, "l14-336", 64, scores[6], **long),
        _Row(data, "l14-336", 8, scores[7], crops=1, clips=3, frozen=True),
        _Row(data, "l14-336", 8, scores[8], crops=1, clips=3, frozen=True, before=True),
        _Row(data, "l14-336", 32, scores[9], frozen=True, before=True),
    )


_PUBLISHED: tuple[_Row, ...] = (
    *_kinetics("k400", 84.4, 85.6, 88.8, 89.1, 89.3, 89.7, 90.0, 86.7, 87.8, 88.9),
    *_kinetics("k600", 85.0, 86.1, 89.0, 89.4, 89.5, 89.9, 90.1, 87.4, 88.2, 89.2),
    *_kinetics("k700", 75.8, 76.3, 80.8, 81.2, 81.5, 82.1, 82.7, 79.6, 79.7, 80.8),
    _Row("k710", "b16", 8, None),
    _Row("k710", "l14", 8, None),
    _Row("k710", "l14-336", 8, None),
    _Row("k710", "l14-336", 8, None, crops=1, clips=3, frozen=True),
    _Row("mit", "b16", 8, 42.6),
    _Row("mit", "l14", 8, 47.0),
    _Row("mit", "l14-336", 8, 47.8),
    _Row("ssv1", "b16", 16, 56.8, clips=1),
    _Row("ssv1", "b16", 32, 59.4, clips=1),
    _Row("ssv1", "l14", 16, 60.5, clips=1),
    _Row("ssv1", "l14", 32, 62.7, clips=1),
    _Row("ssv2", "b16", 16, 69.5, clips=1),
    _Row("ssv2", "b16", 32, 70.7, clips=1),
    _Row("ssv2", "l14", 16, 72.1, clips=1),
    _Row("ssv2", "l14", 32, 73.0, clips=1),
    _Row("anet", "l14", 16, 94.3, clips=10),
    _Row("anet", "l14", 32, 94.7, clips=10),
    _Row("hacs", "l14", 16, 95.5, clips=10),
    _Row("hacs", "l14", 32, 95.4, clips=10),
)


def _frame_input(size: int) -> ImageInput:
    return ImageInput(
        height=size,
        width=size,
        resize="shorter-side",
        resize_to=size,
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
    )


def _variant(row: _Row) -> Variant:
    letters, patch, resolution, width, layers, heads = _BACKBONES[row.backbone]
    dataset, classes, folder, short = _DATASETS[row.data]
    moving = row.data in ("ssv1", "ssv2")
    # Global units stand after the last third (of B/16 or L/14 alike), or the last four, blocks.
    units = 2 * layers // 3 if moving else 4
    parts = (
        "frozen" if row.frozen else "",
        row.backbone,
        row.data,
        "prek710" if row.before else "",
        str(row.frames),
    )
    file = "_".join(
        part
        for part in (
            "frozen" if row.frozen else "",
            short,
            "k710" if row.before else "",
            "uniformerv2",
            row.backbone.partition("-")[0],
            f"{row.frames}x{resolution}",
        )
        if part
    )
    note = (
        f"UniFormerV2-{letters}{', frozen CLIP' if row.frozen else ''}"
        f"{', first trained on K710' if row.before else ''}, "
        f"{row.frames} frames, {row.crops} crops x {row.clips} clips"
    )
    metrics = ()
    if row.top1 is not None:
        metrics = (
            Metric(name="top-1", value=row.top1, dataset=dataset, origin="published", note=note),
        )
    return Variant(
        "-".join(part for part in parts if part),
        config={
            "resolution": resolution,
            "patch": patch,
            "width": width,
            "layers": layers,
            "heads": heads,
            "local_units": 2 if moving else 0,
            "halve_frames": moving,
            "global_layers": tuple(range(layers - units, layers)),
            "frozen": row.frozen,
            "num_classes": classes,
        },
        image=_frame_input(resolution),
        clip=ClipInput(frames=row.frames, sampling="uniform", crops=row.crops, clips=row.clips),
        sources=(Source(f"{_STORE}/{folder}/{file}.pyth"),),
        metrics=metrics,
        notes=(_LABELS,),
    )


def _variants() -> dict[str, Variant]:
    variants = [
        Variant(
            "demo",
            config={
                "resolution": 64,
                "patch": 8,
                "width": 72,
                "layers": 4,
                "heads": 4,
                "local_units": 2,
                "halve_frames": True,
                "global_layers": (2, 3),
                "num_classes": len(motions.LABELS),
            },
            image=_frame_input(64),
            clip=ClipInput(frames=8, sampling="uniform"),
            labels=motions.LABELS,
            demo=True,
        ),
        *map(_variant, _PUBLISHED),
    ]
    return {variant.name: variant for variant in variants}


@register
class UniFormerV2Architecture(Architecture):
    """UniFormerV2 for the classification of videos."""

    slug = "uniformerv2"
    title = "UniFormerV2"
    task = Task.VIDEO_CLASSIFICATION
    paper = Paper(
        slug="uniformerv2",
        title="UniFormerV2: Spatiotemporal Learning by Arming Image ViTs with Video UniFormer",
        year=2022,
        arxiv="2211.09552",
    )
    origin = "own"
    licence = Licence(code="Apache-2.0", weights="Apache-2.0")
    max_batch = 8
    preferred_batches = (4, 8)
    variants = _variants()

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        return UniFormerV2(**config)

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Open the authors' checkpoint; the names stay but for their common prefix."""
        inner = checkpoint.get("model_state")
        state = unwrapped(inner if isinstance(inner, Mapping) else checkpoint)
        return {name.removeprefix(_PREFIX): value for name, value in state.items()}

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return VideoClassifier(network, card, device)

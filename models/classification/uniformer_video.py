"""UniFormer for videos: Unifying Convolution and Self-attention for Visual Recognition (https://arxiv.org/abs/2201.09450).

The image network with its convolutions grown along time: neighbouring frames of a video repeat each
other even more than neighbouring places of a picture, so the early stages mix them by 5x5x5 depthwise
convolutions; the late ones look at all places of all frames at once. The light networks for mobile
devices pass only the tokens at which a class token looks most through their late blocks. The
networks are written here (`_uniformer_video_network.py`) with the names of the authors' checkpoints
(https://github.com/Sense-X/UniFormer, folder video_classification).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from models.architecture import Architecture, Source, StateDict, Variant, unwrapped
from models.classification._uniformer_video_network import LightVideoUniFormer, VideoUniFormer
from models.demo import motions
from models.layers.video_classifier import VideoClassifier
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, ClipInput, ImageInput, Licence, Metric, Paper, Task

MEAN, STD = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)

# name: (letter, depths, {frames: multiply-adds of one clip})
_SIZES: dict[str, tuple[str, tuple[int, ...], dict[int, float]]] = {
    "small": ("S", (3, 4, 8, 3), {8: 17.5e9, 16: 41.8e9, 32: 109.5e9}),
    "base": ("B", (5, 8, 20, 7), {8: 40.3e9, 16: 96.8e9, 32: 259e9}),
}
_DIMS = (64, 128, 320, 512)
# name: (letters, depths, widths, width of a head)
_LIGHT: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], int]] = {
    "xxs": ("XXS", (2, 5, 8, 2), (56, 112, 224, 448), 28),
    "xs": ("XS", (3, 5, 9, 3), (64, 128, 256, 512), 32),
}
# name: (dataset, classes, its videos are sampled)
_DATASETS: dict[str, tuple[str, int, str]] = {
    "k400": ("Kinetics-400", 400, "dense"),
    "k600": ("Kinetics-600", 600, "dense"),
    "ucf101": ("UCF101", 101, "dense"),
    "hmdb51": ("HMDB51", 51, "dense"),
    "ssv1": ("Something-Something V1", 174, "uniform"),
    "ssv2": ("Something-Something V2", 174, "uniform"),
}
# (size, dataset, frames, stride): top-1, over 1 crop and 4 clips
_DENSE: dict[tuple[str, str, int, int], float] = {
    ("small", "k400", 8, 8): 78.4,
    ("small", "k400", 16, 4): 80.8,
    ("small", "k400", 16, 8): 80.8,
    ("small", "k400", 32, 4): 82.0,
    ("base", "k400", 8, 8): 79.8,
    ("base", "k400", 16, 4): 82.0,
    ("base", "k400", 16, 8): 81.7,
    ("base", "k400", 32, 4): 82.9,
    ("small", "k600", 16, 4): 82.8,
    ("small", "k600", 16, 8): 82.7,
    ("base", "k600", 16, 4): 84.0,
    ("base", "k600", 16, 8): 83.4,
    ("base", "k600", 32, 4): 84.5,
    # Over 3 crops and 5 clips.
    ("small", "ucf101", 16, 4): 98.3,
    ("small", "hmdb51", 16, 4): 77.5,
}
# (size, dataset, frames, trained before on): top-1, over 3 crops and 1 clip
_UNIFORM: dict[tuple[str, str, int, str], float] = {
    ("small", "ssv1", 16, "k400"): 57.2,
    ("small", "ssv1", 16, "k600"): 57.6,
    ("small", "ssv1", 32, "k400"): 58.8,
    ("small", "ssv1", 32, "k600"): 59.9,
    ("base", "ssv1", 16, "k400"): 59.1,
    ("base", "ssv1", 16, "k600"): 58.8,
    ("base", "ssv1", 32, "k400"): 60.9,
    ("base", "ssv1", 32, "k600"): 61.0,
    ("small", "ssv2", 16, "k400"): 67.7,
    ("small", "ssv2", 16, "k600"): 69.4,
    ("small", "ssv2", 32, "k400"): 69.0,
    ("small", "ssv2", 32, "k600"): 70.4,
    ("base", "ssv2", 16, "k400"): 70.4,
    ("base", "ssv2", 16, "k600"): 70.2,
    ("base", "ssv2", 32, "k400"): 71.1,
    ("base", "ssv2", 32, "k600"): 71.2,
}
# (size, frames, resolution, blocks have gains): (multiply-adds, top-1 of Kinetics-400), 1 crop and 1 clip
_MOBILE: dict[tuple[str, int, int, bool], tuple[float, float]] = {
    ("xxs", 4, 128, True): (1.0e9, 63.2),
    ("xxs", 4, 160, True): (1.6e9, 65.8),
    ("xxs", 8, 128, True): (2.0e9, 68.3),
    ("xxs", 8, 160, False): (3.3e9, 71.4),
    ("xxs", 16, 128, False): (4.2e9, 73.3),
    ("xxs", 16, 160, False): (6.9e9, 75.1),
    ("xxs", 32, 160, False): (15.4e9, 77.9),
    ("xs", 32, 192, False): (34.2e9, 78.6),
}
# Variants whose file has a name that is known, in the authors' repository on Hugging Face.
_SHARED = ("small-k600-16x8", "base-k600-32x4")
_LABELS = (
    "The labels' order is the authors' own and is not shipped here; give the list of their data_list "
    "folder with the weights, or answers say `class N`."
)
# Entries of the light networks' checkpoints that serve training only.
_TRAINING = ("norm_cls.", "head_cls.")


def frame_input(size: int, resize_to: int | None = None) -> ImageInput:
    """Return the frames of the authors' evaluation: shorter side to `resize_to`, a square cut out, RGB."""
    return ImageInput(
        height=size,
        width=size,
        resize="shorter-side",
        resize_to=resize_to or size,
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
    )


def _metrics(name: str, value: float, note: str) -> tuple[Metric, ...]:
    return (Metric(name="top-1", value=value, dataset=name, origin="published", note=note),)


def _sources(name: str) -> tuple[Source, ...]:
    file = f"uniformer_{name.replace('-', '_')}.pth"
    return (Source(f"hf://Sense-X/uniformer_video/{file}"),) if name in _SHARED else ()


def _plain(size: str, classes: int) -> dict[str, Any]:
    return {
        "depths": _SIZES[size][1],
        "dims": _DIMS,
        "head_dim": 64,
        "mlp_ratio": 4,
        "num_classes": classes,
    }


def _dense(key: tuple[str, str, int, int]) -> Variant:
    size, data, frames, stride = key
    letter, _, flops = _SIZES[size]
    dataset, classes, _ = _DATASETS[data]
    crops, clips = (1, 4) if data in ("k400", "k600") else (3, 5)
    name = f"{size}-{data}-{frames}x{stride}"
    note = (
        f"UniFormer-{letter}, {frames} frames with stride {stride}, {crops} crops x {clips} clips"
    )
    return Variant(
        name,
        config=_plain(size, classes),
        image=frame_input(224, 256),
        clip=ClipInput(
            frames=frames,
            sampling="dense",
            stride=stride,
            crops=crops,
            clips=clips,
            merge="logits",
        ),
        sources=_sources(name),
        metrics=_metrics(dataset, _DENSE[key], note),
        flops=int(flops[frames]),
        notes=(_LABELS,),
    )


def _uniform(key: tuple[str, str, int, str]) -> Variant:
    size, data, frames, before = key
    letter, _, flops = _SIZES[size]
    dataset, classes, _ = _DATASETS[data]
    note = (
        f"UniFormer-{letter}, {frames} frames, 3 crops x 1 clip, first trained on {before.upper()}"
    )
    return Variant(
        f"{size}-{data}-{frames}-pre{before}",
        config=_plain(size, classes),
        image=frame_input(224),
        clip=ClipInput(frames=frames, sampling="uniform", crops=3, merge="logits"),
        metrics=_metrics(dataset, _UNIFORM[key], note),
        flops=int(flops[frames]),
        notes=(_LABELS,),
    )


def _mobile(key: tuple[str, int, int, bool]) -> Variant:
    size, frames, resolution, scaled = key
    letters, depths, dims, head_dim = _LIGHT[size]
    flops, score = _MOBILE[key]
    # The first global block sees all tokens; it makes the first scores.
    shares = ((1, *(0.5,) * (depths[2] - 1)), (0.5,) * depths[3])
    note = f"UniFormer-{letters}, {frames} frames, {resolution}x{resolution}, 1 crop x 1 clip"
    return Variant(
        f"{size}-k400-{frames}-{resolution}",
        config={
            "depths": depths,
            "dims": dims,
            "head_dim": head_dim,
            "mlp_ratio": 3,
            "keep": shares,
            "rate": shares,
            "scaled": scaled,
            "num_classes": 400,
        },
        image=frame_input(resolution),
        clip=ClipInput(frames=frames, sampling="uniform", merge="logits"),
        metrics=_metrics("Kinetics-400", score, note),
        flops=int(flops),
        notes=(_LABELS,),
    )


def _variants() -> dict[str, Variant]:
    variants = [
        Variant(
            "demo",
            config={
                "depths": (1, 2, 2, 1),
                "dims": (24, 48, 72, 120),
                "head_dim": 24,
                "mlp_ratio": 4,
                "num_classes": len(motions.LABELS),
            },
            image=frame_input(64),
            clip=ClipInput(frames=8, sampling="uniform"),
            labels=motions.LABELS,
            demo=True,
        ),
        *map(_dense, _DENSE),
        *map(_uniform, _UNIFORM),
        *map(_mobile, _MOBILE),
    ]
    return {variant.name: variant for variant in variants}


@register
class UniFormerVideoArchitecture(Architecture):
    """UniFormer for the classification of videos."""

    slug = "uniformer-video"
    title = "UniFormer (video)"
    task = Task.VIDEO_CLASSIFICATION
    paper = Paper(
        slug="uniformer",
        title="UniFormer: Unifying Convolution and Self-attention for Visual Recognition",
        year=2022,
        arxiv="2201.09450",
    )
    origin = "own"
    licence = Licence(code="Apache-2.0", weights="Apache-2.0")
    max_batch = 8
    preferred_batches = (4, 8)
    variants = _variants()

    def network(self, config: Mapping[str, Any]) -> nn.Module:
        """Build the network, or the light one where `config` says how many tokens to `keep`."""
        return (LightVideoUniFormer if "keep" in config else VideoUniFormer)(**config)

    def translate(self, checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> StateDict:
        """Open the authors' checkpoint and drop what only training uses; the names stay."""
        inner = checkpoint.get("model_state")
        state = unwrapped(inner if isinstance(inner, Mapping) else checkpoint)
        return {name: value for name, value in state.items() if not name.startswith(_TRAINING)}

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        return VideoClassifier(network, card, device)

"""UPerNet (https://arxiv.org/abs/1807.10221) as the Swin, ConvNeXt and ViT-CoMer papers use it for ADE20K.

The coarsest of a backbone's four maps is pooled at several scales; from there it is merged downwards with the finer
ones, and all are joined at the finest size. Names of entries are those of mmsegmentation, so that the papers'
checkpoints load as they are. What a network sees at a time, and how answers to overlapping windows are
joined, are the papers' own too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import panoptic
from models.architecture import StateDict, unwrapped
from models.layers.conv_module import ConvModule
from models.layers.segmenter import Segmentation, semantic
from service.triton.cards import ImageInput, Metric

_POOLED = (1, 2, 3, 6)


@dataclass(frozen=True)
class Windows:
    """What a network sees at a time: squares of `side` pixels, one every `step`, or whole pictures (0).

    Pictures are enlarged first, so that their sides are multiples of `multiple_of`.
    """

    side: int = 0
    step: int = 0
    multiple_of: int = 1

    def corners(self, height: int, width: int) -> Iterator[tuple[slice, slice]]:
        """Yield the windows of a picture, rows and columns; the last ones end at its edges."""
        yield from product(self._slices(height), self._slices(width))

    def _slices(self, size: int) -> Iterator[slice]:
        if not self.side or size <= self.side:
            yield slice(0, size)
            return
        for number in range(-(-(size - self.side) // self.step) + 1):
            end = min(number * self.step + self.side, size)
            yield slice(end - self.side, end)


class UPerHead(nn.Module):
    """Maps four maps of the widths `dims` to logits [B, classes, h, w] at the size of the first."""

    def __init__(self, dims: Sequence[int], width: int, num_classes: int) -> None:
        super().__init__()
        last = dims[-1]
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), ConvModule(last, width, 1, norm=True))
            for size in _POOLED
        )
        self.bottleneck = ConvModule(last + len(_POOLED) * width, width, 3, norm=True)
        self.lateral_convs = nn.ModuleList(ConvModule(d, width, 1, norm=True) for d in dims[:-1])
        self.fpn_convs = nn.ModuleList(ConvModule(width, width, 3, norm=True) for _ in dims[:-1])
        self.fpn_bottleneck = ConvModule(len(dims) * width, width, 3, norm=True)
        self.conv_seg = nn.Conv2d(width, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        coarsest = maps[-1]
        pooled = [_resized(module(coarsest), coarsest) for module in self.psp_modules]
        merged = [conv(x) for conv, x in zip(self.lateral_convs, maps[:-1], strict=True)]
        merged.append(self.bottleneck(torch.cat([coarsest, *pooled], 1)))
        for finer in range(len(merged) - 2, -1, -1):
            merged[finer] = merged[finer] + _resized(merged[finer + 1], merged[finer])
        levels = [conv(x) for conv, x in zip(self.fpn_convs, merged[:-1], strict=True)]
        levels.append(merged[-1])
        joined = torch.cat([_resized(level, levels[0]) for level in levels], 1)
        return self.conv_seg(self.fpn_bottleneck(joined))


class UPerNet(nn.Module):
    """A segmentor over a `backbone` that gives four maps (strides 4 to 32) of the widths `dims`."""

    def __init__(
        self,
        backbone: nn.Module,
        dims: Sequence[int],
        num_classes: int,
        windows: Windows | None = None,
        width: int = 512,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.decode_head = UPerHead(dims, width, num_classes)
        self._windows = windows or Windows()

    def forward(self, image: Tensor) -> Tensor:
        """Map normalised pictures [B, 3, H, W] to logits [B, classes, H / 4, W / 4]."""
        return self.decode_head(self.backbone(image))

    def logits(self, image: Tensor) -> Tensor:
        """Map normalised pictures [B, 3, H, W] to logits of that size: of windows where they overlap, the mean."""
        step = self._windows.multiple_of
        height, width = (-(-side // step) * step for side in image.shape[2:])
        image = F.interpolate(image, (height, width), mode="bilinear", align_corners=False)
        windows = list(self._windows.corners(height, width))
        if len(windows) == 1:
            return _resized(self(image).float(), image)
        total, count = image.new_zeros(()), image.new_zeros(height, width)
        for rows, columns in windows:
            part = image[:, :, rows, columns]
            found = _resized(self(part).float(), part)
            if not total.ndim:
                total = found.new_zeros((*found.shape[:2], height, width))
            total[:, :, rows, columns] += found
            count[rows, columns] += 1
        return total / count

    def predict(self, image: Tensor, depths: Sequence[int]) -> Sequence[Tensor]:
        """See `models.layers.segmenter.Segments`."""
        return list(self.logits(image))

    def decide(self, predicted: Tensor, size: tuple[int, int]) -> Segmentation:
        return semantic(predicted, size)


def without_auxiliary(checkpoint: Mapping[str, Any]) -> StateDict:
    """Return the state dict of an authors' checkpoint without the head that only training needs."""
    state = unwrapped(checkpoint)
    return {name: t for name, t in state.items() if not name.startswith("auxiliary_head.")}


def mmsegmentation_input(side: int) -> ImageInput:
    """Return the usual test of mmsegmentation: as large as fits into four sides by one side."""
    return ImageInput(
        resize="fit",
        resize_to=side,
        max_side=4 * side,
        interpolation="linear",
        mean=(123.675 / 255, 116.28 / 255, 103.53 / 255),
        std=(58.395 / 255, 57.12 / 255, 57.375 / 255),
    )


def labels() -> tuple[str, ...]:
    """Return the 150 classes of ADE20K."""
    return panoptic.ade20k().labels


def mean_iou(value: float, several: float | None, note: str) -> tuple[Metric, ...]:
    """Return the published mean overlap (per cent) on ADE20K, at one scale and at several scales with flips."""
    figures = {"mIoU": value} | ({} if several is None else {"mIoU, several scales": several})
    return tuple(
        Metric(name=name, value=each, dataset="ADE20K val", origin="published", note=note)
        for name, each in figures.items()
    )


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)

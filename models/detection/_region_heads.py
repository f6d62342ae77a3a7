"""The second half of Mask R-CNN: what is in a proposed region, where exactly, and which of its pixels it covers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from models.layers.conv_module import ConvModule

# How a box head's corrections are scaled; those of the proposals are not.
DEVIATIONS = (0.1, 0.1, 0.2, 0.2)
# By what the corrections of each head of a cascade are divided: each one's are finer.
_CASCADE = (1, 2, 3)
# A box may grow or shrink by this factor at most in one correction.
_LARGEST_CHANGE = abs(math.log(16 / 1000))
# Proposals of this many pixels (geometric mean of the sides) are looked up on the finest level.
_FINEST = 56
# Sides of what the two heads see of a region.
_BOX_SIDE, _MASK_SIDE = 7, 14
# How many masks are drawn at a time; bounds memory.
_MASKS = 128


class BoxHead(nn.Module):
    """Maps regions [N, width, 7, 7] to logits [N, classes + 1], the background last, and corrections [N, 4 classes].

    `convolutions` come first, each with batch norm and ReLU; then `layers` linear ones with ReLU.
    """

    def __init__(
        self, width: int, hidden: int, num_classes: int, *, convolutions: int = 0, layers: int = 2
    ) -> None:
        super().__init__()
        self.shared_convs = nn.ModuleList(
            ConvModule(width, width, 3, norm=True) for _ in range(convolutions)
        )
        inside = [width * _BOX_SIDE**2] + [hidden] * (layers - 1)
        self.shared_fcs = nn.ModuleList(nn.Linear(size, hidden) for size in inside)
        self.fc_cls = nn.Linear(hidden, num_classes + 1)
        self.fc_reg = nn.Linear(hidden, 4 * num_classes)

    def forward(self, regions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for conv in self.shared_convs:
            regions = conv(regions)
        x = regions.flatten(1)
        for layer in self.shared_fcs:
            x = F.relu(layer(x))
        return self.fc_cls(x).float(), self.fc_reg(x).float()


class MaskHead(nn.Module):
    """Maps regions [N, width, 14, 14] to logits of masks [N, classes, 28, 28]."""

    def __init__(self, width: int, num_classes: int, depth: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(ConvModule(width, width, 3) for _ in range(depth))
        self.upsample = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.conv_logits = nn.Conv2d(width, num_classes, 1)

    def forward(self, regions: torch.Tensor) -> torch.Tensor:
        for conv in self.convs:
            regions = F.relu(conv(regions))
        return self.conv_logits(F.relu(self.upsample(regions))).float()


class RegionHeads(nn.Module, ABC):
    """The heads of a detector, and how they look at a pyramid. `draws`: whether there are masks."""

    draws: bool

    def __init__(self, strides: Sequence[int]) -> None:
        super().__init__()
        self._strides = tuple(strides)

    @abstractmethod
    def judged(
        self, levels: Sequence[torch.Tensor], rois: torch.Tensor, size: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return regions [N, 5], of them logits [N, classes + 1] and corrections [N, classes, 4] ready for `corrected`.

        `rois` [N, 5] are numbers in the batch and boxes in pictures of (height, width) `size`.
        """

    @abstractmethod
    def masks(
        self, levels: Sequence[torch.Tensor], rois: torch.Tensor, classes: torch.Tensor
    ) -> torch.Tensor:
        """Return probabilities [N, 28, 28] that what is in `rois`, of the given `classes`, covers a place."""

    def drawn(
        self, levels: Sequence[torch.Tensor], rois: torch.Tensor, classes: torch.Tensor
    ) -> torch.Tensor:
        """Return the masks of any number of regions."""
        parts = zip(rois.split(_MASKS), classes.split(_MASKS), strict=True)
        # A run over no regions gives masks of the right shape.
        return torch.cat([self.masks(levels, some, named) for some, named in parts])

    def regions(
        self, levels: Sequence[torch.Tensor], rois: torch.Tensor, side: int
    ) -> torch.Tensor:
        """Return what of the pyramid lies in `rois` [N, 5] (number in the batch, x0, y0, x1, y1): [N, width, side, side]."""
        extent = (rois[:, 3:] - rois[:, 1:3]).prod(1).clamp(min=0).sqrt()
        level = torch.log2(extent / _FINEST + 1e-6).floor().clamp(0, len(self._strides) - 1)
        found = rois.new_zeros((len(rois), levels[0].shape[1], side, side))
        for number, stride in enumerate(self._strides):
            chosen = (level == number).nonzero()[:, 0]
            if len(chosen):
                # In float32: places in a picture need more than bfloat16's eight bits.
                found[chosen] = roi_align(
                    levels[number].float(), rois[chosen], side, 1 / stride, aligned=True
                )
        return found


class SingleHeads(RegionHeads):
    """One box head and, if there are `masks`, one mask head: Mask R-CNN, or Faster R-CNN."""

    def __init__(
        self,
        strides: Sequence[int],
        width: int,
        hidden: int,
        num_classes: int,
        *,
        masks: bool,
        mask_depth: int,
    ) -> None:
        super().__init__(strides)
        self.bbox_head = BoxHead(width, hidden, num_classes)
        self.mask_head = MaskHead(width, num_classes, mask_depth) if masks else None
        self.draws = masks

    def judged(
        self, levels: Sequence[torch.Tensor], rois: torch.Tensor, size: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits, corrections = self.boxes(levels, rois)
        return rois, logits, scaled(corrections)

    def masks(
        self, levels: Sequence[torch.Tensor], rois: torch.Tensor, classes: torch.Tensor
    ) -> torch.Tensor:
        return of_class(self.mask_logits(levels, rois), classes).sigmoid()

    def boxes(
        self, levels: Sequence[torch.Tensor], rois: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the box head's logits and corrections for `rois`, as it gives them."""
        return self.bbox_head(self.regions(levels, rois, _BOX_SIDE))

    def mask_logits(self, levels: Sequence[torch.Tensor], rois: torch.Tensor) -> torch.Tensor:
        """Return the mask head's logits for `rois`, [N, classes, 28, 28]."""
        assert self.mask_head is not None
        return self.mask_head(self.regions(levels, rois, _MASK_SIDE))


class CascadeHeads(RegionHeads):
    """Three box heads in a row, each for regions that the one before corrected, and three mask heads.

    Cascade R-CNN (https://arxiv.org/abs/1906.09756), with the heads of the Swin and ConvNeXt papers: four
    convolutions and a linear layer. Logits of the three are averaged, and so are the masks.
    """

    draws = True

    def __init__(
        self, strides: Sequence[int], width: int, hidden: int, num_classes: int, mask_depth: int
    ) -> None:
        super().__init__(strides)
        self.bbox_head = nn.ModuleList(
            BoxHead(width, hidden, num_classes, convolutions=4, layers=1) for _ in _CASCADE
        )
        self.mask_head = nn.ModuleList(MaskHead(width, num_classes, mask_depth) for _ in _CASCADE)

    def judged(
        self, levels: Sequence[torch.Tensor], rois: torch.Tensor, size: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        total = rois.new_zeros(())
        for head, divisor in zip(self.bbox_head, _CASCADE, strict=True):
            logits, raw = head(self.regions(levels, rois, _BOX_SIDE))
            total = total + logits / len(_CASCADE)
            corrections = scaled(raw) / divisor
            if divisor < len(_CASCADE):
                # The class that seems best decides how a region is corrected for the next head.
                best = of_class(corrections, logits[:, :-1].argmax(1))
                rois = torch.cat((rois[:, :1], corrected(rois[:, 1:], best, size)), 1)
        return rois, total, corrections

    def masks(
        self, levels: Sequence[torch.Tensor], rois: torch.Tensor, classes: torch.Tensor
    ) -> torch.Tensor:
        regions = self.regions(levels, rois, _MASK_SIDE)
        drawn = [of_class(head(regions), classes).sigmoid() for head in self.mask_head]
        return torch.stack(drawn).mean(0)


def scaled(corrections: torch.Tensor) -> torch.Tensor:
    """Return a box head's corrections [N, 4 classes] as [N, classes, 4], ready for `corrected`."""
    return corrections.unflatten(1, (-1, 4)) * corrections.new_tensor(DEVIATIONS)


def of_class(values: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return of values [N, classes, ...] those of one class each, [N, ...]."""
    return values[torch.arange(len(values), device=values.device), classes]


def corrected(
    boxes: torch.Tensor, corrections: torch.Tensor, size: tuple[int, int]
) -> torch.Tensor:
    """Return boxes [N, 4] moved and stretched by (dx, dy, dw, dh) [N, 4], inside a picture of (height, width)."""
    sides = boxes[:, 2:] - boxes[:, :2]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 + corrections[:, :2] * sides
    half = sides * corrections[:, 2:].clamp(-_LARGEST_CHANGE, _LARGEST_CHANGE).exp() / 2
    most = boxes.new_tensor([size[1], size[0]] * 2)
    return torch.cat((centre - half, centre + half), 1).clamp(min=0).minimum(most)

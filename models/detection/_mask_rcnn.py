"""Mask R-CNN (https://arxiv.org/abs/1703.06870) as the Swin, ConvNeXt and ViT-CoMer papers use it.

A feature pyramid over the four maps of any backbone; a region proposal network on each of its levels; a
head that names and corrects each proposal; a head that draws a mask for each detection. Without the
last one it is Faster R-CNN. Names of entries and the arithmetic of boxes are those of mmdetection 2.22,
so that the papers' checkpoints load as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import batched_nms

from models.detection._region_heads import CascadeHeads, RegionHeads, SingleHeads, corrected
from models.layers.conv_module import ConvModule
from models.layers.detector import Detections

# Sides of what backbones see are multiples of this; beyond the picture are zeros.
_MULTIPLE = 32


@dataclass(frozen=True)
class Proposing:
    """Settings of the proposals (the papers' own by default).

    `before`: candidates of each level by score. `overlap`: of two on one level that overlap more,
    the better one stays. `most`: proposals of a picture.
    """

    before: int = 1000
    overlap: float = 0.7
    most: int = 1000


class FeaturePyramid(nn.Module):
    """Maps four maps of any widths to five of one width, the fifth at half the size of the fourth."""

    def __init__(self, widths: Sequence[int], width: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(ConvModule(w, width, 1) for w in widths)
        self.fpn_convs = nn.ModuleList(ConvModule(width, width, 3) for _ in widths)

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        merged = [conv(x) for conv, x in zip(self.lateral_convs, maps, strict=True)]
        for finer in range(len(merged) - 2, -1, -1):
            size = merged[finer].shape[2:]
            merged[finer] = merged[finer] + F.interpolate(merged[finer + 1], size=size)
        levels = [conv(x) for conv, x in zip(self.fpn_convs, merged, strict=True)]
        return [*levels, F.max_pool2d(levels[-1], 1, stride=2)]


class ProposalHead(nn.Module):
    """Says of every anchor of a level whether there is an object, and where.

    Maps each level [B, width, h, w] to logits [B, A, h, w] and corrections [B, 4 A, h, w].
    """

    def __init__(self, width: int, scales: Sequence[float], ratios: Sequence[float]) -> None:
        super().__init__()
        self.scales, self.ratios = tuple(scales), tuple(ratios)
        count = len(self.scales) * len(self.ratios)
        self.rpn_conv = nn.Conv2d(width, width, 3, padding=1)
        self.rpn_cls = nn.Conv2d(width, count, 1)
        self.rpn_reg = nn.Conv2d(width, 4 * count, 1)

    def forward(self, levels: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        shared = [F.relu(self.rpn_conv(level)) for level in levels]
        return [(self.rpn_cls(x).float(), self.rpn_reg(x).float()) for x in shared]

    def anchors(self, height: int, width: int, stride: int, device: torch.device) -> torch.Tensor:
        """Return the anchors of a level, [height * width * A, 4], by place and then by shape.

        They are centred on the corners of the cells; a ratio is height over width.
        """
        ratio = torch.tensor(self.ratios, device=device).sqrt()[:, None]
        side = stride * torch.tensor(self.scales, dtype=torch.float32, device=device)
        half = torch.stack(((side / ratio).flatten(), (side * ratio).flatten()), 1) / 2
        y, x = torch.meshgrid(
            torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
        )
        centre = stride * torch.stack((x, y), 2).view(-1, 1, 2).float()
        return torch.cat((centre - half, centre + half), 2).view(-1, 4)


class MaskRCNN(nn.Module):
    """The whole detector over a `backbone` that gives four maps (strides 4 to 32) of the widths `dims`.

    `width`: of the pyramid. `hidden`: of the box head. `masks`: whether it draws them. `cascade`: whether
    there are three heads of each kind, which always draw masks.
    """

    def __init__(
        self,
        backbone: nn.Module,
        dims: Sequence[int],
        num_classes: int,
        *,
        masks: bool = True,
        cascade: bool = False,
        width: int = 256,
        hidden: int = 1024,
        mask_depth: int = 4,
        scales: Sequence[float] = (8,),
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        strides: Sequence[int] = (4, 8, 16, 32, 64),
        proposing: Proposing | None = None,
        overlap: float = 0.5,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = FeaturePyramid(dims, width)
        self.rpn_head = ProposalHead(width, scales, ratios)
        finer = strides[: len(dims)]
        self.roi_head: RegionHeads
        if cascade:
            self.roi_head = CascadeHeads(finer, width, hidden, num_classes, mask_depth)
        else:
            self.roi_head = SingleHeads(
                finer, width, hidden, num_classes, masks=masks, mask_depth=mask_depth
            )
        self._strides = tuple(strides)
        self._proposing = proposing or Proposing()
        self._overlap = overlap

    def pyramid(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Map normalised pictures [B, 3, H, W] to five maps [B, width, h, w]."""
        return self.neck(self.backbone(image))

    def forward(
        self,
        image: torch.Tensor,
        thresholds: Sequence[float],
        most: Sequence[int],
    ) -> list[Detections]:
        """Detect objects in normalised pictures [B, 3, H, W]; see `models.layers.detector.Detects`."""
        height, width = size = image.shape[2], image.shape[3]
        image = F.pad(image, (0, -width % _MULTIPLE, 0, -height % _MULTIPLE))
        levels = self.pyramid(image)
        proposals = self.proposals(levels, size)
        return self.detect(levels, [p[:, :4] for p in proposals], size, thresholds, most)

    def anchors(self, levels: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the anchors of each level, [N, 4], from maps of the levels' sizes."""
        return [
            self.rpn_head.anchors(*level.shape[2:], stride, level.device)
            for level, stride in zip(levels, self._strides, strict=True)
        ]

    def proposals(
        self, levels: Sequence[torch.Tensor], size: tuple[int, int]
    ) -> list[torch.Tensor]:
        """Return of each picture the regions that may hold an object: [N, 5] of box and score, best first."""
        said = self.rpn_head(levels)
        anchors = self.anchors([logits for logits, _ in said])
        found = []
        for number in range(len(levels[0])):
            boxes, scores, level = [], [], []
            for depth, (logits, corrections) in enumerate(said):
                score = logits[number].permute(1, 2, 0).flatten().sigmoid()
                correction = corrections[number].permute(1, 2, 0).reshape(-1, 4)
                score, best = score.sort(descending=True, stable=True)
                best = best[: self._proposing.before]
                scores.append(score[: self._proposing.before])
                boxes.append(corrected(anchors[depth][best], correction[best], size))
                level.append(torch.full_like(best, depth))
            box, score, at = torch.cat(boxes), torch.cat(scores), torch.cat(level)
            real = ((box[:, 2:] - box[:, :2]) > 0).all(1)
            box, score, at = box[real], score[real], at[real]
            kept = batched_nms(box, score, at, self._proposing.overlap)[: self._proposing.most]
            found.append(torch.cat((box[kept], score[kept, None]), 1))
        return found

    def detect(
        self,
        levels: Sequence[torch.Tensor],
        proposals: Sequence[torch.Tensor],
        size: tuple[int, int],
        thresholds: Sequence[float],
        most: Sequence[int],
    ) -> list[Detections]:
        """Name, correct and choose among the `proposals` [N, 4] of each picture, and draw masks."""
        counts = [len(boxes) for boxes in proposals]
        rois, logits, corrections = self.roi_head.judged(levels, rois_of(proposals), size)
        of_each = (
            rois[:, 1:].split(counts),
            logits.softmax(1)[:, :-1].split(counts),
            corrections.split(counts),
        )
        chosen = [
            self._chosen(*of_one, size, threshold, number)
            for *of_one, threshold, number in zip(*of_each, thresholds, most, strict=True)
        ]
        if not self.roi_head.draws:
            return [Detections(*found, None) for found in chosen]
        masks = self.roi_head.drawn(
            levels,
            rois_of([boxes for boxes, _, _ in chosen]),
            torch.cat([classes for _, _, classes in chosen]),
        ).split([len(boxes) for boxes, _, _ in chosen])
        return [Detections(*found, mask) for found, mask in zip(chosen, masks, strict=True)]

    def _chosen(
        self,
        proposals: torch.Tensor,
        probabilities: torch.Tensor,
        corrections: torch.Tensor,
        size: tuple[int, int],
        threshold: float,
        most: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return boxes, scores and classes of one picture after suppression within each class."""
        row, classes = (probabilities > threshold).nonzero(as_tuple=True)
        boxes = corrected(proposals[row], corrections[row, classes], size)
        scores = probabilities[row, classes]
        kept = batched_nms(boxes, scores, classes, self._overlap)[:most]
        return boxes[kept], scores[kept], classes[kept]


def rois_of(boxes: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the boxes [N, 4] of each picture of a batch in one table [sum N, 5], their number in the batch first."""
    numbers = [torch.full_like(some[:, :1], number) for number, some in enumerate(boxes)]
    return torch.cat((torch.cat(numbers), torch.cat(list(boxes))), 1)

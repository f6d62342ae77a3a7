"""What Mask R-CNN learns by: proposals, names, corrections and masks, each against the objects that are there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from torchvision.ops import box_iou, roi_align

from models.detection._mask_rcnn import MaskRCNN, rois_of
from models.detection._region_heads import DEVIATIONS, SingleHeads, of_class, scaled

# Of logits [N, classes] and classes [N].
Naming = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# Overlap from which an anchor or a proposal is an object's, and up to which an anchor is background.
_OBJECT, _BACKGROUND = 0.5, 0.3
# Of each picture: anchors of the background that are learned from, proposals of objects and of the background, and
# masks.
_ANCHORS = 128
_POSITIVE, _NEGATIVE, _MASKS = 12, 20, 4


@dataclass(frozen=True)
class Objects:
    """The objects of one picture: boxes float32 [N, 4] in pixels, classes int64 [N], masks bool [N, H, W]."""

    boxes: torch.Tensor
    classes: torch.Tensor
    masks: torch.Tensor


def detection_loss(
    network: MaskRCNN, image: torch.Tensor, truth: Sequence[Objects], naming: Naming
) -> torch.Tensor:
    """Return the sum of the losses of a batch of normalised pictures [B, 3, H, W], sides multiples of 32.

    `naming` is learned beside the choice between the classes and the background, by regions of objects only.
    """
    size = (image.shape[2], image.shape[3])
    levels = network.pyramid(image)
    loss = _of_proposals(network, levels, truth)
    with torch.no_grad():
        proposals = [p[:, :4] for p in network.proposals(levels, size)]
    return loss + _of_regions(network, levels, proposals, truth, naming)


def _of_proposals(
    network: MaskRCNN, levels: Sequence[torch.Tensor], truth: Sequence[Objects]
) -> torch.Tensor:
    said = network.rpn_head(levels)
    anchors = torch.cat(network.anchors([logits for logits, _ in said]))
    logits = torch.cat([x.permute(0, 2, 3, 1).flatten(1) for x, _ in said], 1)
    corrections = torch.cat([x.permute(0, 2, 3, 1).reshape(len(x), -1, 4) for _, x in said], 1)
    losses = []
    for score, correction, objects in zip(logits, corrections, truth, strict=True):
        overlap, owner = _matched(anchors, objects.boxes)
        positive = overlap >= _OBJECT
        if len(objects.boxes):
            # Each object has its best anchors, however little they overlap.
            iou = box_iou(anchors, objects.boxes)
            closest = (iou == iou.amax(0)).nonzero()
            positive[closest[:, 0]] = True
            owner[closest[:, 0]] = closest[:, 1]
        negative = _some(~positive & (overlap < _BACKGROUND), _ANCHORS)
        wrong = F.binary_cross_entropy_with_logits(
            score[negative], torch.zeros_like(score[negative])
        )
        losses.append(wrong)
        if positive.any():
            missed = F.binary_cross_entropy_with_logits(
                score[positive], torch.ones_like(score[positive])
            )
            wanted = corrections_to(anchors[positive], objects.boxes[owner[positive]])
            losses += [missed, F.smooth_l1_loss(correction[positive], wanted, beta=0.1)]
    return torch.stack(losses).sum() / len(truth)


def _of_regions(
    network: MaskRCNN,
    levels: Sequence[torch.Tensor],
    proposals: Sequence[torch.Tensor],
    truth: Sequence[Objects],
    naming: Naming,
) -> torch.Tensor:
    heads = network.roi_head
    assert isinstance(heads, SingleHeads)
    background = heads.bbox_head.fc_cls.out_features - 1
    chosen, classes, wanted, outlined = [], [], [], []
    for boxes, objects in zip(proposals, truth, strict=True):
        boxes = torch.cat((boxes, objects.boxes))
        overlap, owner = _matched(boxes, objects.boxes)
        positive = _some(overlap >= _OBJECT, _POSITIVE)
        negative = _some(overlap < _OBJECT, _NEGATIVE)
        chosen.append(boxes[torch.cat((positive, negative))])
        named = torch.full((len(chosen[-1]),), background, device=boxes.device)
        named[: len(positive)] = objects.classes[owner[positive]]
        classes.append(named)
        if len(positive):
            wanted.append(corrections_to(boxes[positive], objects.boxes[owner[positive]]))
            outlined.append(_outlined(boxes[positive][:_MASKS], objects, owner[positive][:_MASKS]))
    rois, named = rois_of(chosen), torch.cat(classes)
    logits, corrections = heads.boxes(levels, rois)
    loss = F.cross_entropy(logits, named)
    positive = named < background
    if positive.any():
        mine = of_class(scaled(corrections[positive]), named[positive])
        deviations = mine.new_tensor(DEVIATIONS)
        loss = loss + naming(logits[positive, :-1], named[positive])
        loss = loss + F.smooth_l1_loss(mine / deviations, torch.cat(wanted) / deviations, beta=0.5)
        # The first regions of a picture are those of objects, in an order by chance.
        first = torch.cat([torch.arange(len(some)) < _MASKS for some in chosen]).to(named.device)
        shown = positive & first
        drawn = of_class(heads.mask_logits(levels, rois[shown]), named[shown])
        loss = loss + F.binary_cross_entropy_with_logits(drawn, torch.cat(outlined))
    return loss


def corrections_to(boxes: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the (dx, dy, dw, dh) [N, 4] by which `models.detection._region_heads.corrected` makes `targets` of `boxes`."""
    sides, wanted = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
    apart = (targets[:, 2:] + targets[:, :2] - boxes[:, 2:] - boxes[:, :2]) / 2
    return torch.cat((apart / sides, (wanted / sides).log()), 1)


def _outlined(boxes: torch.Tensor, objects: Objects, owner: torch.Tensor) -> torch.Tensor:
    """Return what of its owner is in each box, 0 or 1 on a grid: float32 [N, 28, 28]."""
    whole = objects.masks[owner].float()[:, None]
    rows = torch.arange(len(boxes), device=boxes.device)[:, None]
    cut = roi_align(whole, torch.cat((rows, boxes), 1), 28, aligned=True)
    return (cut[:, 0] >= 0.5).float()


def _matched(boxes: torch.Tensor, objects: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return of each box the largest overlap with an object, and whose it is."""
    if not len(objects):
        return boxes.new_zeros(len(boxes)), torch.zeros(len(boxes), dtype=torch.int64)
    overlap, owner = box_iou(boxes, objects).max(1)
    return overlap, owner


def _some(chosen: torch.Tensor, most: int) -> torch.Tensor:
    """Return the places where `chosen` is true, `most` of them by chance."""
    places = chosen.nonzero()[:, 0]
    return places[torch.randperm(len(places), device=places.device)[:most]]

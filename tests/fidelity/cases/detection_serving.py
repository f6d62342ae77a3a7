"""The heads of Mask R-CNN, which several papers share: built from the file's settings and shapes, over maps that it gives."""

from __future__ import annotations

import torch
from torch import nn

from models.detection._mask_rcnn import MaskRCNN, Proposing
from models.detection._region_heads import SingleHeads
from tests.fidelity.golden import Golden, load


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    config = golden.config
    names = [name for name, _ in golden.state]
    masks = any(name.startswith("roi_head.mask_head.") for name in names)
    network = MaskRCNN(
        nn.Identity(),
        config["in_channels"],
        config["num_classes"],
        masks=masks,
        width=golden.shape("neck.fpn_convs.0.conv.weight")[0],
        hidden=golden.shape("roi_head.bbox_head.shared_fcs.0.weight")[0],
        mask_depth=golden.count(r"roi_head\.mask_head\.convs\.(\d+)\."),
        scales=config["anchor_scales"],
        ratios=config["anchor_ratios"],
        strides=config["anchor_strides"],
        proposing=Proposing(
            config["rpn_nms_pre"], config["rpn_nms_iou"], config["rpn_max_per_img"]
        ),
        overlap=config["rcnn_nms_iou"],
    )
    load(network, golden.weights())
    height, width = config["image_size"]
    levels = network.pyramid([golden.input(f"feature_{i + 1}") for i in range(4)])  # type: ignore[arg-type]
    found = {f"fpn_p{i}": level for i, level in enumerate(levels, start=2)}
    for number, (logits, corrections) in enumerate(network.rpn_head(levels), start=2):
        found |= {f"rpn_cls_p{number}": logits, f"rpn_reg_p{number}": corrections}
    if "roi_uniform" in golden.inputs:
        rois = _rois(golden.input("roi_uniform"), height, width)
        assert isinstance(network.roi_head, SingleHeads)
        found["roi_cls"], found["roi_reg"] = network.roi_head.boxes(levels, rois)
        if masks:
            found["roi_masks"] = network.roi_head.mask_logits(levels, rois)
    count = len(levels[0])
    proposals = network.proposals(levels, (height, width))
    detections = network.detect(
        levels,
        [boxes[:, :4] for boxes in proposals],
        (height, width),
        [config["score_thr"]] * count,
        [config["max_per_img"]] * count,
    )
    rows = [
        torch.cat((d.boxes, d.scores[:, None], d.classes[:, None].float()), 1) for d in detections
    ]
    return found | {"proposals": torch.cat(proposals), "detections": torch.cat(rows)}


def _rois(u: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return regions of the first picture made of four numbers in 0..1 each, as the file's notes say."""
    x0, y0 = 0.6 * width * u[:, 0], 0.6 * height * u[:, 1]
    x1 = (x0 + 8 + u[:, 2] ** 2 * (width - 8)).clamp(max=width)
    y1 = (y0 + 8 + u[:, 3] ** 2 * (height - 8)).clamp(max=height)
    return torch.stack((torch.zeros_like(x0), x0, y0, x1, y1), 1)

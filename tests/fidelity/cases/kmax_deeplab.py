"""kMaX-DeepLab: built from the shapes in the file; post-processing on logits of its own, where the file has some."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from models.registry import architecture
from models.segmentation._kmax_merging import Masks, Merging, panoptic
from models.segmentation.kmax_deeplab import UNUSED
from tests.fidelity.golden import Golden, load

_DECODER = "sem_seg_head.pixel_decoder._stages"
_PREDICTOR = "sem_seg_head.predictor"


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    kmax = architecture("kmax-deeplab")
    config = _config(golden)
    weights = {"model": golden.weights(without=UNUSED)}
    network = load(kmax.network(config), kmax.translate(weights, config))
    features = network.backbone(golden.input("image"))
    maps = network.sem_seg_head.pixel_decoder(features)
    classes, masks = network.sem_seg_head.predictor(maps)[-1]
    found = {"pred_logits": classes, "pred_masks": masks, "pixel_final": maps[-1]}
    found |= dict(zip(("stem", "res2", "res3", "res4", "res5"), features, strict=True))
    found |= {f"pixel_os{32 >> level}": made for level, made in enumerate(maps)}
    if "post" in golden.config:
        found |= _post(golden, golden.config["post"])
    return {name: output.contiguous() for name, output in found.items()}


def _post(golden: Golden, post: dict[str, Any]) -> dict[str, torch.Tensor]:
    height, width = post["image_size"]
    size = (post["height"], post["width"])
    scale = max(height, width) / max(size)
    logits = golden.input("post_mask")[0] * post["mask_logits_scale"]
    sent = (round(size[0] * scale), round(size[1] * scale))
    masks = Masks(logits, sent, (height, width)).at(size)
    settings = Merging(
        thing=post["class_threshold_thing"],
        stuff=post["class_threshold_stuff"],
        pixel=post["pixel_confidence_threshold"],
        overlap=post["overlap_threshold"],
        class_weight=post["reorder_class_weight"],
        mask_weight=post["reorder_mask_weight"],
    )
    classes = golden.input("post_class")[0] * post["class_logits_scale"]
    made = panoptic(classes, masks, settings, post["thing_ids"])
    rows = [
        (number, label, float(label in post["thing_ids"]), float((made.mask == number).sum()))
        for number, label, _ in made.segments
    ]
    return {
        "post_masks": masks.rows(0, size[0]),
        "post_panoptic": made.mask.float(),
        "post_segments": torch.tensor(rows),
    }


def _config(golden: Golden) -> dict[str, object]:
    names = {name for name, _ in golden.state}
    depths = list(_counts(golden, rf"{_DECODER}\.{{}}\._blocks\.(\d+)\."))
    stages = [f"{_DECODER}.{stage}._blocks.0" for stage in range(len(depths))]
    dim, queries = golden.shape(f"{_PREDICTOR}._cluster_centers.weight")
    layer = f"{_PREDICTOR}._kmax_transformer_layers"
    channels = [
        golden.shape(f"{layer}.{index}._pixel_conv1_bn_act.conv.weight")[1]
        for index in range(golden.count(rf"{layer}\.(\d+)\."))
    ]
    outs = [golden.shape(f"{stage}._conv3_bn.conv.weight")[0] for stage in stages]
    image = golden.inputs["image"]["shape"]
    return {
        "backbone": _backbone(golden),
        "depths": depths,
        "widths": [out // 4 for out in outs],
        "axial": [
            f"{stage}._attention._height_axis.qkv_transform.conv.weight" in names
            for stage in stages
        ],
        "layers": [channels.count(out) for out in outs[:3]],
        "num_queries": queries,
        "num_classes": golden.shape(f"{_PREDICTOR}._predcitor._transformer_class_head.conv.weight")[
            0
        ]
        - 1,
        "dim": dim,
        "ffn": golden.shape(f"{layer}.0._query_ffn_conv1_bn_act.conv.weight")[0],
        "canvas": (image[2], image[3]),
    }


def _backbone(golden: Golden) -> dict[str, object]:
    if any(name.startswith("backbone.stem.") for name, _ in golden.state):
        return {
            "resnet": [golden.count(rf"backbone\.res{stage}\.(\d+)\.") for stage in range(2, 6)]
        }
    depths = list(_counts(golden, r"backbone\.stages\.{}\.(\d+)\."))
    dims = [
        golden.shape(f"backbone.stages.{stage}.0.norm.weight")[0] for stage in range(len(depths))
    ]
    return {"convnext": (depths, dims)}


def _counts(golden: Golden, pattern: str) -> Iterator[int]:
    """Yield the numbers of blocks of each stage, as long as there are stages."""
    stage = 0
    while number := golden.count(pattern.format(stage)):
        yield number
        stage += 1

"""ViT-CoMer: the detector's backbone alone, or the whole segmentor with UPerNet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional as F

from models.layers.vit_comer import ViTCoMer
from models.segmentation._upernet import UPerNet, without_auxiliary
from tests.fidelity.golden import Golden, load


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    segmentor = any(name.startswith("decode_head.") for name, _ in golden.state)
    prefix = "backbone." if segmentor else ""
    published = golden.config.get("backbone", golden.config)
    backbone = ViTCoMer(**_config(golden, published, prefix, each_stage=segmentor))
    image = golden.input("image")
    found: dict[str, torch.Tensor] = {}
    for number, interaction in enumerate(backbone.interactions, 1):
        interaction.register_forward_hook(
            lambda _module, _inputs, output, name=f"tokens_block_{number}": found.__setitem__(
                name, output[0]
            )
        )
    if not segmentor:
        load(backbone, golden.weights())
        features = backbone(image)
    else:
        network = UPerNet(
            backbone,
            backbone.dims,
            golden.shape("decode_head.conv_seg.weight")[0],
            width=golden.shape("decode_head.fpn_bottleneck.conv.weight")[0],
        )
        load(network, without_auxiliary(golden.weights()))
        features = backbone(image)
        logits = network.decode_head(features)
        whole = F.interpolate(logits, image.shape[2:], mode="bilinear", align_corners=False)
        found |= {"logits_stride4": logits, "logits_full": whole}
    return found | {f"feature_{i}": x for i, x in enumerate(features, 1)}


def _config(
    golden: Golden, published: Mapping[str, Any], prefix: str, *, each_stage: bool
) -> dict[str, Any]:
    interactions = published["interaction_indexes"]
    count = len(interactions)
    dim = published["embed_dim"]
    windows = [
        size if used else None
        for size, used in zip(published["window_size"], published["window_attn"], strict=True)
    ]
    ratios = [shape[0] / dim for name, shape in golden.state if name.endswith("mrfp.fc1.weight")]
    names = [name for name, _ in golden.state]
    return {
        "dim": dim,
        "depth": published["depth"],
        "heads": published["num_heads"],
        "pretrain_size": published.get("pretrain_size", 224),
        "mlp_ratio": published["mlp_ratio"],
        "stem": published["conv_inplane"],
        "points": published["n_points"],
        "deform_heads": published["deform_num_heads"],
        "deform_ratio": published["deform_ratio"],
        "ffn_ratio": published["cffn_ratio"],
        "mrfp_ratio": ratios[0] if ratios else 1.0,
        "interactions": interactions,
        "windows": windows,
        **{
            argument: tuple(
                any(n.startswith(f"{prefix}interactions.{i}.{part}.") for n in names)
                for i in range(count)
            )
            for argument, part in (
                ("to_vit", "cti_tov"),
                ("to_pyramid", "cti_toc"),
                ("within_pyramid", "cti_toc.cfinter"),
            )
        },
        "each_stage": each_stage,
    }

"""ECO-M2F: Mask2Former built from the shapes in the file, at the gate's depth and at those that outputs are named by."""

from __future__ import annotations

import re

import torch

from models.registry import architecture
from models.segmentation._eco_m2f_network import EcoMask2Former
from tests.fidelity.golden import Golden, load

_ENCODER = r"sem_seg_head\.pixel_decoder\.transformer\.encoder"
_PIXELS = "sem_seg_head.pixel_decoder"
_QUERIES = "sem_seg_head.predictor"
# Width of a head of every Swin.
_HEAD_WIDTH = 32


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    eco = architecture("eco-m2f")
    config = _config(golden)
    network = load(eco.network(config), eco.translate({"model": golden.weights()}, config))
    features = network.features(golden.input("image"))
    gate = network.gate(features)
    found = dict(zip(("res2", "res3", "res4", "res5"), features, strict=True))
    found["gate_logits"] = gate
    found |= _answers(network, features, gate.argmax(1) + network.encoder.first_exit)
    for depth in network.exits:
        if any(name.endswith(f"_exit_{depth}") for name in golden.outputs):
            forced = _answers(network, features, torch.full((len(gate),), depth))
            found |= {f"{name}_exit_{depth}": output for name, output in forced.items()}
    return {name: output.contiguous() for name, output in found.items()}


def _answers(
    network: EcoMask2Former, features: list[torch.Tensor], depths: torch.Tensor
) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {"depth": depths}
    decoder = network.pixel_level_module.decoder
    hooks = (
        network.encoder.register_forward_hook(
            lambda _module, _inputs, made: found.__setitem__(
                "encoder_tokens", made.last_hidden_state
            )
        ),
        decoder.mask_projection.register_forward_hook(
            lambda _module, _inputs, made: found.__setitem__("mask_features", made)
        ),
    )
    classes, masks = network.segments(features, depths)[-1]
    for hook in hooks:
        hook.remove()
    return found | {"pred_logits": classes, "pred_masks": masks}


def _config(golden: Golden) -> dict[str, object]:
    stages = range(golden.count(r"backbone\.layers\.(\d+)\."))
    embed_dim = golden.shape("backbone.patch_embed.proj.weight")[0]
    tables = [
        golden.shape(f"backbone.layers.{stage}.blocks.0.attn.relative_position_bias_table")
        for stage in stages
    ]
    encoder_layers = golden.count(rf"{_ENCODER}\.layers\.(\d+)\.")
    dim = golden.shape(f"{_PIXELS}.mask_features.weight")[0]
    first = f"{_PIXELS}.transformer.encoder.layers.0"
    return {
        "embed_dim": embed_dim,
        "depths": [
            golden.count(rf"backbone\.layers\.{stage}\.blocks\.(\d+)\.") for stage in stages
        ],
        "num_heads": [heads for _, heads in tables],
        # A table has an entry for each distance in two directions.
        "window_size": (round(tables[0][0] ** 0.5) + 1) // 2,
        "dim": dim,
        "heads": golden.config.get("heads", dim // _HEAD_WIDTH),
        "encoder_layers": encoder_layers,
        "encoder_ffn": golden.shape(f"{first}.linear1.weight")[0],
        "decoder_layers": golden.count(
            re.escape(f"{_QUERIES}.transformer_ffn_layers.") + r"(\d+)\."
        ),
        "decoder_ffn": golden.shape(f"{_QUERIES}.transformer_ffn_layers.0.linear1.weight")[0],
        "num_queries": golden.shape(f"{_QUERIES}.query_feat.weight")[0],
        "num_classes": golden.shape(f"{_QUERIES}.class_embed.weight")[0] - 1,
        "first_exit": encoder_layers
        + 1
        - golden.shape(f"{_PIXELS}.transformer.encoder.gt.head.weight")[0],
    }

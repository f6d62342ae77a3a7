"""GTP-ViT: timm's network of the file's shapes, with tokens propagated as its configuration says."""

from __future__ import annotations

from functools import partial

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from models.acceleration.gtp_vit_network import GTPConfig, GTPVisionTransformer, Tokens
from tests.fidelity.golden import Golden, load

_SELECTIONS = {
    "CLSAttn": "class",
    "IMGAttn": "received",
    "DiagAttn": "diagonal",
    "MixedAttn": "mixed",
    "SumAttn": "sum",
    "CosSim": "difference",
}
_PROPAGATIONS = {"GraphProp": "graph", "Mean": "mean", "None": "none"}
_HEAD_WIDTH = 64  # of all published backbones


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    network = GTPVisionTransformer(load(_backbone(golden), golden.weights()), _config(golden))
    found: dict[str, torch.Tensor] = {}
    last: list[Tokens] = []

    def keep(number: int, tokens: Tokens) -> None:
        found[f"class_token_block{number}"] = tokens.x[:, 0]
        found[f"token_mean_block{number}"] = tokens.x[:, tokens.prefix :].mean(1)
        found[f"kept_block{number}"] = tokens.positions.sort(1).values.float() + tokens.prefix
        last[:] = [tokens]

    for number, block in enumerate(network.blocks):
        block.register_forward_hook(
            lambda _module, _inputs, tokens, number=number: keep(number, tokens)
        )
    image = golden.input("image")
    found["logits"] = network(image)
    first = network.embed(image)
    if first.graph is not None:
        found["normalised_graph"] = first.graph
    if last[0].scales is not None:
        found["token_scales_sorted"] = last[0].scales[:, last[0].prefix :].sort(1).values
    return found


def _backbone(golden: Golden) -> VisionTransformer:
    names = {name for name, _ in golden.state}
    width, _, patch_size, _ = golden.shape("patch_embed.proj.weight")
    class_token = "cls_token" in names
    mean_pooled = "fc_norm.weight" in names or not class_token
    return VisionTransformer(
        img_size=golden.input("image").shape[-1],
        patch_size=patch_size,
        num_classes=golden.shape("head.weight")[0] if "head.weight" in names else 0,
        global_pool=golden.config.get("global_pool", "avg" if mean_pooled else "token"),
        embed_dim=width,
        depth=golden.count(r"blocks\.(\d+)\."),
        num_heads=golden.config.get("num_heads", width // _HEAD_WIDTH),
        mlp_ratio=golden.shape("blocks.0.mlp.fc1.weight")[0] / width,
        qkv_bias="blocks.0.attn.qkv.bias" in names,
        init_values=1.0 if "blocks.0.ls1.gamma" in names else None,
        class_token=class_token,
        pre_norm="norm_pre.weight" in names,
        fc_norm="fc_norm.weight" in names,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )


def _config(golden: Golden) -> GTPConfig:
    given = golden.config
    selection = given.get("selection", "None")
    removed = given.get("num_prop", 0) if selection != "None" else 0
    for official, name in _SELECTIONS.items():
        selection = selection.replace(official, f"{name}-")
    return GTPConfig(
        propagate=removed if isinstance(removed, int) else tuple(removed),
        selection=selection.lower() if selection != "None" else GTPConfig.selection,
        propagation=_PROPAGATIONS[given.get("propagation", "None")],
        graph=graph.lower() if (graph := given.get("graph_type", "None")) != "None" else "spatial",
        neighbours=given.get("num_neighbours", 0),
        alpha=given.get("alpha", 0.1),
        attention_share=given.get("sparsity", 1.0),
        token_scales=given.get("token_scale", False),
    )

"""T2T-ViT: built from the configuration in the file, loaded by the official names."""

from __future__ import annotations

import torch
from torch import nn

from models.classification.t2t_vit import T2TViT
from models.registry import architecture
from tests.fidelity.golden import Golden, load


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    t2t = architecture("t2t-vit")
    given = golden.config
    config = {
        "tokens": given["tokens_type"],
        "image_size": given["img_size"],
        "dim": given["embed_dim"],
        "depth": given["depth"],
        "heads": given["num_heads"],
        "mlp_ratio": given["mlp_ratio"],
        "token_dim": given.get("token_dim", 64),
        "num_classes": golden.shape("head.weight")[0],
    }
    network = load(t2t.network(config), t2t.translate(golden.weights(), config))
    assert isinstance(network, T2TViT)
    found: dict[str, torch.Tensor] = {}
    for name, module in _taps(network).items():
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: found.__setitem__(name, output)
        )
    found["logits"] = network(golden.input("image"))
    if "performer_probe" in golden.inputs:
        performer = network.tokens_to_token.attention1
        probe = golden.input("performer_probe")
        keys = performer.kqv(probe).chunk(3, dim=-1)[0]
        found["performer_probe_kp_log"] = performer.features(keys).log()
        found["performer_probe_attention"] = performer.attend(probe)[1]
    return {name: output.contiguous() for name, output in found.items()}


def _taps(network: T2TViT) -> dict[str, nn.Module]:
    tokens = network.tokens_to_token
    return {
        "t2t_stage1": tokens.attention1,
        "t2t_stage2": tokens.attention2,
        "tokens": tokens,
        **{f"block{i}": block for i, block in enumerate(network.blocks)},
        "norm": network.norm,
    }

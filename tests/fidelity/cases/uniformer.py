"""UniFormer's image networks, plain and light: built from the shapes and the configuration in the file."""

from __future__ import annotations

import torch

from models.registry import architecture
from tests.fidelity.golden import Golden, load

STAGES = (1, 2, 3, 4)


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    uniformer = architecture("uniformer")
    config = _config(golden)
    network = load(
        uniformer.network(config),
        uniformer.translate({"model": golden.weights()}, config),
    )
    found: dict[str, torch.Tensor] = {}
    for stage in STAGES:
        blocks = network.get_submodule(f"blocks{stage}")
        taps = {f"stage{stage}": blocks[-1]}
        taps |= {f"stage{stage}_block{i}": block for i, block in enumerate(blocks)}
        taps |= {f"stage{stage}_block{i}_attention": b.attn for i, b in enumerate(blocks)}
        for name, module in taps.items():
            module.register_forward_hook(
                # The light network's blocks and attention also return scores.
                lambda _module, _inputs, output, name=name: found.__setitem__(
                    name, output[0] if isinstance(output, tuple) else output
                )
            )
    network.norm.register_forward_hook(
        lambda _module, _inputs, output: found.__setitem__("norm", output)
    )
    found["logits"] = network(golden.input("image"))
    return {name: output.contiguous() for name, output in found.items()}


def _config(golden: Golden) -> dict[str, object]:
    names = {name for name, _ in golden.state}
    depths = tuple(golden.count(rf"blocks{stage}\.(\d+)\.") for stage in STAGES)
    dims = tuple(golden.shape(f"blocks{stage}.0.pos_embed.weight")[0] for stage in STAGES)
    config: dict[str, object] = {
        "depths": depths,
        "dims": dims,
        "head_dim": golden.config["head_dim"],
        "mlp_ratio": golden.shape("blocks4.0.mlp.fc1.weight")[0] / dims[3],
        "overlapping": "patch_embed1.proj.0.weight" in names,
        "num_classes": golden.shape("head.weight")[0],
    }
    if "cls_token" in names:
        return config | {
            "keep": golden.config["prune_ratio"][2:],
            "rate": golden.config["trade_off"][2:],
        }
    return config | {
        "scaled": tuple(stage for stage in STAGES if f"blocks{stage}.0.gamma_1" in names),
        "token_labels": "aux_head.weight" in names,
    }

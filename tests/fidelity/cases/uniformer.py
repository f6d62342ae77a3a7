"""UniFormer's networks of images and of clips, plain and light: built from the shapes and the configuration in the file."""

from __future__ import annotations

import torch

from models.registry import architecture
from tests.fidelity.golden import Golden, load

STAGES = (1, 2, 3, 4)


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    clips = "clip" in golden.inputs
    uniformer = architecture("uniformer-video" if clips else "uniformer")
    config = _config(golden, clips)
    network = load(
        uniformer.network(config),
        uniformer.translate({"model_state" if clips else "model": golden.weights()}, config),
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
    found["logits"] = network(golden.input("clip" if clips else "image"))
    return {name: output.contiguous() for name, output in found.items()}


def _config(golden: Golden, clips: bool) -> dict[str, object]:
    names = {name for name, _ in golden.state}
    depths = tuple(golden.count(rf"blocks{stage}\.(\d+)\.") for stage in STAGES)
    dims = tuple(golden.shape(f"blocks{stage}.0.pos_embed.weight")[0] for stage in STAGES)
    config: dict[str, object] = {
        "depths": depths,
        "dims": dims,
        "head_dim": golden.config["head_dim"],
        "mlp_ratio": golden.shape("blocks4.0.mlp.fc1.weight")[0] / dims[3],
        "num_classes": golden.shape("head.weight")[0],
    }
    scaled = tuple(stage for stage in STAGES if f"blocks{stage}.0.gamma_1" in names)
    overlapping = {"overlapping": "patch_embed1.proj.0.weight" in names}
    if "cls_token" in names:
        return config | {
            **({"scaled": bool(scaled)} if clips else overlapping),
            "keep": golden.config["prune_ratio"][2:],
            "rate": golden.config["trade_off"][2:],
        }
    if clips:
        return config | {
            "split": "blocks3.0.t_attn.qkv.weight" in names,
            "mixing": golden.shape("patch_embed2.proj.weight")[2] > 1,
        }
    return (
        config
        | overlapping
        | {
            "scaled": scaled,
            "token_labels": "aux_head.weight" in names,
        }
    )

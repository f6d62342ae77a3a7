"""TurboViT: Hiera's blocks in the arrangement that the file's configuration describes."""

from __future__ import annotations

from typing import Any

import torch

from models.registry import architecture
from tests.fidelity.golden import Golden, load


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    turbovit = architecture("turbovit")
    config = _config(golden)
    network = load(
        turbovit.network(config),
        turbovit.translate({"model_state": golden.weights()}, config),
    )
    found: dict[str, torch.Tensor] = {}

    def keep(name: str, output: torch.Tensor) -> None:
        found[name] = output

    network.patch_embed.register_forward_hook(lambda _m, _i, out: keep("patch_embed", out))
    network.norm.register_forward_hook(lambda _m, _i, out: keep("pooled", out))
    for stage, end in enumerate(network.stage_ends, start=1):
        network.blocks[end].register_forward_hook(
            lambda _m, _i, out, stage=stage, end=end: keep(
                f"stage{stage}", network.reroll(out, end)
            )
        )
    found["logits"] = network(golden.input("pixel_values"))
    return {name: output.contiguous() for name, output in found.items()}


def _config(golden: Golden) -> dict[str, Any]:
    given = golden.config
    depths = tuple(given["stages"])
    ends = [sum(depths[: stage + 1]) - 1 for stage in range(len(depths))]
    heads = [given["num_heads"]]
    for _ in depths[1:]:
        heads.append(int(heads[-1] * given["head_mul"]))
    return {
        "image_size": tuple(golden.inputs["pixel_values"]["shape"][2:]),
        "stem_dim": golden.shape("patch_embed.proj.weight")[0],
        "dims": tuple(golden.shape(f"blocks.{end}.norm2.weight")[0] for end in ends),
        "depths": depths,
        "heads": tuple(heads),
        "windowed": tuple(given["mask_unit_attn"]),
        "window": tuple(given["mask_unit_size"]),
        "pools": given["q_pool"],
        "mlp_ratio": given["mlp_ratio"],
        "num_classes": golden.shape("head.projection.weight")[0],
    }

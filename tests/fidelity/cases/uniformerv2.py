"""UniFormerV2: built from the shapes and the configuration in the file."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch

from models.registry import architecture
from tests.fidelity.golden import Golden, load

PREFIX = "backbone."


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    uniformer = architecture("uniformerv2")
    config = _config(golden)
    network = load(uniformer.network(config), uniformer.translate(golden.weights(), config))
    found: dict[str, torch.Tensor] = {}

    def tap(name: str, swapped: bool = True) -> Callable[..., None]:
        # Recorded with the batch second; here it comes first.
        def keep(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
            found[name] = output.transpose(0, 1) if swapped else output

        return keep

    network.ln_pre.register_forward_hook(tap("tokens", swapped=False))
    for number, block in enumerate(network.transformer.resblocks):
        block.register_forward_hook(tap(f"block{number}"))
        block.attn.register_forward_hook(tap(f"block{number}_attention"))
    for number, unit in enumerate(network.transformer.dec):
        unit.register_forward_hook(tap(f"global{number}"))
    found["logits"] = network(golden.input("clip"))
    found["global_last"] = found[f"global{number}"]
    return {name: output.contiguous() for name, output in found.items()}


def _config(golden: Golden) -> dict[str, object]:
    names = [name for name, _ in golden.state]
    width, _, depth, patch, _ = golden.shape(f"{PREFIX}conv1.weight")
    blocks = f"{PREFIX}transformer.resblocks"
    units = f"{PREFIX}transformer.dec.0"
    places = golden.shape(f"{PREFIX}positional_embedding")[0] - 1
    return {
        "resolution": round(places**0.5) * patch,
        "patch": patch,
        "width": width,
        "layers": golden.count(rf"{re.escape(blocks)}\.(\d+)\."),
        "heads": golden.config["heads"],
        "local_units": sum(f"{blocks}.0.lmhra{n}.pos_embed.1.weight" in names for n in (1, 2)),
        "halve_frames": depth > 1,
        "global_layers": tuple(golden.config["return_list"]),
        "frozen": f"{PREFIX}transformer.balance" not in names,
        "num_classes": golden.shape(f"{PREFIX}transformer.proj.2.weight")[0],
        "reduction": golden.config["dw_reduction"],
        "mlp_ratio": golden.shape(f"{units}.mlp.c_fc.weight")[0] / width,
    }

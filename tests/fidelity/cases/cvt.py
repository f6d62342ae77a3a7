"""CvT: built from the stages in the file, loaded by the official names."""

from __future__ import annotations

import torch

from models.registry import architecture
from tests.fidelity.golden import Golden, load


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    cvt = architecture("cvt")
    spec = golden.config["spec"]
    config = {
        "dims": spec["DIM_EMBED"],
        "heads": spec["NUM_HEADS"],
        "depths": spec["DEPTH"],
        "mlp_ratio": spec["MLP_RATIO"][0],
        "num_classes": golden.shape("head.weight")[0],
    }
    network = load(cvt.network(config), cvt.translate(golden.weights(), config))
    found: dict[str, torch.Tensor] = {}

    def keep(name: str, output: tuple[torch.Tensor, torch.Tensor | None]) -> None:
        found[name] = output[0]
        if output[1] is not None:
            found[f"{name}_cls"] = output[1]

    for i, stage in enumerate(network.cvt.encoder.stages):
        stage.register_forward_hook(lambda _m, _i, output, name=f"stage{i}": keep(name, output))
        stage.layers[0].register_forward_hook(
            lambda _m, _i, output, name=f"stage{i}_first_block": found.__setitem__(name, output)
        )
    found["logits"] = network(golden.input("image"))
    return {name: output.contiguous() for name, output in found.items()}

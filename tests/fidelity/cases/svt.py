"""SVT: built from the shapes in the file, loaded by the official names."""

from __future__ import annotations

import torch

from models.registry import architecture
from tests.fidelity.golden import Golden, load


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    svt = architecture("svt")
    config = _config(golden)
    network = load(svt.network(config), svt.translate({"model": golden.weights()}, config))
    found: dict[str, torch.Tensor] = {}

    def tap(name: str, path: str) -> None:
        def keep(_module: object, _inputs: object, output: object) -> None:
            # An embedding returns the width of its map too.
            found[name] = output[0] if isinstance(output, tuple) else output

        network.get_submodule(path).register_forward_hook(keep)

    for stage, depth in enumerate(config["depths"], start=1):
        tap(f"patch_embed{stage}", f"patch_embed{stage}")
        tap(f"block{stage}", f"block{stage}.{depth - 1}")
        for i in range(depth):
            tap(f"block{stage}.{i}.attn", f"block{stage}.{i}.attn")
    tap("tokens", f"norm{len(config['depths'])}")
    (image,) = golden.inputs
    found["logits"] = network(golden.input(image))
    return {name: output.contiguous() for name, output in found.items()}


def _config(golden: Golden) -> dict[str, object]:
    stages = range(1, golden.count(r"block(\d+)\."))
    dims = [golden.shape(f"block{i}.0.norm1.weight")[0] for i in stages]
    hidden = [golden.shape(f"block{i}.0.mlp.fc1.weight")[0] for i in stages]
    return {
        "image_size": 4 * golden.shape("block1.0.attn.complex_weight_ll")[1],
        "stem": golden.shape("patch_embed1.conv.0.weight")[0],
        "dims": dims,
        "heads": [dim // 32 for dim in dims],
        "ratios": [wide // dim for wide, dim in zip(hidden, dims, strict=True)],
        "depths": [golden.count(rf"block{i}\.(\d+)\.") for i in stages],
        "num_classes": golden.shape("head.weight")[0],
    }

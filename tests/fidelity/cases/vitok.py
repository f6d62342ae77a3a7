"""ViTok-v2: the auto-encoder from the file's sizes, the picture cut and joined as the authors do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.reconstruction._vitok_network import TowerConfig, ViTok, ViTokConfig
from models.reconstruction._vitok_patches import patchify, unpatchify
from tests.fidelity.golden import Golden, load


def _tower(golden: Golden, half: str) -> TowerConfig:
    given = golden.config
    return TowerConfig(
        width=golden.shape(f"{half}_blocks.0.attn.out_proj.weight")[0],
        depth=golden.count(rf"{half}_blocks\.(\d+)\."),
        heads=given[f"{half}_heads"],
        mlp_factor=given.get("mlp_factor", TowerConfig.mlp_factor),
    )


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    patch = int(golden.config.get("patch", golden.config.get("spatial_stride")))
    config = ViTokConfig(
        _tower(golden, "encoder"),
        _tower(golden, "decoder"),
        patch,
        channels=golden.shape("to_code.weight")[0],
    )
    network = load(ViTok(config), golden.weights())
    image = golden.input("image")
    patches = patchify(image, patch, golden.config.get("max_tokens"))
    found: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module) -> None:
        module.register_forward_hook(
            lambda _module, _inputs, output: found.__setitem__(name, output)
        )

    for half in ("encoder", "decoder"):
        for i, block in enumerate(getattr(network, f"{half}_blocks")):
            keep(f"{half}_block{i}", block)
    codes = network.encode(patches)
    decoded = network.decode(codes)
    found |= {"z": codes.tokens, "decoded_patches": decoded.tokens}
    count = int(patches.used[0].sum())
    valid = {name: tokens[:, :count] for name, tokens in found.items()}
    whole = {"patches": patches.tokens, "image": unpatchify(decoded, patch, image.shape[-2:])}
    return {name: _as_recorded(golden, name, t) for name, t in (valid | whole).items()}


def _as_recorded(golden: Golden, name: str, tensor: Tensor) -> Tensor:
    """Return `tensor`, of which a file may hold all pictures' valid tokens in one list."""
    record = golden.outputs.get(name)
    if record is not None and len(record.shape) == 2:
        tensor = tensor.flatten(0, 1)
    return tensor.contiguous()

"""NViST: the whole network from the file's constructor arguments, and rays derived from its raw inputs."""

from __future__ import annotations

import torch

from models.views._nvist_network import NViST, NViSTConfig, published
from tests.fidelity.golden import Golden, load


def _config(golden: Golden) -> NViSTConfig:
    given = golden.config
    near, far = given["near_far"]
    return NViSTConfig(
        image_size=tuple(given["img_size"]),
        patch_size=given["encoder_patch_size"],
        dim=given["encoder_embed_dim"],
        depth=golden.count(r"encoder\.blocks\.(\d+)\."),
        heads=given["encoder_num_heads"],
        decoder_dim=given["decoder_embed_dim"],
        decoder_depth=given["decoder_depth"],
        decoder_heads=given["decoder_num_heads"],
        resolution=given["resolution"],
        field_patch=given["decoder_patch_size"],
        density_dim=given["sigma_dim"],
        colour_dim=given["rgb_dim"],
        hidden_dim=given["rgb_feature_dim"],
        camera_frequencies=given["camera_params_pe_freq"],
        direction_frequencies=given["viewdir_pe"],
        samples=given["nSamples"],
        near=near,
        far=far,
        box=tuple(tuple(corner) for corner in given["aabb"]),
    )


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    network = load(NViST(_config(golden)), published({"state_dict": golden.weights()}))
    found: dict[str, torch.Tensor] = {}
    last = network.encoder.blocks[-1]
    last.register_forward_hook(
        lambda _module, _inputs, output: found.__setitem__("encoder_tokens", output)
    )
    field = network.field(golden.input("image"), golden.input("camera_params"))
    middle = torch.tensor([0.0, 0.0, 1.0])
    rendered = network.renderer(
        field,
        0.1 * golden.input("ray_origins_raw") - middle,
        0.3 * golden.input("ray_directions_raw") + middle,
        background=float(golden.config.get("white_bg", False)),
    )
    found |= {
        "matrices": field.planes,
        "vectors": field.vectors,
        "rgb": rendered.colour,
        "depth": rendered.depth,
        "weights": rendered.weights,
    }
    return {name: output.contiguous() for name, output in found.items()}

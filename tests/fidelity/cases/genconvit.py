"""GenConViT's two networks: built from the shapes in the file, loaded by the official names."""

from __future__ import annotations

import torch

from models.deepfake.genconvit import UNUSED, AutoencoderNetwork, VariationalNetwork
from models.registry import architecture
from tests.fidelity.golden import Golden, load


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    genconvit = architecture("genconvit")
    config = _config(golden)
    weights = genconvit.translate(golden.weights(without=UNUSED), config)
    network = load(genconvit.network(config), weights)
    image = golden.input("image")
    if "vae" in config:
        found = _vae(network.vae, image, golden.input("noise"))
    else:
        found = _ed(network.ed, image)
    found["frame_probabilities"] = found["logits"].sigmoid()
    found["mean_probabilities"] = found["frame_probabilities"].mean(0)
    return found


def _ed(network: AutoencoderNetwork, image: torch.Tensor) -> dict[str, torch.Tensor]:
    decoded = network.rebuild(image)
    return {
        "encoder": network.encoder(image),
        "decoder": decoded,
        "backbone_of_decoded": network.backbone(decoded),
        "backbone_of_image": network.backbone(image),
        "logits": network(image),
    }


def _vae(
    network: VariationalNetwork, image: torch.Tensor, noise: torch.Tensor
) -> dict[str, torch.Tensor]:
    mean = network.encoder(image)
    decoded = network.rebuild(image, noise)
    return {
        "encoder_features": network.encoder.features(image),
        "mu": mean,
        "z": network.draw(mean, noise),
        "decoder": decoded,
        "backbone_of_image": network.convnext_backbone(image),
        "backbone_of_decoded": network.convnext_backbone(decoded),
        "logits": network(image, noise),
    }


def _config(golden: Golden) -> dict[str, object]:
    names = [name for name, _ in golden.state]
    variational = "encoder.mu.weight" in names
    backbone = "convnext_backbone" if variational else "backbone"
    stages = range(golden.count(rf"{backbone}\.stages\.(\d+)\."))
    config: dict[str, object] = {
        "image_size": golden.input("image").shape[-1],
        "num_classes": golden.shape("fc2.weight")[0],
        "backbone": {
            "depths": tuple(
                golden.count(rf"{backbone}\.stages\.{i}\.blocks\.(\d+)\.") for i in stages
            ),
            "dims": tuple(
                golden.shape(f"{backbone}.stages.{i}.blocks.0.norm.weight")[0] for i in stages
            ),
            "num_classes": golden.shape(f"{backbone}.head.fc.weight")[0],
        },
    }
    encoder = [
        shape[0]
        for name, shape in golden.state
        if name.startswith("encoder.features.") and len(shape) == 4
    ]
    if not variational:
        return config | {"ed": {"channels": tuple(encoder)}}
    decoder = [
        shape[:2]
        for name, shape in golden.state
        if name.startswith("decoder.features.") and len(shape) == 4
    ]
    return config | {
        "vae": {
            "channels": tuple(encoder),
            "decoder_channels": (decoder[0][0], *(outer for _, outer in decoder)),
            "latent": golden.shape("encoder.mu.weight")[0],
        }
    }

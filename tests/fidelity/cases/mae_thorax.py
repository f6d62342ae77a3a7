"""MAE for thorax disease: the classifier or, where the file has a decoder, the network of the pre-training."""

from __future__ import annotations

import torch

from models.classification._mae_thorax_network import MaskedAutoencoder, reconstruction_loss
from models.registry import architecture
from tests.fidelity.golden import Golden, load

# Width of a head in all of the authors' transformers but the largest, which has 16 heads.
_HEAD_WIDTH, _MOST_HEADS = 64, 16


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    if any(name.startswith("decoder_") for name, _ in golden.state):
        return _reconstructed(golden)
    mae_thorax = architecture("mae-thorax")
    names = {name for name, _ in golden.state}
    config = _sizes(golden) | {
        "qkv_bias": "blocks.0.attn.qkv.bias" in names,
        "class_token": "fc_norm.weight" not in names,
        "num_classes": golden.shape("head.weight")[0],
    }
    network = load(
        mae_thorax.network(config),
        mae_thorax.translate({"model": golden.weights(), "epoch": 74}, config),
    )
    found: dict[str, torch.Tensor] = {}
    for i, block in enumerate(network.blocks):
        block.register_forward_hook(
            lambda _module, _inputs, output, i=i: found.__setitem__(f"block{i}", output)
        )
    network.head.register_forward_pre_hook(
        lambda _module, inputs: found.__setitem__("pooled", inputs[0])
    )
    found["logits"] = network(golden.input("image"))
    return found | {"probabilities": found["logits"].sigmoid()}


def _reconstructed(golden: Golden) -> dict[str, torch.Tensor]:
    decoder_dim, _ = golden.shape("decoder_embed.weight")
    network = load(
        MaskedAutoencoder(
            **_sizes(golden),
            decoder_dim=decoder_dim,
            decoder_depth=golden.count(r"decoder_blocks\.(\d+)\."),
            decoder_heads=golden.config.get("decoder_num_heads", 16),
        ),
        golden.weights(),
    )
    image = golden.input("image")
    made = network(image, golden.input("noise"), golden.config.get("mask_ratio", 0.75))
    loss = reconstruction_loss(
        image,
        made.patches,
        made.masking.hidden,
        network.patch_size,
        normalised=golden.config.get("norm_pix_loss", False),
    )
    return {
        "latent": made.latent,
        "mask": made.masking.hidden,
        "restore_order": made.masking.restore,
        "prediction": made.patches,
        "image": network.picture(made.patches).contiguous(),
        "loss": torch.stack((loss, 2 * loss)),
    }


def _sizes(golden: Golden) -> dict[str, object]:
    dim, _, patch, _ = golden.shape("patch_embed.proj.weight")
    return {
        "image_size": golden.inputs["image"]["shape"][-1],
        "patch_size": patch,
        "dim": dim,
        "depth": golden.count(r"blocks\.(\d+)\."),
        "heads": golden.config.get("num_heads", min(dim // _HEAD_WIDTH, _MOST_HEADS)),
        "mlp_ratio": golden.shape("blocks.0.mlp.fc1.weight")[0] / dim,
    }

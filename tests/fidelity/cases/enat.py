"""enat: the transformer with its reuse and sampling, or, where the file has an encoder, the tokenizer."""

from __future__ import annotations

import dataclasses

import torch

from models.generation.enat_network import ENAT, ENATConfig, released_state
from models.generation.enat_sampling import Schedule, sample
from models.generation.enat_tokenizer import Tokenizer, TokenizerConfig
from models.generation.enat_tokenizer import released_state as released_tokenizer
from tests.fidelity.golden import Golden, load


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    if any(name.startswith("encoder.") for name, _ in golden.state):
        return _tokenizer(golden)
    return _transformer(golden)


def _transformer(golden: Golden) -> dict[str, torch.Tensor]:
    given = golden.config
    encoder, decoder = given["enc_dec"]
    config = ENATConfig(
        latent_size=given["latent_size"],
        embed_dim=given["embed_dim"],
        num_heads=given["num_heads"],
        encoder_depth=encoder,
        decoder_depth=decoder,
        codebook_size=given["codebook_size"],
        num_classes=given["num_classes"],
    )
    network = load(ENAT(config), released_state(golden.weights()))
    tokens, label = golden.input("tokens"), golden.input("label")
    rank = golden.input("order").argsort(1).argsort(1)
    found, previous = {}, None
    ids = torch.full_like(tokens, network.mask_id)
    for step, visible in enumerate((0, *given["visible"]), 1):
        ids = tokens.where(rank < visible, network.mask_id)
        found[f"step{step}_logits"], previous = network(ids, label, previous)
        found[f"step{step}_features"] = previous.features
    nothing = torch.full_like(label, network.no_class)
    found["no_reuse_null_class_logits"], _ = network(ids, nothing)

    if "sampling" in given:
        settings = given["sampling"]
        codes, confidences = (
            golden.input(f"{kind}_uniform") for kind in ("categorical", "confidence")
        )
        schedule = Schedule(
            settings["steps"],
            settings["mask_temp"],
            settings["samp_temp"],
            settings["cfg_scale"],
        )
        found["sampled_ids"] = sample(
            network, label, schedule, lambda step: (codes[step], confidences[step])
        )
    return found


def _tokenizer(golden: Golden) -> dict[str, torch.Tensor]:
    fields = {field.name for field in dataclasses.fields(TokenizerConfig)}
    settings = {k: v for k, v in golden.config.items() if k in fields}
    settings["ch_mult"] = tuple(settings["ch_mult"])
    network = load(
        Tokenizer(TokenizerConfig(**settings)),
        released_tokenizer({"state_dict": golden.weights()}),
    )
    found: dict[str, torch.Tensor] = {}
    watched = {f"decoder_up{i}": level for i, level in enumerate(network.decoder.up)}
    for name, module in (watched | {"decoder_mid": network.decoder.mid}).items():
        module.register_forward_hook(
            lambda _module, _inputs, result, name=name: found.__setitem__(name, result)
        )
    image = golden.input("image")
    found["encoder_latent"] = network.encoder(image)
    found["indices"] = network.encode(image).flatten()
    found["decoded"] = network.decoder(network.quantize(golden.input("codes")))
    return found

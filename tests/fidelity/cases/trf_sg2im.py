"""trf-sg2im: the graph transformer, the layout as tokens, the GPT over it, and the VQGAN."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from models.generation.trf_sg2im_network import (
    GPTConfig,
    GraphConfig,
    TrfSg2Im,
    VQConfig,
    released_state,
)
from models.generation.trf_sg2im_sampling import layout_tokens
from tests.fidelity.golden import Golden, load


def _settings(kind: type, given: dict[str, Any]) -> Any:
    fields = {field.name for field in dataclasses.fields(kind)}
    return kind(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if k in fields}
    )


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    given = golden.config
    network = TrfSg2Im(
        _settings(GraphConfig, given["sgtrf"]),
        _settings(GPTConfig, given["img_trf"]),
        _settings(VQConfig, given["vqvae"] | given["vqvae"]["ddconfig"]),
    )
    weights = golden.weights()
    files: dict[str, dict[str, torch.Tensor]] = {"sgtrf": {}, "img_trf": {}, "vqvae": {}}
    for name, value in weights.items():
        part, _, inner = name.partition(".")
        files[part][inner] = value
    vqgan = released_state({"state_dict": files.pop("vqvae")})
    load(network, released_state(files) | vqgan)

    found: dict[str, torch.Tensor] = {}
    layers = network.sgtrf.layers
    for i, layer in enumerate(layers):

        def keep(_module: Any, _inputs: Any, result: Any, i: int = i) -> None:
            found[f"graph_layer{i}_nodes"], found[f"graph_layer{i}_edges"] = result

        layer.register_forward_hook(keep)
    objects, relations = golden.input("object_ids"), golden.input("relation_ids")
    graphs, count = objects.shape
    ends = torch.tensor([given["edges_from"], given["edges_to"]])
    # Graphs of a batch stand beside each other, with the same edges.
    shifts = torch.arange(graphs).repeat_interleave(ends.shape[1]) * count
    layout = network.sgtrf(
        objects.flatten(),
        relations.flatten(),
        ends.repeat(1, graphs) + shifts,
        golden.input("node_positions").flatten(0, 1),
    )
    found["graph_last_nodes"] = found[f"graph_layer{len(layers) - 1}_nodes"]
    found["graph_last_edges"] = found[f"graph_layer{len(layers) - 1}_edges"]
    found["boxes"] = layout.boxes.view(graphs, count, -1)
    found["label_logits"] = layout.logits.view(graphs, count, -1)

    tokens = layout_tokens(
        found["label_logits"].argmax(-1),
        golden.input("boxes"),
        golden.input("order").argsort(-1),
        network.img_trf.config.vocab_size,
    )
    found["condition_tokens"] = tokens
    codes = golden.input("image_codes")
    logits, _ = network.img_trf(torch.cat([tokens, codes[:, :-1]], dim=1))
    found["next_token_logits"] = logits[:, tokens.shape[1] - 1 :]
    side = round(codes.shape[1] ** 0.5)
    found["decoded"] = network.paint(codes.view(-1, side, side))
    found["encoder_latent"] = network.vqvae.encode(golden.input("image")).latents
    return found

"""vl-gpt: the language model on words and visual embeddings in one sequence; nothing else has a reference."""

from __future__ import annotations

import dataclasses

import torch

from models.generation.vl_gpt_network import VLGPT, VLGPTConfig
from tests.fidelity.golden import Golden, load

# By how much the record's visual inputs are scaled.
_VISUAL_SCALE = 0.1


def outputs(golden: Golden) -> dict[str, torch.Tensor]:
    fields = {field.name for field in dataclasses.fields(VLGPTConfig)}
    network = VLGPT(VLGPTConfig(**{k: v for k, v in golden.config.items() if k in fields}))
    load(network.llama, golden.weights())
    found: dict[str, torch.Tensor] = {}
    for i, layer in enumerate(network.llama.model.layers):
        # The embeddings are layer 0 in the library's counting.
        layer.register_forward_hook(
            lambda _module, _inputs, result, name=f"layer{i + 1}": found.__setitem__(name, result)
        )
    parts = [golden.input(name) for name in golden.inputs]
    found["embeddings"] = network.embed(
        [_VISUAL_SCALE * part if part.is_floating_point() else part for part in parts]
    )
    reading = network.read(found["embeddings"])
    found["final_hidden"] = reading.hidden
    found["logits"] = network.words(reading)
    return found

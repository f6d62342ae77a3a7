"""Sparse-ViT: the term that makes attention sparse, and which weights are pruned."""

from __future__ import annotations

import math

import pytest
import torch

from models.acceleration.sparse_vit_network import (
    Pruning,
    SparseViTConfig,
    attention_density,
    pruned,
    sparse_vit,
)

SMALL = SparseViTConfig((8, 8), (4, 4), 4, 8, 1, 1, 2)


def test_one_large_weight_costs_less_than_many_small_ones() -> None:
    even, sparse = torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])
    assert attention_density(even).item() == pytest.approx(math.log(1.25))
    assert attention_density(sparse).item() == pytest.approx(math.log(2) / 2)


def test_smallest_weights_of_the_whole_network_become_zero() -> None:
    network = sparse_vit(SMALL)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1)
        network.norm.weight.fill_(1e-3)  # not in the pool
        network.head.weight.copy_(torch.arange(1, 9).view(2, 4) / 100)
        network.blocks[0].mlp.fc1.weight[0, 0] = -0.025
    # 3 * 4 * 16 of the patches, 2 * 4 of the norms, 4 * 12 + 4 * 4 + 2 * 4 * 8 of the linear layers, 8 of the head.
    pool = 192 + 8 + 48 + 16 + 64 + 8
    smaller, report = pruned(network, 3 / pool)
    assert report == Pruning(zeros=3, pool=pool)
    assert smaller.head.weight.flatten()[:4].tolist() == pytest.approx([0, 0, 0.03, 0.04])
    assert smaller.blocks[0].mlp.fc1.weight[0, 0] == 0
    assert network.head.weight.all()
    assert dict(smaller.named_parameters()).keys() == dict(network.named_parameters()).keys()
    with pytest.raises(ValueError, match="ratio"):
        pruned(network, 1)

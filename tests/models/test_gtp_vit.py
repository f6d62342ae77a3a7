"""GTP-ViT: the graph of the patches, where removed tokens go, how many stay."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from models.acceleration.gtp_vit_network import (
    GTPConfig,
    GTPVisionTransformer,
    Tokens,
    normalised,
    propagated,
    sparsified,
    spatial_graph,
)


@pytest.fixture
def network() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=32, patch_size=8, num_classes=3, embed_dim=16, depth=2, num_heads=2
    ).eval()


def test_removed_token_goes_to_its_neighbours() -> None:
    # Three patches in a row: the outer ones have one neighbour, the middle one has two.
    graph = normalised(spatial_graph(1, 3)[None])
    half = 2**-0.5
    torch.testing.assert_close(graph, torch.tensor([[[0, half, 0], [half, 0, half], [0, half, 0]]]))
    tokens = Tokens(
        x=torch.tensor([[[9.0], [1.0], [10.0], [3.0]]]),
        graph=graph,
        scales=torch.ones(1, 4),
        positions=torch.arange(3)[None],
        prefix=1,
    )
    after = propagated(tokens, torch.tensor([[2, 0]]), torch.tensor([[1]]), "graph", 0.5)
    gain = 0.5 * half
    torch.testing.assert_close(after.x, torch.tensor([[[9], [3 + 10 * gain], [1 + 10 * gain]]]))
    assert after.scales is not None
    assert after.graph is not None
    torch.testing.assert_close(after.scales, torch.tensor([[1, 1 + gain, 1 + gain]]))
    assert after.positions.tolist() == [[2, 0]]
    assert not after.graph.any()  # what stays was not linked

    tokens = dataclasses.replace(tokens, graph=None, scales=None)
    mean = propagated(tokens, torch.tensor([[2]]), torch.tensor([[1, 0]]), "mean", 0.5)
    assert mean.x.flatten().tolist() == [9, 3, 5.5]


def test_smallest_weights_of_a_head_are_cut() -> None:
    weights = torch.tensor([[[[0.7, 0.3], [0.4, 0.6]]]])
    assert sparsified(weights, 1.0) is weights
    # Of four weights, the second smallest is the lowest that stays.
    torch.testing.assert_close(sparsified(weights, 0.5), torch.tensor([[[[0.7, 0.0], [0.4, 0.6]]]]))


@torch.inference_mode()
def test_tokens_that_remain(network: VisionTransformer) -> None:
    image = torch.rand(2, 3, 32, 32)
    plain = GTPVisionTransformer(network, GTPConfig(propagate=0))
    torch.testing.assert_close(plain(image), network(image))
    fewer = GTPVisionTransformer(network, GTPConfig(propagate=(3, 5), neighbours=4))
    seen: list[Tokens] = []
    for block in fewer.blocks:
        block.register_forward_hook(lambda _module, _inputs, tokens: seen.append(tokens))
    assert fewer(image).shape == (2, 3)
    assert [tokens.x.shape[1] for tokens in seen] == [14, 9]
    with pytest.raises(ValueError, match="16 patches"):
        GTPVisionTransformer(network, GTPConfig(propagate=8))
    bare = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=12, depth=1, class_token=False, global_pool="avg"
    )
    with pytest.raises(ValueError, match="no class token"):
        GTPVisionTransformer(bare, GTPConfig(selection="class-mean"))

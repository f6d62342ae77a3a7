"""FMViT: folding by hand and for the whole network, what the parts of a mixing block see, maps of each stage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models.classification.fmvit import (
    FMViT,
    FrequencyMixing,
    ParallelConvolution,
    ReducedAttention,
    folded,
)
from models.demo import shapes
from models.registry import architecture
from models.serving import Device, Predictor
from service.triton.cards import WeightsRecord

FMVIT = architecture("fmvit")


def _lived_in(module: nn.Module) -> nn.Module:
    """Give every BatchNorm statistics and gains such as training leaves behind."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.2)
            nn.init.normal_(norm.running_mean, std=0.2)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return module.eval()


def _network(variant: str = "demo") -> FMViT:
    torch.manual_seed(0)
    network = FMVIT.network(FMVIT.config(variant))
    assert isinstance(network, FMViT)
    return network.eval()


def test_demo_network_is_small() -> None:
    assert sum(p.numel() for p in _network().parameters()) <= 524_288
    assert FMVIT.variants["demo"].labels == shapes.LABELS


@pytest.mark.parametrize("variant", ["demo", "inferred"])
def test_no_figures_are_claimed(variant: str) -> None:
    declared = FMVIT.variants[variant]
    assert not declared.metrics
    assert not declared.sources
    assert "own" in declared.notes[0]


@torch.no_grad()
def test_groups_fold_by_hand() -> None:
    layer = ParallelConvolution(4, 4, [(1, 1), (1, 2)], skip=True)
    dense = torch.arange(16.0).view(4, 4)
    layer.branches[0][0].weight[:] = dense.view(4, 4, 1, 1)
    layer.branches[1][0].weight[:] = torch.tensor([[1.0, 2], [3, 4], [5, 6], [7, 8]]).view(
        4, 2, 1, 1
    )
    for norm in (layer.branches[0][1], layer.branches[1][1], layer.skip):
        norm.running_var.fill_(1 - norm.eps)
        norm.running_mean.fill_(1.0)
        norm.bias.fill_(0.5)
    layer.branches[1][1].weight.fill_(10.0)
    conv = layer.folded()
    grouped = torch.tensor([[1.0, 2, 0, 0], [3, 4, 0, 0], [0, 0, 5, 6], [0, 0, 7, 8]])
    torch.testing.assert_close(conv.weight[:, :, 0, 0], dense + 10 * grouped + torch.eye(4))
    # Each branch adds its bias less mean times gain: -0.5, -9.5, -0.5.
    torch.testing.assert_close(conv.bias, torch.full((4,), -10.5))


@pytest.mark.parametrize(
    ("branches", "stride", "skip", "groups"),
    [
        ([(3, 1), (1, 1)], 2, False, 1),
        ([(1, 1), (1, 4), (1, 8)], 1, False, 1),
        ([(3, 4), (5, 8)], 1, True, 4),
        ([(7, 16), (1, 16)], 4, False, 16),
        ([(1, 16), (1, 16)], 1, True, 16),
    ],
)
@torch.no_grad()
def test_a_sum_of_convolutions_is_one(
    branches: list[tuple[int, int]], stride: int, skip: bool, groups: int
) -> None:
    torch.manual_seed(0)
    layer = _lived_in(ParallelConvolution(16, 16, branches, stride, skip))
    assert isinstance(layer, ParallelConvolution)
    conv = layer.folded()
    assert conv.groups == groups
    x = torch.randn(2, 16, 9, 7)
    torch.testing.assert_close(conv(x), layer(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", ["demo", "inferred"])
@torch.no_grad()
def test_folded_network_answers_as_the_training_form(variant: str) -> None:
    network = _lived_in(_network(variant))
    single = folded(network)
    x = torch.randn(1, 3, 64, 64)
    expected = network(x)
    torch.testing.assert_close(single(x), expected, atol=1e-4 * expected.std().item(), rtol=1e-4)
    # What is left are operators that every inference engine has; the head keeps the one BatchNorm.
    kinds = {type(module) for module in single.modules() if not list(module.children())}
    assert kinds == {nn.Conv2d, nn.ReLU, nn.BatchNorm2d, nn.Linear}
    assert sum(isinstance(module, nn.BatchNorm2d) for module in single.modules()) == 1
    count = {n: sum(p.numel() for p in n.parameters()) for n in (network, single)}
    assert count[single] < count[network]


def test_what_is_served_is_folded() -> None:
    network = _lived_in(_network())
    assert isinstance(network, FMViT)
    nn.init.normal_(network.head.weight, std=1e-3)  # scores of all sizes
    card = FMVIT.card("demo", weights=WeightsRecord(kind="random"))
    served = FMVIT.serve(network, card, Device(), Path())
    assert isinstance(served, Predictor)
    assert any(isinstance(module, ParallelConvolution) for module in network.modules())
    assert not any(isinstance(m, ParallelConvolution) for m in served.graph.network.modules())
    pixels = np.random.default_rng(1).integers(0, 256, (2, 3, 64, 64), dtype=np.uint8)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    image = (pixels / 255 - mean[:, None, None]) / std[:, None, None]
    with torch.inference_mode():
        expected = network(torch.tensor(image, dtype=torch.float32)).softmax(1)
    scores = served.predict({"IMAGE": pixels})["SCORES"]
    assert np.ptp(scores, axis=1).min() > 1e-2
    np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_what_is_served_stands_channels_last_in_bfloat16() -> None:
    """Training crashes PyTorch 2.15 in that layout on CPUs; the folded form computes, and has gradients."""
    card = FMVIT.card("demo", weights=WeightsRecord(kind="random"))
    exact, half = (
        FMVIT.serve(_network(), card, device, Path())
        for device in (Device(), Device(dtype=torch.bfloat16))
    )
    convs = [m for m in half.graph.network.modules() if isinstance(m, nn.Conv2d)]
    assert all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in convs)
    assert {m.weight.dtype for m in convs} == {torch.bfloat16}
    for count in (1, 3, 8):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 3, 64, 64), dtype=np.uint8)
        batch = {"IMAGE": pixels, "CLASS": np.zeros((count, 1), np.int32)}
        answer, expected = half.predict(batch), exact.predict(batch)
        np.testing.assert_allclose(answer["SCORES"], expected["SCORES"], atol=0.05)
        assert np.isfinite(answer["HEATMAP"]).all()
        assert (answer["HEATMAP"].max((1, 2)) == 1).all()


@torch.no_grad()
def test_attention_by_hand() -> None:
    torch.manual_seed(0)
    attention = ReducedAttention(dim=8, heads=2, reduction=2, groups=(1, 2)).eval()
    x = torch.randn(1, 8, 4, 6)
    reduced = attention.reduce(x)
    assert reduced.shape == (1, 8, 2, 3)
    query = attention.query(x).view(2, 4, 24)
    key = attention.key(reduced).view(2, 4, 6)
    value = attention.value(reduced).view(2, 4, 6)
    mixed = []
    for head in range(2):
        weights = (query[head].T @ key[head] * 4**-0.5).softmax(1)  # 24 queries, 6 keys
        mixed.append(value[head] @ weights.T)
    together = torch.cat(mixed).view(1, 8, 4, 6)
    torch.testing.assert_close(attention(x), attention.proj(together))


@torch.no_grad()
def test_parts_of_a_block_see_different_frequencies() -> None:
    torch.manual_seed(0)
    block = FrequencyMixing(32, 8, kernels=(3, 5), reductions=(1, 2), mlp_ratio=2, groups=(1, 4))
    seen: list[torch.Tensor] = []
    block.eval().fuse.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0]))
    x = torch.randn(1, 32, 8, 8)
    block(x)
    x[0, :, 2, 2] += 1.0
    block(x)
    changed = (seen[0] != seen[1])[0]
    rows, columns = torch.nonzero(changed[:8].any(0), as_tuple=True)
    assert {*rows.tolist(), *columns.tolist()} <= {1, 2, 3}
    rows, columns = torch.nonzero(changed[8:16].any(0), as_tuple=True)
    assert {*rows.tolist(), *columns.tolist()} == {0, 1, 2, 3, 4}
    assert changed[16:24].any(0).all()
    assert changed[24:].any(0).all()


def test_stages_give_maps_for_other_heads() -> None:
    with torch.inference_mode():
        maps = _network().features(torch.randn(2, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [
        (2, 24, 16, 24),
        (2, 48, 8, 12),
        (2, 64, 4, 6),
        (2, 96, 2, 3),
    ]


def test_checkpoints_of_the_usual_wrapping_fit() -> None:
    network = _network()
    wrapped = {"model": {f"module.{n}": v for n, v in network.state_dict().items()}, "epoch": 3}
    config = FMVIT.config("demo")
    assert FMVIT.translate(wrapped, config).keys() == network.state_dict().keys()

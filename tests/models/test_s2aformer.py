"""S2AFormer: strip attention by hand, the block's order, maps of each stage and what they cost."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.classification.s2aformer import HybridPerceptionBlock, S2AFormer, StripAttention
from models.demo import shapes
from models.registry import architecture

S2AFORMER = architecture("s2aformer")


def _network(variant: str = "demo") -> S2AFormer:
    network = S2AFORMER.network(S2AFORMER.config(variant))
    assert isinstance(network, S2AFormer)
    return network.eval()


def test_demo_network_is_small() -> None:
    assert sum(p.numel() for p in _network().parameters()) <= 524_288
    assert S2AFORMER.variants["demo"].labels == shapes.LABELS


@pytest.mark.parametrize("variant", ["demo", "inferred"])
def test_no_figures_are_claimed(variant: str) -> None:
    declared = S2AFORMER.variants[variant]
    assert not declared.metrics
    assert not declared.sources
    assert "own" in declared.notes[0]


def test_attention_by_hand() -> None:
    torch.manual_seed(0)
    attention = StripAttention(dim=8, heads=2, strip=1, reduction=2).eval()
    x = torch.randn(1, 8, 4, 6)
    with torch.inference_mode():
        reduced = attention.reduce(x)
        assert reduced.shape == (1, 8, 2, 3)
        query = attention.query(x).view(2, 24)
        key = attention.key(reduced).view(2, 6)
        value = attention.value(reduced).view(2, 4, 6)
        mixed = []
        for head in range(2):
            # One channel, so that a score is the product of two numbers.
            weights = (query[head, :, None] * key[head, None, :]).softmax(1)  # 24 queries, 6 keys
            mixed.append(weights @ value[head].T)
        together = torch.cat(mixed, 1).T.reshape(1, 8, 4, 6)
        torch.testing.assert_close(attention(x), attention.proj(together))


def test_parts_of_a_block_follow_each_other() -> None:
    torch.manual_seed(0)
    block = HybridPerceptionBlock(dim=8, heads=2, strip=2, reduction=2).eval()
    order: list[str] = []
    for name, part in block.named_children():
        part.register_forward_hook(lambda _m, _i, _o, name=name: order.append(name))
    with torch.inference_mode():
        block(torch.randn(1, 8, 4, 4))
    assert order == ["position", "norm1", "attention", "norm2", "local", "norm3", "mlp"]
    # Every part is added to what it reads: with all parts silent the block changes nothing.
    for last in (block.position, block.attention.proj, block.local[-1], block.mlp.fc2):
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    x = torch.randn(1, 8, 4, 4)
    torch.testing.assert_close(block(x), x)


def test_stages_give_maps_for_other_heads() -> None:
    network = _network()
    with torch.inference_mode():
        maps = network.features(torch.randn(2, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [
        (2, 24, 16, 24),
        (2, 40, 8, 12),
        (2, 72, 4, 6),
        (2, 112, 2, 3),
    ]


def test_narrow_strips_and_small_maps_cost_less() -> None:
    x = torch.randn(1, 32, 16, 16)

    def products(strip: int, reduction: int) -> int:
        """Return the multiply-adds of the two products of attention."""
        block = StripAttention(32, 1, strip, reduction)
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            block(x)
        convolutions = sum(
            count
            for operator, count in counter.get_flop_counts()["Global"].items()
            if "convolution" in str(operator)
        )
        return (counter.get_total_flops() - convolutions) // 2

    queries, keys = 16 * 16, 16 * 16
    assert products(32, 1) == queries * keys * (32 + 32)
    assert products(4, 1) == queries * keys * (4 + 32)
    assert products(4, 4) == queries * keys // 16 * (4 + 32)


def test_checkpoints_of_the_usual_wrapping_fit() -> None:
    network = _network()
    wrapped = {"model": {f"module.{n}": v for n, v in network.state_dict().items()}, "epoch": 3}
    config = S2AFORMER.config("demo")
    assert S2AFORMER.translate(wrapped, config).keys() == network.state_dict().keys()

"""UniFormer: local and global blocks, selection of tokens, names of published checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from models.classification._uniformer_network import (
    GlobalBlock,
    LocalBlock,
    SelectiveBlock,
    UniFormer,
    _pooled,
)
from models.demo import shapes
from models.registry import architecture

UNIFORMER = architecture("uniformer")
GOLDEN = Path(__file__).parents[1] / "golden"


def _parameters(variant: str) -> int:
    with torch.device("meta"):
        network = UNIFORMER.network(UNIFORMER.config(variant))
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("variant", "millions"),
    [("small-224", 21.5), ("small-plus-224", 24.0), ("base-224", 49.8), ("large-ls-tl-224", 100.1)],
)
def test_parameter_counts_round_to_the_published_ones(variant: str, millions: float) -> None:
    assert round(_parameters(variant) / 1e6, 1) == millions


@pytest.mark.parametrize(("variant", "millions"), [("xxs-128", 10.2), ("xs-192", 16.5)])
def test_light_counts_include_a_classifier_for_training_only(variant: str, millions: float) -> None:
    width = UNIFORMER.config(variant)["dims"][-1]
    dropped = 2 * width + 1000 * (width + 1)
    assert round((_parameters(variant) + dropped) / 1e6, 1) == millions


def test_demo_network_is_small() -> None:
    assert _parameters("demo") <= 524_288
    assert UNIFORMER.variants["demo"].labels == shapes.LABELS


def test_pictures_are_scaled_by_one_eighth_more_than_is_cut_out() -> None:
    scaled = {128: 146, 160: 182, 192: 219, 224: 256, 384: 438}
    for name, variant in UNIFORMER.variants.items():
        image = variant.image
        assert image is not None
        if not variant.demo:
            assert name.endswith(f"-{image.height}")
            assert (image.resize, image.interpolation) == ("shorter-side", "bicubic")
            assert image.resize_to == scaled[image.width or 0]


@pytest.mark.parametrize(
    ("block", "reach"), [(LocalBlock(8, 4), 4), (GlobalBlock(8, 4, 4), 12)], ids=["local", "global"]
)
def test_local_blocks_reach_three_positions_and_global_ones_all(
    block: nn.Module, reach: int
) -> None:
    torch.manual_seed(0)
    block.eval()
    before = torch.randn(1, 8, 12, 12)
    after = before.clone()
    after[..., 0, 0] += 5
    with torch.inference_mode():
        changed = (block(after) - block(before)).abs().amax((0, 1)) > 0
    # A 3x3 and a 5x5 convolution: one and two positions in every direction.
    expected = torch.zeros(12, 12, dtype=torch.bool)
    expected[:reach, :reach] = True
    assert torch.equal(changed, expected)


def test_half_of_the_tokens_stand_for_all() -> None:
    torch.manual_seed(0)
    block = SelectiveBlock(dim=8, head_dim=4, mlp_ratio=2, keep=0.5, rate=0.25).eval()
    nn.init.zeros_(block.pos_embed.weight)
    nn.init.zeros_(block.pos_embed.bias)
    x, leader = torch.randn(1, 8, 2, 2), torch.randn(1, 1, 8)
    scores = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    with torch.inference_mode():
        first, second, third, fourth = x.flatten(2).transpose(1, 2).split(1, 1)
        # The second and the fourth token have the highest scores.
        merged = (first + 2 * third) / 3
        seen, attention = block.attn(block.norm1(torch.cat((leader, second, fourth, merged), 1)))
        mixed = torch.cat((leader, second, fourth, merged), 1) + seen
        new = mixed + block.mlp(block.norm2(mixed))
        gained = new[:, 3:] - merged
        out, new_leader, new_scores = block(x, leader, scores)
    expected = torch.cat((first + gained, new[:, 1:2], third + gained, new[:, 2:3]), 1)
    torch.testing.assert_close(out.flatten(2).transpose(1, 2), expected)
    torch.testing.assert_close(new_leader, new[:, :1])
    followed = torch.tensor([0.4, 0.3]) * 0.75 + attention[0, :2] * 0.25
    torch.testing.assert_close(new_scores, torch.tensor([[0.1, followed[0], 0.2, followed[1]]]))


def test_pooled_scores_keep_their_sum() -> None:
    pooled = _pooled(torch.tensor([[1.0, 3.0, 0.0, 4.0, 2.0, 2.0, 6.0, 6.0]]), (2, 4))
    torch.testing.assert_close(pooled, torch.tensor([[8.0, 16.0]]))


def test_token_labels_add_half_of_the_highest_logit_of_any_position() -> None:
    torch.manual_seed(0)
    network = UniFormer(
        depths=(1, 1, 1, 1),
        dims=(8, 8, 8, 8),
        head_dim=4,
        mlp_ratio=2,
        overlapping=False,
        scaled=(),
        token_labels=True,
        num_classes=3,
    ).eval()
    tokens: list[torch.Tensor] = []
    network.norm.register_forward_hook(lambda _module, _inputs, output: tokens.append(output))
    with torch.inference_mode():
        logits = network(torch.randn(2, 3, 64, 96))
        every = tokens[0].flatten(2).transpose(1, 2)
        assert every.shape == (2, 6, 8)
        expected = network.head(every).mean(1) + network.aux_head(every).max(1).values / 2
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize(
    ("file", "variant"), [("image-small", "small-224"), ("image-xxs-128", "xxs-128")]
)
def test_official_checkpoints_fit(file: str, variant: str) -> None:
    content = json.loads((GOLDEN / f"uniformer-{file}.json").read_text())
    official = {name: torch.empty(shape, device="meta") for name, shape in content["state"]}
    config = UNIFORMER.config(variant)
    with torch.device("meta"):
        state = UNIFORMER.network(config).state_dict()
    wanted = {n: t.shape for n, t in state.items() if t.is_floating_point()}
    for checkpoint in ({"model": official, "epoch": 299}, official):
        translated = UNIFORMER.translate(checkpoint, config)
        assert {n: t.shape for n, t in translated.items()} == wanted

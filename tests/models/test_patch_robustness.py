"""Patch robustness: what a temperature does to attention, cells of a picture, the rollout."""

from __future__ import annotations

import pytest
import torch
from timm.layers import Attention

from models.acceleration.patch_robustness_network import cell_mask, rollout, with_temperature
from models.layers.vit_attention import attention_map


@torch.inference_mode()
def test_temperature_divides_the_scores() -> None:
    attention = Attention(dim=4, num_heads=1, qkv_bias=True).eval()
    for parameter in attention.parameters():
        torch.nn.init.zeros_(parameter)
    attention.qkv.weight[0, 0] = attention.qkv.weight[4, 0] = 1  # q and k: the first channel
    x = torch.zeros(1, 2, 4)
    x[0, 1, 0] = 2
    # Scores of the second token: 2 * 0 and 2 * 2, divided by sqrt(4).
    plain, _ = attention_map(attention, x)
    soft, _ = attention_map(with_temperature(attention, 4), x)
    torch.testing.assert_close(plain[0, 0, 1], torch.tensor([0.0, 2.0]).softmax(0))
    torch.testing.assert_close(soft[0, 0, 1], torch.tensor([0.0, 0.5]).softmax(0))
    with pytest.raises(ValueError, match="positive"):
        with_temperature(attention, 0)
    with pytest.raises(ValueError, match="no attention"):
        with_temperature(torch.nn.Linear(1, 1), 2)


def test_cells_are_counted_row_by_row() -> None:
    assert cell_mask(4, 2, 1)[0].tolist() == [
        [0, 0, 1, 1],
        [0, 0, 1, 1],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
    ]
    with pytest.raises(ValueError, match="no cell 4"):
        cell_mask(4, 2, 4)


def test_rollout_follows_the_class_token() -> None:
    # The class token looks at patch 2 through two blocks; the others look at themselves.
    weights = torch.eye(5)
    weights[0] = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0])
    one = rollout([weights[None, None]], discard=0.0)
    assert one[0].tolist() == [[0, 0], [1, 0]]
    # Half of each block's row stays: 0.5 * 0.5 + 0.25 of patch 2, 0.25 of patch 3.
    spread = weights.clone()
    spread[0] = torch.tensor([0.0, 0.0, 0.0, 0.5, 0.5])
    two = rollout([weights[None, None], spread[None, None]], discard=0.0)
    torch.testing.assert_close(two[0], torch.tensor([[0.0, 0.0], [1.0, 0.5]]))

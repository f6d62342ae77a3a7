"""TurboViT: the order of tokens, windows, pooled queries, sizes and names of checkpoints."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from timm.models.hiera import HieraBlock
from torch import nn

from models.classification.turbovit import TurboViT
from models.demo import shapes
from models.registry import architecture

TURBOVIT = architecture("turbovit")
GOLDEN = Path(__file__).parents[1] / "golden" / "turbovit-genvit-2427.json"


def _network(**changes: object) -> TurboViT:
    network = TURBOVIT.network(TURBOVIT.config("demo") | changes)
    assert isinstance(network, TurboViT)
    return network.eval()


def _parameters(variant: str) -> int:
    with torch.device("meta"):
        network = TURBOVIT.network(TURBOVIT.config(variant))
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("variant", "millions"), [("genvit-2427", 13.57), ("plain", 12.66)])
def test_parameter_counts(variant: str, millions: float) -> None:
    assert round(_parameters(variant) / 1e6, 2) == millions


def test_demo_network_is_small() -> None:
    assert _parameters("demo") <= 524_288
    assert TURBOVIT.variants["demo"].labels == shapes.LABELS


def test_pictures_are_cut_to_nine_tenths() -> None:
    for name in ("genvit-2427", "plain"):
        image = TURBOVIT.variants[name].image
        assert image is not None
        assert (image.height, image.width, image.resize_to) == (224, 224, 248)
        assert (image.resize, image.interpolation) == ("shorter-side", "bicubic")


def test_tokens_of_one_pool_and_of_one_window_lie_at_equal_distances() -> None:
    network = _network()
    side = 16
    places = torch.arange(side * side, dtype=torch.float32).view(1, -1, 1)
    order = network.unroll(places).flatten().int().tolist()
    # By the parity of y and x, then that of their halves, of their quarters, then by window.
    digits = sorted(
        itertools.product(range(side), range(side)),
        key=lambda p: (
            [(p[axis] >> bit) & 1 for bit in range(3) for axis in range(2)] + [p[0] // 8, p[1] // 8]
        ),
    )
    assert order == [y * side + x for y, x in digits]
    pools = torch.tensor(order).view(4, -1)
    y, x = pools // side, pools % side
    assert torch.equal(y // 2, (y // 2)[:1].expand_as(y))
    assert torch.equal(x // 2, (x // 2)[:1].expand_as(x))


def test_attention_of_the_first_stage_stays_in_its_window() -> None:
    torch.manual_seed(0)
    network = _network()
    before = torch.randn(1, 256, 32)
    after = before.clone()
    after[:, 3 * 16 + 9] = torch.randn(32)  # y = 3, x = 9: the upper right window
    with torch.inference_mode():
        changed = [network.blocks[0](network.unroll(x)) for x in (before, after)]
        different = network.reroll(changed[1] - changed[0], 0).abs().amax((0, 3)) > 0
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[:8, 8:] = True
    assert torch.equal(different, expected)


def test_pooling_keeps_the_highest_of_four() -> None:
    network = _network()
    block = network.blocks[1]
    assert isinstance(block, HieraBlock)
    # Only the projected, pooled input remains.
    for last in (block.attn.proj, block.mlp.fc2):
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    x = torch.randn(1, 256, 24)
    with torch.inference_mode():
        pooled = network.reroll(block(network.unroll(x)), 1)  # B, 8, 8, C
        projected = block.proj(block.norm1(x)).view(1, 16, 16, -1)
    expected = nn.functional.max_pool2d(projected.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    torch.testing.assert_close(pooled, expected)


def test_stages_halve_the_map_and_windows_end_with_the_lag_of_one_block() -> None:
    network = _network(depths=(2, 2, 2, 2), windowed=(True, True, False, False))
    attention = [block.attn for block in network.blocks]
    assert [a.use_mask_unit_attn for a in attention] == [True] * 5 + [False] * 3
    assert [a.q_stride for a in attention] == [1, 1, 4, 1, 4, 1, 4, 1]
    assert [a.window_size for a in attention] == [64, 64, 16, 16, 4, 4, 1, 1]


def test_hieras_checkpoints_fit() -> None:
    official = {
        name: torch.empty(shape, device="meta")
        for name, shape in json.loads(GOLDEN.read_text())["state"]
    }
    config = TURBOVIT.config("genvit-2427")
    with torch.device("meta"):
        wanted = {n: t.shape for n, t in TURBOVIT.network(config).state_dict().items()}
    for checkpoint in ({"model_state": official}, official, {"state_dict": official}):
        translated = TURBOVIT.translate(checkpoint, config)
        assert {n: t.shape for n, t in translated.items()} == wanted

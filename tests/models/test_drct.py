"""DRCT: windows that do not look over the edge, dense groups, the authors' checkpoints, and how it is served."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from models.layers.upscaler import LONGEST_SIDE, Upscaler
from models.registry import architecture
from models.serving import Device, InvalidInput
from models.super_resolution import _drct_network
from models.super_resolution._drct_network import DRCT, ResidualDenseGroup, SwinBlock
from models.weights.fit import fit
from service.triton.cards import WeightsRecord

PAPER = architecture("drct")


def network() -> DRCT:
    torch.manual_seed(0)
    made = PAPER.network(PAPER.config("demo")).eval()
    assert isinstance(made, DRCT)
    return made


def served(made: nn.Module) -> Upscaler:
    return Upscaler(made, PAPER.card("demo", weights=WeightsRecord(kind="random")), Device())


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(("variant", "parameters"), [("x4", 14_139_579), ("large-x2", 27_433_007)])
def test_parameter_counts_are_those_of_the_authors_code(variant: str, parameters: int) -> None:
    with torch.device("meta"):
        made = PAPER.network(PAPER.config(variant))
    assert sum(p.numel() for p in made.parameters()) == parameters


def test_every_block_s_heads_divide_its_width() -> None:
    with torch.device("meta"):
        group = ResidualDenseGroup(180, 6, 16, 8, 32, 2.0)
    blocks = [getattr(group, f"swin{number}") for number in range(1, 6)]
    assert [block.attn.heads for block in blocks] == [6, 4, 2, 6, 4]
    assert [block.shift for block in blocks] == [0, 8, 0, 8, 0]
    assert [block.mlp.fc1.out_features / block.mlp.fc1.in_features for block in blocks] == [
        *(2, 2, 2),
        *(1, 1),
    ]


@torch.inference_mode()
def test_a_shifted_window_does_not_look_over_the_edge() -> None:
    torch.manual_seed(1)
    block = SwinBlock(8, 2, window=8, shift=4, mlp_ratio=1.0).eval()
    map_ = torch.randn(1, 24, 16, 8)
    other = map_.clone()
    other[0, 0, 0, 0] += 5.0
    changed = (block(map_) != block(other)).any(-1)[0]
    # The corner shares a shifted window with the other corners, from which it is kept apart.
    expected = torch.zeros(24, 16, dtype=torch.bool)
    expected[:4, :4] = True
    assert torch.equal(changed, expected)


@torch.inference_mode()
def test_windows_a_few_at_a_time_are_computed_as_all_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, image = network(), torch.rand(2, 3, 24, 16)
    whole = made(image)
    monkeypatch.setattr(_drct_network, "_SCORES", 1)
    torch.testing.assert_close(made(image), whole)


@torch.inference_mode()
def test_the_last_block_of_a_group_sees_what_the_first_one_found() -> None:
    torch.manual_seed(2)
    group = ResidualDenseGroup(12, 6, 4, 2, 6, 2.0).eval()
    seen: list[torch.Tensor] = []
    group.swin5.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    x = torch.randn(1, 8, 8, 12)
    group(x)
    assert torch.equal(seen[0][..., :12], x)
    first = nn.functional.leaky_relu(group.adjust1(group.swin1(x)), 0.2)
    torch.testing.assert_close(seen[0][..., 12:18], first)
    # What a group adds is the last block's alone.
    nn.init.zeros_(group.adjust5.weight)
    nn.init.zeros_(group.adjust5.bias)
    assert torch.equal(group(x), x)


def test_the_authors_files_fit() -> None:
    """With the buffers that official checkpoints hold, and both sets of weights of which the averaged ones count."""
    with torch.device("meta"):
        state = PAPER.network(PAPER.config("x4")).state_dict()
        surplus = {
            "layers.0.swin2.attn_mask": torch.zeros(16, 256, 256),
            "layers.0.swin1.attn.relative_position_index": torch.zeros(256, 256),
        }
    averaged = {"norm.weight": torch.ones(180)}
    assert fit(PAPER, "x4", [{"params": {**state, **surplus}}]).exact
    both = {"params_ema": {**state, **surplus, **averaged}, "params": {"unused": torch.ones(1)}}
    assert fit(PAPER, "x4", [both]).exact
    assert PAPER.translate(both, {})["norm.weight"] is averaged["norm.weight"]
    assert not fit(PAPER, "x2", [{"params": state}]).exact


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (8, 40), (17, 16)])
def test_any_size_is_continued_by_reflection(size: tuple[int, int]) -> None:
    made, image = network(), pixels(1, 3, *size)
    height, width = size
    answer = served(made).predict({"IMAGE": image, "UNROUNDED": np.ones((1, 1), np.int32)})
    assert answer["IMAGE"].shape == (1, 3, 2 * height, 2 * width)
    missing = [(0, -side % 8) for side in size]
    whole = np.pad(image, ((0, 0), (0, 0), *missing), mode="reflect")
    with torch.inference_mode():
        levels = made(torch.from_numpy(whole).float() / 255).numpy() * 255
    levels = levels[..., : 2 * height, : 2 * width]
    np.testing.assert_allclose(answer["LEVELS"], levels, atol=1e-3)
    assert np.abs(answer["IMAGE"] - levels.clip(0, 255)).max() <= 0.501


def test_a_tile_has_a_largest_size() -> None:
    upscaler = served(network())
    with pytest.raises(InvalidInput, match=rf"641 x 8 pixels; .* sides of 1 to {LONGEST_SIDE}"):
        upscaler.predict({"IMAGE": pixels(1, 3, 8, LONGEST_SIDE + 1)})

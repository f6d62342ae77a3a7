"""TiC: attention in windows by hand, shifts on a cyclic map, checkpoints, pictures of any size, pre-processing."""

from __future__ import annotations

import math

import pytest
import torch

from models.classification.tic import MSAConv2d, WindowAttention
from models.demo import shapes
from models.registry import architecture

TIC = architecture("tic")


def _network(variant: str = "demo") -> torch.nn.Module:
    torch.manual_seed(0)
    return TIC.network(TIC.config(variant)).eval()


def test_demo_network_is_small() -> None:
    # One MiB in half precision.
    assert sum(p.numel() for p in _network().parameters()) <= 524_288
    assert TIC.variants["demo"].labels == shapes.LABELS


@torch.no_grad()
def test_window_attention_by_hand() -> None:
    # One channel in a row of three positions: q = x, k = x, v = 2 x, and the convolution picks the centre.
    layer = MSAConv2d(1, 1, kernel=(1, 3), padding=(0, 1))
    layer.qkv_conv.weight[:] = torch.tensor([1.0, 1, 2]).view(3, 1, 1, 1)
    layer.qkv_conv.bias.zero_()
    layer.mlp.weight[:] = torch.tensor([0.0, 1, 0]).view(1, 1, 1, 3)
    out = layer(torch.tensor([1.0, 2, 3]).view(1, 1, 1, 3)).flatten()
    e = math.exp
    # Outside the row the product is 0, which counts in the softmax: e(0) = 1.
    expected = [
        1 + (e(1) * 2 + e(2) * 4) / (1 + e(1) + e(2)),
        2 + (e(2) * 2 + e(4) * 4 + e(6) * 6) / (e(2) + e(4) + e(6)),
        3 + (e(6) * 4 + e(9) * 6) / (e(6) + e(9) + 1),
    ]
    torch.testing.assert_close(out, torch.tensor(expected))


@pytest.mark.parametrize(
    ("kernel", "dilation", "stride", "padding"),
    [(3, 1, 1, 1), (5, 2, 2, 2), ((3, 5), (2, 1), 1, 1), (3, 3, (1, 2), 0)],
)
@torch.no_grad()
def test_layer_position_by_position(
    kernel: int | tuple[int, int],
    dilation: int | tuple[int, int],
    stride: int | tuple[int, int],
    padding: int,
) -> None:
    torch.manual_seed(0)
    layer = MSAConv2d(4, 6, kernel, stride, padding, dilation, bias=True)
    x = torch.randn(1, 4, 7, 8)
    queries, keys, values = layer.qkv_conv(x)[0].chunk(3)
    high, wide = (kernel, kernel) if isinstance(kernel, int) else kernel
    down, right = (dilation, dilation) if isinstance(dilation, int) else dilation
    mixed = torch.empty_like(x)
    for row in range(7):
        for column in range(8):
            around = [
                (row + down * (i - high // 2), column + right * (j - wide // 2))
                for i in range(high)
                for j in range(wide)
            ]
            inside = [(i, j) for i, j in around if 0 <= i < 7 and 0 <= j < 8]
            scores = torch.zeros(len(around))
            for place, (i, j) in enumerate(inside):
                scores[place] = queries[:, row, column] @ keys[:, i, j] / 2
            weights = scores.softmax(0)
            mixed[0, :, row, column] = sum(
                weights[place] * values[:, i, j] for place, (i, j) in enumerate(inside)
            )
    expected = layer.mlp(x + mixed).relu()
    torch.testing.assert_close(layer(x), expected)


@torch.no_grad()
def test_shifted_windows_lie_to_four_sides_of_a_cyclic_map() -> None:
    attention = WindowAttention(4, kernel=3, shifted=True)  # one channel for each direction
    for parameter in attention.parameters():
        parameter.zero_()
    attention.qkv_conv.weight[8:, :, 0, 0] = 9 * torch.eye(4)  # equal weights; the window's sum
    attention.proj.weight[:, :, 0, 0] = torch.eye(4)
    x = torch.zeros(1, 4, 12, 12)
    x[..., 1, 6] = 1.0
    out = attention(x)[0]
    # The centres of the windows that hold the point, moved one window against the direction.
    for quarter, (row, column) in enumerate([(4, 6), (-2, 6), (1, 9), (1, 3)]):
        expected = torch.zeros(12, 12)
        for i in range(row - 1, row + 2):
            expected[i % 12, column - 1 : column + 2] = 1.0
        torch.testing.assert_close(out[quarter], expected)


@pytest.mark.parametrize("size", [(32, 32), (70, 101)])
@torch.inference_mode()
def test_pictures_of_any_size(size: tuple[int, int]) -> None:
    assert _network()(torch.zeros(1, 3, *size)).shape == (1, len(shapes.LABELS))


def test_wrapped_checkpoints_are_opened() -> None:
    network = _network()
    state = network.state_dict()
    parallel = {f"module.{name}": value for name, value in state.items()}
    for checkpoint in ({"state_dict": parallel, "epoch": 3}, {"model": state}, state):
        network.load_state_dict(TIC.translate(checkpoint, TIC.config("demo")))


def test_the_published_layer_keeps_its_names() -> None:
    names = {"qkv_conv.weight", "qkv_conv.bias", "mlp.weight"}
    assert MSAConv2d(2, 3).state_dict().keys() == names
    assert MSAConv2d(2, 3, bias=True).state_dict().keys() == names | {"mlp.bias"}


def test_no_published_accuracy_is_claimed() -> None:
    for variant in TIC.variants.values():
        assert not variant.metrics
        assert not variant.sources
        assert variant.notes


def test_input_is_the_usual_crop() -> None:
    image = TIC.variants["small"].image
    assert image is not None
    assert (image.height, image.width, image.interpolation) == (224, 224, "bicubic")
    assert (image.resize, image.resize_to) == ("shorter-side", 256)

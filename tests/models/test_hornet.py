"""HorNet: products of rising order, filters per frequency, names of published checkpoints, pre-processing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from models.classification.hornet import GlobalLocalFilter, RecursiveGatedConv
from models.demo import shapes
from models.registry import architecture

HORNET = architecture("hornet")
GOLDEN = Path(__file__).parents[1] / "golden" / "hornet-hornet_tiny_gf.json"


def _parameters(variant: str) -> int:
    with torch.device("meta"):
        network = HORNET.network(HORNET.config(variant))
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("variant", "parameters"),
    [
        ("tiny-7x7", 22_409_512),
        ("tiny-gf", 22_991_848),
        ("small-7x7", 49_528_264),
        ("small-gf", 50_401_768),
        ("base-7x7", 87_256_680),
        ("base-gf", 88_421_352),
        ("large-7x7", 194_542_504),
        ("large-gf", 196_289_512),
        ("large-gf-384", 201_806_824),
    ],
)
def test_parameter_counts_are_the_published_ones(variant: str, parameters: int) -> None:
    assert _parameters(variant) == parameters


def test_demo_network_is_small() -> None:
    # One MiB in half precision.
    assert _parameters("demo") <= 524_288
    assert HORNET.variants["demo"].labels == shapes.LABELS


@torch.no_grad()
def test_recursive_gates_by_hand() -> None:
    # Four channels, order 2: widths 2 and 4. Of the eight projected channels two start the product.
    conv = RecursiveGatedConv(4, order=2, spectrum=None, scale=0.5)
    for parameter in conv.parameters():
        parameter.zero_()
    conv.proj_in.weight[:, 0, 0, 0] = torch.arange(1.0, 9.0)  # p = 1, 2; q = 3, 4 and 5, 6, 7, 8
    conv.dwconv.weight[:, 0, 3, 3] = 1.0
    conv.pws[0].weight[:, :, 0, 0] = torch.tensor([[1.0, 0], [0, 1], [1, 1], [1, -1]])
    conv.proj_out.weight[:, :, 0, 0] = torch.eye(4)
    x = torch.zeros(1, 4, 5, 5)
    x[0, 0, 2, 2] = 1.0
    # p q0 / 2 = (1.5, 4), widened to (1.5, 4, 5.5, -2.5), times q1 / 2 = (2.5, 3, 3.5, 4)
    out = conv(x)
    torch.testing.assert_close(out[0, :, 2, 2], torch.tensor([3.75, 12.0, 19.25, -10.0]))
    assert out.count_nonzero() == 4


@torch.no_grad()
def test_order_is_the_degree_of_the_products() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 16, 6, 6, dtype=torch.float64)
    for order in (2, 3, 4):
        conv = RecursiveGatedConv(16, order, spectrum=None, scale=1 / 3).double()
        for name, parameter in conv.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
        torch.testing.assert_close(conv(2 * x), 2 ** (order + 1) * conv(x))


@pytest.mark.parametrize("size", [(6, 6), (5, 9)])
@torch.no_grad()
def test_a_flat_spectrum_filters_nothing_at_any_size(size: tuple[int, int]) -> None:
    mixer = GlobalLocalFilter(4, spectrum=(6, 4))
    mixer.pre_norm = mixer.post_norm = nn.Identity()
    mixer.dw.weight.zero_()
    mixer.dw.weight[:, 0, 1, 1] = 1.0
    mixer.complex_weight[..., 0] = 2.0
    mixer.complex_weight[..., 1] = 0.0
    x = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(0))
    near, far = x[:, :2], 2 * x[:, 2:]
    expected = torch.stack((near[:, 0], far[:, 0], near[:, 1], far[:, 1]), dim=1)
    torch.testing.assert_close(mixer(x), expected)


def test_official_names_are_the_networks_names() -> None:
    official = {
        name: torch.empty(shape, device="meta")
        for name, shape in json.loads(GOLDEN.read_text())["state"]
    }
    config = HORNET.config("tiny-gf")
    with torch.device("meta"):
        wanted = {n: t.shape for n, t in HORNET.network(config).state_dict().items()}
    parallel = {f"module.{name}": value for name, value in official.items()}
    for checkpoint in ({"model": official, "epoch": 299}, {"module": official}, official, parallel):
        translated = HORNET.translate(checkpoint, config)
        assert {n: t.shape for n, t in translated.items()} == wanted


def test_input_of_each_resolution() -> None:
    for name, variant in HORNET.variants.items():
        image = variant.image
        assert image is not None
        if variant.demo:
            continue
        size = 384 if name.endswith("384") else 224
        assert (image.height, image.width, image.interpolation) == (size, size, "bicubic")
        expected = ("squash", None) if size == 384 else ("shorter-side", 256)
        assert (image.resize, image.resize_to) == expected


def test_every_published_file_of_imagenet_1k_has_one_variant() -> None:
    """The authors share one file for each size and mixer, under names that say nothing."""
    sources = {name: [s.url for s in v.sources] for name, v in HORNET.variants.items() if v.sources}
    sizes = {f"{size}-{mixer}" for size in ("tiny", "small", "base") for mixer in ("7x7", "gf")}
    assert sources.keys() == sizes
    assert len({url for urls in sources.values() for url in urls}) == len(sizes)
    for urls in sources.values():
        assert len(urls) == 1
        assert re.fullmatch(r"https://cloud\.tsinghua\.edu\.cn/f/[0-9a-f]{20}/\?dl=1", urls[0])

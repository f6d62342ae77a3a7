"""SVT: the wavelet transform and its inverse, logits of class and patches, names of checkpoints, pre-processing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from models.classification._svt_wavelet import (
    COLUMNS,
    ROWS,
    DualTree,
    InverseDualTree,
    correlate,
)
from models.classification.svt import Scattering
from models.demo import shapes
from models.registry import architecture

SVT = architecture("svt")
GOLDEN = Path(__file__).parents[1] / "golden" / "svt-svt_s.json"


def _parameters(variant: str) -> int:
    with torch.device("meta"):
        network = SVT.network(SVT.config(variant))
    return sum(p.numel() for p in network.parameters())


def test_parameter_counts_are_the_published_ones() -> None:
    assert _parameters("small") == 22_052_592
    assert round(_parameters("base") / 1e6, 2) == 32.88
    assert round(_parameters("large") / 1e6, 1) == 54.6


def test_demo_network_is_small() -> None:
    # One MiB in half precision.
    assert _parameters("demo") <= 524_288
    assert SVT.variants["demo"].labels == shapes.LABELS


def test_filters_run_along_one_axis_of_a_mirrored_map() -> None:
    x = torch.tensor([[1.0, 2, 3], [4, 5, 6]])[None, None]
    taps = torch.tensor([100.0, 10, 1]).view(1, 1, 3, 1)
    rows = torch.tensor([[112.0, 123, 233], [445, 456, 566]])
    columns = torch.tensor([[114.0, 225, 336], [144, 255, 366]])
    torch.testing.assert_close(correlate(x, taps, ROWS)[0, 0], rows)
    torch.testing.assert_close(correlate(x, taps, COLUMNS)[0, 0], columns)


def test_filters_longer_than_the_map_mirror_it_again() -> None:
    x = torch.tensor([1.0, 2.0]).view(1, 1, 1, 2)
    taps = torch.tensor([1.0, 0, 0, 0, 0, 0, 0]).view(1, 1, 7, 1)
    # ... 2 2 1 | 1 2 | 2 1 1 ...: three to the left of each.
    torch.testing.assert_close(correlate(x, taps, ROWS).flatten(), torch.tensor([2.0, 2.0]))


def test_inverse_restores_the_map() -> None:
    x = torch.randn(2, 3, 14, 20, generator=torch.Generator().manual_seed(0))
    low, bands = DualTree()(x)
    assert low.shape == x.shape
    assert bands.shape == (2, 3, 6, 7, 10, 2)
    torch.testing.assert_close(InverseDualTree()(low, bands), x, atol=2e-5, rtol=0)


@pytest.mark.parametrize(("axis", "bands"), [(2, (0, 5)), (3, (2, 3))])
def test_stripes_answer_in_the_bands_of_their_orientation(
    axis: int, bands: tuple[int, int]
) -> None:
    stripes = torch.tensor([1.0, -1.0]).repeat(8)  # along the axis
    x = (stripes[:, None] if axis == 2 else stripes[None, :]).expand(16, 16)[None, None]
    _, high = DualTree()(x)
    energy = high.square().sum((0, 1, 3, 4, 5))
    assert set(energy.topk(2).indices.tolist()) == set(bands)


@torch.no_grad()
def test_neutral_weights_of_the_bands_leave_the_tokens() -> None:
    mixer = Scattering(8, side=6)
    mixer.complex_weight_ll.fill_(1.0)
    for weight in (mixer.complex_weight_lh_1, mixer.complex_weight_lh_2):
        weight[0] = torch.eye(2)
        weight[1] = 0.0
    # Rectification between the layers spares numbers lifted far above zero.
    mixer.complex_weight_lh_b1.fill_(100.0)
    mixer.complex_weight_lh_b2.fill_(-100.0)
    tokens = torch.randn(2, 36, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mixer(tokens), tokens, atol=1e-4, rtol=0)


@torch.no_grad()
def test_complex_layers_by_hand() -> None:
    mixer = Scattering(4, side=2)  # four groups of one channel
    mixer.complex_weight_lh_1[:] = torch.tensor([2.0, 1.0])[:, None, None, None]
    mixer.complex_weight_lh_2[:] = torch.tensor([0.0, 1.0])[:, None, None, None]
    mixer.complex_weight_lh_b1[:] = torch.tensor([0.5, -1.0])[:, None, None]
    mixer.complex_weight_lh_b2[:] = torch.tensor([0.0, 0.25])[:, None, None]
    bands = torch.tensor([1.0, 3.0]).expand(1, 4, 6, 1, 1, 2)
    # (1 + 3i)(2 + i) = -1 + 7i; + 0.5 - i, rectified: 6i; times i: -6; + 0.25i
    expected = torch.tensor([-6.0, 0.25]).expand(1, 4, 6, 1, 1, 2)
    torch.testing.assert_close(mixer._mix(bands), expected)


@torch.no_grad()
def test_logits_add_half_of_the_highest_patch() -> None:
    network = SVT.network(SVT.config("demo")).eval()
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []
    network.norm4.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    logits = network(image)
    tokens = seen[0][0]  # class token, then the last map's 2 x 2
    assert len(tokens) == 5
    highest = torch.stack([network.aux_head(token) for token in tokens[1:]]).max(0).values
    torch.testing.assert_close(logits[0], network.head(tokens[0]) + highest / 2)


def test_official_names_are_the_networks_names() -> None:
    official = {
        name: torch.empty(shape, device="meta")
        for name, shape in json.loads(GOLDEN.read_text())["state"]
    }
    # A whole checkpoint counts the batches of its normalisations too.
    for i in (1, 4, 7):
        official[f"patch_embed1.conv.{i}.num_batches_tracked"] = torch.empty((), device="meta")
    config = SVT.config("small")
    with torch.device("meta"):
        wanted = {n: t.shape for n, t in SVT.network(config).state_dict().items()}
    for checkpoint in ({"model": official, "epoch": 299}, official):
        translated = SVT.translate(checkpoint, config)
        assert {n: t.shape for n, t in translated.items()} == wanted
    assert SVT.translate(translated, config).keys() == wanted.keys()


def test_input_is_a_wide_crop() -> None:
    for name in ("small", "base", "large"):
        image = SVT.variants[name].image
        assert image is not None
        assert (image.height, image.width, image.interpolation) == (224, 224, "bicubic")
        assert (image.resize, image.resize_to) == ("shorter-side", 233)

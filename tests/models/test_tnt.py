"""Transformer in Transformer: cutting before convolving, names of published checkpoints, pre-processing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from models.demo import shapes
from models.registry import architecture

TNT = architecture("tnt")
GOLDEN = Path(__file__).parents[1] / "golden" / "tnt-tnt_s_patch16_224.json"


def _parameters(variant: str) -> int:
    with torch.device("meta"):
        network = TNT.network(TNT.config(variant))
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("variant", "parameters"), [("small", 23_768_584), ("base", 65_428_680)])
def test_parameter_counts_are_the_published_ones(variant: str, parameters: int) -> None:
    assert _parameters(variant) == parameters


def test_demo_network_is_small() -> None:
    # One MiB in half precision.
    assert _parameters("demo") <= 524_288
    assert TNT.variants["demo"].labels == shapes.LABELS


def test_pictures_are_scaled_from_minus_one_to_one() -> None:
    for name in ("small", "base"):
        image = TNT.variants[name].image
        assert image is not None
        assert (image.height, image.width, image.interpolation) == (224, 224, "bicubic")
        assert (image.resize, image.resize_to) == ("shorter-side", 248)
        assert image.mean == image.std == (0.5, 0.5, 0.5)


def test_words_see_zeros_beyond_the_border_of_their_patch() -> None:
    torch.manual_seed(0)
    network = TNT.network(TNT.config("demo")).eval()
    embed = network.pixel_embed
    picture = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        words = embed(picture, torch.zeros_like(network.pixel_pos))
        # Patch 6 of the 4x4 lies in row 1, column 2; its words are numbered in rows as well.
        alone = functional.pad(picture[:, :, 16:32, 32:48], (3, 3, 3, 3))
        for word in range(16):
            y, x = 4 * (word // 4), 4 * (word % 4)
            seen = alone[0, :, y : y + 7, x : x + 7]
            expected = (embed.proj.weight * seen).sum((1, 2, 3)) + embed.proj.bias
            torch.testing.assert_close(words[6, word], expected, atol=1e-5, rtol=1e-5)


def test_words_reach_their_own_patch_only() -> None:
    torch.manual_seed(0)
    block = TNT.network(TNT.config("demo")).eval().blocks[0]
    words, patches = torch.randn(16, 16, 12), torch.randn(1, 17, 96)
    received: list[torch.Tensor] = []
    block.norm_out.register_forward_pre_hook(lambda _module, inputs: received.append(inputs[0]))
    changed = words.clone()
    changed[5] += torch.randn(16, 12)
    with torch.inference_mode():
        block(words, patches)
        block(changed, patches)
    before, after = received
    # Token 0 is the class's, so that patch 5 has token 6.
    assert (before != after).any(-1).nonzero().tolist() == [[0, 6]]
    assert torch.equal(before[:, 0], patches[:, 0])


def test_official_names_become_the_networks_names() -> None:
    official = {
        name: torch.empty(shape, device="meta")
        for name, shape in json.loads(GOLDEN.read_text())["state"]
    }
    config = TNT.config("small")
    with torch.device("meta"):
        wanted = {n: t.shape for n, t in TNT.network(config).state_dict().items()}
    for checkpoint in (official, {"state_dict": {f"module.{n}": t for n, t in official.items()}}):
        translated = TNT.translate(checkpoint, config)
        assert {n: t.shape for n, t in translated.items()} == wanted
    assert TNT.translate(translated, config).keys() == wanted.keys()


def test_positions_of_words_are_laid_out_in_rows() -> None:
    rows = torch.arange(16.0).view(1, 16, 1)
    grid = TNT.translate({"inner_pos": rows}, TNT.config("small"))["pixel_pos"]
    assert grid.shape == (1, 1, 4, 4)
    assert grid[0, 0, 1].tolist() == [4.0, 5.0, 6.0, 7.0]

"""Next-ViT: order of blocks, averaged keys, names of published checkpoints, pre-processing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from timm.models.nextvit import EfficientAttention, NextTransformerBlock

from models.demo import shapes
from models.registry import architecture

NEXT_VIT = architecture("next-vit")
GOLDEN = Path(__file__).parents[1] / "golden" / "next-vit-nextvit_small-224.json"


def _parameters(variant: str) -> int:
    with torch.device("meta"):
        network = NEXT_VIT.network(NEXT_VIT.config(variant))
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("variant", "parameters"),
    [("small-1k-224", 31_763_368), ("base-1k-384", 44_818_856), ("large-6m-1k-224", 57_874_344)],
)
def test_parameter_counts_are_the_published_ones(variant: str, parameters: int) -> None:
    assert _parameters(variant) == parameters


def test_demo_network_is_small() -> None:
    # One MiB in half precision.
    assert _parameters("demo") <= 524_288
    assert NEXT_VIT.variants["demo"].labels == shapes.LABELS


def test_every_size_training_and_resolution_has_one_file() -> None:
    files = [s.url for v in NEXT_VIT.variants.values() for s in v.sources]
    assert sorted(files) == sorted(
        f"hf://timm/nextvit_{size}.bd_{training}{resolution}/model.safetensors"
        for size in ("small", "base", "large")
        for training in ("in1k", "ssld_6m_in1k")
        for resolution in ("", "_384")
    )


def test_input_of_each_resolution() -> None:
    for name, variant in NEXT_VIT.variants.items():
        if variant.demo:
            continue
        image = variant.image
        assert image is not None
        size = int(name.rpartition("-")[2])
        assert (image.height, image.width, image.interpolation) == (size, size, "bicubic")
        assert (image.resize, image.resize_to) == ("shorter-side", {224: 256, 384: 438}[size])


def test_every_group_ends_in_a_transformer_block() -> None:
    with torch.device("meta"):
        network = NEXT_VIT.network(NEXT_VIT.config("small-1k-224"))
    mixed = [
        [n for n, block in enumerate(stage.blocks) if isinstance(block, NextTransformerBlock)]
        for stage in network.stages
    ]
    assert mixed == [[], [3], [4, 9], [2]]
    # Three quarters of a transformer block's channels attend.
    assert network.stages[1].blocks[3].e_mhsa.q.out_features == 192


def test_keys_are_averages_of_runs_of_tokens() -> None:
    torch.manual_seed(0)
    attention = EfficientAttention(dim=4, head_dim=4, sr_ratio=2).eval()
    tokens = torch.randn(1, 16, 4)  # a 4x4 map in rows: each row is one run of four
    with torch.inference_mode():
        rows = tokens[0].unflatten(0, (4, 4)).mean(1) / (1 + 1e-5) ** 0.5
        q, k, v = attention.q(tokens[0]), attention.k(rows), attention.v(rows)
        expected = attention.proj((q @ k.T * 4**-0.5).softmax(1) @ v)
        torch.testing.assert_close(attention(tokens)[0], expected, atol=1e-5, rtol=1e-5)


def test_official_names_become_the_networks_names() -> None:
    official = {
        name: torch.empty(shape, device="meta")
        for name, shape in json.loads(GOLDEN.read_text())["state"]
    }
    config = NEXT_VIT.config("small-1k-224")
    with torch.device("meta"):
        wanted = {
            name: value.shape
            for name, value in NEXT_VIT.network(config).state_dict().items()
            if not name.endswith("num_batches_tracked")
        }
    for checkpoint in ({"model": official}, official, {"model": official, "epoch": 299}):
        translated = NEXT_VIT.translate(checkpoint, config)
        assert {n: t.shape for n, t in translated.items()} == wanted
    assert NEXT_VIT.translate(translated, config).keys() == wanted.keys()

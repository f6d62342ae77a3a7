"""TinyViT: biases of attention, names of published checkpoints, pre-processing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from timm.models.tiny_vit import Attention, MBConv, TinyVitBlock

from models.classification.tinyvit import resized_biases
from models.demo import shapes
from models.registry import architecture

TINYVIT = architecture("tinyvit")
GOLDEN = Path(__file__).parents[1] / "golden" / "tinyvit-tiny_vit_5m_224.json"

# Every file in the authors' release.
PUBLISHED = {
    *(
        f"tiny_vit_{size}_{training}.pth"
        for size in ("5m", "11m", "21m")
        for training in ("22k_distill", "22kto1k_distill", "1k")
    ),
    "tiny_vit_21m_22kto1k_384_distill.pth",
    "tiny_vit_21m_22kto1k_512_distill.pth",
}


def _parameters(variant: str) -> int:
    with torch.device("meta"):
        network = TINYVIT.network(TINYVIT.config(variant))
    return sum(p.numel() for p in network.parameters())


def test_every_published_file_has_one_variant() -> None:
    files = [s.url for v in TINYVIT.variants.values() for s in v.sources]
    start = "https://github.com/wkcn/TinyViT-model-zoo/releases/download/checkpoints/"
    assert sorted(url.removeprefix(start) for url in files) == sorted(PUBLISHED)


@pytest.mark.parametrize(
    ("variant", "parameters"),
    [
        ("5m-1k-224", 5_392_764),
        ("11m-22k-1k-224", 10_996_972),
        ("21m-1k-224", 21_198_568),
        ("21m-22k-1k-384", 21_230_488),
    ],
)
def test_parameter_counts_are_the_published_ones(variant: str, parameters: int) -> None:
    assert _parameters(variant) == parameters


def test_demo_network_is_small() -> None:
    # One MiB in half precision.
    assert _parameters("demo") <= 524_288
    assert TINYVIT.variants["demo"].labels == shapes.LABELS


def test_input_of_each_resolution() -> None:
    for name, variant in TINYVIT.variants.items():
        if variant.demo:
            continue
        image = variant.image
        assert image is not None
        size = int(name.rpartition("-")[2])
        assert (image.height, image.width, image.interpolation) == (size, size, "bicubic")
        expected = ("shorter-side", 256) if size == 224 else ("squash", None)
        assert (image.resize, image.resize_to) == expected
        # One window covers the map of the third stage, and that of the last.
        assert variant.config["windows"][2:] == (size // 16, size // 32)


def test_bias_depends_on_absolute_distance() -> None:
    attention = Attention(dim=4, key_dim=4, num_heads=1, attn_ratio=1, resolution=(3, 3))
    with torch.no_grad():
        attention.attention_biases.copy_(torch.arange(9.0)[None])
        bias = attention.get_attention_biases(torch.device("cpu"))[0]
    for query in range(9):
        for key in range(9):
            rows, columns = abs(query // 3 - key // 3), abs(query % 3 - key % 3)
            assert bias[query, key] == 3 * rows + columns


def test_queries_keys_and_values_lie_head_by_head() -> None:
    torch.manual_seed(0)
    attention = Attention(dim=4, key_dim=2, num_heads=2, attn_ratio=1, resolution=(2, 2))
    tokens = torch.randn(1, 4, 4)
    with torch.inference_mode():
        mixed = attention.qkv(attention.norm(tokens))[0]
        heads = []
        for head in range(2):
            q, k, v = mixed[:, 6 * head : 6 * head + 6].split(2, dim=1)
            heads.append((q @ k.T * 2**-0.5).softmax(1) @ v)
        expected = attention.proj(torch.cat(heads, 1))
        torch.testing.assert_close(attention(tokens)[0], expected)


def test_convolution_after_attention_has_no_shortcut() -> None:
    block = TinyVitBlock(dim=4, num_heads=1, window_size=2).eval()
    with torch.no_grad():
        block.local_conv.bn.weight.zero_()
        block.local_conv.bn.bias.fill_(2.0)
        block.mlp.fc2.weight.zero_()
        block.mlp.fc2.bias.zero_()
        # All that came before is lost with the convolution's output.
        assert torch.equal(block(torch.randn(1, 4, 4, 4)), torch.full((1, 4, 4, 4), 2.0))


def test_bottleneck_activates_after_the_sum() -> None:
    block = MBConv(4, 4, 4.0, torch.nn.GELU, 0.0).eval()
    picture = torch.randn(1, 4, 3, 3)
    with torch.inference_mode():  # its last normalisation starts with a gain of zero
        torch.testing.assert_close(
            block(picture.clone()), torch.nn.functional.gelu(picture), atol=1e-6, rtol=1e-6
        )


def test_official_names_become_the_networks_names() -> None:
    official = {
        name: torch.empty(shape, device="meta")
        for name, shape in json.loads(GOLDEN.read_text())["state"]
    }
    old = official | {
        name + "_idxs": torch.zeros(49, 49, dtype=torch.long, device="meta")
        for name in official
        if name.endswith("attention_biases")
    }
    old = {name.replace("biases_idxs", "bias_idxs"): value for name, value in old.items()}
    config = TINYVIT.config("5m-1k-224")
    with torch.device("meta"):
        wanted = {
            name: value.shape
            for name, value in TINYVIT.network(config).state_dict().items()
            if not name.endswith("num_batches_tracked")
        }
    for checkpoint in ({"model": official}, official, {"model": old, "epoch": 89}):
        translated = TINYVIT.translate(checkpoint, config)
        assert {n: t.shape for n, t in translated.items()} == wanted
    assert TINYVIT.translate(translated, config).keys() == wanted.keys()


def test_biases_are_resized_for_other_windows() -> None:
    # Values that grow with the distance in rows and columns keep doing so, and keep their mean.
    rows, columns = torch.meshgrid(torch.arange(7.0), torch.arange(7.0), indexing="ij")
    table = torch.stack([rows, columns]).flatten(1)
    resized = resized_biases(table, 12).unflatten(1, (12, 12))
    assert (resized[0].diff(dim=0) > 0).all()
    assert torch.allclose(resized[0].diff(dim=1), torch.zeros(()), atol=1e-5)
    assert torch.allclose(resized[1], resized[0].T, atol=1e-5)
    assert torch.allclose(resized.mean((1, 2)), torch.tensor(3.0), atol=1e-2)
    assert resized_biases(table, 7) is table

"""Swin Transformer: windows and their shift, names of published checkpoints, pre-processing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock, WindowAttention

from models.demo import shapes
from models.registry import architecture

SWIN = architecture("swin")
GOLDEN = Path(__file__).parents[1] / "golden" / "swin-swin_tiny_patch4_window7_224.json"

# Every file in the authors' releases of classification models.
PUBLISHED = {
    *(f"v1.0.0/swin_{size}_patch4_window7_224.pth" for size in ("tiny", "small", "base")),
    "v1.0.0/swin_base_patch4_window12_384.pth",
    *(
        f"v1.0.0/swin_{size}_patch4_window{window}_{training}.pth"
        for size in ("base", "large")
        for window in ("7_224", "12_384")
        for training in ("22k", "22kto1k")
    ),
    *(
        f"v1.0.8/swin_{size}_patch4_window7_224_{training}.pth"
        for size in ("tiny", "small")
        for training in ("22k", "22kto1k_finetune")
    ),
}


def _parameters(variant: str) -> int:
    with torch.device("meta"):
        network = SWIN.network(SWIN.config(variant))
    return sum(p.numel() for p in network.parameters())


def test_every_published_file_has_one_variant() -> None:
    files = [s.url for v in SWIN.variants.values() for s in v.sources]
    start = "https://github.com/SwinTransformer/storage/releases/download/"
    assert sorted(url.removeprefix(start) for url in files) == sorted(PUBLISHED)


@pytest.mark.parametrize(
    ("variant", "parameters"),
    [
        ("tiny-1k-224", 28_288_354),
        ("small-1k-224", 49_606_258),
        ("base-1k-224", 87_768_224),
        ("large-22k-1k-224", 196_532_476),
    ],
)
def test_parameter_counts_are_the_published_ones(variant: str, parameters: int) -> None:
    assert _parameters(variant) == parameters


def test_demo_network_is_small() -> None:
    # One MiB in half precision.
    assert _parameters("demo") <= 524_288
    assert SWIN.variants["demo"].labels == shapes.LABELS


def test_input_of_each_resolution() -> None:
    for name, variant in SWIN.variants.items():
        if variant.demo:
            continue
        image = variant.image
        assert image is not None
        size = 384 if name.endswith("384") else 224
        assert (image.height, image.width, image.interpolation) == (size, size, "bicubic")
        expected = ("squash", None) if size == 384 else ("shorter-side", 256)
        assert (image.resize, image.resize_to) == expected
        assert variant.config["window"] == (12 if size == 384 else 7)


def test_bias_table_is_indexed_by_query_minus_key() -> None:
    window = 3
    attention = WindowAttention(4, num_heads=1, window_size=window).eval()
    with torch.no_grad():
        attention.qkv.weight.zero_()
        attention.qkv.weight[8:] = torch.eye(4)  # values are the tokens, queries and keys are 0
        attention.qkv.bias.zero_()
        attention.proj.weight.copy_(torch.eye(4))
        attention.proj.bias.zero_()
        attention.relative_position_bias_table.fill_(-1e4)
        # The query lies one column to the right of the key, in the same row.
        row = (0 + window - 1) * (2 * window - 1) + (1 + window - 1)
        attention.relative_position_bias_table[row] = 0.0
        tokens = torch.randn(1, window, window, 4)
        out = attention(tokens.reshape(1, -1, 4)).reshape(1, window, window, 4)
    torch.testing.assert_close(out[:, :, 1:], tokens[:, :, :-1])


def _changed(block: SwinTransformerBlock, row: int, column: int) -> set[tuple[int, int]]:
    """Return the positions whose output changes when the token at (row, column) does."""
    tokens = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    other = tokens.clone()
    other[0, row, column] += torch.randn(8)
    with torch.inference_mode():
        difference = (block(tokens) - block(other)).abs().amax(-1)[0]
    return {(int(y), int(x)) for y, x in (difference > 1e-6).nonzero()}


def test_attention_stays_in_its_window_and_never_wraps_round() -> None:
    torch.manual_seed(0)
    straight = SwinTransformerBlock(8, (8, 8), num_heads=2, window_size=4).eval()
    shifted = SwinTransformerBlock(8, (8, 8), num_heads=2, window_size=4, shift_size=2).eval()

    def area(rows: range, columns: range) -> set[tuple[int, int]]:
        return {(y, x) for y in rows for x in columns}

    assert _changed(straight, 0, 0) == area(range(4), range(4))
    assert _changed(straight, 3, 4) == area(range(4), range(4, 8))
    # Windows half a window further: whole ones inside, what is left of them along the edges.
    assert _changed(shifted, 3, 4) == area(range(2, 6), range(2, 6))
    assert _changed(shifted, 0, 0) == area(range(2), range(2))
    assert _changed(shifted, 7, 0) == area(range(6, 8), range(2))
    assert _changed(shifted, 0, 4) == area(range(2), range(2, 6))


def test_last_stage_is_one_window_without_shift() -> None:
    network = SWIN.network(SWIN.config("demo"))
    shifts = [[block.shift_size for block in stage.blocks] for stage in network.layers]
    assert shifts == [[(0, 0), (2, 2)], [(0, 0), (2, 2)] * 2, [(0, 0), (0, 0)]]


def test_merging_takes_each_square_column_by_column() -> None:
    merging = PatchMerging(1, 4).eval()
    merging.norm = torch.nn.Identity()
    with torch.no_grad():
        merging.reduction.weight.copy_(torch.eye(4))
        merged = merging(torch.arange(16.0).reshape(1, 4, 4, 1))
    assert merged[0, 0, 0].tolist() == [0, 4, 1, 5]
    assert merged[0, 1, 1].tolist() == [10, 14, 11, 15]


def test_official_names_become_the_networks_names() -> None:
    official = {
        name: torch.empty(shape, device="meta")
        for name, shape in json.loads(GOLDEN.read_text())["state"]
    }
    wrapped = official | {
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49, dtype=torch.long),
        "layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49),
    }
    config = SWIN.config("tiny-1k-224")
    with torch.device("meta"):
        wanted = {n: t.shape for n, t in SWIN.network(config).state_dict().items()}
    translated = SWIN.translate({"model": wrapped, "epoch": 299}, config)
    assert {n: t.shape for n, t in translated.items()} == wanted
    assert SWIN.translate(translated, config).keys() == wanted.keys()


def test_merging_moves_to_the_start_of_the_next_stage() -> None:
    weight = torch.zeros(192, 384)
    translated = SWIN.translate({"layers.0.downsample.reduction.weight": weight}, {})
    assert translated == {"layers.1.downsample.reduction.weight": weight}

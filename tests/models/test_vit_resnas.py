"""ViT-ResNAS: the residual reduction, the notation of searched networks, names of checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from models.classification.vit_resnas import Attention, SpatialReduction, resized
from models.registry import architecture
from tests.fidelity.golden import Golden

RESNAS = architecture("vit-resnas")
GOLDEN = Golden.read(Path(__file__).parents[1] / "golden" / "vit-resnas-tiny.json")


def _network(variant: str, **changes: Any) -> torch.nn.Module:
    with torch.device("meta"):
        return RESNAS.network(RESNAS.config(variant) | changes)


def _shapes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {n: t.shape for n, t in tensors.items() if not n.endswith("num_batches_tracked")}


def test_reduction_keeps_the_unnormalised_sequence_beside_the_convolution() -> None:
    torch.manual_seed(0)
    reduction = SpatialReduction(side=4, inputs=3, outputs=5, tokens=1)
    torch.nn.init.zeros_(reduction.patch_reduce.weight)
    torch.nn.init.zeros_(reduction.patch_reduce.bias)
    x = torch.randn(2, 17, 3)
    with torch.inference_mode():
        out = reduction(x)
        token = reduction.token_transform(reduction.norm(x[:, 0]))
        token[:, :3] += x[:, 0]
        torch.testing.assert_close(out[:, 0], token)
        # The patch in row 1 and column 0 of the halved map: the mean of four, and two channels of zeros.
        expected = reduction.pos_embed[0, 2].repeat(2, 1)
        expected[:, :3] += x[:, [9, 10, 13, 14]].mean(1)
    torch.testing.assert_close(out[:, 3], expected)


def test_heads_together_may_be_wider_than_the_sequence() -> None:
    attention = Attention(dim=8, heads=3, head_dim=4)
    assert attention.qkv.weight.shape == (36, 8)
    assert attention.proj.weight.shape == (8, 12)
    assert attention(torch.randn(2, 5, 8)).shape == (2, 5, 8)


@pytest.mark.parametrize(
    ("variant", "millions"), [("tiny-224", 40.8), ("small-224", 63.7), ("medium-224", 96.4)]
)
def test_parameter_counts_are_the_published_ones(variant: str, millions: float) -> None:
    count = sum(p.numel() for p in _network(variant).parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.05)


def test_demo_is_small_and_a_batch_equals_its_items() -> None:
    torch.manual_seed(0)
    network = RESNAS.network(RESNAS.config("demo")).eval()
    assert sum(p.numel() for p in network.parameters()) <= 524_288
    image = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        together = network(image)
        torch.testing.assert_close(network(image[1:2])[0], together[1], atol=1e-5, rtol=1e-4)


def test_notation_of_the_scripts() -> None:
    given = GOLDEN.config["network_def"]
    ours = RESNAS.config("tiny-224")["network_def"]
    assert repr(ours).replace("(", "[").replace(")", "]") == repr(given)
    # A block that the search removed keeps its number; plain patches and a wider stem are kinds of entries.
    removed = [[5, 176, 32], [*given[1][:3], 0], *given[2:]]
    names = _network("tiny-224", network_def=removed).state_dict()
    assert names["patch_embed.conv1.conv.weight"].shape[0] == 32
    assert not any(name.startswith("blocks.0.") for name in names)
    assert "blocks.1.norm1.weight" in names
    plain = _network("tiny-224", network_def=[[0, 176], *given[1:]]).state_dict()
    assert plain["patch_embed.proj.weight"].shape == (176, 3, 14, 14)


def test_size_must_be_a_multiple_of_the_last_stages_patches() -> None:
    with pytest.raises(ValueError, match="multiple of 56"):
        _network("tiny-224", image_size=238)


def test_a_distilled_network_averages_two_heads() -> None:
    torch.manual_seed(0)
    network = RESNAS.network(RESNAS.config("demo") | {"distilled": True}).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        first, second = network.heads(image)
        torch.testing.assert_close(network(image), (first + second) / 2)


def test_averaged_weights_of_a_checkpoint_without_the_head_of_the_patches() -> None:
    config = RESNAS.config("tiny-224")
    official = {name: torch.empty(shape, device="meta") for name, shape in GOLDEN.state}
    assert "patch_head.weight" in official
    wrapped = {f"module.{name}": value for name, value in official.items()}
    wanted = _shapes(_network("tiny-224").state_dict())
    for checkpoint in (
        official,
        {"model": wrapped, "optimizer": {}, "epoch": 3},
        {"model": {}, "model_ema": official},
    ):
        assert _shapes(RESNAS.translate(checkpoint, config)) == wanted


def test_positions_of_all_stages_follow_the_size() -> None:
    official = {name: torch.zeros(shape) for name, shape in GOLDEN.state if "pos_embed" in name}
    config = RESNAS.config("tiny-224") | {"image_size": 280}
    state = RESNAS.translate({"model": official}, config)
    assert {name: table.shape[1] for name, table in state.items()} == {
        "pos_embed": 401,
        "blocks.5.pos_embed": 100,
        "blocks.12.pos_embed": 25,
    }


def test_resized_positions_keep_the_token_and_constant_tables() -> None:
    table = torch.cat((torch.full((1, 1, 3), 7.0), torch.ones(1, 16, 3)), dim=1)
    grown = resized(table, 1, 5)
    torch.testing.assert_close(grown[:, 0], torch.full((1, 3), 7.0))
    torch.testing.assert_close(grown[:, 1:], torch.ones(1, 25, 3))


@pytest.mark.parametrize(("size", "scaled"), [(224, 256), (280, 320), (336, 384), (392, 448)])
def test_preprocessing_of_each_size(size: int, scaled: int) -> None:
    image = RESNAS.variants[f"medium-{size}"].image
    assert image is not None
    assert (image.resize_to, image.width, image.interpolation) == (scaled, size, "bicubic")

"""UniFormerV2: which frames a token sees, how tokens are mixed, names of published checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from models.classification._uniformerv2_network import Attention, Block, UniFormerV2
from models.demo import motions
from models.registry import architecture

V2 = architecture("uniformerv2")
GOLDEN = Path(__file__).parents[1] / "golden"
SMALL = {
    "resolution": 16,
    "patch": 8,
    "width": 16,
    "layers": 3,
    "heads": 2,
    "local_units": 0,
    "halve_frames": False,
    "global_layers": (1, 2),
    "num_classes": 5,
}


def _parameters(variant: str) -> int:
    with torch.device("meta"):
        network = V2.network(V2.config(variant))
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("variant", "millions"),
    [("b16-k400-8", 114.6), ("b16-ssv2-16", 163.0), ("l14-k400-prek710-16", 354.1)],
)
def test_parameter_counts_round_to_the_published_ones(variant: str, millions: float) -> None:
    assert round(_parameters(variant) / 1e6, 1) == millions


def test_demo_network_is_small() -> None:
    assert _parameters("demo") <= 524_288
    assert V2.variants["demo"].labels == motions.LABELS


def test_variants_and_addresses() -> None:
    frozen = V2.variants["frozen-l14-336-k400-prek710-8"]
    assert frozen.config["frozen"]
    assert frozen.sources[0].url.endswith("/k400/frozen_k400_k710_uniformerv2_l14_8x336.pyth")
    assert frozen.clip is not None
    assert (frozen.clip.crops, frozen.clip.clips) == (1, 3)
    moving = V2.variants["l14-ssv2-32"]
    assert moving.config["global_layers"] == tuple(range(8, 24))
    assert moving.config["halve_frames"]
    assert moving.sources[0].url.endswith("/sthv2/sthv2_uniformerv2_l14_32x224.pyth")
    assert V2.variants["b16-k400-8"].config["global_layers"] == (8, 9, 10, 11)
    assert V2.variants["b16-ssv1-16"].config["global_layers"] == tuple(range(4, 12))


def test_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    ours, theirs = Attention(8, 2), nn.MultiheadAttention(8, 2, batch_first=True)
    nn.init.normal_(theirs.in_proj_bias)
    ours.load_state_dict(theirs.state_dict())
    queries, tokens = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    torch.testing.assert_close(ours(queries), theirs(queries, queries, queries)[0])
    torch.testing.assert_close(ours(queries, tokens), theirs(queries, tokens, tokens)[0])


@pytest.mark.parametrize(("units", "reach"), [(0, 1), (1, 2), (2, 3)])
def test_local_units_reach_one_frame_each_and_leave_class_tokens_alone(
    units: int, reach: int
) -> None:
    torch.manual_seed(0)
    block = Block(8, 2, units, reduction=1.5).eval()
    before = torch.randn(5, 1 + 4, 8)  # five frames of 2 x 2 patches
    after = before.clone()
    after[0, 2] += 5
    with torch.inference_mode():
        changed = (block(after, (5, 2, 2)) - block(before, (5, 2, 2))).abs().amax(-1) > 0
    assert changed[:, 2].tolist() == [frame < reach for frame in range(5)]
    # Class tokens learn of it by attention within frames, which comes before the last unit.
    assert changed[:, 0].tolist() == [frame < max(1, min(reach, 2)) for frame in range(5)]


def test_classifier_sees_the_global_token_and_the_mean_class_token() -> None:
    torch.manual_seed(0)
    network = UniFormerV2(**SMALL).eval()
    head = network.transformer
    nn.init.normal_(head.balance)
    found: dict[str, torch.Tensor] = {}
    head.dec[-1].register_forward_hook(lambda _m, _i, output: found.update(token=output))
    head.resblocks[-1].register_forward_hook(lambda _m, _i, output: found.update(frames=output))
    with torch.inference_mode():
        logits = network(torch.randn(2, 3, 4, 16, 16))
        share = 1 / (1 + (-head.balance).exp())
        # Frames of one clip lie side by side.
        classes = torch.stack([found["frames"][:4, 0].mean(0), found["frames"][4:, 0].mean(0)])
        expected = head.proj((1 - share) * found["token"][:, 0] + share * classes)
    assert found["frames"].shape == (8, 5, 16)
    torch.testing.assert_close(logits, expected)


def test_global_units_do_not_change_the_frames() -> None:
    torch.manual_seed(0)
    with_units = UniFormerV2(**SMALL | {"frozen": True}).eval()
    alone = UniFormerV2(**SMALL | {"global_layers": ()}).eval()
    alone.load_state_dict(with_units.state_dict(), strict=False)
    kept: list[torch.Tensor] = []
    for network in (with_units, alone):
        network.transformer.resblocks[-1].register_forward_hook(
            lambda _module, _inputs, output: kept.append(output)
        )
        with torch.inference_mode():
            network(torch.linspace(-1, 1, 3 * 2 * 16 * 16).view(1, 3, 2, 16, 16))
    assert torch.equal(*kept)


@pytest.mark.parametrize(("file", "variant"), [("k400", "b16-k400-8"), ("ssv2", "b16-ssv2-16")])
def test_official_checkpoints_fit(file: str, variant: str) -> None:
    content = json.loads((GOLDEN / f"uniformerv2-b16-{file}-8x224.json").read_text())
    official = {name: torch.empty(shape, device="meta") for name, shape in content["state"]}
    assert all(name.startswith("backbone.") for name in official)
    config = V2.config(variant)
    with torch.device("meta"):
        state = V2.network(config).state_dict()
    wanted = {n: t.shape for n, t in state.items() if t.is_floating_point()}
    for checkpoint in (official, {"model_state": official, "epoch": 54}):
        translated = V2.translate(checkpoint, config)
        assert {n: t.shape for n, t in translated.items()} == wanted

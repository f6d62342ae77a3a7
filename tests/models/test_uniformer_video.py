"""UniFormer for videos: what blocks reach in time, selection over frames, names of published checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models.classification._uniformer_video_network import (
    ClipPatches,
    GlobalClipBlock,
    LocalClipBlock,
    SelectiveClipBlock,
    SplitClipBlock,
    pooled,
)
from models.demo import motions
from models.layers.video_classifier import VideoClassifier
from models.registry import architecture
from models.repository import config as entry_of
from models.serving import Device, InvalidInput
from service.triton.cards import WeightsRecord

VIDEO = architecture("uniformer-video")
GOLDEN = Path(__file__).parents[1] / "golden"


def _parameters(variant: str) -> int:
    with torch.device("meta"):
        network = VIDEO.network(VIDEO.config(variant))
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("variant", "count"), [("small-k400-8x8", 21_400_400), ("base-k400-16x4", 49_813_200)]
)
def test_parameter_counts(variant: str, count: int) -> None:
    assert _parameters(variant) == count


def test_demo_network_is_small() -> None:
    assert _parameters("demo") <= 524_288
    assert VIDEO.variants["demo"].labels == motions.LABELS


def test_what_the_variants_say_of_their_videos() -> None:
    dense, uniform = VIDEO.variants["small-k400-16x4"], VIDEO.variants["base-ssv2-32-prek600"]
    for variant in VIDEO.variants.values():
        assert variant.image is not None
        assert variant.image.mean == (0.45,) * 3
        assert variant.image.std == (0.225,) * 3
    assert dense.image is not None
    assert dense.clip is not None
    assert (dense.image.height, dense.image.resize_to) == (224, 256)
    assert dense.clip.model_dump() == {
        "frames": 16,
        "sampling": "dense",
        "stride": 4,
        "clips": 4,
        "crops": 1,
        "merge": "logits",
    }
    assert uniform.clip is not None
    assert (uniform.clip.frames, uniform.clip.sampling, uniform.clip.crops) == (32, "uniform", 3)
    light = VIDEO.variants["xxs-k400-4-128"]
    assert light.config["scaled"]
    assert light.metrics[0].value == 63.2


@pytest.mark.parametrize(
    ("block", "frames"),
    [(LocalClipBlock(8, 4), 4), (GlobalClipBlock(8, 4, 4), 8), (SplitClipBlock(8, 4, 4), 8)],
    ids=["local", "global", "split"],
)
def test_local_blocks_reach_three_frames_and_global_ones_all(block: nn.Module, frames: int) -> None:
    torch.manual_seed(0)
    block.eval()
    before = torch.randn(1, 8, 8, 6, 6)
    after = before.clone()
    after[:, :, 0, 3, 3] += 5
    with torch.inference_mode():
        changed = (block(after) - block(before)).abs().amax((0, 1, 3, 4)) > 0
    # Of a 3x3x3 and a 5x5x5 convolution, one and two frames each way.
    assert changed.tolist() == [number < frames for number in range(8)]


def test_first_patches_halve_the_frames() -> None:
    patches = ClipPatches(3, 8, 4, depth=3, every=2)
    assert patches(torch.zeros(1, 3, 8, 32, 16)).shape == (1, 8, 4, 8, 4)
    # The second kept frame is mixed from frames 1, 2 and 3.
    clip = torch.zeros(1, 3, 8, 4, 4)
    clip[:, :, 3] = torch.randn(3, 4, 4)
    changed = (patches.proj(clip) - patches.proj(torch.zeros_like(clip))).abs().amax((0, 1, 3, 4))
    assert (changed > 0).tolist() == [False, True, True, False]


def test_selection_is_over_the_tokens_of_all_frames() -> None:
    torch.manual_seed(0)
    block = SelectiveClipBlock(8, 4, 2, keep=0.5, rate=0.5, scaled=True).eval()
    nn.init.zeros_(block.pos_embed.weight)
    nn.init.zeros_(block.pos_embed.bias)
    nn.init.constant_(block.gamma_1, 2.0)
    nn.init.constant_(block.gamma_2, 3.0)
    x, leader = torch.randn(1, 8, 2, 1, 2), torch.randn(1, 1, 8)
    scores = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    with torch.inference_mode():
        first, second, third, fourth = x.flatten(2).transpose(1, 2).split(1, 1)
        # Both tokens of the second frame have the highest scores; those of the first are merged.
        merged = (first + 2 * second) / 3
        tokens = torch.cat((leader, fourth, third, merged), 1)
        mixed = tokens + 2 * block.attn(block.norm1(tokens))[0]
        new = mixed + 3 * block.mlp(block.norm2(mixed))
        gained = new[:, 3:] - merged
        out, new_leader, _ = block(x, leader, scores)
    expected = torch.cat((first + gained, second + gained, new[:, 2:3], new[:, 1:2]), 1)
    torch.testing.assert_close(out.flatten(2).transpose(1, 2), expected)
    torch.testing.assert_close(new_leader, new[:, :1])


def test_scores_are_pooled_within_frames_and_keep_their_sum() -> None:
    scores = torch.tensor([[1.0, 3.0, 0.0, 4.0, 2.0, 2.0, 6.0, 6.0]])
    torch.testing.assert_close(pooled(scores, (2, 2, 2)), torch.tensor([[8.0, 16.0]]))


@pytest.mark.parametrize("wrapper", ["model_state", "model", None])
def test_official_checkpoints_fit(wrapper: str | None) -> None:
    content = json.loads((GOLDEN / "uniformer-video-small-k400-8x224.json").read_text())
    official = {name: torch.empty(shape, device="meta") for name, shape in content["state"]}
    config = VIDEO.config("small-k400-8x8")
    with torch.device("meta"):
        state = VIDEO.network(config).state_dict()
    wanted = {n: t.shape for n, t in state.items() if t.is_floating_point()}
    training = {"head_cls.weight": torch.empty(400, 512), "norm_cls.bias": torch.empty(512)}
    checkpoint = official | training
    translated = VIDEO.translate(
        {wrapper: checkpoint, "epoch": 99} if wrapper else checkpoint, config
    )
    assert {n: t.shape for n, t in translated.items()} == wanted


def test_served_clips_are_normalised_and_of_one_length() -> None:
    class Last(nn.Module):
        def forward(self, clip: torch.Tensor) -> torch.Tensor:
            assert clip.shape == (2, 3, 8, 64, 64)
            return clip[:, :, -1, 0, 0]

    card = VIDEO.card("demo", weights=WeightsRecord(kind="random"))
    served = VideoClassifier(Last(), card, Device())
    frames = np.zeros((2, 8, 3, 64, 64), np.uint8)
    frames[1, 7, :, 0, 0] = (255, 0, 51)
    scores = served.predict({"FRAMES": frames})["SCORES"]
    black = torch.full((3,), -0.45 / 0.225)
    seen = (torch.tensor([1.0, 0.0, 0.2]) - 0.45) / 0.225
    expected = torch.stack((black, seen)).softmax(-1)
    np.testing.assert_allclose(scores, expected.numpy(), rtol=1e-5)
    with pytest.raises(InvalidInput, match="takes 8 frames"):
        served.predict({"FRAMES": frames[:, :4]})


def test_the_repository_entry_states_frames_and_size() -> None:
    card = VIDEO.card("small-k400-16x4", weights=WeightsRecord(kind="official"))
    (frames,) = entry_of(card, "cpu").input
    assert list(frames.dims) == [16, 3, 224, 224]

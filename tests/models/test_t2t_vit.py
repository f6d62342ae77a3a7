"""T2T-ViT: published sizes, the authors' checkpoints, soft splits and both kinds of narrow attention."""

from __future__ import annotations

import math

import pytest
import torch

from models.classification.t2t_vit import (
    TokenPerformer,
    TokensToToken,
    WideInputAttention,
    resized_positions,
    sinusoid,
)
from models.registry import architecture

T2T = architecture("t2t-vit")


@pytest.mark.parametrize(
    ("variant", "parameters"),
    [
        ("7", 4_310_222),
        ("10", 5_889_230),
        ("12", 6_941_902),
        ("14", 21_545_550),
        ("19", 39_177_422),
        ("24", 64_105_934),
        ("t-14", 21_541_070),
        ("t-19", 39_172_942),
        ("t-24", 64_101_454),
    ],
)
def test_parameter_counts_are_the_published_ones(variant: str, parameters: int) -> None:
    with torch.device("meta"):
        network = T2T.network(T2T.config(variant))
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_demo_network_is_small() -> None:
    network = T2T.network(T2T.config("demo"))
    assert sum(t.numel() for t in network.state_dict().values()) <= 524_288


def test_averaged_weights_are_preferred() -> None:
    config = T2T.config("demo")
    state = T2T.network(config).state_dict()
    other = {f"module.{name}": torch.zeros_like(value) for name, value in state.items()}
    averaged = {f"module.{name}": value for name, value in state.items()}
    for checkpoint in (
        {"state_dict": other, "state_dict_ema": averaged, "epoch": 310},
        {"state_dict": averaged},
        dict(state),
    ):
        translated = T2T.translate(checkpoint, config)
        assert translated.keys() == state.keys()
        torch.testing.assert_close(translated["cls_token"], state["cls_token"])


def test_positions_follow_the_size_of_the_input() -> None:
    table = torch.randn(1, 1 + 14 * 14, 8)
    state = T2T.translate({"pos_embed": table}, T2T.config("14-384"))
    assert state["pos_embed"].shape == (1, 1 + 24 * 24, 8)
    torch.testing.assert_close(state["pos_embed"][:, 0], table[:, 0])
    flat = torch.ones(1, 1 + 4, 3)
    torch.testing.assert_close(resized_positions(flat, 5), torch.ones(1, 26, 3))
    assert T2T.translate({"pos_embed": table}, T2T.config("14"))["pos_embed"] is table


def test_sinusoid_by_hand() -> None:
    # Columns 2 and 3 of 4 turn 10000 ** (2 / 4) = 100 times more slowly.
    expected = [math.sin(3), math.cos(3), math.sin(0.03), math.cos(0.03)]
    torch.testing.assert_close(sinusoid(5, 4)[3], torch.tensor(expected))


def test_performer_estimates_softmax_attention() -> None:
    """With many directions the random features' attention comes near to the exact one."""
    torch.manual_seed(0)
    performer = TokenPerformer(3, 2)
    performer.w.data = torch.randn(50_000, 2)
    x = torch.randn(1, 5, 3)
    with torch.no_grad():
        performer.proj.weight.copy_(torch.eye(2))
        performer.proj.bias.zero_()
        k, q, v = performer.kqv(x).chunk(3, dim=-1)
        values, attended = performer.attend(x)
    torch.testing.assert_close(values, v)
    torch.testing.assert_close(
        attended, (q @ k.transpose(1, 2)).softmax(dim=-1) @ v, atol=0.03, rtol=0
    )


def test_scale_is_that_of_the_input() -> None:
    torch.manual_seed(0)
    attention = WideInputAttention(9, 4)
    x = torch.randn(1, 6, 9)
    with torch.no_grad():
        q, k, v = attention.qkv(x).chunk(3, dim=-1)
        mixed = (q @ k.transpose(1, 2) / 3).softmax(dim=-1) @ v
        torch.testing.assert_close(attention(x), v + attention.proj(mixed))


def test_soft_splits_cover_the_picture_sixteen_by_sixteen() -> None:
    tokens = TokensToToken("transformer", token_dim=8, dim=6)
    seen: list[torch.Tensor] = []
    tokens.attention1.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    image = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        assert tokens(image).shape == (2, 2 * 3, 6)
    # The window of row 1, column 2 begins two pixels before (4, 8); channels vary slowest.
    window = image[0, :, 2:9, 6:13]
    torch.testing.assert_close(seen[0][0, 1 * 12 + 2], window.flatten())


def test_pictures_are_cropped_to_nine_tenths() -> None:
    for name, size, shorter in (("7", 224, 248), ("14-384", 384, 426)):
        image = T2T.variants[name].image
        assert image is not None
        assert (image.height, image.resize_to, image.interpolation) == (size, shorter, "bicubic")

"""ConViT: attention to positions, the late class token, names of published checkpoints, pre-processing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from timm.models.convit import GPSA
from torch import nn

from models.classification.convit import SettledAttention, settle
from models.demo import shapes
from models.registry import architecture

CONVIT = architecture("convit")
GOLDEN = Path(__file__).parents[1] / "golden" / "convit-convit_tiny.json"

PARAMETERS = {
    "tiny": 5_710_512,
    "tiny-plus": 9_972_912,
    "small": 27_777_322,
    "small-plus": 48_979_882,
    "base": 86_540_040,
    "base-plus": 153_134_856,
}


def _parameters(variant: str) -> int:
    with torch.device("meta"):
        network = CONVIT.network(CONVIT.config(variant))
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("variant", PARAMETERS)
def test_parameter_counts_are_the_published_ones(variant: str) -> None:
    assert _parameters(variant) == PARAMETERS[variant]


def test_demo_network_is_small() -> None:
    # One MiB in half precision.
    assert _parameters("demo") <= 524_288
    assert CONVIT.variants["demo"].labels == shapes.LABELS


def test_published_sizes() -> None:
    released = {"tiny", "small", "base"}
    for name, variant in CONVIT.variants.items():
        if variant.demo:
            continue
        assert [s.url.rpartition("/")[2] for s in variant.sources] == (
            [f"convit_{name}.pth"] if name in released else []
        )
        image = variant.image
        assert image is not None
        assert (image.height, image.width, image.interpolation) == (224, 224, "bicubic")
        assert (image.resize, image.resize_to) == ("shorter-side", 256)


def _looking_at(dx: int, dy: int) -> GPSA:
    """Return an attention of one head that takes the token `dx` columns right and `dy` rows below."""
    attention = GPSA(8, num_heads=1).eval()
    with torch.no_grad():
        attention.v.weight.copy_(torch.eye(8))
        attention.proj.weight.copy_(torch.eye(8))
        attention.proj.bias.zero_()
        attention.gating_param.fill_(50.0)  # positions only
        # -s |r - d|^2 but for a constant, r being the offset of the key: largest where r = d.
        attention.pos_proj.weight.copy_(50.0 * torch.tensor([[2.0 * dx, 2.0 * dy, -1.0]]))
        attention.pos_proj.bias.zero_()
    return attention


def test_attention_to_positions_moves_the_map() -> None:
    tokens = torch.randn(2, 5, 5, 8)
    with torch.inference_mode():
        settled = SettledAttention(_looking_at(dx=1, dy=0), 25)
        right = settled(tokens.reshape(2, 25, 8)).reshape(2, 5, 5, 8)
        settled = SettledAttention(_looking_at(dx=-1, dy=2), 25)
        below = settled(tokens.reshape(2, 25, 8)).reshape(2, 5, 5, 8)
    torch.testing.assert_close(right[:, :, :-1], tokens[:, :, 1:])
    torch.testing.assert_close(below[:, :-2, 1:], tokens[:, 2:, :-1])


def _demo() -> nn.Module:
    torch.manual_seed(0)
    network = CONVIT.network(CONVIT.config("demo")).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        for block in network.blocks:
            if isinstance(block.attn, GPSA):
                block.attn.gating_param.copy_(torch.linspace(-2, 2, 4))
    return network


def test_settled_network_computes_the_same() -> None:
    network = _demo()
    image = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        expected = network(image)
    settled = settle(network)
    assert not any(isinstance(module, GPSA) for module in settled.modules())
    with torch.inference_mode():
        torch.testing.assert_close(settled(image), expected, atol=1e-5, rtol=1e-4)
    assert expected.std(dim=0).max() > 1e-3


def test_gate_mixes_contents_and_positions() -> None:
    attention = _looking_at(dx=1, dy=0)
    torch.manual_seed(0)
    tokens = torch.randn(1, 9, 8)
    with torch.inference_mode():
        nn.init.normal_(attention.qk.weight)
        answers = {}
        for gate in (-50.0, 0.0, 50.0):
            attention.gating_param.fill_(gate)
            answers[gate] = SettledAttention(attention, 9)(tokens)
        q, k = attention.qk(tokens).chunk(2, dim=-1)
        content = (q @ k.mT / 8**0.5).softmax(-1) @ tokens
    torch.testing.assert_close(answers[-50.0], content, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(answers[0.0], (content + answers[50.0]) / 2, atol=1e-5, rtol=1e-4)


def test_class_token_joins_after_the_local_blocks() -> None:
    network = _demo()
    lengths: list[int] = []
    for block in network.blocks:
        block.register_forward_hook(lambda _module, _inputs, out: lengths.append(out.shape[1]))
    with torch.inference_mode():
        network(torch.randn(1, 3, 64, 64))
    assert lengths == [64, 64, 64, 65]


def test_official_names_are_the_networks_names() -> None:
    official = {
        name: torch.empty(shape, device="meta")
        for name, shape in json.loads(GOLDEN.read_text())["state"]
    }
    config = CONVIT.config("tiny")
    with torch.device("meta"):
        wanted = {n: t.shape for n, t in CONVIT.network(config).state_dict().items()}
    wrapped = {f"module.{name}": value for name, value in official.items()}
    for checkpoint in (official, {"model": official, "epoch": 299}, {"model": wrapped}):
        translated = CONVIT.translate(checkpoint, config)
        assert {n: t.shape for n, t in translated.items()} == wanted

"""ShiftAddViT: powers of two, experts, codes and additions by hand, the authors' checkpoints, pre-processing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models.classification._shiftaddvit_network import (
    AddAttention,
    Experts,
    KernelHash,
    PyramidV1,
    ShiftLinear,
    folded,
)
from models.demo import shapes
from models.registry import architecture
from models.serving import Device, Predictor
from service.triton.cards import WeightsRecord

SHIFTADDVIT = architecture("shiftaddvit")
GOLDEN = Path(__file__).parents[1] / "golden"


def _parameters(variant: str) -> int:
    with torch.device("meta"):
        network = SHIFTADDVIT.network(SHIFTADDVIT.config(variant))
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("variant", "parameters"),
    [("pvt-v2-b0", 3_136_472), ("pvt-v2-b0-experts", 6_771_484)],
)
def test_parameter_counts_are_the_authors(variant: str, parameters: int) -> None:
    assert _parameters(variant) == parameters


@pytest.mark.parametrize(
    ("variant", "millions", "with_experts"),
    [("pvt-v2-b1", 11.9, 26.4), ("pvt-v2-b2", 20.4, 49.5), ("pvt-tiny", 11.1, 25.6)],
)
def test_parameter_counts_round_to_the_authors(
    variant: str, millions: float, with_experts: float
) -> None:
    assert round(_parameters(variant) / 1e6, 1) == millions
    assert round(_parameters(f"{variant}-experts") / 1e6, 1) == with_experts


def test_demo_network_is_small() -> None:
    assert _parameters("demo") <= 524_288
    assert SHIFTADDVIT.variants["demo"].labels == shapes.LABELS


def test_pictures_are_those_of_the_authors_evaluation() -> None:
    for variant in SHIFTADDVIT.variants.values():
        image = variant.image
        assert image is not None
        if not variant.demo:
            assert (image.height, image.width, image.interpolation) == (224, 224, "bicubic")
            assert (image.resize, image.resize_to) == ("shorter-side", 256)


@torch.no_grad()
def test_weights_are_powers_of_two_by_hand() -> None:
    layer = ShiftLinear(6, 1)
    # Half of a step goes to the even number; what lies outside of the range goes to its border.
    layer.shift[:] = torch.tensor([[-1.2, -0.5, -1.5, -2.5, -20.0, 3.0]])
    layer.sign[:] = torch.tensor([[1.0, -0.6, 0.5, -0.51, 0.7, -2.0]])
    expected = [[0.5, -1.0, 0.0, -0.25, 2**-14, -1.0]]
    assert layer.powers().tolist() == expected
    layer.bias.fill_(0.3)
    x = torch.tensor([[1.0, 0.25, 7.0, 2.0, 4.0, 1.0 + 2**-17]])  # the last one loses its last bit
    bias = math.floor(0.3 * 2**16) / 2**16
    assert layer(x).item() == 0.5 - 0.25 - 0.5 + 4 * 2**-14 - 1.0 + bias


@torch.no_grad()
def test_every_token_gets_the_expert_of_the_higher_score() -> None:
    experts = Experts(2, nn.Linear(2, 2), nn.Linear(2, 2))
    for sign, expert in zip((1.0, -2.0), experts.experts, strict=True):
        expert.weight[:] = sign * torch.eye(2)
        expert.bias.zero_()
    experts.gate.weight[:] = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    experts.gate.bias.zero_()
    x = torch.tensor([[3.0, 2.0], [-4.0, 5.0], [200.0, -50.0]])
    out = experts(x)
    torch.testing.assert_close(out[:2], torch.tensor([[3.0, 2.0], [8.0, -10.0]]))
    # Far up nothing overflows; far down the logarithm of float64's epsilon is the end.
    torch.testing.assert_close(out[2], torch.tensor([200.0, math.log(2.0**-52)]))


@torch.no_grad()
def test_experts_add_up_as_in_the_authors_code() -> None:
    experts = Experts(1, nn.Linear(1, 1), nn.Linear(1, 1))
    for expert in experts.experts:
        expert.weight.fill_(1.0)
        expert.bias.zero_()
    z = torch.linspace(-60, 80, 57).view(-1, 1)
    expected = torch.log(torch.exp(z.double()) + np.finfo(float).eps)
    torch.testing.assert_close(experts(z).double(), expected, atol=1e-5, rtol=1e-6)


@torch.no_grad()
def test_codes_by_hand() -> None:
    hashing = KernelHash(heads=1, dim=2, bits=2, anchors=2)
    hashing.anchors[:] = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    hashing.means.fill_(0.6)
    hashing.matrix[:] = torch.tensor([[1.0, 0.0], [-1.0, -1.0]])
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).view(1, 1, 2, 2)
    # Squared distances (0, 2) and (4, 2), on average 2: nearness 1, e^-1/2 and e^-1, e^-1/2.
    assert hashing(x)[0, 0].tolist() == [[1, 0], [0, 1]]


@torch.no_grad()
def test_attention_is_sums_of_selected_values() -> None:
    torch.manual_seed(0)
    attention = AddAttention(dim=6, heads=2, kind="linear", bits=4, anchors=5).eval()
    x = torch.randn(1, 7, 6)
    codes: list[torch.Tensor] = []
    attention.hash.register_forward_hook(lambda _m, _i, out: codes.append(out[0]))
    out = attention(x)
    assert set(codes[0].unique().tolist()) == {0.0, 1.0}
    value = attention.to_v(x)[0].view(7, 2, 3)
    rows = []
    for token in range(7):
        heads = []
        for head in range(2):
            total = 0.5 * value[token, head]
            for bit in torch.nonzero(codes[0][head, token]).flatten():
                for other in torch.nonzero(codes[0][head, :, bit]).flatten():
                    total = total + value[other, head] / math.pi
            total = total / total.norm()
            for step in range(-4, 5):  # nine tokens of the row, this one in the middle
                if 0 <= token + step < 7:
                    kernel = attention.dconv.weight[head, 0, step + 4, 0]
                    total = total + kernel * value[token + step, head]
            heads.append(total)
        rows.append(torch.cat(heads))
    torch.testing.assert_close(out[0], attention.proj(torch.stack(rows)), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_folded_network_answers_as_the_unfolded() -> None:
    torch.manual_seed(0)
    network = SHIFTADDVIT.network(SHIFTADDVIT.config("demo")).eval()
    plain = folded(network)
    assert any(isinstance(module, ShiftLinear) for module in network.modules())
    assert not any(isinstance(module, ShiftLinear) for module in plain.modules())
    layer, linear = next(
        (module, plain.get_submodule(name))
        for name, module in network.named_modules()
        if isinstance(module, ShiftLinear)
    )
    x = torch.randn(5, layer.shift.shape[1])
    # The layers differ by the rounding of the input, here at most 24 times.
    torch.testing.assert_close(linear(x), layer(x), atol=24 * 2**-16, rtol=0)


def test_rounded_values_pass_gradients() -> None:
    torch.manual_seed(0)
    network = SHIFTADDVIT.network(SHIFTADDVIT.config("demo"))
    network(torch.randn(2, 3, 64, 64)).square().sum().backward()
    attention = network.block1[0].attn
    assert attention.to_qk.experts[0].weight.grad.abs().max() > 0
    shifting = network.block3[1].mlp.fc1.experts[1]
    assert shifting.shift.grad.abs().max() > 0
    assert shifting.sign.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("file", "variant"),
    [
        ("shiftaddvit-pvt-v2-b0-linangular.json", "pvt-v2-b0"),
        ("shiftaddvit-pvt-v2-b0-moe-stage1.json", "pvt-v2-b0-experts"),
    ],
)
def test_official_names_become_the_networks_names(file: str, variant: str) -> None:
    official = {
        name: torch.empty(shape, device="meta")
        for name, shape in json.loads((GOLDEN / file).read_text())["state"]
    }
    config = SHIFTADDVIT.config(variant)
    with torch.device("meta"):
        wanted = {n: t.shape for n, t in SHIFTADDVIT.network(config).state_dict().items()}
    for checkpoint in ({"model": official, "epoch": 99, "args": None}, official):
        translated = SHIFTADDVIT.translate(checkpoint, config)
        assert {n: t.shape for n, t in translated.items()} == wanted
    assert SHIFTADDVIT.translate(translated, config).keys() == wanted.keys()


def test_queries_are_joined_with_keys_and_values() -> None:
    official = {
        "block4.0.attn.q.weight": torch.zeros(2, 2),
        "block4.0.attn.kv.weight": torch.cat((torch.ones(2, 2), torch.full((2, 2), 2.0))),
    }
    joined = SHIFTADDVIT.translate(official, SHIFTADDVIT.config("pvt-tiny"))
    assert joined.keys() == {"block4.0.attn.qkv.weight"}
    assert joined["block4.0.attn.qkv.weight"][:, 0].tolist() == [0, 0, 1, 1, 2, 2]


@torch.no_grad()
def test_position_tables_follow_the_picture() -> None:
    torch.manual_seed(0)
    network = PyramidV1(
        image_size=64,
        dims=(8, 8, 16, 16),
        heads=(1, 1, 2, 2),
        mlp_ratios=(2, 2, 2, 2),
        depths=(1, 1, 1, 1),
        num_classes=3,
        mlps="experts",
    ).eval()
    assert [network.get_parameter(f"pos_embed{i}").shape[1] for i in (1, 2, 3, 4)] == [
        256,
        64,
        16,
        5,
    ]
    assert network(torch.randn(2, 3, 64, 64)).shape == (2, 3)
    assert network(torch.randn(1, 3, 96, 128)).shape == (1, 3)
    # At half the size neighbours are averaged, and the class token keeps its own position.
    table = network.get_parameter("pos_embed4")[0]
    small = network._positions(4, (1, 1))[0]
    torch.testing.assert_close(small, torch.stack((table[0], table[1:].mean(0))))


def test_answers_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    card = SHIFTADDVIT.card("demo", weights=WeightsRecord(kind="random"))
    network = SHIFTADDVIT.network(SHIFTADDVIT.config("demo")).eval()
    served = SHIFTADDVIT.serve(network, card, Device(), Path())
    assert isinstance(served, Predictor)
    pixels = np.random.default_rng(1).integers(0, 256, (3, 3, 64, 64), dtype=np.uint8)
    together = served.predict({"IMAGE": pixels})["SCORES"]
    for index in range(3):
        alone = served.predict({"IMAGE": pixels[index : index + 1]})["SCORES"]
        np.testing.assert_allclose(alone[0], together[index], atol=1e-5)

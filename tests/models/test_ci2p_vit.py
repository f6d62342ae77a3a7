"""CI2P-ViT: normalisation and shortcuts by hand, sizes of networks and pictures, names of checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.classification.ci2p_vit import GDN, InvertedResidual, SqueezeExcitation
from models.registry import architecture
from models.serving import Device, Predictor
from service.triton.cards import WeightsRecord
from tests.fidelity.golden import Golden

CI2P = architecture("ci2p-vit")
GOLDEN = Golden.read(Path(__file__).parents[1] / "golden" / "ci2p-vit-base-256.json")
PEDESTAL = 2.0**-36


def _network(variant: str) -> torch.nn.Module:
    with torch.device("meta"):
        return CI2P.network(CI2P.config(variant))


@pytest.mark.parametrize(
    ("variant", "millions"), [("base-animals10", 88.96), ("small-animals10", 51.2)]
)
def test_parameter_counts_are_the_published_ones(variant: str, millions: float) -> None:
    count = sum(p.numel() for p in _network(variant).parameters()) / 1e6
    assert count == pytest.approx(millions, abs=0.05 if variant.startswith("small") else 0.005)


def test_trainable_parameters_are_those_outside_of_the_codec() -> None:
    parameters = _network("base-animals10").named_parameters()
    assert sum(p.numel() for name, p in parameters if ".compressai." not in name) == 87_470_698


def test_demo_network_is_small() -> None:
    assert sum(t.numel() for t in _network("demo").state_dict().values()) <= 524_288


def test_divisive_normalisation_of_two_channels_by_hand() -> None:
    gdn = GDN(2)
    # Roots of 4 and 1 for beta; gamma's rows weigh the squares 9 and 16 of both channels.
    beta, gamma = torch.tensor([4.0, 1.0]), torch.tensor([[1.0, 0.25], [0.5, 0.0]])
    with torch.no_grad():
        gdn.beta.copy_((beta + PEDESTAL).sqrt())
        gdn.gamma.copy_((gamma + PEDESTAL).sqrt())
        y = gdn(torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)).flatten()
    expected = [3 / (4 + 9 + 0.25 * 16) ** 0.5, 4 / (1 + 0.5 * 9) ** 0.5]
    torch.testing.assert_close(y, torch.tensor(expected))


def test_roots_below_the_smallest_allowed_count_as_it() -> None:
    gdn = GDN(1)
    with torch.no_grad():
        gdn.beta.fill_(-5.0)
        gdn.gamma.fill_(-5.0)
        y = gdn(torch.full((1, 1, 1, 1), 0.002))
    # Nothing of the square is left, and the smallest beta is 1e-6.
    assert y.item() == pytest.approx(2.0, rel=1e-4)


def test_excitation_stops_at_the_ends_of_the_hard_sigmoid() -> None:
    excite = SqueezeExcitation(32)
    picture = torch.randn(1, 32, 2, 2)
    with torch.no_grad():
        excite.conv2.conv.weight.zero_()
        excite.conv2.conv.bias.copy_(torch.tensor([-3.0, 3.0, 0.0, 1.5]).repeat(8))
        weights = torch.tensor([0.0, 1.0, 0.5, 0.75]).repeat(8).view(1, 32, 1, 1)
        torch.testing.assert_close(excite(picture), picture * weights)


@pytest.mark.parametrize(
    ("outputs", "stride", "kept"), [(8, 1, True), (8, 2, False), (16, 1, False)]
)
def test_only_blocks_that_keep_the_shape_have_a_shortcut(
    outputs: int, stride: int, kept: bool
) -> None:
    block = InvertedResidual(8, 32, outputs, stride=stride).eval()
    picture = torch.randn(1, 8, 4, 4)
    with torch.no_grad():
        block.linear_conv.bn.weight.zero_()
        y = block(picture)
    assert y.shape == (1, outputs, 4 // stride, 4 // stride)
    torch.testing.assert_close(y, picture if kept else torch.zeros_like(y))


def test_the_codec_sees_pixels_from_0_to_1() -> None:
    network = CI2P.network(CI2P.config("demo")).eval()
    served = CI2P.serve(
        network, CI2P.card("demo", weights=WeightsRecord(kind="random")), Device(), Path()
    )
    assert isinstance(served, Predictor)
    seen: list[torch.Tensor] = []
    network.backbone.to_patch_embedding.register_forward_pre_hook(
        lambda _module, inputs: seen.append(inputs[0])
    )
    pixels = np.random.default_rng(1).integers(0, 256, (2, 3, 64, 64), dtype=np.uint8)
    scores = served.predict({"IMAGE": pixels})["SCORES"]
    np.testing.assert_allclose(seen[0].numpy(), pixels / 255, atol=1e-6)
    np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("stages", [((2, 32, 2, 64),), ((1, 32, 2, 64), (1, 48, 3, 96))])
def test_tokens_stand_for_32_pixels_on_pictures_of_any_shape(
    stages: tuple[tuple[int, ...], ...],
) -> None:
    network = CI2P.network(CI2P.config("demo") | {"stages": stages}).eval()
    image = torch.randn(2, 3, 96, 64)
    with torch.inference_mode():
        assert network.backbone(image).shape == (2, 6, stages[-1][1])
        logits = network(image)
        # Batch norm uses its running statistics: pictures do not see each other.
        torch.testing.assert_close(network(image[1:]), logits[1:], atol=1e-5, rtol=1e-5)


def test_narrow_layers_of_the_dual_scale_network_have_four_times_the_tokens() -> None:
    stages = ((1, 32, 2, 64), (1, 48, 3, 96))
    network = CI2P.network(CI2P.config("demo") | {"stages": stages}).eval()
    seen: list[torch.Size] = []
    for layer in network.backbone.transformer.layers:
        layer.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].shape))
    with torch.inference_mode():
        network(torch.randn(1, 3, 64, 128))
    assert seen == [(1, 32, 32), (1, 8, 48)]
    with pytest.raises(ValueError, match="3 stages"):
        CI2P.network(CI2P.config("demo") | {"stages": (*stages, stages[1])})


def test_constants_of_the_codec_in_a_checkpoint_are_dropped() -> None:
    config = CI2P.config("base-animals10")
    official = {name: torch.empty(shape, device="meta") for name, shape in GOLDEN.state}
    wanted = {
        name: value.shape
        for name, value in _network("base-animals10").state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    codec = "backbone.to_patch_embedding.compressai.1"
    constants = {
        f"{codec}.{root}_reparam.{name}": torch.ones(1)
        for root in ("beta", "gamma")
        for name in ("pedestal", "lower_bound.bound")
    }
    for checkpoint in ({"meta": {}, "state_dict": official | constants}, official):
        translated = CI2P.translate(checkpoint, config)
        assert {name: value.shape for name, value in translated.items()} == wanted


def test_pictures_are_scaled_to_292_and_cut_to_256() -> None:
    for name, variant in CI2P.variants.items():
        image = variant.image
        assert image is not None
        if name != "demo":
            assert (image.height, image.width, image.resize_to) == (256, 256, 292)
            assert (image.resize, image.interpolation) == ("shorter-side", "bicubic")
        assert np.allclose(np.array(image.mean) * 255, (123.675, 116.28, 103.53))
        assert np.allclose(np.array(image.std) * 255, (58.395, 57.12, 57.375))

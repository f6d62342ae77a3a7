"""Hyena N-D: the long convolution, its kernels and directions, names of checkpoints, pre-processing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.classification._hyena_nd_network import Decay, Hyena2d, ImplicitFilter, long_convolution
from models.classification.hyena_nd import CELEBA
from models.registry import architecture
from models.serving import Device, Predictor
from service.triton.cards import WeightsRecord
from tests.fidelity.golden import Golden

HYENA = architecture("hyena-nd")
GOLDEN = Golden.read(Path(__file__).parents[1] / "golden" / "hyena-nd-deit-tiny.json")


def _operator(**changes: Any) -> Hyena2d:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "order": 2,
        "filter_width": 8,
        "direction": "standard",
        "window": "standard",
        "joint_filter": True,
        "free_kernel": False,
        "sqrt_decay": False,
    }
    return Hyena2d(6, 5, **(options | changes)).eval()


def test_long_convolution_is_the_sum_over_the_positions_before_by_twice_the_side() -> None:
    stream = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 4, 4, generator=stream)
    kernel = torch.randn(3, 4, 4, generator=stream)
    bias = torch.randn(3, generator=stream)
    expected = x * bias[:, None, None]
    for i in range(4):
        for j in range(4):
            for k in range(i + 1):
                for m in range(j + 1):
                    expected[:, :, i, j] += kernel[:, i - k, j - m] * x[:, :, k, m] / 8
    torch.testing.assert_close(long_convolution(x, kernel, bias), expected, atol=1e-5, rtol=1e-4)


def test_kernel_at_one_position_by_hand() -> None:
    torch.manual_seed(0)
    made = ImplicitFilter(3, 5, 8, "standard", joint=True, sqrt=False)
    with torch.inference_mode():
        z, t = made.pos_emb.z[0], made.pos_emb.t[0]
        raw = made.implicit_filter(torch.cat((z[1], z[3])))
        # 1% is reached at 1.5, 0.5 and 0.3 sides: rates of ln(100) / 1.5 to ln(100) / 0.3.
        rate = torch.linspace(4.60517 / 1.5, 4.60517 / 0.3, 3)
        expected = raw * torch.exp(-(t[1] + t[3]) * rate)
        torch.testing.assert_close(made()[:, 1, 3], expected[0])
        product = ImplicitFilter(3, 5, 8, "standard", joint=False, sqrt=False)
        kernel = product()
        torch.testing.assert_close(
            kernel[:, 1, 3] * kernel[:, 2, 4], kernel[:, 1, 4] * kernel[:, 2, 3]
        )


def test_all_sines_share_one_frequency() -> None:
    made = ImplicitFilter(3, 5, 8, "standard", joint=False, sqrt=False)
    names = [name for name in made.state_dict() if name.endswith("freq")]
    assert len(names) == 6
    assert sum(name.endswith("freq") for name, _ in made.named_parameters()) == 1


@pytest.mark.parametrize("window", ["standard", "learn", "symettric", "no"])
def test_windows_fall_from_the_corner(window: Any) -> None:
    decay = Decay(2, window, joint=True)
    with torch.inference_mode():
        factor = decay(torch.linspace(0, 1, 4)[None, :, None])
    if window == "no":
        assert factor == 1
    else:
        assert (factor[0, :-1, :-1] >= factor[0, 1:, 1:]).all()
        assert (factor[0, 0, 0] > factor[0, 1, 1]).all()


def _seen(operator: Hyena2d, position: int) -> torch.Tensor:
    """Return which of the 5x5 positions the output at `position` depends on."""
    x = torch.randn(1, 25, 6, requires_grad=True)
    operator(x)[0, position].sum().backward()
    assert x.grad is not None
    return (x.grad[0].abs().sum(-1) > 1e-9).reshape(5, 5)


def test_directions() -> None:
    # The short filter looks one position in all directions, the long one up and left (`seq`: down and right).
    corner = torch.zeros(5, 5, dtype=torch.bool)
    corner[:2, :2] = True
    assert torch.equal(_seen(_operator(), 0), corner)
    assert _seen(_operator(direction="seq"), 0).all()
    assert _seen(_operator(), 24).all()
    assert _seen(_operator(direction="4dir"), 0).all()


@pytest.mark.parametrize("direction", ["4dirp", "parallel"])
@pytest.mark.parametrize("changes", [{"free_kernel": True}, {"joint_filter": False, "order": 3}])
def test_other_switches_keep_the_shape_and_a_batch_equals_its_items(
    direction: str, changes: dict[str, Any]
) -> None:
    operator = _operator(direction=direction, **changes)
    x = torch.randn(3, 25, 6)
    with torch.inference_mode():
        together = operator(x)
        assert together.shape == x.shape
        torch.testing.assert_close(operator(x[1:2])[0], together[1], atol=1e-5, rtol=1e-4)


def test_checkpoints_of_the_training_script() -> None:
    config = HYENA.config("deit-tiny")
    official = {f"module.{n}": torch.empty(s, device="meta") for n, s in GOLDEN.state}
    with torch.device("meta"):
        network = HYENA.network(config)
    state = HYENA.translate({"model": official, "optimizer": {}, "epoch": 3}, config)
    assert {n: t.shape for n, t in state.items()} == {
        n: t.shape for n, t in network.state_dict().items()
    }
    assert sum(p.numel() for p in network.parameters()) == 6_042_400


def test_half_of_the_blocks_of_the_hybrid_attend() -> None:
    with torch.device("meta"):
        network = HYENA.network(HYENA.config("deit-small-hybrid"))
    kinds = [isinstance(block.attn, Hyena2d) for block in network.blocks]
    assert kinds == [True] * 7 + [False] * 5


def test_attributes_of_faces_do_not_exclude_each_other() -> None:
    assert len(CELEBA) == len(set(CELEBA)) == 40
    card = HYENA.card("deit-tiny-celeba", weights=WeightsRecord(kind="random"))
    assert (card.activation, card.thresholds["Smiling"]) == ("sigmoid", 0.5)
    assert HYENA.card("deit-tiny", weights=WeightsRecord(kind="random")).activation == "softmax"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pixels_are_normalised_and_scores_sum_to_1(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = HYENA.network(HYENA.config("demo")).eval()
    assert sum(p.numel() for p in network.parameters()) <= 524_288
    pixels = np.random.default_rng(1).integers(0, 256, (2, 3, 64, 64), dtype=np.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    image = (torch.tensor(pixels) / 255 - mean[:, None, None]) / std[:, None, None]
    with torch.inference_mode():
        expected = network(image).softmax(-1)
    card = HYENA.card("demo", weights=WeightsRecord(kind="random"))
    served = HYENA.serve(network, card, Device("cpu", dtype), Path())
    assert isinstance(served, Predictor)
    tolerance = 1e-5 if dtype is torch.float32 else 0.02
    np.testing.assert_allclose(
        served.predict({"IMAGE": pixels})["SCORES"], expected, atol=tolerance
    )


def test_preprocessing_is_deits() -> None:
    image = HYENA.variants["deit-tiny"].image
    assert image is not None
    assert (image.resize_to, image.width, image.interpolation) == (256, 224, "bicubic")

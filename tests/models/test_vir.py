"""ViR: the three forms of retention, names of checkpoints, sizes and pre-processing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.classification import vir
from models.registry import architecture
from tests.fidelity.golden import Golden

VIR = architecture("vir")
GOLDEN = Golden.read(Path(__file__).parents[1] / "golden" / "vir-small-patch16-224.json")


def _heads() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    stream = torch.Generator().manual_seed(3)
    q, k, v = torch.randn(3, 2, 4, 11, 8, generator=stream)
    return q, k, v


def test_rates_run_from_one_32nd_to_one_512th() -> None:
    rates = vir.decay_rates(3)
    torch.testing.assert_close(rates, torch.tensor([1 - 1 / 32, 1 - 1 / 128, 1 - 1 / 512]))


def test_mask_by_hand() -> None:
    mask = vir.decay_mask(torch.tensor([0.5]), 3)
    expected = torch.tensor([[[1.0, 0.0, 0.0], [0.5, 1.0, 0.0], [0.25, 0.5, 1.0]]])
    torch.testing.assert_close(mask, expected)


@pytest.mark.parametrize("chunk", [1, 4, 11, 16])
def test_chunkwise_equals_recurrent_and_the_decayed_sum(chunk: int) -> None:
    q, k, v = _heads()
    rates = vir.decay_rates(4)
    expected = torch.zeros_like(v)
    for i in range(11):
        for j in range(i + 1):
            score = (q[:, :, i] * k[:, :, j]).sum(-1) * rates ** (i - j)
            expected[:, :, i] += score[..., None] * v[:, :, j]
    torch.testing.assert_close(vir.recurrent(q, k, v, rates), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(vir.chunkwise(q, k, v, rates, chunk), expected, atol=1e-5, rtol=1e-4)


def test_later_tokens_keep_the_weight_of_score_0_in_the_parallel_form() -> None:
    q, k, v = _heads()
    first = vir.parallel(q, k, v, vir.decay_rates(4))[:, :, 0]
    own = (q[:, :, 0] * k[:, :, 0]).sum(-1, keepdim=True).exp()
    expected = (own * v[:, :, 0] + v[:, :, 1:].sum(2)) / (own + 10)
    torch.testing.assert_close(first, expected, atol=1e-5, rtol=1e-4)


def test_class_token_comes_last_and_sees_the_patches_in_their_order() -> None:
    torch.manual_seed(0)
    network = VIR.network(VIR.config("demo") | {"mode": "chunkwise", "chunk": 16}).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        tokens = network.tokens(image)
        image[:, :, -8:, -8:] += 1
        changed = network.tokens(image)
    assert tokens.shape == (1, 65, 96)
    torch.testing.assert_close(changed[:, :63], tokens[:, :63])
    assert (changed[:, 63:] - tokens[:, 63:]).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("key", ["state_dict", "state_dict_ema", "model"])
def test_checkpoints_of_the_training_script(key: str) -> None:
    config = VIR.config("small-patch16-224")
    official = {f"module.{n}": torch.empty(s, device="meta") for n, s in GOLDEN.state}
    with torch.device("meta"):
        network = VIR.network(config)
    state = VIR.translate({key: official, "epoch": 3}, config)
    assert {n: t.shape for n, t in state.items()} == {
        n: t.shape for n, t in network.state_dict().items()
    }


def test_averaged_weights_come_first_and_positions_are_resized() -> None:
    config = VIR.config("demo")
    checkpoint = {
        "state_dict": {"pos_embed": torch.zeros(1, 16, 96)},
        "state_dict_ema": {"pos_embed": torch.ones(1, 16, 96)},
    }
    torch.testing.assert_close(
        VIR.translate(checkpoint, config)["pos_embed"], torch.ones(1, 64, 96)
    )


@pytest.mark.parametrize(
    ("variant", "millions"),
    [
        ("small-patch16-224", 22.06),
        ("base-patch16-224", 86.6),
        ("large-patch16-224-recurrent", 304.4),
        ("large-patch14-224-chunkwise", 304.2),
    ],
)
def test_parameter_counts(variant: str, millions: float) -> None:
    with torch.device("meta"):
        network = VIR.network(VIR.config(variant))
    count = sum(p.numel() for p in network.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.06)


def test_preprocessing_is_that_of_the_authors_code() -> None:
    image = VIR.variants["base-patch16-224"].image
    assert image is not None
    assert (image.resize_to, image.width, image.interpolation) == (248, 224, "bicubic")
    assert image.mean == image.std == (0.5, 0.5, 0.5)

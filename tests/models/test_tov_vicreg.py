"""TOV-VICReg: positions for frames, the order task, names of checkpoints, pre-processing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models.embedding.tov_vicreg import TOVVICReg
from models.layers.dino_vit import DinoViT
from models.registry import architecture
from models.serving import Device, Predictor
from service.triton.cards import WeightsRecord

TOV = architecture("tov-vicreg")
GOLDEN = Path(__file__).parents[1] / "golden" / "tov-vicreg-vit-tiny-p8-84.json"


def _parameters(variant: str, **changes: object) -> int:
    with torch.device("meta"):
        network = TOV.network(TOV.config(variant) | changes)
    return sum(p.numel() for p in network.parameters())


def _encoder(table_size: int = 224, dim: int = 6) -> DinoViT:
    torch.manual_seed(0)
    return DinoViT(table_size=table_size, patch_size=8, dim=dim, depth=1, heads=2).eval()


def test_parameter_counts_are_the_published_ones() -> None:
    assert round(_parameters("tiny-patch8") / 1e6, 2) == 5.53
    assert round(_parameters("small-patch8") / 1e6, 1) == 21.7
    assert _parameters("tiny-patch8", projection=(1024, 1024, 1024)) == 7_827_201


def test_demo_network_is_small() -> None:
    # One MiB in half precision.
    assert _parameters("demo") <= 524_288


def test_positions_are_sampled_where_the_released_factor_puts_them() -> None:
    encoder = _encoder()
    # A table that tells its own column: bicubic interpolation all but keeps straight lines inside.
    columns = torch.arange(28.0).repeat(28).view(1, 784, 1).expand(1, 784, 6)
    encoder.pos_embed.data = torch.cat((torch.full((1, 1, 6), 99.0), columns), dim=1)
    with torch.inference_mode():
        table = encoder.positions(84, 84)
    assert table.shape == (1, 101, 6)
    assert (table[:, 0] == 99.0).all()
    row = table[0, 1:, 0].view(10, 10)[4]
    for j in range(1, 9):
        assert row[j] == pytest.approx((j + 0.5) * 28 / 10.1 - 0.5, abs=0.05)
    # With the size itself in place of the factor it would be 28 / 10.
    assert row[8] < 8.5 * 2.8 - 0.5 - 0.15
    assert torch.equal(encoder.positions(224, 224), encoder.pos_embed)


def test_pixels_beyond_the_last_whole_patch_are_not_looked_at() -> None:
    encoder = _encoder()
    frames = torch.rand(1, 3, 84, 84)
    changed = frames.clone()
    changed[..., 80:, :] = 0
    changed[..., 80:] = 0
    with torch.inference_mode():
        assert torch.equal(encoder(frames), encoder(changed))
        assert encoder.represent(frames)[1].shape == (1, 10, 10, 6)


def test_the_order_is_judged_as_now_before_after() -> None:
    network = TOVVICReg(_encoder(dim=2), (4, 4, 3)).eval()
    layer = network.temporal_order_predictor[0]
    layer.weight.data = torch.tensor([[1.0, 1.0, 10.0, 10.0, 100.0, 100.0]])
    layer.bias.data.zero_()
    now, before, after = (torch.full((1, 2), value) for value in (1.0, 2.0, 3.0))
    assert network.disorder(now, before, after).item() == 2 * (1 + 20 + 300)


def test_the_encoder_is_taken_out_of_every_known_checkpoint() -> None:
    whole = {
        name: torch.empty(shape, device="meta")
        for name, shape in json.loads(GOLDEN.read_text())["state"]
    }
    encoder = {
        name.removeprefix("backbone."): value
        for name, value in whole.items()
        if name.startswith("backbone.")
    }
    config = TOV.config("tiny-patch8")
    with torch.device("meta"):
        wanted = {n: t.shape for n, t in TOV.network(config).state_dict().items()}
    head = {"head.weight": torch.empty(2, 192)}

    def prefixed(prefix: str) -> dict[str, torch.Tensor]:
        return {f"{prefix}{name}": value for name, value in (encoder | head).items()}

    for checkpoint in (
        encoder,
        whole,
        encoder | head,
        {"student": {}, "teacher": prefixed("backbone.") | {"head.mlp.0.weight": torch.empty(1)}},
        {
            "state_dict": prefixed("module.base_encoder.")
            | prefixed("module.momentum_encoder.")
            | {"module.predictor.0.weight": torch.empty(1)}
        },
        prefixed("vit."),
        prefixed("encoder."),
    ):
        translated = TOV.translate(checkpoint, config)
        assert {n: t.shape for n, t in translated.items()} == wanted


def test_frames_are_grey_channels_from_0_to_1() -> None:
    card = TOV.card("demo", weights=WeightsRecord(kind="random"))
    assert card.image is not None
    assert (card.image.height, card.image.width, card.image.colour) == (84, 84, "L")
    assert card.clip is not None
    assert card.clip.frames == 3
    network = TOV.network(TOV.config("demo")).eval()
    served = TOV.serve(network, card, Device(), Path())
    assert isinstance(served, Predictor)
    frames = np.random.default_rng(1).integers(0, 256, (2, 3, 84, 84), dtype=np.uint8)
    with torch.inference_mode():
        token, _ = network.represent(torch.tensor(frames / 255, dtype=torch.float32))
    answer = served.predict({"IMAGE": frames})
    np.testing.assert_allclose(answer["EMBEDDING"], token, atol=1e-5)


def test_a_network_that_judges_the_order_is_taken_without_its_projector() -> None:
    whole = TOV.network(TOV.config("tiny-patch16") | {"projection": (32, 32, 16)})
    config = TOV.config("tiny-patch16-order")
    network = TOV.network(config)
    network.load_state_dict(TOV.translate(whole.state_dict(), config))
    assert not any(name.startswith("projector.") for name in network.state_dict())


def test_what_is_served_tells_the_order() -> None:
    torch.manual_seed(0)
    card = TOV.card("tiny-patch16-order", weights=WeightsRecord(kind="random"))
    network = TOV.network(TOV.config("tiny-patch16-order")).eval()
    served = TOV.serve(network, card, Device(), Path())
    stream = np.random.default_rng(0)
    before, now, after = stream.integers(0, 256, (3, 2, 3, 84, 84), dtype=np.uint8)
    answer = served.predict({"IMAGE": now, "BEFORE": before, "AFTER": after})
    vectors = [served.predict({"IMAGE": frames}) for frames in (now, before, after)]
    assert all(vector.keys() == {"EMBEDDING"} for vector in vectors)
    np.testing.assert_array_equal(answer["EMBEDDING"], vectors[0]["EMBEDDING"])
    with torch.inference_mode():
        logit = network.disorder(*(torch.from_numpy(v["EMBEDDING"]) for v in vectors))
    np.testing.assert_allclose(answer["IN_ORDER"], (-logit).sigmoid().numpy(), atol=1e-6)
    swapped = served.predict({"IMAGE": now, "BEFORE": after, "AFTER": before})
    assert np.abs(swapped["IN_ORDER"] - answer["IN_ORDER"]).min() > 1e-5

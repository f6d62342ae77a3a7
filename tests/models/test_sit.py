"""SiT: both networks, their heads, names of published checkpoints, pre-processing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.registry import architecture
from models.serving import Device, Predictor
from service.triton.cards import WeightsRecord

SIT = architecture("sit")
GOLDEN = Path(__file__).parents[1] / "golden"

SMALL: dict[str, Any] = {
    "form": 2022,
    "image_size": 32,
    "patch_size": 8,
    "dim": 12,
    "depth": 1,
    "heads": 2,
    "head": None,
}


def _parameters(config: dict[str, Any]) -> int:
    with torch.device("meta"):
        network = SIT.network(config)
    return sum(p.numel() for p in network.parameters())


def _official(file: str) -> dict[str, torch.Tensor]:
    state = json.loads((GOLDEN / file).read_text())["state"]
    return {name: torch.empty(shape, device="meta") for name, shape in state}


@pytest.mark.parametrize(("variant", "millions"), [("tiny", 5.5), ("small", 21.7), ("base", 85.8)])
def test_parameter_counts_round_to_the_published_ones(variant: str, millions: float) -> None:
    assert round(_parameters(SIT.config(variant)) / 1e6, 1) == millions


def test_the_whole_networks_have_the_published_number_of_parameters() -> None:
    # Without the three weights of the losses.
    first = SIT.config("base-2021") | {"head": "pretraining", "out_dim": 512}
    assert _parameters(first) == 86_786_826 - 3
    second = SIT.config("small") | {"head": "pretraining", "hidden_dim": 4096, "out_dim": 256}
    assert _parameters(second) == 41_827_587


def test_demo_network_is_small() -> None:
    # One MiB in half precision.
    assert _parameters(SIT.config("demo")) <= 524_288


def test_a_patch_is_restored_from_its_own_token() -> None:
    torch.manual_seed(0)
    config = SMALL | {"head": "pretraining", "hidden_dim": 16, "out_dim": 4}
    restore = SIT.network(config).eval().head_recons
    features = torch.randn(1, 4, 4, 12)
    changed = features.clone()
    changed[0, 1, 2] += 1.0
    with torch.inference_mode():
        different = (restore(features) != restore(changed)).any(1)[0]
    rows, columns = different.nonzero().unbind(1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 15, 16, 23)


def test_the_classifier_sees_the_class_token_and_the_mean_of_the_patches() -> None:
    torch.manual_seed(0)
    network = SIT.network(SMALL | {"head": "classes", "num_classes": 3}).eval()
    image = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        token, features = network.represent(image)
        both = torch.cat((token, features.sum((1, 2)) / 16), dim=1)
        hidden = nn.functional.gelu(network.head[0](both))
        torch.testing.assert_close(network(image), network.head[2](hidden))


def test_the_classifier_of_2021_averages_its_two_tokens() -> None:
    torch.manual_seed(0)
    config = SMALL | {"form": 2021, "head": "classes", "num_classes": 3, "representation_size": 7}
    network = SIT.network(config).eval()
    image = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        tokens = network.tokens(image)
        turned = network.rot_head(network.pre_logits_rot.fc(tokens[:, 0]).tanh())
        contrast = network.contrastive_head(network.pre_logits_contrastive.fc(tokens[:, 1]).tanh())
        torch.testing.assert_close(network(image), 0.5 * turned + 0.5 * contrast)


def test_the_encoder_is_taken_out_of_a_checkpoint_of_2022() -> None:
    pretrained = _official("sit-vit-small-pretrain.json")
    config = SIT.config("small")
    with torch.device("meta"):
        wanted = SIT.network(config).state_dict().keys()
    wrapped = {f"module.{name}": value for name, value in pretrained.items()}
    other = {name: value.clone() for name, value in wrapped.items()}
    for checkpoint in (
        {"student": other, "teacher": wrapped, "epoch": 800},
        {"student": wrapped},
        {"model": _official("sit-vit-small-classify.json")},
    ):
        assert SIT.translate(checkpoint, config).keys() == wanted
    taken = SIT.translate({"student": other, "teacher": wrapped}, config)
    assert taken["norm.weight"] is pretrained["backbone.norm.weight"]


def test_the_encoder_is_taken_out_of_a_checkpoint_of_2021() -> None:
    config = SIT.config("base-2021")
    with torch.device("meta"):
        wanted = {n: t.shape for n, t in SIT.network(config).state_dict().items()}
    official = _official("sit-2021-base-ssl.json")
    translated = SIT.translate({"model": official, "epoch": 500}, config)
    assert {n: t.shape for n, t in translated.items()} == wanted


def test_positions_of_2021_are_resized_when_loaded() -> None:
    table = torch.arange(18.0).view(1, 18, 1).expand(1, 18, 12)
    config = SMALL | {"form": 2021, "image_size": 64}
    resized = SIT.translate({"pos_embed": table}, config)["pos_embed"]
    assert resized.shape == (1, 66, 12)
    assert torch.equal(resized[:, :2], table[:, :2])
    assert resized[0, 2:, 0].mean() == pytest.approx(table[0, 2:, 0].mean().item(), abs=1e-4)


def test_pixels_are_normalised_as_in_training() -> None:
    for variant in ("small", "base-2021"):
        image = SIT.variants[variant].image
        assert image is not None
        assert (image.height, image.resize, image.resize_to) == (224, "shorter-side", 256)
        assert image.interpolation == "bicubic"
    torch.manual_seed(0)
    network = SIT.network(SIT.config("demo")).eval()
    card = SIT.card("demo", weights=WeightsRecord(kind="random"))
    served = SIT.serve(network, card, Device(), Path())
    assert isinstance(served, Predictor)
    pixels = np.random.default_rng(1).integers(0, 256, (2, 3, 64, 64), dtype=np.uint8)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    image = (pixels / 255 - mean[:, None, None]) / std[:, None, None]
    with torch.inference_mode():
        token, features = network.represent(torch.tensor(image, dtype=torch.float32))
    answer = served.predict({"IMAGE": pixels, "DENSE": np.ones((2, 1), np.int32)})
    np.testing.assert_allclose(answer["EMBEDDING"], token, atol=1e-5)
    np.testing.assert_allclose(answer["FEATURES"], features, atol=1e-5)
    assert answer["FEATURES"].shape == (2, 8, 8, 96)

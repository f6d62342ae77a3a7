"""T-TAME: the branch by hand, which layers it looks at, official checkpoints, and what is served."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models.explanation.t_tame import AttentionBranch, ExplainedClassifier, TokensToMaps
from models.registry import architecture
from models.serving import Device, InvalidInput, Predictor
from models.weights.fit import closest, fit
from service.triton.cards import WeightsRecord

TTAME = architecture("t-tame")
GOLDEN = Path(__file__).parents[1] / "golden"


def test_the_branch_by_hand() -> None:
    branch = AttentionBranch([1, 1], num_classes=2).eval()
    with torch.no_grad():
        for conv, gain in zip(branch.convs, (2.0, -3.0), strict=True):
            conv.weight.fill_(gain)
            conv.bias.fill_(0.5)
        branch.fuser.weight.copy_(torch.tensor([[1.0, 0.0], [10.0, 1.0]])[..., None, None])
        branch.fuser.bias.copy_(torch.tensor([0.0, 100.0]))
    first = torch.tensor([[[[1.0, -1.0], [0.0, 2.0]]]])
    second = torch.tensor([[[[-4.0]]]])
    maps = branch([first, second])
    norm = (1 + 1e-5) ** -0.5
    # relu(norm (2 x + 0.5) + x), and the one value of the smaller map everywhere.
    one = torch.tensor([[2.5 * norm + 1, 0.0], [0.5 * norm, 4.5 * norm + 2]])
    two = max(0.0, 12.5 * norm - 4)
    torch.testing.assert_close(maps[0, 0], one)
    torch.testing.assert_close(maps[0, 1], 10 * one + two + 100)
    wanted = branch.of_class(
        [first.repeat(2, 1, 1, 1), second.repeat(2, 1, 1, 1)], torch.tensor([1, 0])
    )
    torch.testing.assert_close(wanted, torch.stack([maps[0, 1], maps[0, 0]]))


def test_maps_are_as_high_as_the_first_one_and_56_at_most() -> None:
    branch = AttentionBranch([2, 3], num_classes=4).eval()
    large = [torch.randn(1, 2, 112, 112), torch.randn(1, 3, 7, 7)]
    assert branch(large).shape == (1, 4, 56, 56)
    small = [torch.randn(1, 2, 7, 7), torch.randn(1, 3, 14, 14)]
    assert branch(small).shape == (1, 4, 7, 7)


def test_tokens_lie_in_rows_and_may_be_weighed_by_the_class_token() -> None:
    tokens = torch.tensor([[[2.0, 3.0], [1, 10], [2, 20], [3, 30], [4, 40]]])  # 1, 1 + 4, 2
    (plain,) = TokensToMaps(times_class_token=False)([tokens])
    assert plain.tolist() == [[[[1, 2], [3, 4]], [[10, 20], [30, 40]]]]
    (weighed,) = TokensToMaps(times_class_token=True)([tokens])
    assert weighed.tolist() == [[[[2, 4], [6, 8]], [[30, 60], [90, 120]]]]


def _demo() -> ExplainedClassifier:
    torch.manual_seed(0)
    network = TTAME.network(TTAME.config("demo")).eval()
    assert isinstance(network, ExplainedClassifier)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return network


@torch.no_grad()
def test_vit_layers_are_the_norms_before_attention() -> None:
    network = _demo()
    image = torch.randn(1, 3, 64, 64)
    _, features = network.features(image)
    body = network.body
    x = torch.cat([body.class_token, body._process_input(image)], 1) + body.encoder.pos_embedding
    normed = []
    for block in body.encoder.layers:
        normed.append(block.ln_1(x))
        x = block(x)
    for feature, expected in zip(features, normed[-3:], strict=True):
        torch.testing.assert_close(feature, expected)


@torch.no_grad()
def test_the_map_of_one_class_is_one_of_all_maps() -> None:
    network = _demo()
    image = torch.randn(3, 3, 64, 64)
    logits, maps = network(image)
    assert maps.shape == (3, 36, 8, 8)
    again, chosen = network.explain(image, torch.tensor([5, -1, 35]))
    best = int(logits[1].argmax())
    torch.testing.assert_close(again, logits)
    expected = torch.stack([maps[0, 5], maps[1, best], maps[2, 35]])
    torch.testing.assert_close(chosen, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("variant", "parameters", "branch"),
    [
        ("vgg16", 140.2, 1.87),
        ("resnet50", 34.657808, 9.1),
        ("vit-b-16", 90.649040, 4.1),
        ("vit-b-16-class-token", 90.649040, 4.1),
    ],
)
def test_parameter_counts(variant: str, parameters: float, branch: float) -> None:
    with torch.device("meta"):
        network = TTAME.network(TTAME.config(variant))
    assert isinstance(network, ExplainedClassifier)
    total = sum(p.numel() for p in network.parameters()) / 1e6
    assert total == pytest.approx(parameters, abs=0.05)
    own = sum(p.numel() for p in network.attn_mech.parameters()) / 1e6
    assert own == pytest.approx(branch, abs=0.06)


def test_the_demo_network_is_small() -> None:
    assert sum(p.numel() for p in _demo().parameters()) <= 524_288


@pytest.mark.parametrize("variant", ["resnet50", "vit-b-16"])
def test_official_checkpoints_lose_their_wrappers(variant: str) -> None:
    state = json.loads((GOLDEN / f"t-tame-{variant}.json").read_text())["state"]
    official = {name: torch.empty(shape, device="meta") for name, shape in state}
    checkpoint = {
        "epoch": 7,
        "hyper_parameters": {"attention_version": "TAME", "model_name": variant},
        "state_dict": {f"generic.{name}": value for name, value in official.items()}
        | {
            f"generic.arrangement.{name}": value
            for name, value in official.items()
            if name.startswith("body.")
        },
    }
    config = TTAME.config(variant)
    with torch.device("meta"):
        wanted = TTAME.network(config).state_dict()
    translated = TTAME.translate(checkpoint, config)
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    assert translated.keys() == wanted.keys() - counters
    assert all(translated[name].shape == wanted[name].shape for name in translated)
    assert TTAME.translate(translated, config).keys() == translated.keys()


def test_a_file_of_the_other_kind_of_tokens_is_refused() -> None:
    checkpoint = {
        "hyper_parameters": {"attention_version": "TTAME"},
        "state_dict": {"generic.attn_mech.1.fuser.bias": torch.zeros(1000)},
    }
    with pytest.raises(ValueError, match="trained with TTAME, not TAME"):
        TTAME.translate(checkpoint, TTAME.config("vit-b-16"))
    assert TTAME.translate(checkpoint, TTAME.config("vit-b-16-class-token"))
    # In a convolutional network both are the same.
    assert TTAME.translate(checkpoint, TTAME.config("resnet50"))


def test_the_variant_that_a_file_belongs_to_is_found() -> None:
    state = json.loads((GOLDEN / "t-tame-vit-b-16.json").read_text())["state"]
    tensors = {f"generic.{name}": torch.empty(shape, device="meta") for name, shape in state}
    for attention, variant, other in (
        ("TAME", "vit-b-16", "vit-b-16-class-token"),
        ("TTAME", "vit-b-16-class-token", "vit-b-16"),
    ):
        file = {"hyper_parameters": {"attention_version": attention}, "state_dict": tensors}
        assert fit(TTAME, variant, [file]).exact
        assert not fit(TTAME, other, [file]).exact
        found = closest({"t-tame": TTAME}, [file])
        assert found is not None
        assert found.spec == f"t-tame:{variant}"


def test_pictures_are_those_of_torchvisions_evaluation() -> None:
    for name, variant in TTAME.variants.items():
        if not variant.demo:
            image = variant.image
            assert image is not None, name
            assert (image.resize, image.resize_to, image.interpolation) == (
                "shorter-side",
                256,
                "bilinear",
            )
            assert (image.height, image.width) == (224, 224)
    assert not TTAME.licence.commercial


def _served() -> Predictor:
    card = TTAME.card("demo", weights=WeightsRecord(kind="random"))
    served = TTAME.serve(_demo(), card, Device(), Path())
    assert isinstance(served, Predictor)
    return served


def test_what_is_served() -> None:
    served = _served()
    pixels = np.random.default_rng(1).integers(0, 256, (3, 3, 64, 64), dtype=np.uint8)
    answer = served.predict({"IMAGE": pixels})
    best = answer["SCORES"].argmax(1).astype(np.int32)[:, None]
    assert answer["HEATMAP"].shape == (3, 8, 8)
    assert (answer["HEATMAP"].min((1, 2)) == 0).all()
    np.testing.assert_allclose(answer["HEATMAP"].max((1, 2)), 1, atol=1e-6)
    assert answer["METHOD"].tolist() == [[b"t-tame"]] * 3
    named = served.predict({"IMAGE": pixels, "CLASS": best})
    np.testing.assert_array_equal(named["HEATMAP"], answer["HEATMAP"])
    for i in range(3):
        one = served.predict({"IMAGE": pixels[i : i + 1]})
        np.testing.assert_allclose(one["HEATMAP"][0], answer["HEATMAP"][i], atol=1e-4)
        np.testing.assert_allclose(one["SCORES"][0], answer["SCORES"][i], atol=1e-5)
    other = served.predict({"IMAGE": pixels, "CLASS": (best + 1) % 36})
    assert np.abs(other["HEATMAP"] - answer["HEATMAP"]).max() > 0.1


@pytest.mark.parametrize("wrong", [-2, 36])
def test_a_class_that_there_is_not(wrong: int) -> None:
    with pytest.raises(InvalidInput, match=f"class {wrong}: this model has classes 0 to 35"):
        _served().predict(
            {"IMAGE": np.zeros((1, 3, 64, 64), np.uint8), "CLASS": np.array([[wrong]], np.int32)}
        )

"""ConvNeXt: variants, names of published checkpoints, pre-processing and predictions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models.demo import shapes
from models.registry import architecture
from models.serving import Device, InvalidInput, Predictor
from service.triton.cards import WeightsRecord

CONVNEXT = architecture("convnext")
GOLDEN = Path(__file__).parents[1] / "golden" / "convnext-convnext_tiny-224.json"

# Every file in the authors' list of classification models.
PUBLISHED = {
    f"convnext_{name}.pth"
    for name in (
        *(f"{size}_1k_224_ema" for size in ("tiny", "small", "base", "large")),
        *("base_1k_384", "large_1k_384"),
        *(f"{size}_22k_224" for size in ("tiny", "small", "base", "large", "xlarge")),
        *(f"{s}_22k_1k_{r}" for s in ("tiny", "small", "base", "large") for r in (224, 384)),
        *("xlarge_22k_1k_224_ema", "xlarge_22k_1k_384_ema"),
        *(f"iso_{size}_1k_224_ema" for size in ("small", "base", "large")),
    )
}


def _parameters(variant: str) -> int:
    with torch.device("meta"):
        network = CONVNEXT.network(CONVNEXT.config(variant))
    return sum(p.numel() for p in network.parameters())


def test_every_published_file_has_one_variant() -> None:
    files = [s.url for v in CONVNEXT.variants.values() for s in v.sources]
    assert all(url.startswith("https://dl.fbaipublicfiles.com/convnext/") for url in files)
    assert sorted(url.rpartition("/")[2] for url in files) == sorted(PUBLISHED)


@pytest.mark.parametrize(
    ("variant", "parameters"),
    [
        ("tiny-1k-224", 28_589_128),
        ("small-1k-224", 50_223_688),
        ("base-22k-1k-384", 88_591_464),
        ("large-1k-384", 197_767_336),
        ("xlarge-22k-1k-224", 350_196_968),
    ],
)
def test_parameter_counts_are_the_published_ones(variant: str, parameters: int) -> None:
    assert _parameters(variant) == parameters


@pytest.mark.parametrize(
    ("variant", "millions"),
    [("isotropic-small", 22.3), ("isotropic-base", 87.1), ("isotropic-large", 305.9)],
)
def test_isotropic_parameter_counts_round_to_the_published_ones(
    variant: str, millions: float
) -> None:
    assert round(_parameters(variant) / 1e6, 1) == millions


def test_demo_network_is_small() -> None:
    # One MiB in half precision.
    assert _parameters("demo") <= 524_288
    assert CONVNEXT.variants["demo"].labels == shapes.LABELS


def test_input_of_each_resolution() -> None:
    for name, variant in CONVNEXT.variants.items():
        image = variant.image
        assert image is not None
        if variant.demo:
            continue
        size = 384 if name.endswith("384") else 224
        assert (image.height, image.width, image.interpolation) == (size, size, "bicubic")
        expected = ("squash", None) if size == 384 else ("shorter-side", 256)
        assert (image.resize, image.resize_to) == expected


def test_labels_are_imagenets() -> None:
    labels = CONVNEXT.variants["tiny-1k-224"].labels
    assert len(labels) == 1000
    assert (labels[0], labels[207], labels[999]) == (
        "tench, Tinca tinca",
        "golden retriever",
        "toilet tissue, toilet paper, bathroom tissue",
    )
    assert len(CONVNEXT.variants["tiny-22k"].labels) == 21_841


def test_classes_follow_the_labels() -> None:
    assert CONVNEXT.config("tiny-1k-224", 7)["num_classes"] == 7


def test_official_names_become_the_networks_names() -> None:
    official = {
        name: torch.empty(shape, device="meta")
        for name, shape in json.loads(GOLDEN.read_text())["state"]
    }
    config = CONVNEXT.config("tiny-1k-224")
    with torch.device("meta"):
        wanted = {n: t.shape for n, t in CONVNEXT.network(config).state_dict().items()}
    for checkpoint in ({"model": official}, official, {"model": official, "epoch": 299}):
        translated = CONVNEXT.translate(checkpoint, config)
        assert {n: t.shape for n, t in translated.items()} == wanted
    assert CONVNEXT.translate(translated, config).keys() == wanted.keys()


def _served(variant: str, device: Device | None = None) -> Predictor:
    card = CONVNEXT.card(variant, weights=WeightsRecord(kind="random"))
    torch.manual_seed(0)
    network = CONVNEXT.network(CONVNEXT.config(variant)).eval()
    with torch.no_grad():
        # As initialised all answers are nearly equal.
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    served = CONVNEXT.serve(network, card, device or Device(), Path())
    assert isinstance(served, Predictor)
    return served


def _pixels(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 3, 64, 64), dtype=np.uint8)


def test_pixels_are_normalised_as_in_training() -> None:
    served = _served("demo")
    pixels = _pixels(2)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    image = (pixels / 255 - mean[:, None, None]) / std[:, None, None]
    with torch.inference_mode():
        logits = served.graph.network(torch.tensor(image, dtype=torch.float32)).double()
    expected = logits.exp() / logits.exp().sum(1, keepdim=True)
    np.testing.assert_allclose(served.predict({"IMAGE": pixels})["SCORES"], expected, atol=1e-5)


def test_batch_equals_single() -> None:
    served = _served("demo")
    pixels = _pixels(5)
    pixels.flags.writeable = False
    scores = served.predict({"IMAGE": pixels})["SCORES"]
    assert scores.shape == (5, len(shapes.LABELS))
    assert scores.dtype == np.float32
    assert np.ptp(scores, axis=0).max() > 1e-3
    for i in range(5):
        one = served.predict({"IMAGE": pixels[i : i + 1]})["SCORES"]
        np.testing.assert_allclose(one[0], scores[i], atol=1e-5)


def test_bfloat16_stays_close() -> None:
    pixels = _pixels(8)
    exact = _served("demo").predict({"IMAGE": pixels})["SCORES"]
    rough = _served("demo", Device("cpu", torch.bfloat16)).predict({"IMAGE": pixels})["SCORES"]
    assert rough.dtype == np.float32
    np.testing.assert_allclose(rough, exact, atol=0.05)
    assert np.abs(rough - exact).max() > 0


def test_converted_weights_compute_what_autocast_computes() -> None:
    served = _served("demo", Device("cpu", torch.bfloat16))
    plain = _served("demo")
    pixels = _pixels(3)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        logits = plain.graph.network(plain.graph.normalise(pixels))
    scores = served.predict({"IMAGE": pixels})["SCORES"]
    np.testing.assert_allclose(scores, logits.float().softmax(1), atol=5e-3)


def test_other_size_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"\[3, 64, 64\]"):
        _served("demo").predict({"IMAGE": np.zeros((1, 3, 64, 65), np.uint8)})

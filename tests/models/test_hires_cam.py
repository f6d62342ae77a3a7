"""Evidence maps: by hand on a small network, the layer that is found, and every classifier that there is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from models.layers.classifier import Classifier
from models.layers.hires_cam import HiResCam, as_map, explained_layer
from models.registry import architecture, architectures
from models.serving import Device, InvalidInput, Predictor
from service.triton.cards import Task, WeightsRecord

CLASSIFIERS = [slug for slug, made in architectures().items() if made.task is Task.CLASSIFICATION]


class Pooled(nn.Module):
    """Mean colours of 8 x 8 pixels, their mean over the picture, one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.AvgPool2d(8))
        self.head = nn.Linear(3, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(image).mean((2, 3)))


def test_by_hand() -> None:
    network = Pooled()
    with torch.no_grad():
        network.head.weight.copy_(torch.tensor([[1.0, -1.0, 0.0], [0.0, 2.0, 1.0]]))
    image = torch.rand(5, 3, 32, 32)
    with torch.inference_mode():
        maps = HiResCam(network, network)(image, torch.tensor([0, 1, 0, 1, 0]))
    red, green, blue = nn.functional.avg_pool2d(image, 8).unbind(1)
    for i, evidence in enumerate((red - green, 2 * green + blue) * 2):
        expected = evidence[i].relu()
        torch.testing.assert_close(maps[i], expected / expected.max())


@torch.no_grad()
def test_evidence_sums_to_the_logit_where_averaging_follows() -> None:
    network = Pooled()
    image = torch.rand(2, 3, 32, 32)
    found = HiResCam(network, network)
    with torch.enable_grad():
        evidence = found._evidence(image.clone(), torch.tensor([1, 1])).sum((1, 2))
    torch.testing.assert_close(evidence, network(image)[:, 1] - network.head.bias[1])


def _vit(pool: str) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=12,
        depth=2,
        num_heads=2,
        num_classes=3,
        global_pool=pool,
    ).eval()


def test_with_a_class_token_the_norm_before_the_last_attention_is_found() -> None:
    network = _vit("token")
    assert explained_layer(network, network, torch.rand(1, 3, 32, 32)) is network.blocks[1].norm1


def test_with_a_mean_over_the_tokens_the_last_layer_is_found() -> None:
    network = _vit("avg")
    layer = explained_layer(network, network, torch.rand(1, 3, 32, 32))
    assert layer in (network.norm, network.blocks)


class Bypassed(Pooled):
    """Half of the features are added again behind the block."""

    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Sequential(nn.Conv2d(3, 3, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = self.features(image)
        return self.head((features / 2 + self.more(features)).mean((2, 3)))


def test_a_layer_that_is_bypassed_is_passed_over() -> None:
    network = Bypassed()
    assert explained_layer(network, network, torch.rand(1, 3, 32, 32)) is network.features


def test_a_network_without_maps_says_so() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(3 * 16 * 16, 4)))
    with pytest.raises(InvalidInput, match="no layer"):
        explained_layer(network, network, torch.rand(1, 3, 16, 16))


@pytest.mark.parametrize(
    ("shape", "view"),
    [
        ((2, 5, 8, 8), (2, 5, 8, 8)),
        ((2, 8, 8, 5), (2, 5, 8, 8)),
        ((2, 64, 5), (2, 5, 8, 8)),
        ((2, 65, 5), (2, 5, 8, 8)),
        ((2, 5, 64), (2, 5, 8, 8)),
        ((2, 5, 2, 2), None),
        ((2, 5, 64, 64), None),
        ((2, 5, 8, 4), None),
        ((2, 50, 5), None),
        ((2, 64), None),
    ],
)
def test_forms_of_outputs(shape: tuple[int, ...], view: tuple[int, ...] | None) -> None:
    found = as_map(torch.zeros(shape), torch.Size((64, 64)))
    assert (None if found is None else tuple(found.shape)) == view


def test_tokens_become_rows() -> None:
    tokens = torch.arange(17.0).view(1, 17, 1)
    found = as_map(tokens, torch.Size((16, 16)))
    assert found is not None
    assert found[0, 0, 0].tolist() == [1, 2, 3, 4]
    wide = as_map(torch.arange(32.0).view(1, 32, 1), torch.Size((16, 32)))
    assert wide is not None
    assert wide.shape == (1, 1, 4, 8)


@pytest.mark.parametrize("slug", CLASSIFIERS)
def test_every_classifier_can_be_asked(slug: str) -> None:
    made = architecture(slug)
    name = next(v.name for v in made.variants.values() if v.demo)
    card = made.card(name, weights=WeightsRecord(kind="random"))
    torch.manual_seed(0)
    network = made.network(made.config(name)).eval()
    with torch.no_grad():
        # As initialised some answers depend on the picture by less than rounding does.
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    served = made.serve(network, card, Device(), Path())
    assert isinstance(served, Predictor)
    if not isinstance(served, Classifier):
        pytest.skip("answers by itself")
    image = card.image
    assert image is not None
    size = (image.height or 64, image.width or 64)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, *size), dtype=np.uint8)[[0, 1] * 3]
    classes = np.array([[-1], [1], [2], [3], [4], [0]], np.int32)
    plain = served.predict({"IMAGE": pixels})
    answer = served.predict({"IMAGE": pixels, "CLASS": classes})
    assert answer.keys() == {"SCORES", "HEATMAP", "METHOD"}
    np.testing.assert_allclose(answer["SCORES"], plain["SCORES"], atol=1e-5)
    maps = answer["HEATMAP"]
    assert maps.dtype == np.float32
    assert maps.shape[0] == 6
    assert min(maps.shape[1:]) >= 4
    assert maps.min() >= 0
    # Of random weights everything may speak against one class, but not against all.
    assert maps.max() == pytest.approx(1)
    alone = served.predict({"IMAGE": pixels[3:4], "CLASS": classes[3:4]})
    np.testing.assert_allclose(alone["HEATMAP"][0], maps[3], atol=1e-3)

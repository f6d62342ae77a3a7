"""GMM-ViT: the mask by hand, the order inside patches, sizes and the authors' checkpoints."""

from __future__ import annotations

import math

import pytest
import torch

from models.classification.gmm_vit import GaussianMixtureMask, Tiles, closeness
from models.registry import architecture

GMM = architecture("gmm-vit")


def test_parameter_count_is_that_of_the_authors_code() -> None:
    with torch.device("meta"):
        network = GMM.network(GMM.config("cifar10"))
    assert sum(p.numel() for p in network.parameters()) == 2_693_122


def test_demo_network_is_small() -> None:
    network = GMM.network(GMM.config("demo"))
    assert sum(t.numel() for t in network.state_dict().values()) <= 524_288


def test_mask_of_two_gaussians_by_hand() -> None:
    mask = GaussianMixtureMask(kernels=2, heads=1)
    with torch.no_grad():
        mask.sigma.copy_(torch.tensor([1.0, -3.0]).view(2, 1, 1, 1))
        mask.alpha.copy_(torch.tensor([2.0, -0.5]).view(2, 1, 1, 1))
        weights = mask(closeness(2))
    near, far = (2 * math.exp(-d / 2) - 0.5 * math.exp(-d / 18) for d in (1, 2))
    expected = [[1.5, near, near, far], [near, 1.5, far, near]]
    assert weights.shape == (1, 4, 4)
    torch.testing.assert_close(weights[0, :2], torch.tensor(expected), atol=1e-4, rtol=0)


def test_widest_gaussian_does_not_reach_beyond_ten_places() -> None:
    table = closeness(16)
    assert table[0, 15] == 0
    mask = GaussianMixtureMask(kernels=1, heads=1)
    with torch.no_grad():
        mask.sigma.fill_(30)
        mask.alpha.fill_(1)
        weights = mask(table)[0, 0]
    assert weights[15] == 0
    assert weights[9] == pytest.approx(math.exp(-81 / 1800), abs=1e-4)


def test_channels_vary_fastest_inside_a_patch() -> None:
    image = torch.arange(2 * 4 * 6).view(1, 2, 4, 6)
    tiles = Tiles(2)(image)
    assert tiles.shape == (1, 6, 8)
    assert tiles[0, 4].tolist() == [14, 38, 15, 39, 20, 44, 21, 45]


@pytest.mark.parametrize(("variant", "tokens"), [("cifar10", 64), ("plain-cifar10", 65)])
def test_only_the_plain_network_has_a_class_token(variant: str, tokens: int) -> None:
    with torch.device("meta"):
        state = GMM.network(GMM.config(variant)).state_dict()
    assert state["pos_embedding"].shape == (1, tokens, 192)
    assert ("cls_token" in state) == (tokens == 65)
    network = GMM.network(GMM.config(variant)).eval()
    with torch.inference_mode():
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_distance_tables_of_a_checkpoint_are_dropped() -> None:
    config = GMM.config("demo")
    state = GMM.network(config).state_dict()
    tables = {"mask": torch.ones(1, 1, 64, 64)} | {
        f"transformer.layers.{i}.0.fn.mask.mask": torch.ones(1, 1, 64, 64)
        for i in range(config["depth"])
    }
    for checkpoint in (
        {"model_state_dict": state | tables, "epoch": 99},
        {f"module.{name}": value for name, value in (state | tables).items()},
    ):
        assert GMM.translate(checkpoint, config).keys() == state.keys()


def test_pictures_are_those_of_the_data_set() -> None:
    small, tiny = GMM.variants["svhn"].image, GMM.variants["plain-tiny-imagenet"].image
    assert small is not None
    assert tiny is not None
    assert (small.height, small.mean) == (32, (0.4377, 0.4438, 0.4728))
    assert (tiny.height, tiny.std) == (64, (0.2770, 0.2691, 0.2821))
    assert small.resize == "squash"
    assert small.interpolation == "bilinear"


def test_labels_are_in_the_order_of_the_data_sets() -> None:
    hundred = GMM.variants["cifar100"].labels
    assert len(hundred) == len(set(hundred)) == 100
    assert list(hundred) == sorted(hundred)
    assert "sweet pepper" in hundred
    assert GMM.variants["cifar10"].labels[3] == "cat"


@pytest.mark.parametrize(
    ("variant", "heads", "tokens"),
    [
        ("base-cifar10", 4, 256),
        ("base-tiny-imagenet", 4, 64),
        ("heat-svhn", 6, 256),
        ("heat-tiny-imagenet", 6, 256),
    ],
)
def test_grids_of_the_other_sizes(variant: str, heads: int, tokens: int) -> None:
    with torch.device("meta"):
        network = GMM.network(GMM.config(variant))
    assert network.pos_embedding.shape[1] == tokens
    (attention, _) = network.transformer.layers[0]
    assert attention.fn.mask.sigma.shape == (5, heads, 1, 1)
    assert attention.fn.to_out[0].in_features == network.pos_embedding.shape[2]

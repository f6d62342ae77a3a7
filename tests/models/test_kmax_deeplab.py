"""kMaX-DeepLab: the round of k-means, padding as in TensorFlow, merging of queries, names of checkpoints, variants."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from models.registry import architecture
from models.segmentation import _kmax_merging
from models.segmentation._kmax_merging import Masks, Merging, panoptic
from models.segmentation._kmax_network import assigned_sums
from models.segmentation._kmax_pixel_decoder import ConvNeXtFeatures
from models.segmentation.kmax_deeplab import UNUSED, official_to_own
from models.serving import Device
from service.media.images import to_model_input
from service.triton.cards import WeightsRecord

KMAX = architecture("kmax-deeplab")
GOLDEN = Path(__file__).parents[1] / "golden" / "kmax-deeplab-r50-coco.json"


def test_each_pixel_adds_to_the_query_that_suits_it_best_and_to_no_other() -> None:
    masks = torch.tensor(
        [[[[3.0, 0.0, 1.0]], [[2.0, 5.0, 0.0]], [[-1.0, -1.0, -1.0]]]]
    )  # 1, 3, 1, 3
    values = torch.tensor([[[[1.0, 10.0, 100.0]], [[2.0, 20.0, 200.0]]]])  # 1, 2, 1, 3
    expected = torch.tensor([[[101.0, 10.0, 0.0], [202.0, 20.0, 0.0]]])
    torch.testing.assert_close(assigned_sums(masks, values), expected)


def test_maps_of_convnext_start_at_the_corner_and_pads_become_the_norm_s_bias() -> None:
    torch.manual_seed(0)
    backbone = ConvNeXtFeatures((1, 1, 1, 1), (4, 4, 4, 4)).eval()
    norm, conv = backbone.stages[1].downsample
    torch.nn.init.normal_(norm.bias)
    with torch.inference_mode():
        maps = backbone(torch.randn(1, 3, 65, 33))
        assert [tuple(each.shape[2:]) for each in maps] == [
            (17, 9),
            (17, 9),
            (9, 5),
            (5, 3),
            (3, 2),
        ]
        # The last 2x2 window of an odd map holds one true position and three padded ones.
        window = norm.bias.view(4, 1, 1).repeat(1, 2, 2)
        window[:, 0, 0] = norm(maps[1])[0, :, -1, -1]
        down = backbone.stages[1].downsample(F.pad(maps[1], (0, 1, 0, 1)))
        torch.testing.assert_close(down[0, :, -1, -1], conv(window[None])[0, :, 0, 0])
        torch.testing.assert_close(backbone.stages[1].blocks(down), maps[2])


# Four queries on a picture of 1 x 6; each column of shares sums to one.
SHARES = torch.tensor(
    [
        [0.90, 0.90, 0.45, 0.05, 0.05, 0.01],
        [0.05, 0.05, 0.50, 0.05, 0.05, 0.01],
        [0.03, 0.03, 0.03, 0.85, 0.05, 0.01],
        [0.02, 0.02, 0.02, 0.05, 0.85, 0.97],
    ]
)


def _classes(rows: list[tuple[int, float]], count: int) -> torch.Tensor:
    """Return logits of queries whose class has this probability; the rest of it is "no object"."""
    logits = torch.full((len(rows), count + 1), -30.0)
    for query, (label, probability) in enumerate(rows):
        logits[query, label] = math.log(probability)
        logits[query, -1] = math.log(1 - probability)
    return logits


def _merged(
    rows: list[tuple[int, float]], settings: Merging
) -> tuple[list[int], list[tuple[int, int]]]:
    masks = Masks(SHARES.log()[:, None], (1, 6), (1, 6)).at((1, 6))
    made = panoptic(_classes(rows, 3), masks, settings, things=[0, 1])
    return made.mask[0].tolist(), [(id, label) for id, label, _ in made.segments]


def test_better_queries_come_first_and_stuff_of_a_class_is_one_segment() -> None:
    settings = Merging(thing=0.6, stuff=0.5, overlap=0.6)
    # Query 0 is the best but for 2 and 3 (both stuff); 1 has one pixel, which 0 holds too.
    rows = [(0, 0.9), (1, 0.95), (2, 0.9), (2, 0.8)]
    mask, segments = _merged(rows, settings)
    assert segments == [(1, 2), (2, 0)]
    assert mask == [2, 2, 2, 1, 1, 1]


def test_things_need_their_own_probability_and_most_of_their_pixels() -> None:
    # Things and stuff below their thresholds leave their pixels to nobody.
    rows = [(0, 0.55), (1, 0.95), (2, 0.55), (2, 0.45)]
    mask, segments = _merged(rows, Merging(thing=0.6, stuff=0.5))
    assert segments == [(1, 1), (2, 2)]
    assert mask == [0, 0, 1, 2, 0, 0]
    # Without the weight of masks the order is that of classes: 1 takes the pixel that 0 would have had too.
    rows = [(0, 0.9), (1, 0.95), (2, 0.4), (2, 0.4)]
    mask, segments = _merged(rows, Merging(thing=0.6, stuff=0.5, overlap=0.6, mask_weight=0))
    assert segments == [(1, 1), (2, 0)]
    assert mask == [2, 2, 1, 0, 0, 0]
    # Two thirds are not more than the overlap asked for now.
    mask, segments = _merged(rows, Merging(thing=0.6, stuff=0.5, overlap=0.7, mask_weight=0))
    assert segments == [(1, 1)]


def test_an_empty_scene_has_no_segments() -> None:
    mask, segments = _merged([(0, 0.1)] * 4, Merging(thing=0.6, stuff=0.5))
    assert segments == []
    assert set(mask) == {0}


@pytest.mark.parametrize("padded", [(33, 33), (32, 48)])
def test_bands_of_rows_are_those_of_two_interpolations(
    padded: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    logits, sent, size = torch.randn(5, 9, 12), (20, padded[1]), (30, padded[1] * 3 // 2)
    aligned = padded[1] % 2 == 1
    full = F.interpolate(logits[None], padded, mode="bilinear", align_corners=aligned)
    cut = full[:, :, : sent[0], : sent[1]]
    expected = F.interpolate(cut, size, mode="bilinear", align_corners=aligned)[0]
    masks = Masks(logits, sent, padded).at(size)
    rows = torch.cat([masks.rows(start, start + 7) for start in range(0, 28, 7)], 1)
    torch.testing.assert_close(rows, expected[:, :28], atol=1e-5, rtol=1e-5)
    whole = panoptic(torch.randn(5, 4), masks, Merging(0.1, 0.1), [0])
    monkeypatch.setattr(_kmax_merging, "_BAND_VALUES", 1)
    torch.manual_seed(0)
    torch.randn(5, 9, 12)
    banded = panoptic(torch.randn(5, 4), masks, Merging(0.1, 0.1), [0])
    assert torch.equal(whole.mask, banded.mask)
    assert len(whole.segments) == len(banded.segments) > 0


def test_official_names_become_the_network_s_names() -> None:
    state = {
        name: torch.empty(shape, device="meta")
        for name, shape in json.loads(GOLDEN.read_text())["state"]
    }
    config = KMAX.config("coco-r50")
    with torch.device("meta"):
        network = KMAX.network(config)
    wanted = {
        name: value.shape
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    # detectron2's wrapper: optimiser and schedule lie beside the weights.
    checkpoint = {"model": state | {"criterion.empty_weight": torch.ones(3)}, "iteration": 150_000}
    translated = KMAX.translate(checkpoint, config)
    assert {name: value.shape for name, value in translated.items()} == wanted
    assert KMAX.translate(translated, config).keys() == wanted.keys()
    used = sum(
        math.prod(value.shape)
        for name, value in state.items()
        if not name.startswith(UNUSED) and "running_" not in name
    )
    assert sum(p.numel() for p in network.parameters()) == used


@pytest.mark.parametrize(
    ("official", "own"),
    [
        ("downsample_layers.0.0.weight", "stem.0.weight"),
        ("downsample_layers.2.1.bias", "stages.2.downsample.1.bias"),
        ("stages.2.8.pwconv1.weight", "stages.2.blocks.8.mlp.fc1.weight"),
        ("stages.3.0.gamma", "stages.3.blocks.0.gamma"),
    ],
)
def test_names_of_convnext_become_timm_s(official: str, own: str) -> None:
    assert official_to_own(f"backbone.{official}") == f"backbone.{own}"
    assert official_to_own(f"backbone.{own}") == f"backbone.{own}"
    with torch.device("meta"):
        network = KMAX.network(KMAX.config("coco-convnext-tiny"))
    assert f"backbone.{own}" in network.state_dict()


def test_demo_network_is_small() -> None:
    with torch.device("meta"):
        network = KMAX.network(KMAX.config("demo"))
    # One MiB in half precision.
    assert sum(p.numel() for p in network.parameters()) <= 524_288


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("coco-r50", (961, 1281)),
        ("cityscapes-r50", (1025, 1367)),
        ("ade20k-convnext-large", (961, 1281)),
    ],
)
def test_pictures_fill_the_canvas_in_one_direction(name: str, sent: tuple[int, int]) -> None:
    image = KMAX.variants[name].image
    assert image is not None
    assert to_model_input(Image.new("RGB", (640, 480)), image).shape == (3, *sent)


def test_a_mask_has_the_size_asked_for_and_pads_have_no_say() -> None:
    torch.manual_seed(0)
    card = KMAX.card("demo", weights=WeightsRecord(kind="random"))
    network = KMAX.network(KMAX.config("demo")).eval()
    served = KMAX.serve(network, card, Device(), Path())
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 72, 96), np.uint8)
    answer = served.predict({"IMAGE": image, "SIZE": np.array([[36, 48]], np.int32)})  # type: ignore[union-attr]
    assert answer["MASK"][0].shape == (36, 48)
    (predicted,) = network.predict(torch.zeros(1, 3, 72, 96), [0])
    assert (predicted.masks.sent, predicted.masks.padded) == ((72, 96), (96, 96))

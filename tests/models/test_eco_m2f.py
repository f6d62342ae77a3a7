"""ECO-M2F: each picture of a batch leaves the encoder where its own gate says, merging of queries, names, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from models.registry import architecture
from models.segmentation._eco_m2f_network import EcoSegmenter
from models.segmentation._mask2former_merging import Masks, Merging, panoptic
from models.serving import Device, InvalidInput, Predictor
from service.triton.cards import WeightsRecord

ECO = architecture("eco-m2f")
GOLDEN = Path(__file__).parents[1] / "golden" / "eco-m2f-swint-coco.json"


@pytest.fixture(scope="module")
def network() -> EcoSegmenter:
    torch.manual_seed(0)
    made = ECO.network(ECO.config("demo")).eval()
    assert isinstance(made, EcoSegmenter)
    # As initialised, the layers of the encoder look at one place and change little.
    for layer in made.encoder.layers:
        torch.nn.init.normal_(layer.self_attn.sampling_offsets.weight, std=0.1)
    return made


def test_each_picture_of_a_batch_is_answered_at_its_own_depth(network: EcoSegmenter) -> None:
    torch.manual_seed(1)
    image = torch.randn(4, 3, 64, 96)
    depths = torch.tensor([6, 2, 4, 2])
    ran: list[int] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs: ran.append(len(inputs[0])))
        for layer in network.encoder.layers
    ]
    with torch.inference_mode():
        classes, masks, used = network(image, depths)
        for hook in hooks:
            hook.remove()
        alone = [network(image[k : k + 1], depths[k : k + 1]) for k in range(4)]
        full = network(image, torch.full((4,), 6))
    assert used.tolist() == depths.tolist()
    # Pictures that have left cost nothing more.
    assert ran == [4, 4, 2, 2, 1, 1]
    for k, (one_classes, one_masks, _) in enumerate(alone):
        torch.testing.assert_close(classes[k], one_classes[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(masks[k], one_masks[0], atol=1e-4, rtol=1e-4)
    assert torch.allclose(full[1][0], masks[0], atol=1e-4)
    assert not torch.allclose(full[1][1], masks[1], atol=1e-2)


def test_the_gate_judges_the_mean_of_the_coarsest_features(network: EcoSegmenter) -> None:
    torch.manual_seed(2)
    image = torch.randn(3, 3, 64, 64)
    gate = network.encoder.gate
    with torch.inference_mode():
        projected = network.pixel_level_module.decoder.input_projections[0](
            network.features(image)[-1]
        )
        tokens = projected.flatten(2).transpose(1, 2)  # 3, 4, 64
        expected = (tokens.sum(1) / 4 @ gate.weight.T + gate.bias).argmax(1) + 2
        *_, used = network(image)
        assert used.tolist() == expected.tolist()
        *_, used = network(image, torch.tensor([0, 5, 0]))
        assert used.tolist() == [expected[0], 5, expected[2]]


def test_depths_are_told_and_those_that_do_not_exist_refused(network: EcoSegmenter) -> None:
    card = ECO.card("demo", weights=WeightsRecord(kind="random"))
    served = ECO.serve(network, card, Device(), Path())
    assert isinstance(served, Predictor)
    image = np.random.default_rng(0).integers(0, 256, (2, 3, 40, 128), np.uint8)
    answer = served.predict({"IMAGE": image, "DEPTH": np.array([[3], [6]], np.int32)})
    assert [depth.tolist() for depth in answer["DEPTH_USED"]] == [[3], [6]]
    assert [mask.shape for mask in answer["MASK"]] == [(40, 128)] * 2
    with pytest.raises(InvalidInput, match="runs 2 to 6 layers"):
        served.predict({"IMAGE": image, "DEPTH": np.array([[3], [1]], np.int32)})


def test_segments_are_what_a_query_is_strongest_at_and_sure_of() -> None:
    # Probabilities of four queries at 1 x 6 pixels; the last one is "no object", 0 and 3 are stuff of one class.
    shares = torch.tensor(
        [
            [0.90, 0.90, 0.40, 0.10, 0.10, 0.10],
            [0.10, 0.10, 0.30, 0.90, 0.60, 0.60],
            [0.10, 0.10, 0.10, 0.10, 0.90, 0.90],
            [0.10, 0.10, 0.10, 0.10, 0.10, 0.10],
            [0.99, 0.99, 0.99, 0.99, 0.99, 0.99],
        ]
    )
    labels, scores = [2, 0, 2, 2, 3], [0.9, 0.95, 0.9, 0.9, 0.9]
    classes = torch.full((5, 4), -30.0)
    for query, (label, score) in enumerate(zip(labels, scores, strict=True)):
        classes[query, label] = math.log(score)
        classes[query, (label + 1) % 4] = math.log(1 - score)
    masks = Masks(shares.logit()[:, None], (1, 6), (1, 6))
    made = panoptic(classes, masks, (1, 6), Merging(), things=[0])
    # Query 1 would alone have three pixels and is left with one: it goes, and nobody gets that pixel. The third
    # pixel is query 0's, which is not sure of it.
    assert made.mask[0].tolist() == [1, 1, 0, 0, 1, 1]
    assert [(id, label) for id, label, _ in made.segments] == [(1, 2)]
    assert made.segments[0][2] == pytest.approx(0.9, abs=1e-4)
    kept = panoptic(classes, masks, (1, 6), Merging(overlap=0.3), things=[0])
    assert kept.mask[0].tolist() == [1, 1, 0, 2, 1, 1]
    nothing = panoptic(classes, masks, (1, 6), Merging(score=0.99), things=[0])
    assert nothing.mask[0].tolist() == [0] * 6
    assert not nothing.segments


def test_official_names_become_the_network_s_names() -> None:
    official = {
        name: torch.empty(shape, device="meta")
        for name, shape in json.loads(GOLDEN.read_text())["state"]
    }
    index = {"backbone.layers.0.blocks.0.attn.relative_position_index": torch.empty(49, 49)}
    config = ECO.config("coco-swin-tiny-0.02")
    with torch.device("meta"):
        wanted = {name: value.shape for name, value in ECO.network(config).state_dict().items()}
    loss = {"criterion.empty_weight": torch.ones(134)}
    translated = ECO.translate({"model": official | index | loss, "trainer": {}}, config)
    assert {name: value.shape for name, value in translated.items()} == wanted
    assert ECO.translate(translated, config).keys() == wanted.keys()


def test_weights_are_marked_as_not_for_commercial_use() -> None:
    for variant in ECO.variants.values():
        assert not ECO.terms(variant).commercial
    with torch.device("meta"):
        network = ECO.network(ECO.config("demo"))
    # One MiB in half precision.
    assert sum(p.numel() for p in network.parameters()) <= 524_288

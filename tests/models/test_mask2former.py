"""Mask2Former: names of published files, and segments by transformers' own rules."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import Mask2FormerImageProcessor

from models.registry import architecture
from models.segmentation.mask2former import Mask2Former, Queries, Rules, build

PAPER = architecture("mask2former")
CLASSES, QUERIES, THINGS = 5, 12, (0, 2)
SIZE = (50, 70)


def queries(seed: int) -> Queries:
    """Queries of one picture as of a trained network: sure of their classes, masks that are discs, some of which overlap."""
    stream = torch.Generator().manual_seed(seed)
    classes = 6 * torch.randn(QUERIES, CLASSES + 1, generator=stream)
    x, y = 24 * torch.rand(2, QUERIES, 1, 1, generator=stream)
    along = torch.arange(24.0)
    distance = ((along - x) ** 2 + (along[:, None] - y) ** 2).sqrt()
    return Queries(classes, 2 * (4.5 - distance), (384, 384))


def outputs(found: Queries) -> SimpleNamespace:
    return SimpleNamespace(
        class_queries_logits=found.classes[None], masks_queries_logits=found.masks[None]
    )


@pytest.mark.parametrize("seed", range(4))
def test_panoptic_segments_are_those_of_transformers(seed: int) -> None:
    """Nothing is joined here: where transformers joins stuff it may give a number twice."""
    everything = tuple(range(CLASSES))
    found = Rules(panoptic=True, things=everything).decide(queries(seed), SIZE)
    theirs = Mask2FormerImageProcessor().post_process_panoptic_segmentation(
        outputs(queries(seed)), label_ids_to_fuse=set(), target_sizes=[SIZE]
    )[0]
    assert len(found.segments) >= 3
    assert torch.equal(found.mask, theirs["segmentation"].int())
    assert [
        {"id": id, "label_id": label, "was_fused": False, "score": pytest.approx(score, abs=1e-5)}
        for id, label, score in found.segments
    ] == theirs["segments_info"]


@pytest.mark.parametrize("seed", range(4))
def test_stuff_is_joined_and_no_number_given_twice(seed: int) -> None:
    apart = Rules(panoptic=True, things=range(CLASSES)).decide(queries(seed), SIZE)
    joined = Rules(panoptic=True, things=THINGS).decide(queries(seed), SIZE)
    label_of = {0: -1} | {id: label for id, label, _ in joined.segments}
    stuff = [label for label in label_of.values() if label not in THINGS]
    assert len(stuff) == len(set(stuff))
    assert set(joined.mask.unique().tolist()) <= label_of.keys()
    # Each pixel keeps its class.
    for id, label, _ in apart.segments:
        assert {label_of[i] for i in joined.mask[apart.mask == id].unique().tolist()} == {label}


@pytest.mark.parametrize("seed", range(2))
def test_semantic_masks_are_those_of_transformers(seed: int) -> None:
    found = Rules().decide(queries(seed), SIZE)
    (theirs,) = Mask2FormerImageProcessor().post_process_semantic_segmentation(
        outputs(queries(seed)), target_sizes=[SIZE]
    )
    assert torch.equal(found.mask, theirs.int())


def test_a_picture_in_which_no_query_is_sure_has_no_segments() -> None:
    unsure = Queries(torch.zeros(QUERIES, CLASSES + 1), torch.ones(QUERIES, 4, 4), (8, 8))
    found = Rules(panoptic=True).decide(unsure, SIZE)
    assert found.segments == []
    assert not found.mask.any()


@torch.inference_mode()
def test_files_that_transformers_writes_fit(tmp_path: Path) -> None:
    """They have the names of the published ones, which are older than the present modules'."""
    config = PAPER.config("demo")
    theirs = build(config).eval()
    theirs.save_pretrained(tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    old = "model.pixel_level_module.encoder.encoder.layers.0.blocks.0.attention.self.query.weight"
    assert old in written
    ours = PAPER.network(config)
    assert isinstance(ours, Mask2Former)
    ours.load_state_dict(PAPER.translate(written, config))
    image = torch.randn(1, 3, 64, 64)
    classes, masks = ours.eval()(image)
    expected = theirs(pixel_values=image)
    torch.testing.assert_close(classes, expected.class_queries_logits)
    torch.testing.assert_close(masks, expected.masks_queries_logits)


def test_published_models_by_their_names_on_the_hub() -> None:
    for name, variant in PAPER.variants.items():
        if variant.demo:
            continue
        (source,) = variant.sources
        assert f"mask2former-swin-{name}/".lower() in source.url.lower()
        assert len(variant.labels) == variant.config["num_classes"]
        assert (variant.segmentation == "panoptic") == name.endswith("panoptic")

"""Masks of objects: spread over their boxes as mmdetection spreads them, and packed as pycocotools packs them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from torch.nn import functional as F

from service.media.instances import Box, Instance, paste, run_lengths


def whole(instance: Instance, width: int, height: int) -> np.ndarray:
    """Return the object in a mask of the whole picture."""
    mask = np.zeros((height, width), bool)
    rows, columns = instance.pixels.shape
    mask[instance.top : instance.top + rows, instance.left : instance.left + columns] = (
        instance.pixels
    )
    return mask


@pytest.mark.parametrize(
    "box",
    [
        (3.25, 5.5, 40.75, 31.0),
        (0.0, 0.0, 60.0, 48.0),
        (50.2, 40.1, 60.0, 48.0),
        (7.1, 7.2, 7.4, 7.9),
    ],
)
def test_a_grid_is_spread_bilinearly_over_its_box(box: Box) -> None:
    width, height = 60, 48
    grid = np.random.default_rng(0).integers(0, 256, (28, 28)).astype(np.uint8)
    # Each pixel's centre in the box's own coordinates, -1 to 1.
    x = (torch.arange(width) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
    y = (torch.arange(height) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
    places = torch.stack(torch.meshgrid(x, y, indexing="xy"), 2)[None]
    truth = F.grid_sample(torch.from_numpy(grid)[None, None] / 255, places, align_corners=False)
    sure = (truth[0, 0] - 0.5).abs() > 1e-4
    found = torch.from_numpy(whole(paste(grid, box, (width, height)), width, height))
    assert torch.equal(found[sure], (truth[0, 0] >= 0.5)[sure])


@pytest.mark.parametrize("left", [0, 4])
@pytest.mark.parametrize("kind", ["some", "all", "none", "full height"])
def test_run_lengths_are_those_of_the_whole_mask(kind: str, left: int) -> None:
    width, height = 17, 9
    pixels = np.random.default_rng(1).random((6, 8)) < 0.5
    instance = Instance(pixels, left, 2)
    if kind == "all":
        instance = Instance(np.ones((height, width), bool), 0, 0)
    elif kind == "none":
        instance = Instance(np.zeros((6, 8), bool), left, 2)
    elif kind == "full height":  # Runs go on from one column to the next.
        instance = Instance(np.ones((height, 5), bool), left, 0)
    mask = whole(instance, width, height)
    expected = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    counts = run_lengths(instance, (width, height))
    assert counts == expected
    decoded = coco.decode({"size": [height, width], "counts": counts})
    np.testing.assert_array_equal(decoded.astype(bool), mask)

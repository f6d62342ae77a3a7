"""Masks in the forms that programs take: each against the library that defines the form, or by hand."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco

from service.media.masks import (
    colour,
    enlarged,
    grey,
    levels,
    narrow,
    overlay,
    panoptic,
    polygons,
    runs,
)


def blobs(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return a mask of a few hundred segments, some of many parts, ids with gaps."""
    coarse = np.random.default_rng(seed).integers(0, 300, (9, 7), dtype=np.int32)
    return np.kron(coarse, np.ones((4, 5), np.int32))[:height, :width]


@pytest.mark.parametrize("size", [(33, 31), (1, 1), (1, 30), (36, 1)])
def test_runs_are_those_of_pycocotools(size: tuple[int, int]) -> None:
    mask = narrow(blobs(*size))
    ids = [int(id) for id in np.unique(mask)]
    found = runs(mask, [*ids, 301])
    assert sorted(found) == ids
    for id, run in found.items():
        expected = coco.encode(np.asfortranarray(mask == id, np.uint8))
        assert run.rle == {"size": list(size), "counts": expected["counts"].decode()}
        assert run.area == (mask == id).sum()
        rows, columns = np.nonzero(mask == id)
        assert run.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_a_thousand_segments() -> None:
    mask = narrow(np.arange(1, 1001, dtype=np.int32).reshape(20, 50))
    assert mask.dtype == np.uint16
    found = runs(mask, range(1, 1001))
    assert len(found) == 1000
    assert {run.area for run in found.values()} == {1}


def test_polygons_cover_what_they_outline() -> None:
    picture = Image.new("L", (60, 50))
    brush = ImageDraw.Draw(picture)
    brush.ellipse((4, 3, 40, 44), fill=7)
    brush.ellipse((14, 13, 28, 30), fill=0)
    brush.rectangle((48, 20, 55, 28), fill=7)
    mask = np.asarray(picture)
    ring, box = sorted(polygons(mask, 7, runs(mask, [7])[7].box), key=len, reverse=True)
    assert [len(ring), len(box)] == [2, 1]  # an outline and a hole; an outline
    assert all(part[0] == part[-1] for part in ring + box)
    # The four sides of the rectangle, its corners cut by half a pixel.
    assert {(48.0, 20.5), (56.0, 28.5), (55.5, 29.0)} <= set(box[0])
    covered = np.zeros(mask.shape, bool)
    for polygon in (ring, box):
        for part, inside in zip(polygon, (True, False), strict=False):
            flat = [[value for point in part for value in point]]
            rle = coco.merge(coco.frPyObjects(flat, *mask.shape))
            covered[coco.decode(rle).astype(bool)] = inside
    both = (covered & (mask == 7)).sum() / (covered | (mask == 7)).sum()
    assert both > 0.97


def test_a_single_pixel_has_an_outline() -> None:
    (polygon,) = polygons(np.ones((1, 1), np.uint8), 1, (0, 0, 1, 1))
    assert sorted(set(polygon[0])) == [(0.0, 0.5), (0.5, 0.0), (0.5, 1.0), (1.0, 0.5)]


def test_ids_are_grey_levels_or_colours() -> None:
    small = narrow(np.array([[0, 255]], np.int32))
    large = narrow(np.array([[0, 256]], np.int32))
    assert np.asarray(grey(small)).dtype == np.uint8
    assert np.asarray(grey(large)).tolist() == [[0, 256]]
    with pytest.raises(ValueError, match="65,535"):
        grey(narrow(np.array([[70_000]], np.int32)))
    wide = narrow(np.array([[0, 255, 70_000]], np.int32))
    assert np.asarray(panoptic(wide)).tolist() == [[[0, 0, 0], [255, 0, 0], [112, 17, 1]]]
    assert np.asarray(panoptic(small, 1)).tolist() == [[[1, 0, 0], [0, 1, 0]]]
    assert np.asarray(levels(np.array([[0, 0.5, 2]], np.float32))).tolist() == [[0, 128, 255]]


def test_enlarging_repeats_pixels() -> None:
    mask = np.array([[1, 2], [3, 4]], np.uint8)
    assert enlarged(mask, (2, 2)) is mask
    assert enlarged(mask, (4, 3)).tolist() == [[1, 1, 2], [1, 1, 2], [3, 3, 4], [3, 3, 4]]


def test_the_overlay_colours_segments_and_nothing_else() -> None:
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 10:30] = 3
    drawn = np.asarray(overlay(Image.new("RGB", (60, 40), "black"), mask, [3]), float)
    np.testing.assert_allclose(drawn[20, 20], 0.55 * np.array(colour(3)), atol=1)
    assert drawn[35, 50].tolist() == [0, 0, 0]
    assert drawn[10, 20].tolist() == [255, 255, 255]
    large = overlay(Image.new("RGB", (3000, 10)), np.zeros((10, 3000), np.uint8), [])
    assert large.size == (1024, 3)

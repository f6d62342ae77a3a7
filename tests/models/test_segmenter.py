"""The predictor that all segmenters share, and how logits become masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from models.layers.segmenter import (
    Segmentation,
    Segmenter,
    binary,
    resized,
    semantic,
    strongest,
)
from models.serving import Device, InvalidInput
from service.triton.cards import ImageInput, Task
from tests.tasks.scripted import card


class Halves(nn.Module):
    """Says of a picture how bright it is, and uses as many layers as it is told, else three."""

    def predict(self, image: torch.Tensor, depths: Sequence[int]) -> list[tuple[torch.Tensor, int]]:
        return [(each.mean(0), depth or 3) for each, depth in zip(image, depths, strict=True)]

    def decide(self, predicted: tuple[torch.Tensor, int], size: tuple[int, int]) -> Segmentation:
        made = binary(predicted[0], size, 0.5)
        return Segmentation(made.mask, made.segments, made.probabilities, predicted[1])


def served(image: ImageInput) -> Segmenter:
    return Segmenter(Halves(), card("halves", Task.SEGMENTATION, image=image), Device())


PLAIN = ImageInput(height=4, width=4, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def pictures() -> np.ndarray:
    """One dark picture, one whose right half is white."""
    pixels = np.zeros((2, 3, 4, 4), np.uint8)
    pixels[1, ..., 2:] = 255
    return pixels


def test_each_picture_has_a_mask_of_the_size_it_asks_for() -> None:
    sizes = np.array([[2, 3], [8, 8]], np.int32)
    answer = served(PLAIN).predict({"IMAGE": pictures(), "SIZE": sizes})
    assert answer.keys() == {"MASK", "SEGMENTS"}
    dark, half = answer["MASK"]
    assert (dark.dtype, dark.tolist()) == (np.int32, [[0, 0, 0]] * 2)
    assert (half[:, :4] == 0).all()
    assert (half[:, 4:] == 1).all()
    empty, rows = answer["SEGMENTS"]
    assert empty.shape == (0, 3)
    assert rows[:, :2].tolist() == [[1, 0]]
    assert rows[0, 2] == pytest.approx(1 - 0.25 / 4)


def test_what_is_asked_for_beside_the_mask() -> None:
    ones = np.ones((2, 1), np.int32)
    answer = served(PLAIN).predict({"IMAGE": pictures(), "PROBABILITY": ones, "DEPTH": 0 * ones})
    assert [each.shape for each in answer["PROBABILITIES"]] == [(4, 4)] * 2
    assert [each.tolist() for each in answer["DEPTH_USED"]] == [[3], [3]]
    answer = served(PLAIN).predict({"IMAGE": pictures(), "DEPTH": 5 * ones})
    assert [each.tolist() for each in answer["DEPTH_USED"]] == [[5], [5]]
    assert "PROBABILITIES" not in answer


@pytest.mark.parametrize("size", [(0, 4), (-1, 4), (2**13, 2**13)])
def test_sizes_that_cannot_be(size: tuple[int, int]) -> None:
    batch = {"IMAGE": pictures()[:1], "SIZE": np.array([size], np.int32)}
    with pytest.raises(InvalidInput, match="a mask of"):
        served(PLAIN).predict(batch)


def test_pictures_of_any_size_where_the_card_fixes_none() -> None:
    own = PLAIN.model_copy(update={"resize": "fit", "resize_to": 4, "height": None, "width": None})
    wide = np.zeros((1, 3, 4, 9), np.uint8)
    assert served(own).predict({"IMAGE": wide})["MASK"][0].shape == (4, 9)
    with pytest.raises(InvalidInput, match=r"takes \[3, 4, 4\]"):
        served(PLAIN).predict({"IMAGE": wide})


def test_the_strongest_map_is_found_part_by_part() -> None:
    maps = torch.randn(19, 5, 4, generator=torch.Generator().manual_seed(0))
    maps[18] = maps[3]  # of equals, the first
    values, whose = strongest(maps, (11, 9))
    expected = resized(maps, (11, 9)).max(0)
    torch.testing.assert_close(values, expected.values)
    assert torch.equal(whose, expected.indices)


def test_semantic_scores_are_mean_probabilities() -> None:
    logits = torch.randn(11, 6, 6, generator=torch.Generator().manual_seed(1))
    found = semantic(logits, (12, 12))
    probabilities = resized(logits, (12, 12)).softmax(0)
    assert torch.equal(found.mask, probabilities.argmax(0).int())
    for id, index, score in found.segments:
        assert id == index
        assert score == pytest.approx(float(probabilities[index][found.mask == index].mean()))
    present = {index for _, index, _ in found.segments}
    assert present == set(found.mask.unique().tolist())

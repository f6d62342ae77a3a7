"""Scenes for detectors: the same from the same seed; what is learned by and measured with, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.demo import scenes, shapes
from models.demo.recipes.average_precision import ap50
from models.demo.recipes.detection_loss import corrections_to
from models.detection._region_heads import corrected


def test_scenes_know_their_objects_and_every_fifth_is_empty() -> None:
    counts = []
    for seed in range(scenes.HELD_OUT, scenes.HELD_OUT + 10):
        pixels, objects = scenes.draw(seed)
        assert np.array_equal(pixels, scenes.draw(seed)[0])
        counts.append(len(objects))
    assert counts == [0, 1, 2, 3, 4] * 2


def test_a_training_set_has_boxes_classes_and_pixels_of_each_object() -> None:
    drawn = scenes.training(3, 10)
    assert len(drawn) == 10
    for named, boxes, owners in zip(drawn.classes, drawn.boxes, drawn.owners, strict=True):
        count = int((named >= 0).sum())
        assert (named[count:] == -1).all()
        assert owners.max() == count
        for number, (x0, y0, x1, y1) in enumerate(boxes[:count], 1):
            rows, columns = np.nonzero(owners == number)
            # The outline's box, and the pixels of which it covers half.
            found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            np.testing.assert_allclose((x0, y0, x1, y1), found, atol=2.5)


def test_average_precision_by_hand() -> None:
    box, far = [10.0, 10.0, 30.0, 40.0], [60.0, 60.0, 80.0, 80.0]
    near = [12.0, 10.0, 32.0, 40.0]
    truth = [(np.array([box, far]), np.array([3, 5])), (np.zeros((0, 4)), np.zeros(0, int))]
    nothing = (np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))
    assert ap50(truth, [nothing, nothing]) == 0
    both = (np.array([near, far]), np.array([3, 5]), np.array([0.9, 0.8]))
    assert ap50(truth, [both, nothing]) == pytest.approx(1)
    # One class found, the other taken for it.
    mixed = (np.array([near, far]), np.array([3, 3]), np.array([0.9, 0.8]))
    assert ap50(truth, [mixed, nothing]) == pytest.approx(0.5)
    # A better score in an empty scene comes before the object.
    false = (np.array([far]), np.array([3]), np.array([0.95]))
    assert ap50(truth, [both, false]) == pytest.approx(0.75)


def test_corrections_lead_to_the_object() -> None:
    boxes = torch.tensor([[10.0, 10.0, 30.0, 40.0], [5.0, 50.0, 25.0, 60.0]])
    objects = torch.tensor([[12.0, 4.0, 28.0, 50.0], [1.0, 45.0, 30.0, 66.0]])
    found = corrected(boxes, corrections_to(boxes, objects), (128, 128))
    torch.testing.assert_close(found, objects)
    assert len(shapes.LABELS) == 36

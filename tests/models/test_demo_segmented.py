"""Drawn scenes and lesions: the same from the same seed, and masks that fit what is drawn."""

from __future__ import annotations

import numpy as np
import pytest

from models.demo import lesions, segmented, shapes


def test_scenes_know_the_class_and_the_object_of_each_pixel() -> None:
    for seed in range(4):
        pixels, classes, numbers = segmented.draw(seed)
        again = segmented.draw(seed)
        assert all(
            np.array_equal(a, b) for a, b in zip((pixels, classes, numbers), again, strict=True)
        )
        scene = shapes.draw(seed, segmented.SIZE, 1 + seed)[1]
        assert numbers.max() == len(scene.objects) == 1 + seed
        for number, drawn in enumerate(scene.objects, 1):
            inside = numbers == number
            assert set(classes[inside]) == {segmented.CLASSES.index(drawn.colour)}
            # One colour, and none of the background's.
            assert pixels[inside].std(0).max() < 40
        assert not classes[numbers == 0].any()


def test_lesions_are_darker_than_the_skin_around_them() -> None:
    sizes = []
    for seed in range(30):
        pixels, lesion = lesions.draw(seed)
        assert np.array_equal(pixels, lesions.draw(seed)[0])
        if seed % 10 == 0:
            assert not lesion.any()
            continue
        sizes.append(lesion.mean())
        assert pixels[lesion].mean() < pixels[~lesion].mean() - 20
    assert 0.01 < min(sizes) < max(sizes) < 0.4
    with pytest.raises(ValueError, match="smallest is 16"):
        lesions.draw(0, 8)


def test_another_size_is_the_same_lesion_scaled() -> None:
    small, large = lesions.draw(7, 32)[1], lesions.draw(7, 128)[1]
    assert large.reshape(32, 4, 32, 4).mean((1, 3)).round().astype(bool)[small].mean() > 0.9

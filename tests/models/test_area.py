"""Area resampling against torch's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from models.layers.area import AreaTable


def _pictures(*shape: int) -> torch.Tensor:
    return torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize("size", [(5, 7), (13, 29), (1, 1), (31, 40), (50, 64)])
def test_resized_equals_torchs_area_mode(size: tuple[int, int]) -> None:
    pictures = _pictures(2, 3, 31, 40)
    expected = interpolate(pictures.float(), size=size, mode="area")
    np.testing.assert_allclose(AreaTable(pictures.numpy()).resized(*size), expected, rtol=1e-6)


def test_crops_equal_torchs_area_mode() -> None:
    pictures = _pictures(3, 3, 60, 80)
    boxes = np.array([[0, 0, 80, 60], [7, 9, 40, 33], [79, 59, 80, 60], [5, 0, 9, 60]])
    picture = np.array([2, 0, 1, 2])
    crops = AreaTable(pictures.numpy()).crops(picture, boxes, 24)
    for number, (which, (x0, y0, x1, y1)) in enumerate(zip(picture, boxes.tolist(), strict=True)):
        piece = pictures[which : which + 1, :, y0:y1, x0:x1].float()
        expected = interpolate(piece, size=(24, 24), mode="area")[0]
        np.testing.assert_allclose(crops[number], expected, rtol=1e-6)


def test_sums_beyond_int32_stay_exact() -> None:
    pictures = np.full((1, 1, 3000, 3000), 255, np.uint8)
    assert pictures.sum() > 2**31
    pictures[0, 0, -1, -1] = 0
    small = AreaTable(pictures).resized(10, 10)
    assert (small[0, 0, :-1] == 255).all()
    assert small[0, 0, -1, -1].item() == pytest.approx(255 * (1 - 1 / 300**2), rel=1e-6)

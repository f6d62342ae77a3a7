"""Shipped restorers over HTTP: what they make of held-out drawings is worth what their records say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from models.demo.pictures import RADIOGRAPHS, PictureSet
from tests.e2e.service import Service
from tests.e2e.test_main_job import png

pytestmark = pytest.mark.slow

COUNT = 40


@pytest.mark.parametrize(
    ("id", "pictures", "least"),
    # Filled with the mean of what is seen: 14.5 dB.
    [("mae-thorax-reconstruction-demo", RADIOGRAPHS, 19.5)],
)
def test_hidden_pixels_of_held_out_drawings_are_predicted(
    service: Service, id: str, pictures: PictureSet, least: float
) -> None:
    service.load(id)
    errors, hidden = 0.0, 0.0
    for seed in range(pictures.held_out_from, pictures.held_out_from + COUNT):
        answer = _restored(service, id, pictures.draw(seed, 64)[0], seed)
        errors += answer["hidden"] * 255**2 / 10 ** (answer["psnr"] / 10)
        hidden += answer["hidden"]
    service.client.post(f"/v1/models/{id}/unload").raise_for_status()
    assert 10 * np.log10(255**2 * hidden / errors) >= least


def _restored(service: Service, id: str, pixels: np.ndarray, seed: int) -> dict[str, Any]:
    return service.post(f"/v1/reconstruct?model={id}&seed={seed}", png(pixels), "image/png")

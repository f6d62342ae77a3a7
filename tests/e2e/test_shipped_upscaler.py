"""The shipped super-resolution network over HTTP: sharper than interpolation, and by a job that tells its progress."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from models.demo import details
from tests.e2e.service import Service
from tests.e2e.test_main_job import png

pytestmark = pytest.mark.slow

COUNT, SIDE = 12, 96
ABOVE_BICUBIC = 1.0


def test_held_out_pictures_are_closer_than_by_interpolation(service: Service) -> None:
    service.load("drct-demo")
    gains = []
    for seed in range(details.HELD_OUT, details.HELD_OUT + COUNT):
        large = details.draw(seed, SIDE)
        small = details.small(large, 2)
        answer = service.client.post("/v1/upscale", content=png(small))
        assert answer.status_code == 200, answer.text
        made = np.asarray(Image.open(BytesIO(answer.content)))
        bicubic = Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        gains.append(
            peak_signal_noise_ratio(large, made)
            - peak_signal_noise_ratio(large, np.asarray(bicubic))
        )
    assert np.mean(gains) >= ABOVE_BICUBIC


def test_a_job_tells_its_progress_tile_by_tile(service: Service) -> None:
    pixels = np.tile(details.draw(details.HELD_OUT, 96), (2, 2, 1))
    accepted = service.client.post("/v1/upscale?tile=128&mode=async", content=png(pixels))
    assert accepted.status_code == 202, accepted.text
    id = accepted.json()["id"]
    steps = [event["data"] for event in service.events(id) if event["event"] == "progress"]
    assert {"upscaling"} <= {progress["stage"] for progress in steps}
    assert {progress["steps"] for progress in steps if progress["stage"] == "upscaling"} == {4}
    job = service.finished(id)
    assert job["state"] == "succeeded", job
    assert job["result"]["document"]["size"] == {"width": 384, "height": 384}
    assert Image.open(BytesIO(service.result(id))).size == (384, 384)

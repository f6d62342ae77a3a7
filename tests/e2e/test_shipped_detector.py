"""The shipped detector over HTTP: held-out scenes, by what COCO's own evaluation says of its answers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from models.demo import scenes, shapes
from models.demo.recipes.average_precision import ap50
from tests.e2e.service import Service
from tests.e2e.test_main_job import png

pytestmark = pytest.mark.slow

COUNT = 150
TARGET = 0.85
LEAST_OVERLAP = 0.75


@pytest.fixture(scope="module", autouse=True)
def loaded(service: Service) -> None:
    service.load("convnext-detection-demo")


def asked(service: Service, body: bytes, **parameters: Any) -> httpx2.Response:
    return service.client.post(
        "/v1/detect", params=parameters, content=body, headers={"Content-Type": "image/png"}
    )


def detected(service: Service, body: bytes, **parameters: Any) -> dict[str, Any]:
    answer = asked(service, body, **parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_average_precision_on_held_out_scenes(service: Service) -> None:
    seeds = range(scenes.HELD_OUT, scenes.HELD_OUT + COUNT)
    # Twice the size that it learned at, which the service scales down.
    drawn = [scenes.draw(seed, 2 * scenes.SIZE) for seed in seeds]

    def ask(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        answer = detected(service, png(pixels), threshold=0.05, format="coco", masks="false")
        rows = answer["annotations"]
        boxes = np.array([row["bbox"] for row in rows]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        classes = np.array([row["category_id"] for row in rows])
        return boxes, classes, np.array([row["score"] for row in rows])

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, [pixels for pixels, _ in drawn]))
    truth = [
        (
            np.array([one.box for one in objects]),
            np.array([shapes.LABELS.index(one.name) for one in objects], np.int64),
        )
        for _, objects in drawn
    ]
    assert ap50(truth, found) >= TARGET


def test_masks_cover_what_was_drawn_and_the_job_says_the_same(service: Service) -> None:
    seed = scenes.HELD_OUT + 2  # two objects
    pixels, objects = scenes.draw(seed, 256)
    answer = detected(service, png(pixels), threshold=0.5)
    assert answer["weights"] == "demo"
    assert {one["label"] for one in answer["detections"]} == {one.name for one in objects}
    for one in objects:
        (row,) = (row for row in answer["detections"] if row["label"] == one.name)
        mask = coco.decode(row["rle"]).astype(bool)
        truth = shapes.coverage(one, 256) >= 0.5
        assert (mask & truth).sum() / (mask | truth).sum() >= LEAST_OVERLAP
    accepted = service.client.post(
        "/v1/detect",
        params={"threshold": 0.5, "mode": "async", "overlay": "true"},
        content=png(pixels),
        headers={"Content-Type": "image/png"},
    )
    job = service.finished(accepted.raise_for_status().json()["id"])
    assert job["state"] == "succeeded", job
    assert Image.open(BytesIO(service.result(job["id"]))).size == (256, 256)


def test_empty_scenes_and_odd_pictures(service: Service) -> None:
    empty = scenes.draw(scenes.HELD_OUT + 5, 256)[0]
    assert detected(service, png(empty), threshold=0.5)["detections"] == []
    for picture in (Image.new("L", (300, 4)), Image.new("RGBA", (5, 400), (0, 255, 0, 40))):
        file = BytesIO()
        picture.save(file, "PNG")
        answer = detected(service, file.getvalue(), threshold=0, max_detections=1000)
        assert answer["image"] == {"width": picture.width, "height": picture.height}

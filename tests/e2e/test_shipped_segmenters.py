"""The shipped segmenters over HTTP, right about held-out drawings, and one as a job whose result is the mask."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from PIL import Image

from models.demo import lesions, segmented
from models.demo.recipes.gms import dice
from models.demo.recipes.panoptic import scores
from models.shipped import SHIPPED
from tests.e2e.service import Service
from tests.e2e.test_main_job import png

pytestmark = pytest.mark.slow

COUNT = 100


def shipped(id: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(id not in SHIPPED, reason=f"no weights of {id} ship")


def ask(service: Service, body: bytes, *, model: str, **parameters: Any) -> httpx2.Response:
    """Segment a picture."""
    return service.client.post(
        "/v1/segment",
        params={"model": model} | parameters,
        content=body,
        headers={"Content-Type": "image/png"},
    )


def answers(service: Service, pictures: list[np.ndarray], model: str) -> list[dict[str, Any]]:
    bodies = [png(pixels) for pixels in pictures]
    service.load(model)
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda body: ask(service, body, model=model), bodies)
        return [each.raise_for_status().json() for each in found]


def mask_of(answer: dict[str, Any]) -> np.ndarray:
    (file,) = answer["files"]
    return np.asarray(Image.open(BytesIO(base64.b64decode(file["data"].partition(",")[2]))))


@shipped("gms-demo")
def test_lesions_are_marked(service: Service) -> None:
    drawn = [lesions.draw(seed) for seed in range(lesions.HELD_OUT, lesions.HELD_OUT + COUNT)]
    found = [mask_of(each) for each in answers(service, [p for p, _ in drawn], "gms-demo")]
    truth = torch.from_numpy(np.stack([lesion for _, lesion in drawn])).int()
    assert dice(torch.from_numpy(np.stack(found)).int(), truth) >= 0.90


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(id, marks=shipped(id))
        for id in ("mask2former-demo", "kmax-deeplab-demo", "eco-m2f-demo")
    ],
)
def test_shapes_are_found_pixel_by_pixel(service: Service, model: str) -> None:
    scenes = segmented.drawn(segmented.HELD_OUT, COUNT)
    maps = []
    for answer in answers(service, list(scenes.pictures), model):
        mask = mask_of(answer).astype(int)
        classes = np.zeros_like(mask)
        for segment in answer["segments"]:
            classes[mask == segment["id"]] = segment["index"]
        maps.append(np.stack([classes, np.where(classes > 0, mask, 0)], -1))
    found = scores(maps, scenes)
    assert found["mIoU"] >= 0.85
    assert found["PQ"] >= 0.75


@shipped("eco-m2f-demo")
def test_the_depth_of_an_encoder_is_the_gate_s_or_the_caller_s(service: Service) -> None:
    service.load("eco-m2f-demo")
    pixels, *_ = segmented.draw(segmented.HELD_OUT + 3)

    def depth(**parameters: Any) -> int:
        answer = ask(service, png(pixels), model="eco-m2f-demo", **parameters)
        return int(answer.raise_for_status().json()["depth"])

    assert [depth(depth=k) for k in (2, 6)] == [2, 6]
    assert 2 <= depth() == depth(depth="auto") <= 6
    refused = ask(service, png(pixels), model="eco-m2f-demo", depth=7)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_parameter")


@shipped("gms-demo")
def test_a_mask_is_the_result_of_a_job(service: Service) -> None:
    service.load("gms-demo")
    pixels, lesion = lesions.draw(lesions.HELD_OUT + 1)
    accepted = ask(service, png(pixels), model="gms-demo", mode="async")
    assert accepted.status_code == httpx2.codes.ACCEPTED, accepted.text
    job = service.finished(accepted.json()["id"])
    assert job["state"] == "succeeded"
    mask = np.asarray(Image.open(BytesIO(service.result(job["id"]))))
    assert (mask == lesion).mean() > 0.95

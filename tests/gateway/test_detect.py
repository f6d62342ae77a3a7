"""`POST /v1/detect` all the way, by a small Mask R-CNN with random weights in a real Triton: answers, forms, refusals."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path

import httpx2
import numpy as np
import pytest
import pytest_asyncio
from PIL import Image
from safetensors.torch import save_file

from models.demo import scenes
from models.registry import architecture
from models.repository import write_catalogue, write_entry
from models.serving import Device, Predictor
from service.media.images import to_model_input
from service.settings import TritonSettings
from service.triton.cards import CATALOGUE, WeightsRecord
from tests.gateway.conftest import build, in_process, settings_for
from tests.gateway.test_inputs import refused
from tests.jobs.redis_server import RedisServer
from tests.models.test_every_architecture import state_of
from tests.triton.server import triton

pytestmark = pytest.mark.asyncio(loop_scope="module")

PICTURE = Image.fromarray(scenes.draw(3, 160)[0])
MADE = architecture("convnext-detection")
CARD = MADE.card("demo", weights=WeightsRecord(kind="random"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the random weights lie, which find something everywhere."""
    folder = tmp_path_factory.mktemp("detect")
    save_file(state_of(MADE, "demo"), folder / "model.safetensors")
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(folder: Path, redis_server: RedisServer) -> AsyncIterator[httpx2.AsyncClient]:
    repository = folder / "repository"
    write_catalogue(repository)
    write_entry(repository, CARD, {"model.safetensors": folder / "model.safetensors"}, "cpu")
    async with triton(repository, [CATALOGUE, CARD.id]) as client:
        address = TritonSettings(url=client.settings.url)
        settings = settings_for(redis_server, folder, triton=address)
        async with in_process(build(settings)) as gateway:
            yield gateway


def encoded(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


async def test_detections_are_those_of_the_network(
    folder: Path, gateway: httpx2.AsyncClient
) -> None:
    predictor = MADE.load(CARD, folder, Device())
    assert isinstance(predictor, Predictor)
    assert CARD.image is not None
    limits = {"THRESHOLD": np.float32([[0]]), "MAX_DETECTIONS": np.int32([[7]])}
    pixels = to_model_input(PICTURE, CARD.image)[None]
    wanted = predictor.predict({"IMAGE": pixels, **limits})
    answer = await gateway.post("/v1/detect?threshold=0&max_detections=7", content=encoded(PICTURE))
    assert answer.status_code == 200, answer.text
    found = answer.json()["detections"]
    assert [one["index"] for one in found] == np.asarray(wanted["CLASSES"])[0].tolist()
    boxes = np.array([one["box_normalized"] for one in found])
    np.testing.assert_allclose(boxes, np.asarray(wanted["BOXES"])[0], atol=1e-4)
    scores = [one["score"] for one in found]
    np.testing.assert_allclose(scores, np.asarray(wanted["SCORES"])[0], atol=1e-4)
    assert {tuple(one["rle"]["size"]) for one in found} == {(160, 160)}


async def test_pictures_of_many_forms_at_once(gateway: httpx2.AsyncClient) -> None:
    pictures = [
        Image.new("L", (300, 2), 100),
        Image.new("RGBA", (3, 200), (255, 0, 0, 40)),
        PICTURE,
        PICTURE.resize((160, 90)),
    ]
    answers = await asyncio.gather(
        *(
            gateway.post("/v1/detect?threshold=0&max_detections=150", content=encoded(picture))
            for picture in pictures
        )
    )
    for picture, answer in zip(pictures, answers, strict=True):
        assert answer.status_code == 200, answer.text
        size = {"width": picture.width, "height": picture.height}
        assert answer.json()["image"] == size
    assert len(answers[2].json()["detections"]) == 150
    nothing = await gateway.post("/v1/detect?threshold=1", content=encoded(PICTURE))
    assert nothing.json()["detections"] == []


async def test_the_drawing_and_coco_s_form(gateway: httpx2.AsyncClient) -> None:
    query = "threshold=0&max_detections=3&overlay=true"
    drawn = await gateway.post(
        f"/v1/detect?{query}", content=encoded(PICTURE), headers={"Accept": "image/png"}
    )
    assert (drawn.status_code, drawn.headers["content-type"]) == (200, "image/png")
    document = (
        await gateway.post(f"/v1/detect?{query}&format=coco", content=encoded(PICTURE))
    ).json()
    (file,) = document["files"]
    assert base64.b64decode(file["data"].partition(",")[2]) == drawn.content
    assert Image.open(BytesIO(drawn.content)).size == PICTURE.size
    assert len(document["annotations"]) == 3
    assert len(document["categories"]) == len(CARD.labels)


async def test_what_is_refused(gateway: httpx2.AsyncClient) -> None:
    for query, parameter in (
        ("threshold=2", "threshold"),
        ("threshold=nan", "threshold"),
        ("max_detections=1001", "max_detections"),
        ("max_detections=0", "max_detections"),
        ("classes=unicorn", "classes"),
        ("format=xml", "format"),
    ):
        answer = await gateway.post(f"/v1/detect?{query}", content=encoded(PICTURE))
        refused(answer, 422, "invalid_parameter", parameter)
    refused(await gateway.post("/v1/detect", content=b"no picture"), 415, "unsupported_media")

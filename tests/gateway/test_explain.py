"""Explanations over HTTP, by the shipped classifier in a real Triton: numbers, drawings, or one PNG."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from io import BytesIO

import httpx2
import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from models.demo import shapes
from models.repository import shipped, write_catalogue, write_entry
from service.settings import TritonSettings
from service.triton.cards import CATALOGUE
from tests.gateway.conftest import build, in_process, settings_for
from tests.gateway.test_inputs import refused
from tests.jobs.redis_server import RedisServer
from tests.triton.server import triton

pytestmark = pytest.mark.asyncio(loop_scope="module")

PIXELS, SCENE = shapes.draw(shapes.HELD_OUT, 128)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[httpx2.AsyncClient]:
    directory = tmp_path_factory.mktemp("explain")
    repository = directory / "repository"
    write_catalogue(repository)
    card, parts = shipped("convnext-demo")
    write_entry(repository, card, parts, "cpu")
    async with triton(repository, [CATALOGUE, card.id]) as client:
        address = TritonSettings(url=client.settings.url)
        settings = settings_for(redis_server, directory, triton=address)
        async with in_process(build(settings)) as gateway:
            yield gateway


def picture() -> bytes:
    file = BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    return file.getvalue()


def drawings(answer: httpx2.Response) -> dict[str, Image.Image]:
    return {
        file["name"]: Image.open(BytesIO(base64.b64decode(file["data"].partition(",")[2])))
        for file in answer.json()["files"]
    }


async def test_numbers_and_drawings(gateway: httpx2.AsyncClient) -> None:
    answer = await gateway.post("/v1/explain", content=picture())
    assert answer.status_code == 200, answer.text
    evidence = answer.json()["evidence"]
    assert (evidence["method"], evidence["label"]) == ("hires-cam", SCENE.objects[0].name)
    assert np.array(evidence["heatmap"]).max() == 1
    assert evidence["region"] == {"left": 0, "top": 0, "width": 128, "height": 128}
    drawn = drawings(answer)
    assert {name: file.size for name, file in drawn.items()} == {
        "heatmap.png": (128, 128),
        "overlay.png": (128, 128),
    }
    grey = np.asarray(drawn["heatmap.png"], float)
    assert grey[SCENE.mask(0)].mean() > grey.mean()


async def test_one_drawing_is_the_answer_itself(gateway: httpx2.AsyncClient) -> None:
    answer = await gateway.post(
        "/v1/explain?drawings=overlay", content=picture(), headers={"Accept": "image/png"}
    )
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert Image.open(BytesIO(answer.content)).mode == "RGB"


async def test_classification_explains_when_asked(gateway: httpx2.AsyncClient) -> None:
    plain = await gateway.post("/v1/classify", content=picture())
    assert plain.json()["evidence"] is None
    assert "files" not in plain.json()
    answer = await gateway.post("/v1/classify?explain=true", content=picture())
    assert answer.json()["evidence"]["label"] == answer.json()["predictions"][0]["label"]
    assert drawings(answer).keys() == {"heatmap.png", "overlay.png"}
    for given, told in zip(answer.json()["predictions"], plain.json()["predictions"], strict=True):
        assert given["label"] == told["label"]
        assert given["score"] == pytest.approx(told["score"], abs=1e-5)


async def test_another_label(gateway: httpx2.AsyncClient) -> None:
    answer = await gateway.post("/v1/explain?class_index=35&drawings=none", content=picture())
    assert answer.json()["evidence"]["label"] == shapes.LABELS[35]
    assert "files" not in answer.json()


async def test_what_is_refused(gateway: httpx2.AsyncClient) -> None:
    content = picture()
    refused(
        await gateway.post("/v1/explain?class_index=36", content=content),
        422,
        "invalid_parameter",
        "0 to 35",
    )
    refused(
        await gateway.post("/v1/explain?model=nothing", content=content),
        404,
        "model_not_found",
        "unknown model 'nothing'",
    )

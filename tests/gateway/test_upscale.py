"""Upscaling over HTTP, by the shipped network in a real Triton: the picture, its headers, jobs, and what is refused."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path

import httpx2
import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from models.demo import details
from models.registry import architecture
from models.repository import shipped, write_catalogue, write_entry
from models.serving import Device, Predictor
from models.shipped import WEIGHTS
from service.settings import LimitSettings, TritonSettings
from service.triton.cards import CATALOGUE
from tests.gateway.conftest import build, in_process, settings_for
from tests.gateway.test_inputs import refused
from tests.jobs.redis_server import RedisServer
from tests.triton.server import triton

pytestmark = pytest.mark.asyncio(loop_scope="module")

AT_ONCE, RESULT = 3_000, 20_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(
    redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[httpx2.AsyncClient]:
    directory = tmp_path_factory.mktemp("upscale")
    repository = directory / "repository"
    write_catalogue(repository)
    card, parts = shipped("drct-demo")
    write_entry(repository, card, parts, "cpu")
    async with triton(repository, [CATALOGUE, card.id]) as client:
        settings = settings_for(
            redis_server,
            directory,
            triton=TritonSettings(url=client.settings.url),
            limits=LimitSettings(upscaled_at_once_pixels=AT_ONCE, upscaled_pixels=RESULT),
        )
        async with in_process(build(settings)) as gateway:
            yield gateway


def png(pixels: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


async def test_the_picture_is_the_answer_and_is_the_network_s(gateway: httpx2.AsyncClient) -> None:
    small = details.small(details.draw(1, 80), 2)[:37]
    answer = await gateway.post("/v1/upscale", content=png(small))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    assert (answer.headers["image-size"], answer.headers["source-size"]) == ("80x74", "40x37")
    assert (answer.headers["model"], answer.headers["model-weights"]) == ("drct-demo", "demo")
    assert "infer;dur=" in answer.headers["server-timing"]

    card, _ = shipped("drct-demo")
    served = architecture("drct").load(card, Path(WEIGHTS / "drct-demo"), Device())
    assert isinstance(served, Predictor)
    expected = served.predict({"IMAGE": small.transpose(2, 0, 1)[None]})["IMAGE"][0]
    made = np.asarray(Image.open(BytesIO(answer.content)))
    assert np.abs(made.astype(int) - expected.transpose(1, 2, 0)).max() <= 1


async def test_tiles_average_and_context_over_triton(gateway: httpx2.AsyncClient) -> None:
    small = details.small(details.draw(2, 96), 2)
    whole = await gateway.post("/v1/upscale", content=png(small))
    for tiling in ("context", "average"):
        answer = await gateway.post(
            f"/v1/upscale?tiling={tiling}&tile=24&overlap=16",
            content=png(small),
            headers={"Accept": "application/json"},
        )
        assert answer.status_code == 200, answer.text
        document = answer.json()
        assert (document["tiling"], document["tile"], document["overlap"]) == (tiling, 24, 16)
        assert document["tiles"] > 1
        assert "demo weights" in document["warning"]
        (file,) = document["files"]
        encoded = base64.b64decode(file["data"].partition(",")[2])
        made, before = (
            np.asarray(Image.open(BytesIO(data)), float) for data in (encoded, whole.content)
        )
        # What is further away than the pixels around a tile matters little.
        assert np.abs(made - before).mean() < 3


async def test_the_smallest_and_the_longest(gateway: httpx2.AsyncClient) -> None:
    for height, width in ((1, 1), (3, 5), (1, 2_000)):
        picture = np.full((height, width), 90, np.uint8)
        answer = await gateway.post("/v1/upscale?format=webp", content=png(picture))
        assert answer.status_code == 200, answer.text
        made = Image.open(BytesIO(answer.content))
        assert (made.format, made.size) == ("WEBP", (2 * width, 2 * height))


async def test_large_pictures_make_jobs(gateway: httpx2.AsyncClient) -> None:
    large = png(np.zeros((60, 60, 3), np.uint8))
    accepted = await gateway.post("/v1/upscale", content=large)
    assert accepted.status_code == 202, accepted.text
    assert accepted.json()["task"] == "upscale"
    assert accepted.headers["location"] == accepted.json()["links"]["self"]
    answer = await gateway.post("/v1/upscale?mode=sync", content=large)
    refused(answer, 422, "invalid_parameter", "3,000 pixels", "upscaled_at_once_pixels")
    small = png(np.zeros((4, 4, 3), np.uint8))
    assert (await gateway.post("/v1/upscale?mode=async", content=small)).status_code == 202


async def test_what_is_refused(gateway: httpx2.AsyncClient) -> None:
    for mode in ("", "?mode=async"):
        answer = await gateway.post(
            f"/v1/upscale{mode}", content=png(np.zeros((60, 120), np.uint8))
        )
        refused(answer, 413, "result_too_large", "240 x 120", "20,000", "100 x 50")
        assert answer.json()["limit"]["width"] == 100
    small = png(np.zeros((4, 4, 3), np.uint8))
    answer = await gateway.post("/v1/upscale?tile=24&overlap=24", content=small)
    refused(answer, 422, "invalid_parameter", "less than tile")
    answer = await gateway.post("/v1/upscale?scale=3", content=small)
    refused(answer, 422, "invalid_parameter", "scale")
    refused(await gateway.post("/v1/upscale", content=b"GIF89a"), 400, "corrupt_image")

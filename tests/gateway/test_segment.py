"""`POST /v1/segment` all the way, by a small GMS with random weights in a real Triton: forms, kinds of pictures, refusals.

Beside it a small ECO-M2F, whose encoder is left at several depths at once.
"""

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
from pycocotools import mask as coco
from safetensors.torch import save_file

from models.demo import lesions
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
from tests.triton.server import loaded, triton

pytestmark = pytest.mark.asyncio(loop_scope="module")

PICTURE = Image.fromarray(lesions.draw(1, 160)[0])
GMS = architecture("gms")
CARD = GMS.card("demo", weights=WeightsRecord(kind="random")).model_copy(update={"default": True})
ECO = architecture("eco-m2f")
ECO_CARD = ECO.card("demo", weights=WeightsRecord(kind="random"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the random weights lie."""
    folder = tmp_path_factory.mktemp("segment")
    save_file(state_of(GMS, "demo"), folder / "model.safetensors")
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(folder: Path, redis_server: RedisServer) -> AsyncIterator[httpx2.AsyncClient]:
    repository = folder / "repository"
    write_catalogue(repository)
    write_entry(repository, CARD, {"model.safetensors": folder / "model.safetensors"}, "cpu")
    save_file(state_of(ECO, "demo"), folder / "eco.safetensors")
    write_entry(repository, ECO_CARD, {"model.safetensors": folder / "eco.safetensors"}, "cpu")
    async with triton(repository, [CATALOGUE]) as client:
        await loaded(client, CARD.id)
        await loaded(client, ECO_CARD.id)
        address = TritonSettings(url=client.settings.url)
        settings = settings_for(redis_server, folder, triton=address)
        async with in_process(build(settings)) as gateway:
            yield gateway


def encoded(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def expected(folder: Path) -> np.ndarray:
    """Return the mask that the network gives in this process."""
    predictor = GMS.load(CARD, folder, Device())
    assert isinstance(predictor, Predictor)
    assert CARD.image is not None
    batch = {
        "IMAGE": to_model_input(PICTURE, CARD.image)[None],
        "SIZE": np.array([PICTURE.size[::-1]], np.int32),
    }
    return np.asarray(predictor.predict(batch)["MASK"][0])


async def test_the_mask_alone_is_the_answer_itself(
    folder: Path, gateway: httpx2.AsyncClient
) -> None:
    answer = await gateway.post(
        "/v1/segment", content=encoded(PICTURE), headers={"Accept": "image/png"}
    )
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png"), answer.text
    mask, wanted = np.asarray(Image.open(BytesIO(answer.content))), expected(folder)
    assert 0 < wanted.mean() < 1
    assert (mask == wanted).mean() > 0.999


async def test_all_forms_tell_the_same(gateway: httpx2.AsyncClient) -> None:
    forms = ("png", "rle", "polygons", "panoptic")
    answers = await asyncio.gather(
        *(
            gateway.post(
                f"/v1/segment?format={form}&probability=true&overlay=true",
                content=encoded(PICTURE),
            )
            for form in forms
        )
    )
    documents = dict(zip(forms, (answer.json() for answer in answers), strict=True))
    names = {
        form: {file["name"] for file in document["files"]} for form, document in documents.items()
    }
    both = {"overlay.png", "probability.png"}
    assert names == {
        "png": both | {"mask.png"},
        "rle": both,
        "polygons": both,
        "panoptic": both | {"panoptic.png"},
    }
    (segment,) = documents["rle"]["segments"]
    assert (segment["label"], segment["thing"]) == ("lesion", None)
    decoded = coco.decode(segment["rle"])
    assert decoded.sum() == segment["area"]
    assert documents["panoptic"]["segments_info"][0]["area"] == segment["area"]
    assert documents["polygons"]["segments"][0]["polygons"]
    probability = next(
        file for file in documents["png"]["files"] if file["name"] == "probability.png"
    )
    drawn = Image.open(BytesIO(base64.b64decode(probability["data"].partition(",")[2])))
    assert ((np.asarray(drawn) > 127) == decoded).mean() > 0.99


async def test_pictures_of_every_kind_in_one_batch(gateway: httpx2.AsyncClient) -> None:
    """They reach the network in one size, and each has a mask of its own."""
    kinds = [
        PICTURE.convert("L"),
        PICTURE.convert("RGBA"),
        Image.new("RGB", (1, 1)),
        Image.new("RGB", (2000, 3), "pink"),
        PICTURE.resize((33, 77)),
    ]
    answers = await asyncio.gather(
        *(gateway.post("/v1/segment", content=encoded(kind)) for kind in kinds)
    )
    for kind, answer in zip(kinds, answers, strict=True):
        assert answer.status_code == 200, answer.text
        document = answer.json()
        assert document["image"] == {"width": kind.width, "height": kind.height}
        mask = Image.open(BytesIO(base64.b64decode(document["files"][0]["data"].partition(",")[2])))
        assert mask.size == kind.size
        assert len(document["segments"]) == int(np.asarray(mask).any())


async def test_pictures_of_one_batch_leave_the_encoder_at_their_own_depths(
    gateway: httpx2.AsyncClient,
) -> None:
    asked = ["2", "6", "auto", "4", "2", None]
    queries = [f"model={ECO_CARD.id}" + (f"&depth={each}" if each else "") for each in asked]
    answers = await asyncio.gather(
        *(gateway.post(f"/v1/segment?{query}", content=encoded(PICTURE)) for query in queries)
    )
    depths = [answer.raise_for_status().json()["depth"] for answer in answers]
    assert depths[:2] + depths[3:5] == [2, 6, 4, 2]
    # The gate's choice, whether it is asked for or left open.
    assert depths[2] == depths[5] in range(2, 7)
    answer = await gateway.post(
        f"/v1/segment?model={ECO_CARD.id}&depth=7", content=encoded(PICTURE)
    )
    refused(answer, 422, "invalid_parameter", "depth = 7")


async def test_what_is_refused(gateway: httpx2.AsyncClient) -> None:
    content = encoded(PICTURE)
    for query, said in (
        ("format=bmp", "format"),
        ("depth=3", "always uses its whole encoder"),
        ("model=nothing", "unknown model"),
    ):
        answer = await gateway.post(f"/v1/segment?{query}", content=content)
        status, code = (404, "model_not_found") if "model" in query else (422, "invalid_parameter")
        refused(answer, status, code, said)

"""`POST /v1/embed` and `/v1/reconstruct` all the way: a real Triton that serves small networks with random weights."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path

import httpx2
import numpy as np
import pytest
import pytest_asyncio
import torch
from PIL import Image
from safetensors.torch import save_file

from models.registry import architecture
from models.repository import write_catalogue, write_entry
from models.serving import Arrays, Device, Predictor
from service.media.images import to_model_input
from service.settings import TritonSettings
from service.triton.cards import CATALOGUE, WeightsRecord
from tests.gateway.conftest import build, in_process, listening, settings_for
from tests.gateway.test_inputs import refused
from tests.jobs.redis_server import RedisServer
from tests.triton.server import loaded, triton

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
# Slug -> the variant that is served as `<slug>-random`.
SERVED = {
    "dvt": "demo",
    "sit": "demo",
    "sit-reconstruction": "demo",
    # Only the whole networks tell the order of frames.
    "tov-vicreg": "tiny-patch16-order",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embed")
    write_catalogue(folder / "repository")
    for slug, variant in SERVED.items():
        found = architecture(slug)
        torch.manual_seed(0)
        network = found.network(found.config(variant))
        save_file(network.state_dict(), folder / f"{slug}.safetensors")
        card = found.card(variant, id=f"{slug}-random", weights=WeightsRecord(kind="random"))
        parts = {"model.safetensors": folder / f"{slug}.safetensors"}
        write_entry(folder / "repository", card, parts, "cpu")
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(folder: Path, redis_server: RedisServer) -> AsyncIterator[httpx2.AsyncClient]:
    async with triton(folder / "repository", [CATALOGUE]) as client:
        for slug in SERVED:
            await loaded(client, f"{slug}-random")
        address = TritonSettings(url=client.settings.url)
        settings = settings_for(redis_server, folder, triton=address)
        async with in_process(build(settings)) as gateway:
            yield gateway


def _picture(seed: int, size: tuple[int, int] = (90, 70)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _form(*images: Image.Image) -> list[tuple[str, tuple[str, bytes, str]]]:
    files = []
    for number, image in enumerate(images):
        file = BytesIO()
        image.save(file, "PNG")
        files.append(("file", (f"{number}.png", file.getvalue(), "image/png")))
    return files


def _expected(folder: Path, slug: str, *images: Image.Image) -> Arrays:
    """Return what the network says in this process of pictures, or of the frames of one stack."""
    found = architecture(slug)
    card = found.card(SERVED[slug], weights=WeightsRecord(kind="random"))
    assert card.image is not None
    pixels = [to_model_input(image, card.image) for image in images]
    batch = np.concatenate(pixels)[None] if card.clip else np.stack(pixels)
    return _predictor(folder, slug).predict(
        {"IMAGE": batch, "DENSE": np.ones((len(batch), 1), np.int32)}
    )


def _predictor(folder: Path, slug: str) -> Predictor:
    found = architecture(slug)
    card = found.card(SERVED[slug], weights=WeightsRecord(kind="random"))
    (folder / "1").mkdir(exist_ok=True)
    weights = folder / "1" / "model.safetensors"
    weights.unlink(missing_ok=True)
    weights.symlink_to(folder / f"{slug}.safetensors")
    predictor = found.load(card, folder / "1", Device())
    assert isinstance(predictor, Predictor)
    return predictor


@pytest.mark.parametrize("slug", ["dvt", "sit"])
async def test_vectors_and_maps_are_the_network_s(
    gateway: httpx2.AsyncClient, folder: Path, slug: str
) -> None:
    images = [_picture(1), _picture(2, (64, 64)), _picture(3, (20, 100))]
    query = f"/v1/embed?model={slug}-random&dense=true"
    answer = await gateway.post(query, files=_form(*images))
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert document["weights"] == "random"
    expected = _expected(folder, slug, *images)
    vectors = np.array([row["embedding"] for row in document["data"]])
    np.testing.assert_allclose(vectors, expected["EMBEDDING"], rtol=1e-3, atol=1e-4)
    for row, features in zip(document["data"], expected["FEATURES"], strict=True):
        shape = (row["features"]["height"], row["features"]["width"], row["features"]["dimensions"])
        assert shape == features.shape
        found = np.array(row["features"]["data"]).reshape(shape)
        np.testing.assert_allclose(found, features, rtol=1e-3, atol=1e-4)


async def test_frames_make_one_vector(gateway: httpx2.AsyncClient, folder: Path) -> None:
    images = [_picture(seed, (105, 80)) for seed in range(3)]
    query = "/v1/embed?model=tov-vicreg-random&encoding_format=base64"
    answer = await gateway.post(query, files=_form(*images))
    assert answer.status_code == 200, answer.text
    (row,) = answer.json()["data"]
    vector = np.frombuffer(base64.b64decode(row["embedding"]), "<f4")
    expected = _expected(folder, "tov-vicreg", *images)["EMBEDDING"][0]
    np.testing.assert_allclose(vector, expected, rtol=1e-3, atol=1e-4)
    refused(
        await gateway.post(query, files=_form(*images[:2])), 422, "missing_input", "oldest first"
    )


async def test_the_order_of_three_observations(gateway: httpx2.AsyncClient, folder: Path) -> None:
    images = [_picture(seed, (84, 84)) for seed in range(9)]
    query = "/v1/embed?model=tov-vicreg-random&order=true"
    answer = await gateway.post(query, files=_form(*images))
    assert answer.status_code == 200, answer.text
    (told,) = answer.json()["order"]
    assert told["index"] == 0
    grey = np.stack([np.asarray(image.convert("L")) for image in images])
    before, now, after = grey.reshape(3, 1, 3, 84, 84)
    inputs = {"IMAGE": now, "BEFORE": before, "AFTER": after}
    expected = _predictor(folder, "tov-vicreg").predict(inputs)["IN_ORDER"]
    assert told["in_order"] == pytest.approx(float(expected[0, 0]), abs=1e-4)
    refused(await gateway.post(query, files=_form(*images[:6])), 422, "invalid_parameter", "3 emb")
    refused(
        await gateway.post("/v1/embed?model=sit-random&order=true", files=_form(*images[:3])),
        422,
        "invalid_parameter",
        "no parameter 'order'",
    )


async def test_a_picture_is_completed(gateway: httpx2.AsyncClient, folder: Path) -> None:
    sent = _form(_picture(6, (64, 64)))
    answer = await gateway.post("/v1/reconstruct?seed=5&share=0.4", files=sent)
    assert answer.status_code == 200, answer.text
    document = answer.json()
    expected = _predictor(folder, "sit-reconstruction").predict(
        {
            "IMAGE": np.asarray(_picture(6, (64, 64))).transpose(2, 0, 1)[None],
            "SHARE": np.array([[0.4]], np.float32),
            "SEED": np.array([[5]], np.int64),
        }
    )
    hidden = expected["HIDDEN"][0].astype(bool)
    assert document["hidden"] == pytest.approx(hidden.mean())
    assert (document["model"], document["seed"]) == ("sit-reconstruction-random", 5)
    files = {f["name"]: base64.b64decode(f["data"].partition(",")[2]) for f in document["files"]}
    assert files.keys() == {"restored.png", "seen.png"}
    restored = np.asarray(Image.open(BytesIO(files["restored.png"]))).astype(int)
    assert np.abs(restored - expected["RESTORED"][0].transpose(1, 2, 0)).max() <= 1
    alone = await gateway.post(
        "/v1/reconstruct?seed=5&share=0.4&pictures=restored",
        files=sent,
        headers={"Accept": "image/png"},
    )
    assert alone.headers["content-type"] == "image/png"
    assert alone.content == files["restored.png"]
    refused(
        await gateway.post("/v1/reconstruct?share=1.5", files=sent),
        422,
        "invalid_parameter",
        "from 0.05",
    )


async def test_a_picture_like_an_example_gets_its_label(gateway: httpx2.AsyncClient) -> None:
    images = [_picture(1), _picture(2), _picture(1)]
    answer = await gateway.post(
        "/v1/embed?model=sit-random", files=_form(*images), data={"labels": "one,two,"}
    )
    assert answer.status_code == 200, answer.text
    rows = [row["predictions"] for row in answer.json()["data"]]
    assert rows[:2] == [None, None]
    assert rows[2][0]["label"] == "one"
    assert rows[2][0]["similarity"] == pytest.approx(1.0, abs=1e-4)


async def test_examples_are_kept_listed_and_forgotten(gateway: httpx2.AsyncClient) -> None:
    learn = await gateway.post(
        "/v1/embed?model=sit-random&keep=pair",
        files=_form(_picture(1), _picture(2)),
        data={"labels": "one,two"},
    )
    assert learn.status_code == 200, learn.text
    answer = await gateway.post("/v1/embed?examples=pair", files=_form(_picture(2)))
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == "sit-random"
    assert answer.json()["data"][0]["predictions"][0]["label"] == "two"
    (kept,) = (await gateway.get("/v1/examples")).json()["data"]
    assert (kept["name"], kept["model"]) == ("pair", "sit-random")
    assert (await gateway.get("/v1/examples/pair")).json() == kept
    assert (await gateway.delete("/v1/examples/pair")).status_code == 204
    refused(await gateway.get("/v1/examples/pair"), 404, "examples_not_found", "'pair'")
    refused(await gateway.delete("/v1/examples/pair"), 404, "examples_not_found", "'pair'")


async def test_the_picture_of_one_map_is_the_answer_where_accepted(
    gateway: httpx2.AsyncClient,
) -> None:
    query, files = "/v1/embed?model=dvt-random&picture=true", _form(_picture(4))
    answer = await gateway.post(query, files=files, headers={"Accept": "image/png"})
    assert answer.headers["content-type"] == "image/png"
    assert Image.open(BytesIO(answer.content)).size == (256, 256)
    document = (await gateway.post(query, files=files)).json()
    assert [file["name"] for file in document["files"]] == ["features-0.png"]


async def test_a_picture_alone_may_be_a_job(gateway: httpx2.AsyncClient) -> None:
    answer = await gateway.post("/v1/embed?model=sit-random&mode=async", files=_form(_picture(5)))
    assert (answer.status_code, answer.json()["task"]) == (202, "embed")


@pytest_asyncio.fixture(loop_scope="module")
async def url(
    gateway: httpx2.AsyncClient, folder: Path, redis_server: RedisServer
) -> AsyncIterator[str]:
    """The same Triton behind a gateway on a port of its own."""
    address = gateway._transport.app.state.gateway.settings.triton
    async with listening(build(settings_for(redis_server, folder, triton=address))) as url:
        yield url


async def test_the_command_tells_how_alike_pictures_are(url: str, tmp_path: Path) -> None:
    for name, seed in (("a.png", 1), ("b.png", 1), ("c.png", 2)):
        _picture(seed).save(tmp_path / name)

    async def vitrine(*arguments: str) -> str:
        done = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "service.cli.main", "embed", "a.png", "b.png", "c.png"),
            *("--model", "sit-random", "--url", url, *arguments),
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=asyncio.subprocess.PIPE,
        )
        shown, _ = await done.communicate()
        assert done.returncode == 0
        return shown.decode()

    shown = (await vitrine("--similarity")).splitlines()
    assert shown[0].split() == ["a.png", "b.png", "c.png"]
    assert shown[1].split()[:3] == ["a.png", "1.000", "1.000"]
    assert 0 < float(shown[1].split()[3]) < 1
    document = json.loads(await vitrine("--json", "--similarity", "--output", "vectors.npy"))
    vectors = np.load(tmp_path / "vectors.npy")
    assert vectors.shape == (3, document["dimensions"])
    np.testing.assert_allclose([row["embedding"] for row in document["data"]], vectors, rtol=1e-6)
    assert document["similarity"][0][1] == pytest.approx(1.0, abs=1e-5)
    assert "LENGTH" in await vitrine("--normalize")

"""Models over HTTP, and one request all the way, with a real Triton that serves toys."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
import pytest_asyncio

from models.repository import write_catalogue
from service.settings import TritonSettings
from service.triton.cards import CATALOGUE
from tests.gateway.conftest import build, in_process, settings_for
from tests.gateway.test_inputs import PNG, refused
from tests.jobs.redis_server import RedisServer
from tests.triton.server import triton
from tests.triton.toys import write_toy

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def toys(
    redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[httpx2.AsyncClient]:
    directory = tmp_path_factory.mktemp("gateway")
    repository = directory / "repository"
    write_catalogue(repository)
    write_toy(repository, "brightness", "brightness", default=True)
    write_toy(repository, "counter", "counter", default=True)
    async with triton(repository, [CATALOGUE, "brightness"]) as client:
        address = TritonSettings(url=client.settings.url)
        settings = settings_for(redis_server, directory, triton=address)
        async with in_process(build(settings)) as gateway:
            yield gateway


async def test_readiness_names_the_model_that_is_missing(toys: httpx2.AsyncClient) -> None:
    answer = await toys.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["models"] == {"brightness": "ready", "counter": "unloaded"}
    assert answer.json()["missing"] == ["the model counter is unloaded"]


async def test_readiness_is_about_the_required_models(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    write_catalogue(repository)
    write_toy(repository, "brightness", "brightness", default=True)
    write_toy(repository, "counter", "counter", default=True)
    async with triton(repository, [CATALOGUE, "brightness"]) as client:
        for required, ready in ((("brightness",), True), (("brightness", "nothing"), False)):
            address = TritonSettings(url=client.settings.url, required_models=required)
            settings = settings_for(redis_server, tmp_path, triton=address)
            async with in_process(build(settings)) as gateway:
                answer = await gateway.get("/readyz")
                assert answer.json()["ready"] is ready
                assert answer.json()["models"] == {
                    "brightness": "ready",
                    **({} if ready else {"nothing": "unknown"}),
                }


async def test_load_and_unload(toys: httpx2.AsyncClient) -> None:
    answer = await toys.post("/v1/models/counter/load")
    assert (answer.status_code, answer.json()["state"]) == (200, "ready")
    answer = await toys.get("/readyz")
    assert (answer.status_code, answer.json()["missing"]) == (200, [])
    answer = await toys.post("/v1/models/counter/unload")
    assert (answer.status_code, answer.json()["state"]) == (200, "unloaded")


async def test_list(toys: httpx2.AsyncClient) -> None:
    body = (await toys.get("/v1/models")).json()
    assert body["object"] == "list"
    assert [model["id"] for model in body["data"]] == ["brightness", "counter"]
    model = body["data"][0]
    assert (model["object"], model["state"], model["task"]) == ("model", "ready", "classification")
    assert model["paper"]["title"] == "Toy"
    assert isinstance(model["created"], int)
    assert "labels" not in model
    only = (await toys.get("/v1/models?task=text-to-image")).json()["data"]
    assert [model["id"] for model in only] == ["counter"]


async def test_one_with_its_labels(toys: httpx2.AsyncClient) -> None:
    model = (await toys.get("/v1/models/brightness")).json()
    assert len(model["labels"]) == model["label_count"]


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("POST", "/load"), ("POST", "/unload")])
async def test_unknown_model(toys: httpx2.AsyncClient, method: str, path: str) -> None:
    answer = await toys.request(method, f"/v1/models/nothing{path}")
    refused(answer, 404, "model_not_found", "'nothing'")


async def test_resolved_model_is_in_the_metrics(toys: httpx2.AsyncClient) -> None:
    answer = await toys.post("/v1/resolve", content=b"", headers={"Prefer": "respond-async"})
    refused(answer, 400, "empty_body")
    answer = await toys.post("/v1/resolve?mode=async")
    assert (answer.status_code, answer.json()["model"]) == (202, "brightness")
    text = (await toys.get("/metrics")).text
    line = 'method="POST",model="brightness",route="/v1/resolve",status="202"'
    assert f"vitrine_requests_total{{{line}}} 1.0" in text


async def test_unknown_model_of_a_request(toys: httpx2.AsyncClient) -> None:
    refused(await toys.post("/v1/resolve?model=nothing"), 404, "model_not_found", "brightness")
    answer = await toys.post("/v1/resolve?model=counter")
    refused(answer, 404, "model_of_another_task", "text-to-image")


async def test_classify(toys: httpx2.AsyncClient) -> None:
    answer = await toys.post("/v1/classify?top_k=1", content=PNG)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == "brightness"
    assert "infer;dur=" in answer.headers["server-timing"]

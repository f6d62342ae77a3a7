"""`POST /v1/classify` with a video all the way: a real Triton that serves the networks with random weights."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import av
import httpx2
import numpy as np
import pytest
import pytest_asyncio
import torch
from PIL import Image
from safetensors.torch import save_file

from models.demo import motions
from models.registry import architecture
from models.repository import write_catalogue, write_entry
from models.serving import Device, Predictor
from service.jobs.metrics import WorkerMetrics
from service.jobs.queue import Queue
from service.jobs.worker import Worker
from service.settings import LimitSettings, Settings, TritonSettings
from service.storage.store import Store
from service.tasks import PIPELINES
from service.tasks.video_classification.schemas import VideoClassification
from service.triton.cards import CATALOGUE, Task, WeightsRecord
from service.triton.grpc import TritonClient
from tests.cli.running import run_vitrine
from tests.gateway.conftest import build, in_process, listening, settings_for
from tests.gateway.test_inputs import refused
from tests.jobs.redis_server import RedisServer
from tests.triton.server import triton

pytestmark = pytest.mark.asyncio(loop_scope="module")

SLUGS = ("uniformer-video", "uniformerv2")
SIZE = 96


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_catalogue(folder / "repository")
    for slug in SLUGS:
        made = architecture(slug)
        torch.manual_seed(0)
        weights = folder / f"{slug}.safetensors"
        save_file(made.network(made.config("demo")).state_dict(), weights)
        card = made.card("demo", id=f"{slug}-random", weights=WeightsRecord(kind="random"))
        card = card.model_copy(update={"default": slug == SLUGS[0]})
        write_entry(folder / "repository", card, {"model.safetensors": weights}, "cpu")
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(folder: Path) -> AsyncIterator[TritonClient]:
    async with triton(folder / "repository", [CATALOGUE, "uniformer-video-random"]) as client:
        yield client


@pytest.fixture(scope="module")
def settings(client: TritonClient, folder: Path, redis_server: RedisServer) -> Settings:
    return settings_for(
        redis_server,
        folder,
        triton=TritonSettings(url=client.settings.url),
        limits=LimitSettings(request_seconds=60.0),
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(settings: Settings) -> AsyncIterator[httpx2.AsyncClient]:
    async with in_process(build(settings)) as gateway:
        gateway.timeout = 60.0
        yield gateway


@pytest.fixture(scope="module")
def clip() -> bytes:
    return motions.clip_bytes(motions.HELD_OUT, seconds=2.0, fps=15, size=SIZE)


@asynccontextmanager
async def working(settings: Settings, client: TritonClient) -> AsyncIterator[None]:
    async with Queue(settings.redis, settings.jobs) as queue:
        worker = Worker(settings, queue, Store(settings), client, PIPELINES, WorkerMetrics())
        running = asyncio.create_task(worker.run())
        try:
            yield
        finally:
            worker.stop()
            await running


def expected(folder: Path, slug: str, data: bytes) -> np.ndarray:
    """Return what the network says in this process of the whole clip, prepared by tensor operations."""
    made = architecture(slug)
    card = made.card("demo", weights=WeightsRecord(kind="random"))
    version = folder / "repository" / f"{slug}-random" / "1"
    served = made.load(card, version, Device())
    assert isinstance(served, Predictor)
    with av.open(io.BytesIO(data)) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    # The middle frames of eight equal parts of 30 frames.
    part = 29 / 8
    chosen = [shown[round(part * k) + int(part / 2)] for k in range(8)]
    frames = torch.from_numpy(np.stack(chosen)).permute(0, 3, 1, 2).float()
    frames = torch.nn.functional.interpolate(frames, (64, 64), mode="bilinear")
    pixels = frames.round().to(torch.uint8).numpy()
    scores: np.ndarray = served.predict({"FRAMES": pixels[None]})["SCORES"][0]
    return scores


@pytest.mark.parametrize("slug", SLUGS)
async def test_scores_are_the_network_s(
    gateway: httpx2.AsyncClient, folder: Path, clip: bytes, slug: str
) -> None:
    answer = await gateway.post(f"/v1/classify?model={slug}-random&top_k=100", content=clip)
    assert answer.status_code == 200, answer.text
    document = VideoClassification.model_validate(answer.json())
    assert (document.weights, document.views.sampling) == ("random", "uniform")
    assert "mean nothing" in (document.warning or "")
    found = {p.index: p.score for p in document.predictions}
    scores = [found[index] for index in range(len(motions.LABELS))]
    np.testing.assert_allclose(scores, expected(folder, slug, clip), rtol=1e-3)
    assert [p.label for p in document.predictions] == [
        motions.LABELS[p.index] for p in document.predictions
    ]


async def test_triton_takes_batches_of_clips_of_one_length(client: TritonClient) -> None:
    frames = np.random.default_rng(2).integers(0, 256, (3, 8, 3, 64, 64), np.uint8)
    model = "uniformer-video-random"
    together = (await client.infer(model, {"FRAMES": frames}))["SCORES"]
    alone = (await client.infer(model, {"FRAMES": frames[1:2]}))["SCORES"]
    np.testing.assert_allclose(together[1:2], alone, rtol=1e-3)
    card = await client.resolve(Task.VIDEO_CLASSIFICATION, None)
    assert card.clip is not None
    assert (card.id, card.clip.frames) == (model, 8)


async def test_views_and_windows(gateway: httpx2.AsyncClient, clip: bytes) -> None:
    answer = await gateway.post("/v1/classify?clips=2&crops=3&window_s=0.5&top_k=1", content=clip)
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert document["model"] == "uniformer-video-random"
    assert document["views"] == {
        "windows": 4,
        "clips": 2,
        "crops": 3,
        "frames": 8,
        "sampling": "uniform",
    }
    ends = [(w["start_s"], w["end_s"]) for w in document["timeline"]]
    assert ends == [(0.0, 0.467), (0.467, 1.0), (1.0, 1.467), (1.467, 2.0)]
    assert "infer;dur=" in answer.headers["server-timing"]


async def test_a_form_with_parameters(gateway: httpx2.AsyncClient, clip: bytes) -> None:
    answer = await gateway.post(
        "/v1/classify",
        files={"file": ("a.mp4", clip, "video/mp4")},
        data={"sampling": "dense", "clips": "2", "top_k": "2"},
    )
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["predictions"]) == 2
    assert answer.json()["views"]["sampling"] == "dense"


async def test_what_is_refused(gateway: httpx2.AsyncClient, clip: bytes) -> None:
    answer = await gateway.post("/v1/classify?crops=2", content=clip)
    refused(answer, 422, "invalid_parameter", "takes 1 or 3")
    answer = await gateway.post("/v1/classify?window_s=0.01&clips=9", content=clip)
    refused(answer, 422, "invalid_parameter", "video_views")
    answer = await gateway.post("/v1/classify", content=clip[:2000])
    refused(answer, 400, "corrupt_video")
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    answer = await gateway.post("/v1/classify", content=file.getvalue())
    refused(answer, 404, "no_model_for_task", "classification")
    answer = await gateway.post("/v1/classify?clips=2", content=file.getvalue())
    refused(answer, 422, "invalid_parameter", "clips: is no parameter")


async def test_a_job(
    gateway: httpx2.AsyncClient, settings: Settings, client: TritonClient, clip: bytes
) -> None:
    async with working(settings, client):
        answer = await gateway.post(
            "/v1/classify?mode=async&window_s=1", content=clip, headers={"Prefer": "wait=30"}
        )
        assert answer.status_code == 200, answer.text
    job = answer.json()
    assert (job["task"], job["state"]) == ("classify-video", "succeeded")
    assert job["progress"]["percent"] == 100.0
    document = VideoClassification.model_validate(job["result"]["document"])
    assert [window.start_s for window in document.timeline] == [0.0, 1.0]


async def test_the_command(
    settings: Settings, client: TritonClient, clip: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "clip.mp4"
    file.write_bytes(clip)
    async with working(settings, client), listening(build(settings)) as url:
        command = ("classify", str(file), "--url", url, "--window")
        shown = await asyncio.to_thread(run_vitrine, *command, "1", "--crops", "3")
        assert shown.returncode == 0, shown.stderr
        assert "0:01.0 - 0:02.0" in shown.stdout
        told = await asyncio.to_thread(run_vitrine, *command, "1", "--crops", "3", "--json")
        (answer,) = json.loads(told.stdout)
        assert answer["views"]["crops"] == 3
        refusal = await asyncio.to_thread(run_vitrine, *command, "0.01", "--clips", "9", "--json")
        (answer,) = json.loads(refusal.stdout)
        assert refusal.returncode == 1
        assert answer["error"]["code"] == "invalid_parameter"

"""Deadlines, the circuit breaker and a stopped server, on a real Triton."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import cast

import psutil
import pytest
import pytest_asyncio

from models.repository import write_catalogue
from service.errors import DeadlineExceeded, ModelFailed, ModelNotFound, TritonUnavailable
from service.settings import TritonSettings
from service.triton.call import Call, calling
from service.triton.cards import CATALOGUE, Task
from service.triton.grpc import TritonClient
from tests.processes import descendants
from tests.triton.server import triton
from tests.triton.test_backend import image, prompt
from tests.triton.toys import write_toy

pytestmark = pytest.mark.asyncio(loop_scope="module")

STALL_S = 1.0


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("outages") / "repository"
    write_catalogue(repository)
    write_toy(repository, "brightness", "brightness", default=True)
    write_toy(repository, "counter", "counter", default=True)
    return repository


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(repository: Path) -> AsyncIterator[TritonClient]:
    async with triton(repository, [CATALOGUE, "brightness", "counter"]) as served:
        settings = TritonSettings(url=served.settings.url, stall_s=STALL_S)
        async with TritonClient(settings) as client:
            await client.models()
            yield client


@pytest.fixture
def server(client: TritonClient, repository: Path) -> psutil.Process:
    return next(
        process for process, words in descendants() if f"--model-repository={repository}" in words
    )


async def follow(client: TritonClient, name: str, steps: int, log: list[str]) -> None:
    """Run a stream of `counter` and note every response."""
    async for _ in client.stream("counter", prompt("x", steps=steps)):
        log.append(name)  # noqa: PERF401 - others read the log meanwhile


async def busy(client: TritonClient, steps: int, log: list[str]) -> asyncio.Task[None]:
    """Keep `counter` busy from now on for `steps` of 50 ms."""
    task = asyncio.create_task(follow(client, "busy", steps, log))
    async with asyncio.timeout(20):
        while not log:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return task


async def test_a_request_that_waits_too_long_is_never_run(
    client: TritonClient, repository: Path
) -> None:
    steps = repository / "counter" / "1" / "steps.log"
    log: list[str] = []
    running = await busy(client, 30, log)
    before = len(steps.read_text().split())
    with calling(Call.within(0.3)), pytest.raises(DeadlineExceeded) as late:
        await follow(client, "late", 17, log)
    assert late.value.status == 504
    assert "late" not in log
    await running
    await follow(client, "next", 2, log)
    # What ran since: the rest of the first stream, and the last one; nothing of the late one.
    assert len(steps.read_text().split()) - before <= 30 + 2


async def test_a_deadline_that_has_passed_is_not_sent(client: TritonClient) -> None:
    with calling(Call.within(-1)), pytest.raises(DeadlineExceeded):
        await client.infer("brightness", image(1))


async def test_a_model_that_keeps_failing_is_left_alone_and_tried_again(
    client: TritonClient,
) -> None:
    for _ in range(5):
        with pytest.raises(ModelFailed):
            await client.infer("brightness", image(66))
    with pytest.raises(TritonUnavailable) as refused:
        await client.infer("brightness", image(5))
    assert refused.value.stable_code == "model_unavailable"
    assert refused.value.headers()["Retry-After"]
    # Other models have breakers of their own.
    await follow(client, "other", 1, [])
    async with asyncio.timeout(20):
        while True:
            try:
                answer = await client.infer("brightness", image(5))
                break
            except TritonUnavailable:
                await asyncio.sleep(0.1)
    assert answer["SCORES"][0, 0] == 5


async def test_a_stopped_server_hangs_nobody(client: TritonClient, server: psutil.Process) -> None:
    log: list[str] = []
    stream = await busy(client, 60, log)
    server.send_signal(signal.SIGSTOP)
    try:
        stopped = time.monotonic()
        answers = await asyncio.gather(
            stream,
            *(client.infer("brightness", image(v)) for v in range(3)),
            return_exceptions=True,
        )
        assert {type(answer) for answer in answers} == {TritonUnavailable}
        assert {cast(TritonUnavailable, a).stable_code for a in answers} == {
            "inference_unavailable"
        }
        # Without the pulse they would hang for the minute that a request may take.
        assert time.monotonic() - stopped < 30
        refused = time.monotonic()
        for _ in range(20):
            with pytest.raises(TritonUnavailable):
                await client.infer("brightness", image(1))
        with pytest.raises(TritonUnavailable):
            await follow(client, "x", 1, [])
        assert time.monotonic() - refused < STALL_S
        # What is known of the models stays known.
        assert (await client.resolve(Task.CLASSIFICATION, None)).id == "brightness"
    finally:
        server.send_signal(signal.SIGCONT)
    async with asyncio.timeout(30):
        while True:
            try:
                answer = await client.infer("brightness", image(7))
                break
            except TritonUnavailable:
                await asyncio.sleep(0.1)
    assert answer["SCORES"][0, 0] == 7
    async with aclosing(client.stream("counter", prompt("x", steps=2))) as responses:
        assert len([r async for r in responses]) == 3


async def test_a_server_that_has_just_started_is_not_said_to_lack_a_model(tmp_path: Path) -> None:
    """It lists its entries before it loads the catalogue, which alone tells what they are."""
    repository = tmp_path / "repository"
    write_catalogue(repository)
    write_toy(repository, "brightness", "brightness", default=True)
    async with triton(repository) as client:
        for model in ("brightness", None):
            with pytest.raises(TritonUnavailable) as starting:
                await client.resolve(Task.CLASSIFICATION, model)
            assert not starting.value.begun
        await client.load(CATALOGUE)
        assert [(m.card.id, m.state) for m in await client.models()] == [("brightness", "unloaded")]
        with pytest.raises(ModelNotFound):
            await client.resolve(Task.CLASSIFICATION, "nothing")
        # What is known of the models stays known.
        await client.unload(CATALOGUE)
        assert [m.card.id for m in await client.models()] == ["brightness"]
        with pytest.raises(ModelNotFound):
            await client.resolve(Task.DEEPFAKE, "brightness")

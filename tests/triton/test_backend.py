"""The shared backend, the repository, the catalogue and the client, through a real Triton."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from models.repository import remove_entry, write_catalogue
from service.errors import BadInput, ModelFailed, ModelNotFound, TritonUnavailable
from service.settings import TritonSettings
from service.triton.cards import CATALOGUE, Task
from service.triton.grpc import TritonClient
from service.triton.server import shared_memory_prefix
from tests.triton.server import free_ports, triton
from tests.triton.toys import write_toy

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("triton") / "repository"
    write_catalogue(repository)
    write_toy(repository, "brightness", "brightness", default=True)
    write_toy(repository, "brightness", "brightness-bf16", precision="bfloat16")
    write_toy(repository, "counter", "counter", default=True)
    return repository


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(repository: Path) -> AsyncIterator[TritonClient]:
    async with triton(repository, [CATALOGUE, "brightness", "counter"]) as client:
        yield client


def image(value: int) -> dict[str, np.ndarray]:
    return {"IMAGE": np.full((1, 3, 8, 8), value, np.uint8)}


def prompt(text: str, *, seed: int = 7, steps: int = 4) -> dict[str, np.ndarray]:
    return {
        "PROMPT": np.array([text], dtype=object),
        "SEED": np.array([seed], np.int64),
        "STEPS": np.array([steps], np.int32),
        "GUIDANCE": np.array([1.0], np.float32),
        "WIDTH": np.array([2], np.int32),
        "HEIGHT": np.array([2], np.int32),
    }


async def test_cards_of_loaded_and_unloaded_models(client: TritonClient) -> None:
    states = {m.card.id: m.state for m in await client.models()}
    assert states["brightness"] == "ready"
    assert states["brightness-bf16"] in ("unloaded", "ready")
    assert [m.card.id for m in await client.models(Task.TEXT_TO_IMAGE)] == ["counter"]


async def test_requests_of_one_moment_share_a_forward_pass(client: TritonClient) -> None:
    answers = await asyncio.gather(*(client.infer("brightness", image(v)) for v in range(12)))
    assert [a["SCORES"][0, 0] for a in answers] == list(range(12))
    assert max(a["SCORES"][0, 1] for a in answers) > 1


async def test_a_bad_item_fails_alone(client: TritonClient) -> None:
    values = [1, 13, 2, 66, 3]
    answers = await asyncio.gather(
        *(client.infer("brightness", image(v)) for v in values), return_exceptions=True
    )
    assert isinstance(answers[1], BadInput)
    assert answers[1].message == "first pixel 13"
    assert isinstance(answers[3], ModelFailed)
    assert "RuntimeError: cannot compute 66" in answers[3].message
    assert [answers[i]["SCORES"][0, 0] for i in (0, 2, 4)] == [1, 2, 3]


async def test_a_batch_in_one_request(client: TritonClient) -> None:
    batch = np.stack([np.full((3, 8, 8), v, np.uint8) for v in (4, 5, 6)])
    answer = await client.infer("brightness", {"IMAGE": batch})
    assert answer["SCORES"][:, 0].tolist() == [4, 5, 6]


async def test_wrong_size_is_refused_by_name(client: TritonClient) -> None:
    with pytest.raises(BadInput, match="IMAGE"):
        await client.infer("brightness", {"IMAGE": np.zeros((1, 3, 9, 8), np.uint8)})


@pytest.mark.parametrize("death", ["first", "second"])
async def test_a_model_that_dies_is_restarted(client: TritonClient, death: str) -> None:
    with pytest.raises((TritonUnavailable, ModelFailed)):
        await client.infer("brightness", image(99))
    async with asyncio.timeout(60):
        while True:
            try:
                answer = await client.infer("brightness", image(5))
                break
            except TritonUnavailable:
                await asyncio.sleep(0.3)
    assert answer["SCORES"][0, 0] == 5


async def test_one_death_is_met_with_one_reload(client: TritonClient, repository: Path) -> None:
    log = repository.parent / "triton.log"
    async with TritonClient(client.settings) as other:
        await other.models()
        with pytest.raises((TritonUnavailable, ModelFailed)):
            await client.infer("brightness", image(99))
        before = log.read_text().count("successfully loaded 'brightness'")
        async with asyncio.timeout(60):
            await client.reload("brightness")
            # One that was refused by the dead process and is told so only now.
            await other.reload("brightness")
        assert (await other.infer("brightness", image(5)))["SCORES"][0, 0] == 5
    assert log.read_text().count("successfully loaded 'brightness'") == before + 1


async def test_first_use_loads_once(client: TritonClient) -> None:
    await client.unload("brightness-bf16")
    cards = await asyncio.gather(
        *(client.resolve(Task.CLASSIFICATION, "brightness-bf16") for _ in range(5))
    )
    assert {c.id for c in cards} == {"brightness-bf16"}
    answer = await client.infer("brightness-bf16", image(1))
    assert answer["SCORES"][0, 2] in (0.0, 1.0)


async def test_resolve_explains_what_it_refuses(client: TritonClient) -> None:
    assert (await client.resolve(Task.CLASSIFICATION, None)).id == "brightness"
    with pytest.raises(ModelNotFound, match=r"unknown model 'nothing'.*brightness") as unknown:
        await client.resolve(Task.CLASSIFICATION, "nothing")
    assert unknown.value.stable_code == "model_not_found"
    with pytest.raises(ModelNotFound, match="serves text-to-image") as other:
        await client.resolve(Task.CLASSIFICATION, "counter")
    assert other.value.stable_code == "model_of_another_task"
    with pytest.raises(ModelNotFound, match="no model serves detection"):
        await client.resolve(Task.DETECTION, None)


async def test_an_entry_added_while_running_is_served(
    client: TritonClient, repository: Path
) -> None:
    write_toy(repository, "brightness", "added")
    try:
        assert (await client.resolve(Task.CLASSIFICATION, "added")).id == "added"
        assert (await client.infer("added", image(8)))["SCORES"][0, 0] == 8
    finally:
        await client.unload("added")
        remove_entry(repository, "added")
    with pytest.raises(ModelNotFound):
        await client.resolve(Task.CLASSIFICATION, "added")


async def test_streams_progress_then_the_result(client: TritonClient) -> None:
    responses = [r async for r in client.stream("counter", prompt("x", steps=3))]
    assert [r["PROGRESS"].tolist() for r in responses[:3]] == [[1, 3], [2, 3], [3, 3]]
    assert responses[3]["IMAGE"].tolist() == np.full((2, 2, 3), 7).tolist()
    assert len(responses) == 4


async def test_streams_of_one_key_share_steps(client: TritonClient, repository: Path) -> None:
    log = repository / "counter" / "1" / "steps.log"
    log.unlink(missing_ok=True)

    async def result(seed: int) -> int:
        async for response in client.stream("counter", prompt("x", seed=seed)):
            if "IMAGE" in response:
                return int(response["IMAGE"][0, 0, 0])
        raise AssertionError("no picture came")

    assert await asyncio.gather(*(result(s) for s in (1, 2, 3))) == [1, 2, 3]
    assert max(int(line) for line in log.read_text().split()) > 1


async def test_cancelling_stops_the_steps(client: TritonClient, repository: Path) -> None:
    log = repository / "counter" / "1" / "steps.log"
    log.unlink(missing_ok=True)
    while client._withdrawals._tasks:  # noqa: ASYNC110 - those of the tests before
        await asyncio.sleep(0.1)
    marks = {*Path("/dev/shm").glob(f"{shared_memory_prefix(repository)}*.gone")}  # noqa: ASYNC240
    async with aclosing(client.stream("counter", prompt("x", steps=40))) as responses:
        async for _ in responses:
            break
    await asyncio.sleep(2.5)
    live = [int(line) for line in log.read_text().split()]
    assert live[0] == 1
    assert live[-1] == 0
    async with asyncio.timeout(20):
        while {*Path("/dev/shm").glob(f"{shared_memory_prefix(repository)}*.gone")} - marks:  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.1)


async def test_errors_on_streams(client: TritonClient) -> None:
    with pytest.raises(BadInput, match="steps must be at least 1"):
        [r async for r in client.stream("counter", prompt("x", steps=0))]
    with pytest.raises(ModelFailed, match="told to fail"):
        [r async for r in client.stream("counter", prompt("fail", steps=1))]


async def test_no_server_is_said_at_once() -> None:
    (port,) = free_ports(1)
    async with TritonClient(TritonSettings(url=f"127.0.0.1:{port}")) as client:
        started = time.monotonic()
        with pytest.raises(TritonUnavailable) as down:
            await client.resolve(Task.CLASSIFICATION, None)
        assert down.value.headers()["Retry-After"]
        with pytest.raises(TritonUnavailable):
            await client.infer("brightness", image(1))
        assert not await client.ready()
        # The promise is an answer, not a hang: a bound far above what it takes.
        assert time.monotonic() - started < 20

"""The memory for loaded models on a real Triton: who goes, who stays, what does not fit."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
import pytest_asyncio

from models.repository import write_catalogue
from service.errors import ModelTooLarge
from service.settings import TritonSettings
from service.triton.cards import CATALOGUE, Task
from service.triton.grpc import TritonClient
from tests.processes import descendants
from tests.triton.server import triton
from tests.triton.test_backend import image, prompt
from tests.triton.toys import write_toy

pytestmark = pytest.mark.asyncio(loop_scope="module")

# A toy holds 340 MB or more of its own and shared memory (torch), and up to 550 MB alone.
BUDGET = 1_050_000_000


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("memory") / "repository"
    write_catalogue(repository)
    for name in ("first", "second", "third"):
        write_toy(repository, "brightness", name)
    write_toy(repository, "counter", "counter")
    write_toy(repository, "brightness", "huge")
    with (repository / "huge" / "1" / "further.bin").open("wb") as file:
        file.truncate(BUDGET)
    return repository


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(repository: Path) -> AsyncIterator[TritonClient]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "VITRINE_TRITON__MEMORY_BYTES", str(BUDGET))
        async with triton(repository, [CATALOGUE]) as served:
            settings = TritonSettings(url=served.settings.url, load_timeout_s=60)
            async with TritonClient(settings) as client:
                yield client


async def ready(client: TritonClient) -> set[str]:
    return {m.card.id for m in await client.models() if m.state == "ready"}


def resident(repository: Path) -> set[str]:
    """Return the models that have a process."""
    entries = {
        Path(words[1]).relative_to(repository).parts[0]
        for _, words in descendants()
        if len(words) > 1 and "triton_python" in words[0] and str(repository) in words[1]
    }
    return entries - {CATALOGUE}


async def test_the_least_recently_used_makes_room(client: TritonClient, repository: Path) -> None:
    for name in ("first", "second"):
        await client.resolve(Task.CLASSIFICATION, name)
    assert await ready(client) == {"first", "second"}
    await client.infer("first", image(1))
    await client.resolve(Task.CLASSIFICATION, "third")
    assert await ready(client) == {"first", "third"}
    assert resident(repository) == {"first", "third"}


async def test_a_request_for_what_was_unloaded_meanwhile_loads_it(
    client: TritonClient, repository: Path
) -> None:
    # The client still believes that it is loaded.
    answer = await client.infer("second", image(9))
    assert answer["SCORES"][0, 0] == 9
    assert len(resident(repository)) == 2


async def test_a_model_in_use_stays(client: TritonClient, repository: Path) -> None:
    await client.resolve(Task.TEXT_TO_IMAGE, "counter")
    (other,) = resident(repository) - {"counter"}
    async with aclosing(client.stream("counter", prompt("x", steps=300))) as responses:
        await anext(responses)
        await client.infer(other, image(1))  # so that the counter was not used for longest
        wanted = next(name for name in ("first", "second", "third") if name != other)
        await client.resolve(Task.CLASSIFICATION, wanted)
        assert await ready(client) == {"counter", wanted}
        assert "PROGRESS" in await anext(responses)


async def test_what_never_fits_is_refused_and_evicts_nobody(
    client: TritonClient, repository: Path
) -> None:
    await asyncio.sleep(0.5)
    before = resident(repository)
    with pytest.raises(ModelTooLarge) as refused:
        await client.resolve(Task.CLASSIFICATION, "huge")
    assert refused.value.status == 507
    problem = refused.value.problem()
    assert problem["code"] == "model_too_large"
    assert problem["needed"]["host"] > BUDGET
    assert problem["limit"] == {"name": "memory_bytes", "bytes": problem["limit"]["bytes"]}
    assert problem["limit"]["bytes"]["host"] == BUDGET
    assert resident(repository) == before

"""A real Redis for the queue's tests; each test has a queue of its own name in it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from service.jobs.consumer import Claim
from service.jobs.queue import Queue
from service.jobs.record import Submission
from service.settings import JobSettings, RedisSettings
from tests.jobs.redis_server import RedisServer

LEASE_S = 1.0


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def redis_settings(redis_server: RedisServer) -> RedisSettings:
    # A long time-out: a busy machine is not what these tests are about.
    return RedisSettings(
        url=redis_server.url, queue=f"test-{secrets.token_hex(6)}", connect_timeout_s=30
    )


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that the test may kill."""
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def queue(redis_settings: RedisSettings) -> AsyncIterator[Queue]:
    async with Queue(redis_settings, JobSettings()) as queue:
        yield queue


async def lease_over(queue: Queue, claim: Claim) -> None:
    """Make Redis believe that the claim's worker has not been heard of for two hours."""
    entry = await queue.connection.client.hget(queue.connection.key("job", claim.job.id), "entry")
    lane = queue.connection.key("lane", claim.job.lane)
    held = await queue.connection.client.xpending_range(lane, "workers", entry, entry, 1)
    await queue.connection.client.xclaim(
        lane, "workers", held[0]["consumer"], 0, [entry], idle=7_200_000, justid=True
    )


def submission(task: str = "sleep", **fields: object) -> Submission:
    return Submission.model_validate({"task": task, "model": None, "parameters": {}, **fields})


async def eventually(holds: Callable[[], Awaitable[bool]], within_s: float = 20.0) -> None:
    """Return once `holds` does; fail if it does not within `within_s`."""
    for _ in range(round(within_s / 0.02)):
        if await holds():
            return
        await asyncio.sleep(0.02)
    pytest.fail(f"{holds.__name__} did not come true in {within_s} s.")

"""A real Redis for the queue's tests; each test has a queue of its own name in it."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from service.jobs.consumer import Claim
from service.jobs.queue import Queue
from service.jobs.record import Submission
from service.settings import JobSettings, RedisSettings, StorageSettings
from tests.jobs.redis_server import RedisServer

LEASE_S = 1.0

StartWorker = Callable[..., "subprocess.Popen[bytes]"]


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


@pytest.fixture
def storage(tmp_path: Path) -> StorageSettings:
    return StorageSettings(url=(tmp_path / "storage").as_uri())


@pytest.fixture
def start_worker(redis_settings: RedisSettings, storage: StorageSettings) -> Iterator[StartWorker]:
    """Start real worker processes with `sleep`; settings as environment variables."""
    environment = os.environ | {
        "VITRINE_REDIS__URL": redis_settings.url,
        "VITRINE_REDIS__QUEUE": redis_settings.queue,
        "VITRINE_STORAGE__URL": storage.url,
        "VITRINE_JOBS__LEASE_S": str(LEASE_S),
        "VITRINE_JOBS__DRAIN_S": "0.1",
    }
    workers: list[subprocess.Popen[bytes]] = []

    def start(**settings: str) -> subprocess.Popen[bytes]:
        worker = subprocess.Popen(
            [sys.executable, "-m", "tests.jobs.worker_with_sleep"],
            env=environment | settings,
            stderr=subprocess.DEVNULL,
        )
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        worker.kill()
        worker.wait()


async def lease_over(queue: Queue, claim: Claim) -> None:
    """Let the lease of a running job, or the back-off of one handed back, end now."""
    for key in ("running", "returned"):
        await queue.connection.client.zadd(queue.connection.key(key), {claim.job.id: 0}, xx=True)


async def unfinished(queue: Queue) -> dict[str, int]:
    """Return the sizes of all keys that jobs are in before they end; empty when nothing is left."""
    client, found = queue.connection.client, {}
    for name in ("waiting", "turns", "returned", "running", "started"):
        for pattern in (name, f"{name}:*"):
            async for key in client.scan_iter(queue.connection.key(pattern)):
                kind = await client.type(key)
                size = client.scard(key) if kind == "set" else client.zcard(key)
                found[key.removeprefix(f"{queue.connection.root}:")] = await size
    return found


def submission(task: str = "sleep", **fields: object) -> Submission:
    return Submission.model_validate({"task": task, "model": None, "parameters": {}, **fields})


async def eventually(holds: Callable[[], Awaitable[bool]], within_s: float = 20.0) -> None:
    """Return once `holds` does; fail if it does not within `within_s`."""
    for _ in range(round(within_s / 0.02)):
        if await holds():
            return
        await asyncio.sleep(0.02)
    pytest.fail(f"{holds.__name__} did not come true in {within_s} s.")

"""A whole small system to send requests to: Redis, Triton with toy networks, a worker, the gateway."""

from __future__ import annotations

import asyncio
import queue
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.repository import write_catalogue
from service.app import create_app
from service.jobs.metrics import WorkerMetrics
from service.jobs.queue import Queue
from service.jobs.worker import Worker
from service.settings import (
    AuthSettings,
    LimitSettings,
    RedisSettings,
    Settings,
    StorageSettings,
    TritonSettings,
)
from service.storage.store import Store
from service.tasks import PIPELINES
from service.triton.cards import CATALOGUE, Parameter
from tests.gateway.conftest import listening
from tests.jobs.redis_server import RedisServer
from tests.triton.server import triton
from tests.triton.toys import write_toy

KEY = "a-key-of-the-tests-" + "0" * 20
"""The API key that every request needs."""

_PAINTER = {
    "prompt": Parameter(type="string", max_length=200),
    "seed": Parameter(type="integer", minimum=0, maximum=2**63 - 1),
    "steps": Parameter(type="integer", default=1, minimum=1, maximum=3),
    "guidance": Parameter(type="number", default=1.0, minimum=0, maximum=20),
    "width": Parameter(type="integer", default=2, choices=(2,)),
    "height": Parameter(type="integer", default=2, choices=(2,)),
    "n": Parameter(type="integer", default=1, minimum=1, maximum=3),
}


@contextmanager
def system(directory: Path) -> Iterator[str]:
    """Run the system in a thread with a loop of its own, and give the gateway's URL."""
    (directory / "redis").mkdir(parents=True)
    redis = RedisServer(directory / "redis")
    redis.start()
    started: queue.SimpleQueue[tuple[str, asyncio.AbstractEventLoop, asyncio.Event] | Exception]
    started = queue.SimpleQueue()

    async def run() -> None:
        try:
            repository = directory / "triton" / "repository"
            write_catalogue(repository)
            write_toy(repository, "brightness", "brightness", default=True)
            write_toy(repository, "counter", "counter", default=True, parameters=_PAINTER)
            async with triton(repository, [CATALOGUE, "brightness", "counter"]) as client:
                settings = _settings(directory, redis, client.settings)
                async with Queue(settings.redis, settings.jobs) as jobs:
                    worker = Worker(
                        settings, jobs, Store(settings), client, PIPELINES, WorkerMetrics()
                    )
                    working = asyncio.create_task(worker.run())
                    async with listening(create_app(settings)) as url:
                        ended = asyncio.Event()
                        started.put((url, asyncio.get_running_loop(), ended))
                        await ended.wait()
                    worker.stop()
                    await working
        except Exception as error:
            started.put(error)

    thread = threading.Thread(target=asyncio.run, args=(run(),), name="system")
    thread.start()
    try:
        found = started.get(timeout=90)
        if isinstance(found, Exception):
            raise found
        url, loop, ended = found
        yield url
        loop.call_soon_threadsafe(ended.set)
    finally:
        thread.join()
        redis.kill()


def _settings(directory: Path, redis: RedisServer, triton: TritonSettings) -> Settings:
    return Settings(
        data_dir=directory,
        triton=triton,
        redis=RedisSettings(url=redis.url, queue=f"fuzz-{secrets.token_hex(6)}"),
        auth=AuthSettings(required=True, admin_key=KEY, open_metrics=False),
        storage=StorageSettings(min_free_bytes=1),
        limits=LimitSettings(body_bytes=2_000_000, image_body_bytes=1_000_000, request_seconds=15),
    )

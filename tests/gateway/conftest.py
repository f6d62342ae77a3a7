"""The real app behind a real uvicorn, with a real Redis; Triton is a port where nobody listens.

Pipelines that need no network stand in for the tasks, so that the shell itself is what is tested.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog
import uvicorn
from fastapi import FastAPI

from service.app import create_app
from service.jobs.queue import Queue
from service.settings import (
    JobSettings,
    LimitSettings,
    RedisSettings,
    Settings,
    StorageSettings,
    TritonSettings,
)
from tests.gateway.tasks import router
from tests.jobs.redis_server import RedisServer, free_port

PROMPTLY_S = 10.0
"""An answer that says what is down comes by then, also on a busy machine; a hang does not."""


@pytest.fixture(scope="session", autouse=True)
def plain_logs() -> Iterator[None]:
    """Log lines as the gateway's own processes render exceptions: without every variable's value."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(),
        ]
    )
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that the test may kill."""
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.kill()


def settings_for(redis: RedisServer, directory: Path, **fields: Any) -> Settings:
    defaults: dict[str, Any] = {
        "data_dir": directory,
        "triton": TritonSettings(url=f"127.0.0.1:{free_port()}"),
        "redis": RedisSettings(
            url=redis.url, queue=f"test-{secrets.token_hex(6)}", connect_timeout_s=1.0
        ),
        "jobs": JobSettings(lease_s=5.0),
        "storage": StorageSettings(min_free_bytes=1),
        "limits": LimitSettings(body_bytes=200_000, image_body_bytes=100_000, request_seconds=15.0),
    }
    return Settings(**(defaults | fields))


@pytest.fixture
def settings(redis_server: RedisServer, tmp_path: Path) -> Settings:
    return settings_for(redis_server, tmp_path)


@asynccontextmanager
async def listening(app: Any) -> AsyncIterator[str]:
    """Serve an ASGI app on a free port and give its URL."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, http="httptools", ws="none", log_config=None, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving
        listener.close()


def build(settings: Settings) -> FastAPI:
    """Return the gateway's app with the test pipelines beside its own tasks."""
    app = create_app(settings)
    app.include_router(router)
    return app


@asynccontextmanager
async def in_process(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    """Run the gateway without a socket and give a client to it."""
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app), base_url="http://127.0.0.1", timeout=20.0
        ) as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def spool_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where uploads are spooled: a directory that only this test uses."""
    directory = tmp_path / "spool"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[httpx2.AsyncClient]:
    async with in_process(build(settings)) as client:
        yield client


@pytest.fixture
async def served(settings: Settings) -> AsyncIterator[httpx2.AsyncClient]:
    """A client to the gateway behind a socket, for what only a connection can do."""
    async with (
        listening(build(settings)) as url,
        httpx2.AsyncClient(base_url=url, timeout=20.0, trust_env=False) as client,
    ):
        yield client


@pytest.fixture
async def queue(settings: Settings) -> AsyncIterator[Queue]:
    async with Queue(settings.redis, settings.jobs) as queue:
        yield queue

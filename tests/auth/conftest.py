"""The gateway as other machines would see it: with keys required, over a real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from service.auth.keys import KeyLimits, Scope, make_key
from service.auth.store import KeyStore
from service.jobs.queue import Queue
from service.settings import AuthSettings, Settings
from tests.gateway.conftest import (  # noqa: F401
    build,
    in_process,
    own_redis,
    plain_logs,
    redis_server,
    settings_for,
    spool_directory,
)
from tests.jobs.redis_server import RedisServer

CACHE_S = 0.05
GUARDED = AuthSettings(required=True, cache_s=CACHE_S)

MakeKey = Callable[..., Awaitable[dict[str, str]]]
"""Makes a key with these scopes and limits; gives the header that presents it."""


@pytest.fixture
def settings(redis_server: RedisServer, tmp_path: Path) -> Settings:  # noqa: F811
    return settings_for(redis_server, tmp_path, auth=GUARDED)


@pytest.fixture
async def queue(settings: Settings) -> AsyncIterator[Queue]:
    async with Queue(settings.redis, settings.jobs) as queue:
        yield queue


@pytest.fixture
def store(queue: Queue) -> KeyStore:
    return KeyStore(queue.connection, 10.0)


@pytest.fixture
def key(store: KeyStore) -> MakeKey:
    return maker(store)


def maker(store: KeyStore) -> MakeKey:
    async def make(
        *scopes: Scope, name: str = "", expires_at: float | None = None, **limits: Any
    ) -> dict[str, str]:
        made, presented = make_key(
            name or f"key {len(await store.list())}",
            scopes or (Scope.INFER, Scope.JOBS),
            KeyLimits(**limits),
            expires_at,
        )
        await store.add(made)
        return {"Authorization": f"Bearer {presented}"}

    return make


@asynccontextmanager
async def gateway(settings: Settings) -> AsyncIterator[httpx2.AsyncClient]:
    async with in_process(build(settings)) as client:
        yield client


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[httpx2.AsyncClient]:
    async with gateway(settings) as client:
        yield client

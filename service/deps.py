"""What endpoints work with, made once when the gateway starts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from service.http.idempotency import Answers
from service.jobs.queue import Queue
from service.jobs.results import ResultStore
from service.media.fetch import Fetcher
from service.observability.metrics import Metrics
from service.settings import Settings
from service.storage.store import Store
from service.triton.client import Triton
from service.triton.grpc import TritonClient

TENANT = "local"
"""Whose jobs these are while the gateway is bound to loopback and takes no keys."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """The parts of one running gateway. `draining` is set once it accepts no more requests."""

    settings: Settings
    triton: Triton
    queue: Queue
    store: Store
    results: ResultStore
    answers: Answers
    fetcher: Fetcher
    metrics: Metrics
    draining: asyncio.Event = field(default_factory=asyncio.Event)


@asynccontextmanager
async def open_gateway(settings: Settings, metrics: Metrics) -> AsyncIterator[Gateway]:
    """Connect to Triton, Redis and the storage. None of them has to be up."""
    store = Store(settings)
    async with (
        TritonClient(settings.triton) as triton,
        Queue(settings.redis, settings.jobs) as queue,
    ):
        yield Gateway(
            settings=settings,
            triton=triton,
            queue=queue,
            store=store,
            results=ResultStore(store),
            answers=Answers(queue.connection, settings),
            fetcher=Fetcher(settings.limits),
            metrics=metrics,
        )


def gateway(request: Request) -> Gateway:
    found: Gateway = request.app.state.gateway
    return found


GatewayDep = Annotated[Gateway, Depends(gateway)]

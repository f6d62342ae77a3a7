"""What endpoints work with, made once when the gateway starts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from service.auth.keyring import Keyring
from service.auth.store import KeyStore
from service.http.idempotency import Answers
from service.http.shedding import Shedding
from service.jobs.queue import Queue
from service.jobs.results import ResultStore
from service.limits.admission import Admission
from service.media.fetch import Fetcher
from service.observability.metrics import Metrics
from service.settings import Settings
from service.storage.scratch import remove_abandoned
from service.storage.store import Store
from service.triton.client import Triton
from service.triton.grpc import TritonClient

_PATIENCE_S = 1.0


@dataclass(frozen=True, slots=True)
class Gateway:
    """The parts of one running gateway.

    `leaving` is set once it is told to end; `draining` once it accepts no more requests.
    """

    settings: Settings
    triton: Triton
    queue: Queue
    store: Store
    results: ResultStore
    answers: Answers
    fetcher: Fetcher
    keyring: Keyring
    admission: Admission
    shedding: Shedding
    metrics: Metrics
    leaving: asyncio.Event = field(default_factory=asyncio.Event)
    draining: asyncio.Event = field(default_factory=asyncio.Event)


@asynccontextmanager
async def open_gateway(settings: Settings, metrics: Metrics) -> AsyncIterator[Gateway]:
    """Connect to Triton, Redis and the storage. None of them has to be up."""
    remove_abandoned()
    store = Store(settings)
    queue = Queue(settings.redis, settings.jobs)
    # Calls that need no queue shall not wait long for a Redis that hangs.
    patience_s = min(settings.redis.connect_timeout_s, _PATIENCE_S)
    async with (
        TritonClient(settings.triton, metrics.triton) as triton,
        queue,
        Admission(queue.connection, patience_s) as admission,
    ):
        yield Gateway(
            settings=settings,
            triton=triton,
            queue=queue,
            store=store,
            results=ResultStore(store),
            answers=Answers(queue.connection, settings),
            fetcher=Fetcher(settings.limits),
            keyring=Keyring(KeyStore(queue.connection, patience_s), settings.auth),
            admission=admission,
            shedding=Shedding(settings.shedding, metrics),
            metrics=metrics,
        )


def gateway(request: Request) -> Gateway:
    found: Gateway = request.app.state.gateway
    return found


GatewayDep = Annotated[Gateway, Depends(gateway)]

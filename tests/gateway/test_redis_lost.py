"""Redis is lost while clients are being served: what hangs, what ends, what goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from tests.gateway.conftest import PROMPTLY_S, build, listening, settings_for
from tests.gateway.test_dispatch import PNG, refused
from tests.gateway.test_jobs import events, submit
from tests.jobs.redis_server import RedisServer


@pytest.fixture
async def client(own_redis: RedisServer, tmp_path: Path) -> AsyncIterator[httpx2.AsyncClient]:
    async with (
        listening(build(settings_for(own_redis, tmp_path))) as url,
        httpx2.AsyncClient(base_url=url, timeout=30.0, trust_env=False) as client,
    ):
        yield client


async def test_a_redis_that_stops_answering_hangs_nobody(
    client: httpx2.AsyncClient, own_redis: RedisServer
) -> None:
    job_id = await submit(client)  # so that connections are open already
    with own_redis.stopped():
        for method, path, content in (
            ("GET", "/v1/jobs", None),
            ("GET", f"/v1/jobs/{job_id}", None),
            ("GET", f"/v1/jobs/{job_id}/events", None),
            ("DELETE", f"/v1/jobs/{job_id}", None),
            ("POST", "/v1/echo?mode=async", PNG),
        ):
            async with asyncio.timeout(PROMPTLY_S):
                answer = await client.request(method, path, content=content)
            refused(answer, 503, "queue_unavailable")
            assert int(answer.headers["retry-after"]) >= 1
        async with asyncio.timeout(PROMPTLY_S):
            assert (await client.post("/v1/echo", content=PNG)).is_success
    assert (await client.get(f"/v1/jobs/{job_id}")).json()["state"] == "queued"


@pytest.mark.parametrize("fault", ["killed", "stopped"])
async def test_a_followed_job_is_resumed_behind_the_last_event(
    client: httpx2.AsyncClient, own_redis: RedisServer, fault: str
) -> None:
    """The stream ends, so that the client notices; with `Last-Event-ID` nothing is told twice."""
    job_id = await submit(client)
    seen: list[str] = []

    async def follow() -> None:
        try:
            async with client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
                seen.extend([line async for line in answer.aiter_lines() if line.startswith("id:")])
        except httpx2.TransportError:
            pass  # cut rather than ended: a client reconnects just the same

    async def first_event() -> None:
        async with client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
            async for line in answer.aiter_lines():
                if line.startswith("id:"):
                    return

    await first_event()
    following = asyncio.create_task(follow())
    await asyncio.sleep(0.5)
    if fault == "killed":
        own_redis.kill()
        await asyncio.wait_for(following, 30)
        own_redis.start()
    else:
        with own_redis.stopped():
            await asyncio.wait_for(following, 30)
    assert len(seen) == 1
    last = seen[0].partition(": ")[2]
    async with asyncio.timeout(PROMPTLY_S):
        while (await client.delete(f"/v1/jobs/{job_id}")).status_code == 503:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    rest = await events(client, job_id, **{"Last-Event-ID": last})
    assert [(kind, '"canceled"' in data) for _, kind, data in rest] == [("state", True)]

"""The connection while Redis fails: what is raised, how soon, and what comes after."""

from __future__ import annotations

import asyncio
import socket

import pytest

from service.errors import RedisUnavailable
from service.jobs.queue import Queue
from service.jobs.record import State
from service.settings import JobSettings, RedisSettings
from tests.jobs.conftest import eventually, submission
from tests.jobs.redis_server import RedisServer


async def test_a_server_that_accepts_and_never_answers_is_unavailable() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        async with Queue(RedisSettings(url=url, connect_timeout_s=0.2), JobSettings()) as queue:
            for call in (queue.ping(), queue.submit(submission()), queue.depth()):
                with pytest.raises(RedisUnavailable):
                    await call


async def test_jobs_survive_a_kill_of_redis_and_the_queue_object_too(
    own_redis: RedisServer,
) -> None:
    """With the append-only file: records, entries, who holds what, events."""
    async with Queue(RedisSettings(url=own_redis.url), JobSettings()) as queue:
        running = await queue.submit(submission())
        consumer = queue.consumer("w")
        claim = await consumer.claim()
        assert claim is not None
        returned = await queue.submit(submission())
        second = await consumer.claim()
        assert second is not None
        await consumer.release(second)
        queued = await queue.submit(submission(idempotency_key="k", request_hash="h"))
        before = [await queue.get(job.id) for job in (running, returned, queued)]
        own_redis.kill()
        with pytest.raises(RedisUnavailable):
            await queue.get(queued.id)
        own_redis.start()
        assert [await queue.get(job.id) for job in (running, returned, queued)] == before
        replay = await queue.submit(submission(idempotency_key="k", request_hash="h"))
        assert replay.id == queued.id
        first, second = await consumer.claim(), await consumer.claim()
        assert first is not None
        assert second is not None
        assert [first.job.id, second.job.id] == [returned.id, queued.id]
        assert await consumer.claim() is None
        done = await consumer.cancel(claim)
        events = [event.data["state"] async for event in await queue.events(running.id)]
    assert (done.state, events) == (State.CANCELED, ["queued", "running", "canceled"])


async def test_a_full_redis_refuses_and_recovers(own_redis: RedisServer) -> None:
    async with Queue(RedisSettings(url=own_redis.url), JobSettings()) as queue:
        client = queue.connection.client
        await client.config_set("maxmemory", 1)
        for call in (queue.ping(), queue.submit(submission())):
            with pytest.raises(RedisUnavailable, match="no writes"):
                await call
        assert (await queue.depth()).running == 0
        await client.config_set("maxmemory", 0)
        await queue.submit(submission())


async def test_followers_hear_of_an_outage(own_redis: RedisServer) -> None:
    redis = RedisSettings(url=own_redis.url, connect_timeout_s=0.5)
    async with Queue(redis, JobSettings()) as queue:
        job = await queue.submit(submission())
        events = await queue.events(job.id)
        seen = await anext(events)
        own_redis.kill()
        with pytest.raises(RedisUnavailable):
            await anext(events)
        own_redis.start()
        resumed = await queue.events(job.id, last_event_id=seen.id)
        await queue.cancel(job.id)
        assert [event.data["state"] async for event in resumed] == ["canceled"]


async def test_a_cancellation_is_never_swallowed(own_redis: RedisServer) -> None:
    """Tasks that call Redis in a loop, canceled while it comes back, must all end."""
    redis = RedisSettings(url=own_redis.url, connect_timeout_s=0.5)

    async def call_forever(queue: Queue) -> None:
        while True:
            try:
                await queue.ping()
            except RedisUnavailable:
                await asyncio.sleep(0.001)

    async with Queue(redis, JobSettings()) as queue:
        for delay_s in (0.0, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02):
            tasks = [asyncio.create_task(call_forever(queue)) for _ in range(20)]
            await asyncio.sleep(0.05)
            own_redis.kill()
            await asyncio.sleep(0.02)
            own_redis.start()
            await asyncio.sleep(delay_s)
            for task in tasks:
                task.cancel()
            _, alive = await asyncio.wait(tasks, timeout=5)
            for task in alive:
                task.cancel()
            assert not alive


async def test_more_callers_than_connections_wait_for_their_turn(queue: Queue) -> None:
    jobs = await asyncio.gather(*(queue.submit(submission()) for _ in range(300)))

    async def all_there() -> bool:
        return sum((await queue.depth()).waiting.values()) == len(jobs)

    await eventually(all_there)

"""What the janitor sweeps."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.errors import NotFound
from service.jobs.janitor import Janitor
from service.jobs.queue import Queue
from service.jobs.record import JobError, State, new_job_id
from service.jobs.results import ResultStore, upload_key
from service.settings import JobSettings, RedisSettings, Settings, StorageSettings
from service.storage.store import Store
from service.tasks.contract import Attachment, Outcome
from tests.jobs.conftest import submission

JOBS = JobSettings(lease_s=0.05, queue_ttl_s=0.1, result_ttl_s=0.3)
OUTCOME = Outcome({"label": "cat"}, (Attachment("a.png", "image/png", b"abc"),))


@pytest.fixture
async def queue(redis_settings: RedisSettings) -> AsyncIterator[Queue]:
    async with Queue(redis_settings, JOBS) as queue:
        yield queue


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(Settings(storage=StorageSettings(url=tmp_path.as_uri())))


async def keys(store: Store) -> set[str]:
    return {found.key for prefix in ("uploads", "results") async for found in store.objects(prefix)}


async def test_jobs_that_waited_too_long_expire_with_their_uploads(
    queue: Queue, store: Store
) -> None:
    made = submission()
    await store.put(upload_key(made.id), b"x", "image/png")
    await queue.submit(made)
    await asyncio.sleep(0.15)
    fresh = await queue.submit(submission())
    await Janitor(queue, store, JOBS).sweep()
    assert (await queue.get(made.id)).state is State.EXPIRED
    assert (await queue.get(fresh.id)).state is State.QUEUED
    assert await keys(store) == set()


async def test_started_jobs_do_not_expire(queue: Queue, store: Store) -> None:
    job = await queue.submit(submission())
    consumer = queue.consumer("w")
    claim = await consumer.claim()
    assert claim is not None
    await consumer.release(claim)
    await asyncio.sleep(0.15)
    await Janitor(queue, store, JOBS).sweep()
    assert (await queue.get(job.id)).state is State.QUEUED
    assert await consumer.claim() is not None


async def test_results_are_kept_for_their_time_and_then_deleted(queue: Queue, store: Store) -> None:
    results = ResultStore(store)
    consumer = queue.consumer("w")
    await queue.submit(submission())
    claim = await consumer.claim()
    assert claim is not None
    done = await consumer.succeed(claim, await results.save(claim.job.id, 1, OUTCOME))
    assert done.expires_at == pytest.approx((done.finished_at or 0) + 0.3, abs=0.002)
    await Janitor(queue, store, JOBS).sweep()
    assert await results.document(done) == {"label": "cat"}
    assert b"".join([piece async for piece in await results.open(done, "a.png", 1)]) == b"bc"
    await asyncio.sleep(0.35)
    await Janitor(queue, store, JOBS).sweep()
    assert await keys(store) == set()
    for call in (results.document(done), results.open(done, "a.png")):
        with pytest.raises(NotFound) as caught:
            await call
        assert caught.value.stable_code == "result_expired"
    assert (await queue.get(done.id)).state is State.SUCCEEDED


async def test_what_a_failed_job_left_is_deleted(queue: Queue, store: Store) -> None:
    made = submission()
    consumer = queue.consumer("w")
    await queue.submit(made)
    await store.put(upload_key(made.id), b"x", "image/png")
    await store.put(f"results/{made.id}/1/files/a.png", b"x", "image/png")
    claim = await consumer.claim()
    assert claim is not None
    await consumer.fail(claim, JobError(code="x", message="x"))
    await Janitor(queue, store, JOBS).sweep()
    assert await keys(store) == set()


async def test_orphans_go_when_they_are_old_and_no_job_knows_them(
    queue: Queue, store: Store, tmp_path: Path
) -> None:
    known = submission()
    await queue.submit(known)
    claim = await queue.consumer("w").claim()
    assert claim is not None
    old, new = new_job_id(), new_job_id()
    for job_id in (known.id, old, new):
        await store.put(upload_key(job_id), b"x", "image/png")
    for job_id in (known.id, old):
        os.utime(tmp_path / "uploads" / job_id, (0, 0))
    await Janitor(queue, store, JOBS).sweep()
    assert await keys(store) == {upload_key(known.id), upload_key(new)}


async def test_one_janitor_at_a_time(queue: Queue, store: Store) -> None:
    janitors = [Janitor(queue, store, JOBS) for _ in range(5)]
    turns = await asyncio.gather(*(janitor.alone("sweep", 0.2) for janitor in janitors))
    assert turns.count(True) == 1
    await asyncio.sleep(0.25)
    assert await janitors[0].alone("sweep", 0.2)

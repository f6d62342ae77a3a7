"""What workers do, against a real Redis: claims, leases, fences, hand-backs."""

from __future__ import annotations

import asyncio

import pytest

from service.jobs.consumer import Claim, Consumer, Lease, LeaseLost
from service.jobs.queue import Queue
from service.jobs.record import JobError, JobProgress, JobResult, Lane, State
from service.settings import JobSettings, RedisSettings
from tests.jobs.conftest import lease_over, submission, unfinished

RESULT = JobResult(prefix="results/x/1")
ERROR = JobError(code="inference_unavailable", message="Triton is down.")


async def claimed(consumer: Consumer) -> Claim:
    claim = await consumer.claim()
    assert claim is not None
    return claim


async def test_an_empty_queue_gives_nothing(queue: Queue) -> None:
    assert await queue.consumer("w").claim() is None


async def test_jobs_from_before_the_first_worker_are_served_in_order(queue: Queue) -> None:
    ids = [(await queue.submit(submission())).id for _ in range(5)]
    consumer = queue.consumer("w")
    assert [(await claimed(consumer)).job.id for _ in ids] == ids
    assert (await queue.depth()).running == 5


async def test_claim_starts_the_job(queue: Queue) -> None:
    await queue.submit(submission())
    job = (await claimed(queue.consumer("w"))).job
    assert (job.state, job.attempt, job.queue_position) == (State.RUNNING, 1, None)
    assert job.started_at is not None
    assert job.started_at >= job.created_at


async def test_each_job_goes_to_one_worker(queue: Queue) -> None:
    ids = {(await queue.submit(submission())).id for _ in range(30)}
    consumers = [queue.consumer(f"w{number}") for number in range(5)]
    claims = await asyncio.gather(*(claimed(consumers[number % 5]) for number in range(30)))
    assert {claim.job.id for claim in claims} == ids


async def test_lanes_by_priority_and_every_eighth_start_lowest_first(queue: Queue) -> None:
    for _ in range(16):
        await queue.submit(submission(lane=Lane.HIGH))
    for _ in range(3):
        await queue.submit(submission(lane=Lane.LOW))
    await queue.submit(submission(lane=Lane.NORMAL))
    consumer = queue.consumer("w")
    lanes = [(await claimed(consumer)).job.lane.value[0] for _ in range(20)]
    assert "".join(lanes) == "hhhhhhhlhhhhhhhlhhnl"


async def test_a_waiting_worker_wakes_for_a_job(queue: Queue) -> None:
    consumer = queue.consumer("w")
    assert await consumer.claim() is None
    waiting = asyncio.create_task(consumer.wait())
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await queue.submit(submission(lane=Lane.LOW))
    await asyncio.wait_for(waiting, 0.9)  # before the wait's own end
    await claimed(consumer)


async def test_a_job_between_claim_and_wait_is_not_missed(queue: Queue) -> None:
    consumer = queue.consumer("w")
    assert await consumer.claim() is None
    await queue.submit(submission())
    await asyncio.wait_for(consumer.wait(), 0.9)


async def test_waiting_claims_nothing(queue: Queue) -> None:
    await queue.submit(submission())
    consumer = queue.consumer("w")
    await consumer.wait()
    assert (await queue.depth()).waiting[Lane.NORMAL] == 1
    assert (await claimed(queue.consumer("v"))).job.attempt == 1


async def test_take_over_after_the_lease_without_any_other_traffic(queue: Queue) -> None:
    await queue.submit(submission())
    lost = await claimed(queue.consumer("dead"))
    alive = queue.consumer("alive")
    assert await alive.claim() is None
    await lease_over(queue, lost)
    claim = await claimed(alive)
    assert (claim.job.id, claim.job.attempt, claim.job.failures) == (lost.job.id, 2, 1)
    assert claim.redelivered
    assert await unfinished(queue) == {"running": 1, "started:local": 1}


async def test_take_over_reaches_behind_a_page_of_held_jobs(queue: Queue) -> None:
    holder, dead, alive = (queue.consumer(name) for name in ("holder", "dead", "alive"))
    for _ in range(131):
        await queue.submit(submission())
    for _ in range(130):
        await claimed(holder)
    lost = await claimed(dead)
    await lease_over(queue, lost)
    assert (await claimed(alive)).job.id == lost.job.id
    assert await alive.claim() is None


async def test_a_renewed_lease_is_not_taken_over(queue: Queue) -> None:
    await queue.submit(submission())
    consumer = queue.consumer("w")
    claim = await claimed(consumer)
    await lease_over(queue, claim)
    assert await consumer.renew(claim) is Lease.HELD
    assert await queue.consumer("other").claim() is None
    await lease_over(queue, claim)
    assert await queue.consumer("other").claim() is not None


async def test_the_old_attempt_is_fenced(queue: Queue) -> None:
    job = await queue.submit(submission())
    old, new = queue.consumer("old"), queue.consumer("new")
    stale = await claimed(old)
    await lease_over(queue, stale)
    fresh = await claimed(new)
    assert await old.renew(stale) is Lease.LOST
    assert await old.progress(stale, JobProgress(step=9)) is Lease.LOST
    for end in (
        old.succeed(stale, RESULT),
        old.fail(stale, ERROR),
        old.cancel(stale),
        old.release(stale),
    ):
        with pytest.raises(LeaseLost):
            await end
    seen = await queue.get(job.id)
    assert (seen.state, seen.attempt, seen.progress.step) == (State.RUNNING, 2, 0)
    assert await new.renew(fresh) is Lease.HELD
    assert (await new.succeed(fresh, RESULT)).state is State.SUCCEEDED
    with pytest.raises(LeaseLost):
        await old.succeed(stale, RESULT)


async def test_a_worker_that_takes_its_own_job_over_is_fenced_too(queue: Queue) -> None:
    await queue.submit(submission())
    consumer = queue.consumer("w")
    stale = await claimed(consumer)
    await lease_over(queue, stale)
    await claimed(consumer)
    assert await consumer.renew(stale) is Lease.LOST


async def test_a_job_that_kills_its_workers_fails(queue: Queue) -> None:
    job = await queue.submit(submission())
    for number in range(3):
        await lease_over(queue, await claimed(queue.consumer(f"w{number}")))
    assert await queue.consumer("last").claim() is None
    seen = await queue.get(job.id)
    assert (seen.state, seen.attempt, seen.failures) == (State.FAILED, 3, 3)
    assert seen.error is not None
    assert seen.error.code == "worker_lost"
    assert await unfinished(queue) == {}


async def test_finishing_keeps_only_the_record(queue: Queue) -> None:
    job = await queue.submit(submission())
    consumer = queue.consumer("w")
    await consumer.fail(await claimed(consumer), ERROR)
    assert (await queue.get(job.id)).error == ERROR
    assert await unfinished(queue) == {}
    assert (await queue.depth()).running == 0
    client, connection = queue.connection.client, queue.connection
    assert await client.pttl(connection.key("job", job.id)) > 1000 * 3600 * 24 * 6
    assert 0 < await client.pttl(connection.key("events", job.id)) <= 1000 * 3600


async def test_cancel_is_told_by_heartbeat_and_progress(queue: Queue) -> None:
    job = await queue.submit(submission())
    consumer = queue.consumer("w")
    claim = await claimed(consumer)
    await queue.cancel(job.id)
    assert await consumer.renew(claim) is Lease.CANCEL
    assert await consumer.progress(claim, JobProgress(step=1)) is Lease.CANCEL


async def test_a_canceled_job_whose_worker_died_is_not_run_again(queue: Queue) -> None:
    job = await queue.submit(submission())
    claim = await claimed(queue.consumer("dead"))
    await queue.cancel(job.id)
    await lease_over(queue, claim)
    assert await queue.consumer("alive").claim() is None
    assert (await queue.get(job.id)).state is State.CANCELED
    assert await unfinished(queue) == {}


async def test_release_hands_back_at_once_and_counts_nothing(queue: Queue) -> None:
    first = await queue.submit(submission())
    await queue.submit(submission())
    leaving = queue.consumer("leaving")
    claim = await claimed(leaving)
    released = await leaving.release(claim)
    assert (released.state, released.queue_position, released.failures) == (State.QUEUED, 1, 0)
    await leaving.leave()
    again = await claimed(queue.consumer("other"))
    assert (again.job.id, again.job.attempt, again.job.failures) == (first.id, 2, 0)


async def test_release_with_a_failure_backs_off_and_ends(queue: Queue) -> None:
    job = await queue.submit(submission())
    consumer = queue.consumer("w")
    for failures in (1, 2):
        claim = await claimed(consumer)
        released = await consumer.release(claim, failure=ERROR, delay_s=20)
        assert (released.state, released.failures) == (State.QUEUED, failures)
        assert await consumer.claim() is None
        await lease_over(queue, claim)
    failed = await consumer.release(await claimed(consumer), failure=ERROR, delay_s=20)
    assert (failed.state, failed.error) == (State.FAILED, ERROR)
    assert (await queue.get(job.id)) == failed
    assert await unfinished(queue) == {}


async def test_the_back_off_ends(queue: Queue) -> None:
    await queue.submit(submission())
    consumer = queue.consumer("w")
    await consumer.release(await claimed(consumer), failure=ERROR, delay_s=0.05)
    await asyncio.sleep(0.1)
    assert (await claimed(consumer)).job.failures == 1


async def test_a_released_job_can_be_canceled(queue: Queue) -> None:
    job = await queue.submit(submission())
    consumer = queue.consumer("w")
    await consumer.release(await claimed(consumer))
    assert (await queue.cancel(job.id)).state is State.CANCELED
    assert await unfinished(queue) == {}
    assert await consumer.claim() is None


async def test_release_of_a_job_to_be_canceled_cancels_it(queue: Queue) -> None:
    job = await queue.submit(submission())
    consumer = queue.consumer("w")
    claim = await claimed(consumer)
    await queue.cancel(job.id)
    assert (await consumer.release(claim)).state is State.CANCELED


async def test_leaving_keeps_what_is_held(queue: Queue) -> None:
    await queue.submit(submission())
    dead = queue.consumer("dead")
    claim = await claimed(dead)
    await dead.leave()
    assert (await queue.depth()).running == 1
    await lease_over(queue, claim)
    await claimed(queue.consumer("alive"))


async def test_expired_jobs_are_not_started(redis_settings: RedisSettings) -> None:
    async with Queue(redis_settings, JobSettings(queue_ttl_s=0.05)) as queue:
        job = await queue.submit(submission())
        await asyncio.sleep(0.1)
        assert await queue.consumer("w").claim() is None
        assert (await queue.get(job.id)).state is State.EXPIRED


async def test_many_dead_entries_do_not_hide_a_live_one(queue: Queue) -> None:
    for _ in range(120):
        await queue.cancel((await queue.submit(submission())).id)
    alive = await queue.submit(submission())
    assert (await claimed(queue.consumer("w"))).job.id == alive.id


async def test_a_queue_that_redis_lost_works_again(queue: Queue) -> None:
    """Redis came back empty."""
    await queue.submit(submission())
    consumer = queue.consumer("w")
    lost = await claimed(consumer)
    client = queue.connection.client
    await client.delete(*[key async for key in client.scan_iter(f"{queue.connection.root}:*")])
    assert await consumer.renew(lost) is Lease.LOST
    job = await queue.submit(submission())
    assert (await claimed(consumer)).job.id == job.id


async def test_records_deleted_by_hand_block_nobody(queue: Queue) -> None:
    jobs = [await queue.submit(submission()) for _ in range(3)]
    dead = await claimed(queue.consumer("dead"))
    await lease_over(queue, dead)
    for job in jobs[:2]:
        await queue.connection.client.delete(queue.connection.key("job", job.id))
    consumer = queue.consumer("w")
    assert (await claimed(consumer)).job.id == jobs[2].id
    assert await consumer.claim() is None

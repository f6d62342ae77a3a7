"""Turns and caps of tenants, against a real Redis and with real workers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest

from service.jobs.consumer import Claim, Consumer
from service.jobs.queue import Queue
from service.jobs.record import Job, JobError, JobResult, Lane, State
from service.settings import JobSettings, RedisSettings
from tests.jobs.conftest import StartWorker, eventually, lease_over, submission, unfinished

RESULT = JobResult(prefix="results/x/1")
ERROR = JobError(code="inference_unavailable", message="Triton is down.")


def capped(redis: RedisSettings, most: int = 2) -> Queue:
    return Queue(redis, JobSettings(max_running_per_tenant=most))


async def submit(queue: Queue, tenants: str, lane: Lane = Lane.NORMAL) -> list[Job]:
    """Submit one job for each letter, which names its tenant."""
    return [await queue.submit(submission(tenant=tenant, lane=lane)) for tenant in tenants]


async def claim_all(consumer: Consumer) -> list[Claim]:
    claims = []
    while (claim := await consumer.claim()) is not None:
        claims.append(claim)
    return claims


def tenants(claims: Sequence[Claim]) -> str:
    return "".join(claim.submission.tenant for claim in claims)


async def test_tenants_take_turns(queue: Queue) -> None:
    await submit(queue, "bbbbbaaacc")
    assert tenants(await claim_all(queue.consumer("w"))) == "bacbacbabb"


async def test_a_tenants_jobs_keep_their_order(queue: Queue) -> None:
    jobs = await submit(queue, "aabaaabb")
    claims = await claim_all(queue.consumer("w"))
    for tenant in "ab":
        mine = [claim.job.id for claim in claims if claim.submission.tenant == tenant]
        assert mine == [job.id for job, of in zip(jobs, "aabaaabb", strict=True) if of == tenant]


async def test_a_newcomer_goes_before_the_next_of_whoever_was_just_served(queue: Queue) -> None:
    consumer = queue.consumer("w")
    await submit(queue, "a" * 8)
    first = [await consumer.claim() for _ in range(3)]
    assert None not in first
    await submit(queue, "bb")
    assert tenants(await claim_all(consumer)) == "babaaaa"


async def test_who_was_served_last_round_goes_behind_who_was_not(queue: Queue) -> None:
    consumer = queue.consumer("w")
    await submit(queue, "aab")
    assert tenants([claim for claim in [await consumer.claim()] if claim]) == "a"
    await submit(queue, "c")
    assert tenants(await claim_all(consumer)) == "bca"


@pytest.mark.parametrize("lane", Lane)
async def test_floods_in_other_lanes_delay_nobody(queue: Queue, lane: Lane) -> None:
    """A lane orders the jobs of one tenant; it takes no turn from another."""
    consumer = queue.consumer("w")
    for flooded in Lane:
        await submit(queue, "a" * 12, flooded)
    assert await consumer.claim() is not None
    await submit(queue, "bbb", lane)
    assert tenants(await claim_all(consumer)).startswith("bababa")


async def test_each_tenants_every_eighth_start_is_of_its_lowest_lane(queue: Queue) -> None:
    """Also where tenants take turns in the same rhythm, and where workers found nothing meanwhile."""
    consumer = queue.consumer("w")
    order = "abcdefgh"
    for tenant in order:
        await submit(queue, tenant * 9, Lane.HIGH)
        await submit(queue, tenant, Lane.LOW)
    claims = await claim_all(consumer)
    for tenant in order:
        lanes = [claim.job.lane for claim in claims if claim.submission.tenant == tenant]
        assert lanes == [Lane.HIGH] * 7 + [Lane.LOW] + [Lane.HIGH] * 2


async def test_a_capped_tenants_lowest_lane_has_its_share(redis_settings: RedisSettings) -> None:
    async with capped(redis_settings, 1) as queue:
        consumer = queue.consumer("w")
        await submit(queue, "a" * 9, Lane.HIGH)
        await submit(queue, "a", Lane.LOW)
        lanes = []
        while (claim := await consumer.claim()) is not None:
            lanes.append(claim.job.lane)
            assert await consumer.claim() is None
            await consumer.succeed(claim, RESULT)
        assert lanes == [Lane.HIGH] * 7 + [Lane.LOW] + [Lane.HIGH] * 2
        assert await unfinished(queue) == {}


async def test_positions_count_the_tenants_higher_lanes(queue: Queue) -> None:
    (low,) = await submit(queue, "a", Lane.LOW)
    await submit(queue, "aab", Lane.HIGH)
    (normal,) = await submit(queue, "a", Lane.NORMAL)
    positions = [(await queue.get(job.id)).queue_position for job in (normal, low)]
    assert positions == [4, 5]
    assert tenants(await claim_all(queue.consumer("w"))) == "abaaa"


async def test_canceling_a_flood_gives_its_turns_back(queue: Queue) -> None:
    flood = await submit(queue, "a" * 20)
    for job in flood[:-1]:
        await queue.cancel(job.id)
    await submit(queue, "bbb")
    assert tenants(await claim_all(queue.consumer("w"))) == "abbb"


async def test_positions_tell_the_order_of_starts(queue: Queue) -> None:
    draw = random.Random(3)
    jobs = []
    consumer = queue.consumer("w")
    for _ in range(60):
        jobs += await submit(queue, draw.choice("aaaabbc"))
        if draw.random() < 0.2:
            await queue.cancel(draw.choice(jobs).id)
        if draw.random() < 0.3:
            await consumer.claim()
    seen = [await queue.get(job.id) for job in jobs]
    told = sorted((job.queue_position, job.id) for job in seen if job.queue_position)
    assert len(told) > 20
    assert [claim.job.id for claim in await claim_all(consumer)] == [of for _, of in told]


async def test_expired_jobs_cost_their_tenant_no_turn(redis_settings: RedisSettings) -> None:
    async with Queue(redis_settings, JobSettings(queue_ttl_s=0.2)) as queue:
        await submit(queue, "bb")
        await asyncio.sleep(0.25)
        await submit(queue, "aab")
        assert tenants(await claim_all(queue.consumer("w"))) == "baa"


async def test_jobs_over_the_cap_are_parked(redis_settings: RedisSettings) -> None:
    async with capped(redis_settings) as queue:
        consumer = queue.consumer("w")
        jobs = await submit(queue, "aaaab")
        assert (await queue.depth()).parked == 2
        claims = await claim_all(consumer)
        assert tenants(claims) == "aba"
        depth = await queue.depth()
        assert (depth.waiting[Lane.NORMAL], depth.parked, depth.demand) == (2, 2, 3)
        assert [(await queue.get(job.id)).queue_position for job in jobs[2:4]] == [1, 2]
        await consumer.fail(claims[0], ERROR)
        (claim,) = await claim_all(consumer)
        assert claim.job.id == jobs[2].id
        for held in (claim, *claims[1:]):
            await consumer.succeed(held, RESULT)
        assert tenants(await claim_all(consumer)) == "a"
        assert (await queue.depth()).parked == 0


async def test_the_cap_is_one_for_all_lanes(redis_settings: RedisSettings) -> None:
    async with capped(redis_settings) as queue:
        await submit(queue, "aa", Lane.LOW)
        await submit(queue, "aa", Lane.HIGH)
        claims = await claim_all(queue.consumer("w"))
        assert [claim.job.lane for claim in claims] == [Lane.HIGH, Lane.HIGH]
        await queue.consumer("w").succeed(claims[0], RESULT)
        assert [claim.job.lane for claim in await claim_all(queue.consumer("w"))] == [Lane.LOW]


async def test_a_lost_job_keeps_its_place_under_the_cap(redis_settings: RedisSettings) -> None:
    async with capped(redis_settings) as queue:
        dead, alive = queue.consumer("dead"), queue.consumer("alive")
        await submit(queue, "aaa")
        claims = await claim_all(dead)
        await lease_over(queue, claims[0])
        assert [claim.job.id for claim in await claim_all(alive)] == [claims[0].job.id]
        assert await alive.claim() is None


async def test_a_job_handed_back_keeps_its_place_under_the_cap(
    redis_settings: RedisSettings,
) -> None:
    async with capped(redis_settings) as queue:
        consumer = queue.consumer("w")
        await submit(queue, "aaa")
        claims = await claim_all(consumer)
        await consumer.release(claims[0], failure=ERROR, delay_s=20)
        assert await consumer.claim() is None
        assert (await queue.depth()).parked == 1
        await queue.cancel(claims[0].job.id)
        assert len(await claim_all(consumer)) == 1


async def test_a_parked_job_can_be_canceled(redis_settings: RedisSettings) -> None:
    async with capped(redis_settings, 1) as queue:
        consumer = queue.consumer("w")
        jobs = await submit(queue, "aaa")
        (claim,) = await claim_all(consumer)
        await queue.cancel(jobs[1].id)
        await consumer.succeed(claim, RESULT)
        (last,) = await claim_all(consumer)
        assert last.job.id == jobs[2].id
        await consumer.succeed(last, RESULT)
        assert await unfinished(queue) == {}


async def test_an_end_wakes_a_worker_for_the_parked(redis_settings: RedisSettings) -> None:
    async with capped(redis_settings, 1) as queue:
        busy, idle = queue.consumer("busy"), queue.consumer("idle")
        await submit(queue, "aa")
        (claim,) = await claim_all(busy)
        assert await idle.claim() is None
        waiting = asyncio.create_task(idle.wait())
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await busy.succeed(claim, RESULT)
        await asyncio.wait_for(waiting, 0.9)  # before the wait's own end
        assert len(await claim_all(idle)) == 1


@pytest.mark.parametrize(("before", "after"), [(None, 1), (1, 3), (2, None)])
async def test_a_new_cap_holds_from_the_next_start_or_end(
    redis_settings: RedisSettings, before: int | None, after: int | None
) -> None:
    """As while workers with another setting replace those before."""
    async with (
        Queue(redis_settings, JobSettings(max_running_per_tenant=before)) as old,
        Queue(redis_settings, JobSettings(max_running_per_tenant=after)) as new,
    ):
        await submit(old, "aaaaaa")
        first = await old.consumer("w").claim()
        assert first is not None
        others = await claim_all(new.consumer("v"))
        assert 1 + len(others) <= (after or 6)
        for claim in (first, *others):
            await new.consumer("v").succeed(claim, RESULT)
        while (claim := await new.consumer("v").claim()) is not None:
            await new.consumer("v").succeed(claim, RESULT)
        assert await unfinished(new) == {}


async def test_each_wake_wakes_one_worker(queue: Queue) -> None:
    consumers = [queue.consumer(f"w{number}") for number in range(3)]
    for consumer in consumers:
        assert await consumer.claim() is None
    waiting = [asyncio.create_task(consumer.wait()) for consumer in consumers]
    await asyncio.sleep(0.05)
    await submit(queue, "a")
    done, asleep = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    assert (len(done), len(asleep)) == (1, 2)
    await submit(queue, "aa")
    await asyncio.wait_for(asyncio.gather(*asleep), 0.9)


async def test_a_worker_that_leaves_passes_its_wake_on(queue: Queue) -> None:
    leaving, staying = queue.consumer("leaving"), queue.consumer("staying")
    await submit(queue, "a")
    await leaving.wait()
    waiting = asyncio.create_task(staying.wait())
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await leaving.leave()
    await asyncio.wait_for(waiting, 0.9)


@pytest.mark.parametrize(
    ("lane", "flood", "other"),
    [
        (Lane.NORMAL, 10_000, Lane.NORMAL),
        (Lane.HIGH, 500, Lane.LOW),
        (Lane.LOW, 500, Lane.HIGH),
    ],
)
async def test_a_flood_delays_another_tenant_by_one_job(
    queue: Queue, start_worker: StartWorker, lane: Lane, flood: int, other: Lane
) -> None:
    """With a real worker that does one job at a time, and records of when each job began and ended."""
    made = [submission(tenant="a", lane=lane, parameters={"steps": 1}) for _ in range(flood)]
    for page in range(0, flood, 500):
        await asyncio.gather(*map(queue.submit, made[page : page + 500]))
    start_worker(VITRINE_JOBS__CONCURRENCY="1")
    first = made[0].id

    async def working() -> bool:
        return (await queue.get(first)).state is State.SUCCEEDED

    await eventually(working, within_s=40)
    mine: list[Job] = []
    for pause_s in (0.0, 0.0, 0.005, 0.02):
        await asyncio.sleep(pause_s)
        job = await queue.submit(submission(tenant="b", lane=other, parameters={"steps": 1}))
        mine.append(await queue.wait(job.id, timeout_s=30))
    async with queue.connection.client.pipeline(transaction=False) as pipeline:
        for one in made:
            pipeline.hmget(queue.connection.key("job", one.id), "started", "finished")
        times = await pipeline.execute()
    others = [(int(begun), int(end)) for begun, end in times if end is not None]
    assert len(others) > len(mine)
    for job in mine:
        assert job.state is State.SUCCEEDED
        assert job.started_at is not None
        submitted, started = round(job.created_at * 1000), round(job.started_at * 1000)
        between = [one for one in others if one[1] > submitted and one[0] < started]
        assert len(between) <= 1, between

"""What clients do, against a real Redis."""

from __future__ import annotations

import asyncio

import pytest

from service.errors import (
    IdempotencyConflict,
    InvalidParameter,
    JobNotFound,
    RedisUnavailable,
    TooManyRequests,
)
from service.jobs.consumer import Consumer, LeaseLost
from service.jobs.queue import Queue
from service.jobs.record import (
    Event,
    JobError,
    JobProgress,
    JobResult,
    Lane,
    ResultFile,
    State,
    new_job_id,
)
from service.settings import JobSettings, RedisSettings
from tests.jobs.conftest import eventually, submission, unfinished

RESULT = JobResult(
    prefix="results/x/1", files=(ResultFile(name="a.png", content_type="image/png", bytes=3),)
)


async def collect(queue: Queue, job_id: str, last: str | None = None) -> list[Event]:
    return [event async for event in await queue.events(job_id, last_event_id=last)]


def test_ids_sort_by_time() -> None:
    first = new_job_id()
    while (second := new_job_id())[:14] == first[:14]:
        pass
    assert first < second


async def test_submitted_job_waits(queue: Queue) -> None:
    made = submission(model="m", parameters={"steps": 3}, upload_key="uploads/x", request_id="r")
    job = await queue.submit(made)
    assert (job.id, job.state, job.task, job.model) == (made.id, State.QUEUED, "sleep", "m")
    assert (job.queue_position, job.attempt, job.created_at > 1e9) == (1, 0, True)
    assert await queue.get(job.id) == job
    claim = await queue.consumer("w").claim()
    assert claim is not None
    assert claim.submission == made


async def test_what_was_handed_in_is_sent_to_its_worker_only(queue: Queue) -> None:
    made = submission(
        parameters={"prompt": "x" * 10_000}, lane=Lane.HIGH, tenant="a", upload_key="u"
    )
    await queue.submit(made)
    for name, arguments in (
        ("get", (made.id, "")),
        ("cancel", (made.id, "b")),
        ("list", ("a", "", "", "", 5)),
    ):
        assert "x" * 100 not in repr(await queue.connection.run(name, *arguments))
    claim = await queue.consumer("worker").claim()
    assert claim is not None
    assert claim.submission == made
    assert "x" * 100 not in repr(await queue.connection.run("finish", made.id, 1, "failed", "", ""))


async def test_every_transition_returns_the_job_as_it_is_then(queue: Queue) -> None:
    made = submission()
    assert await queue.submit(made) == await queue.get(made.id)
    assert await queue.submit(made) == await queue.get(made.id)
    worker = queue.consumer("worker")
    failure = JobError(code="triton_unavailable", message="Triton does not answer.")
    for attempt in (1, 2):
        claim = await worker.claim()
        assert claim is not None
        assert claim.job == await queue.get(made.id)
        assert claim.job.attempt == attempt
        await worker.progress(claim, JobProgress(percent=50))
        if attempt == 1:
            released = await worker.release(claim, failure=failure)
            assert released == await queue.get(made.id)
            assert (released.failures, released.progress) == (1, JobProgress())
            assert released.queue_position == 1
    assert await queue.cancel(made.id) == await queue.get(made.id)
    done = await worker.succeed(claim, JobResult(prefix=f"results/{made.id}"))
    assert done == await queue.get(made.id)
    assert (done.state, done.failures, done.cancel_requested) == (State.SUCCEEDED, 1, True)


async def test_same_submission_twice_is_one_job(queue: Queue) -> None:
    made = submission()
    assert await queue.submit(made) == await queue.submit(made)
    assert (await queue.depth()).waiting[Lane.NORMAL] == 1


async def test_idempotency_key_replays_the_same_job(queue: Queue) -> None:
    first = await queue.submit(submission(idempotency_key="k", request_hash="h"))
    assert (await queue.submit(submission(idempotency_key="k", request_hash="h"))).id == first.id
    assert (await queue.depth()).waiting[Lane.NORMAL] == 1
    with pytest.raises(IdempotencyConflict) as caught:
        await queue.submit(submission(idempotency_key="k", request_hash="other"))
    assert caught.value.extra == {"job": first.id}


async def test_idempotency_key_belongs_to_its_tenant(queue: Queue) -> None:
    first = await queue.submit(submission(idempotency_key="k", request_hash="h", tenant="a"))
    second = await queue.submit(submission(idempotency_key="k", request_hash="h", tenant="b"))
    assert first.id != second.id


async def test_idempotency_key_is_free_again_after_its_time(redis_settings: RedisSettings) -> None:
    async with Queue(redis_settings, JobSettings(idempotency_ttl_s=0.05)) as queue:
        first = await queue.submit(submission(idempotency_key="k", request_hash="h"))
        await asyncio.sleep(0.1)
        second = await queue.submit(submission(idempotency_key="k", request_hash="other"))
    assert first.id != second.id


async def test_full_queue_refuses(redis_settings: RedisSettings) -> None:
    async with Queue(redis_settings, JobSettings(max_queued=2)) as queue:
        first = await queue.submit(submission(lane=Lane.HIGH))
        await queue.submit(submission(idempotency_key="k", request_hash="h"))
        with pytest.raises(TooManyRequests, match="2 waiting") as caught:
            await queue.submit(submission())
        assert caught.value.stable_code == "queue_full"
        assert caught.value.headers()["Retry-After"]
        await queue.submit(submission(idempotency_key="k", request_hash="h"))  # a replay adds none
        await queue.cancel(first.id)
        await queue.submit(submission())


async def test_queue_position_counts_higher_lanes_and_not_the_canceled(queue: Queue) -> None:
    normal = [await queue.submit(submission()) for _ in range(3)]
    high = await queue.submit(submission(lane=Lane.HIGH))
    low = await queue.submit(submission(lane=Lane.LOW))

    async def positions() -> list[int | None]:
        return [(await queue.get(job.id)).queue_position for job in (high, *normal, low)]

    assert await positions() == [1, 2, 3, 4, 5]
    await queue.cancel(normal[0].id)
    assert await positions() == [1, None, 2, 3, 4]
    await queue.consumer("w").claim()
    assert await positions() == [None, None, 1, 2, 3]


async def test_cancel_of_a_queued_job_leaves_nothing_behind(queue: Queue) -> None:
    job = await queue.submit(submission())
    canceled = await queue.cancel(job.id)
    assert (canceled.state, canceled.queue_position) == (State.CANCELED, None)
    assert await unfinished(queue) == {}
    assert await queue.consumer("w").claim() is None


async def test_cancel_of_a_running_job_asks_its_worker(queue: Queue) -> None:
    consumer = queue.consumer("w")
    heard = consumer.cancellations()
    waiting = asyncio.create_task(anext(heard))
    job = await queue.submit(submission())
    claim = await consumer.claim()
    assert claim is not None
    channel = queue.connection.key("cancel")

    async def listens() -> bool:
        return (await queue.connection.client.pubsub_numsub(channel))[0][1] == 1

    await eventually(listens)
    asked = await queue.cancel(job.id)
    assert (asked.state, asked.cancel_requested) == (State.RUNNING, True)
    assert await waiting == job.id
    await heard.aclose()
    assert (await consumer.cancel(claim)).state is State.CANCELED


async def test_cancel_of_a_final_job_changes_nothing(queue: Queue) -> None:
    job = await queue.submit(submission())
    consumer = queue.consumer("w")
    claim = await consumer.claim()
    assert claim is not None
    done = await consumer.succeed(claim, RESULT)
    assert await queue.cancel(job.id) == done


async def test_jobs_of_other_tenants_do_not_exist(queue: Queue) -> None:
    job = await queue.submit(submission(tenant="a"))
    assert (await queue.get(job.id, "a")).id == job.id
    for call in (queue.get, queue.cancel, queue.events):
        with pytest.raises(JobNotFound):
            await call(job.id, "b")
    assert (await queue.get(job.id)).state is State.QUEUED
    assert (await queue.list("b")).jobs == ()


@pytest.mark.parametrize("job_id", ["", "job_1", "*", "job_" + "u" * 26, new_job_id()])
async def test_unknown_ids(queue: Queue, job_id: str) -> None:
    with pytest.raises(JobNotFound):
        await queue.get(job_id)


async def test_list_is_newest_first_and_pages(queue: Queue) -> None:
    ids = []
    for number in range(7):
        ids.append((await queue.submit(submission("even" if number % 2 == 0 else "odd"))).id)
        await asyncio.sleep(0.002)
    await queue.cancel(ids[0])
    found, cursor = [], None
    while True:
        page = await queue.list("local", limit=3, cursor=cursor)
        found += [job.id for job in page.jobs]
        if (cursor := page.cursor) is None:
            break
    assert found == ids[::-1]
    assert [job.id for job in (await queue.list("local", task="odd")).jobs] == ids[1::2][::-1]
    assert [job.id for job in (await queue.list("local", state=State.CANCELED)).jobs] == ids[:1]
    with pytest.raises(InvalidParameter, match="cursor"):
        await queue.list("local", cursor="nonsense")


async def test_list_forgets_jobs_whose_record_is_gone(redis_settings: RedisSettings) -> None:
    async with Queue(redis_settings, JobSettings(record_ttl_s=0.05, result_ttl_s=0.05)) as queue:
        job = await queue.submit(submission())
        await queue.cancel(job.id)
        await asyncio.sleep(0.1)
        assert (await queue.list("local")).jobs == ()
        assert await queue.connection.client.zcard(queue.connection.key("jobs", "local")) == 0
        with pytest.raises(JobNotFound):
            await queue.get(job.id)


async def test_events_follow_a_job_to_its_end(queue: Queue) -> None:
    job = await queue.submit(submission())
    following = asyncio.create_task(collect(queue, job.id))
    consumer = queue.consumer("w")
    claim = await consumer.claim()
    assert claim is not None
    await consumer.progress(claim, JobProgress(percent=50, step=1, steps=2, stage="denoise"))
    await consumer.fail(claim, JobError(code="model_failed", message="It broke."))
    events = await following
    assert [event.kind for event in events] == ["state", "state", "progress", "state"]
    assert events[2].data["percent"] == 50
    assert events[3].data == {
        "state": "failed",
        "attempt": 1,
        "error": {"code": "model_failed", "message": "It broke."},
    }


async def test_events_resume_after_the_last_one_seen(queue: Queue) -> None:
    job = await queue.submit(submission())
    consumer = queue.consumer("w")
    claim = await consumer.claim()
    assert claim is not None
    for step in range(5):
        await consumer.progress(claim, JobProgress(step=step, steps=5))
    await consumer.succeed(claim, RESULT)
    every = await collect(queue, job.id)
    assert len(every) == 8
    for seen in range(8):
        assert await collect(queue, job.id, every[seen].id) == every[seen + 1 :]
    with pytest.raises(InvalidParameter, match="Last-Event-ID"):
        await queue.events(job.id, last_event_id="yesterday")


async def test_the_end_is_told_when_events_are_not_kept_any_more(queue: Queue) -> None:
    job = await queue.submit(submission())
    consumer = queue.consumer("w")
    claim = await consumer.claim()
    assert claim is not None
    await consumer.fail(claim, JobError(code="model_failed", message="It broke."))
    kept = await collect(queue, job.id)
    await queue.connection.client.delete(queue.connection.key("events", job.id))
    told = await collect(queue, job.id)
    assert [event.data for event in told] == [kept[0].data, kept[-1].data]
    assert [event.data for event in await collect(queue, job.id, kept[1].id)] == [kept[-1].data]


async def test_events_are_bounded_and_keep_the_newest(queue: Queue) -> None:
    job = await queue.submit(submission())
    consumer = queue.consumer("w")
    claim = await consumer.claim()
    assert claim is not None
    for step in range(250):
        await consumer.progress(claim, JobProgress(step=step, steps=250))
    await consumer.succeed(claim, RESULT)
    events = await collect(queue, job.id)
    assert len(events) == 201  # and the first, which costs nothing
    assert (events[-1].data["state"], events[-2].data["step"]) == ("succeeded", 249)


async def test_wait_returns_the_finished_job_or_gives_up(queue: Queue) -> None:
    job = await queue.submit(submission())
    assert (await queue.wait(job.id, timeout_s=0.05)).state is State.QUEUED
    waiting = asyncio.create_task(queue.wait(job.id, timeout_s=10))
    consumer = queue.consumer("w")
    claim = await consumer.claim()
    assert claim is not None
    await consumer.succeed(claim, RESULT)
    done = await waiting
    assert (done.state, done.result) == (State.SUCCEEDED, RESULT)
    assert done.expires_at is not None


async def test_finish_is_fenced_and_may_be_repeated(queue: Queue) -> None:
    await queue.submit(submission())
    consumer = queue.consumer("w")
    claim = await consumer.claim()
    assert claim is not None
    done = await consumer.succeed(claim, RESULT)
    assert done.progress.percent == 100.0, "a task that reports no progress is done as well"
    assert await consumer.succeed(claim, RESULT) == done
    with pytest.raises(LeaseLost):
        await consumer.fail(claim, JobError(code="x", message="x"))


async def test_calls_fail_soon_while_redis_is_down(queue: Queue) -> None:
    nowhere = RedisSettings(url="redis://127.0.0.1:1/0", connect_timeout_s=0.5)
    async with Queue(nowhere, JobSettings()) as lost:
        consumer: Consumer = lost.consumer("w")
        for call in (lost.ping(), lost.submit(submission()), lost.depth(), consumer.claim()):
            with pytest.raises(RedisUnavailable) as caught:
                await call
            assert caught.value.headers()["Retry-After"]

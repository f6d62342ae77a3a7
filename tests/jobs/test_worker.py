"""One worker in this process: how each end of a pipeline becomes the end of its job."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from service.jobs.metrics import WorkerMetrics
from service.jobs.queue import Queue
from service.jobs.record import Job, State, Submission
from service.jobs.results import ResultStore, upload_key
from service.jobs.worker import Worker, work
from service.settings import (
    JobSettings,
    RedisSettings,
    Settings,
    StorageSettings,
    TritonSettings,
    WorkerSettings,
)
from service.storage.store import Store
from service.triton.grpc import TritonClient
from tests.jobs.conftest import LEASE_S, eventually, submission
from tests.jobs.redis_server import RedisServer, free_port
from tests.jobs.worker_with_sleep import PIPELINES, TRITON


class Bench:
    """A queue, a storage and the settings of the workers over them."""

    def __init__(self, settings: Settings, queue: Queue) -> None:
        self.settings = settings
        self.queue = queue
        self.store = Store(settings)
        self.results = ResultStore(self.store)
        self.metrics = WorkerMetrics()

    @asynccontextmanager
    async def worker(self, **jobs: object) -> AsyncIterator[Worker]:
        settings = self.settings.model_copy(
            update={"jobs": self.settings.jobs.model_copy(update=jobs)}
        )
        worker = Worker(settings, self.queue, self.store, TRITON, PIPELINES, self.metrics)
        running = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            worker.stop()
            await running

    async def submit(self, **parameters: object) -> Job:
        return await self.queue.submit(submission(parameters=parameters))

    async def state(self, job: Job) -> State:
        return (await self.queue.get(job.id)).state

    async def until(self, job: Job, state: State) -> Job:
        async def reached() -> bool:
            return await self.state(job) is state

        await eventually(reached)
        return await self.queue.get(job.id)


@asynccontextmanager
async def bench_over(redis: RedisSettings, directory: Path) -> AsyncIterator[Bench]:
    settings = Settings(
        redis=redis,
        storage=StorageSettings(url=directory.as_uri()),
        jobs=JobSettings(lease_s=LEASE_S, drain_s=5),
    )
    async with Queue(redis, settings.jobs) as queue:
        yield Bench(settings, queue)


@pytest.fixture
async def bench(redis_settings: RedisSettings, tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench_over(redis_settings, tmp_path / "storage") as bench:
        yield bench


async def test_a_job_runs_longer_than_its_lease_and_succeeds(bench: Bench) -> None:
    async with bench.worker():
        job = await bench.submit(steps=10, step_s=LEASE_S / 4)
        events = [event async for event in await bench.queue.events(job.id)]
    done = await bench.queue.get(job.id)
    assert (done.state, done.attempt, done.progress.percent) == (State.SUCCEEDED, 1, 100.0)
    assert (await bench.results.document(done))["slept"] == 10
    steps = [event.data["step"] for event in events if event.kind == "progress"]
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (0, 10)


@pytest.mark.parametrize(("content_type", "kind"), [("image/png", "bytes"), ("video/mp4", "Path")])
async def test_the_upload_reaches_the_pipeline_and_goes(
    bench: Bench, content_type: str, kind: str
) -> None:
    made = Submission(task="sleep", model=None, parameters={}, upload_type=content_type)
    made = made.model_copy(update={"upload_key": upload_key(made.id)})
    data = bytes(range(256)) * 10_000
    await bench.store.put(upload_key(made.id), data, content_type)
    async with bench.worker():
        done = await bench.until(await bench.queue.submit(made), State.SUCCEEDED)
    document = await bench.results.document(done)
    assert (document["type"], document["kind"].removeprefix("Posix")) == (content_type, kind)
    assert done.result is not None
    assert [file.model_dump() for file in done.result.files] == [
        {"name": "echo.bin", "content_type": content_type, "bytes": len(data)}
    ]
    echoed = b"".join([piece async for piece in await bench.results.open(done, "echo.bin")])
    assert echoed == data
    assert [found async for found in bench.store.objects("uploads")] == []


@pytest.mark.parametrize(
    ("fail", "code"),
    [
        ("bad", "not_an_image"),
        ("bug", "internal_error"),
        ("cancelled", "internal_error"),
        ("unavailable", "inference_unavailable"),
    ],
)
async def test_failures_have_codes_and_no_secrets(bench: Bench, fail: str, code: str) -> None:
    async with bench.worker(max_attempts=1):
        failed = await bench.until(await bench.submit(fail=fail), State.FAILED)
    assert failed.error is not None
    assert failed.error.code == code
    assert "secret" not in failed.error.message


async def test_outages_are_tried_again_with_back_off(bench: Bench, tmp_path: Path) -> None:
    async with bench.worker():
        job = await bench.submit(fail="unavailable", journal=str(tmp_path / "journal"))
        failed = await bench.until(job, State.FAILED)
    assert (failed.attempt, failed.failures) == (3, 3)
    assert len((tmp_path / "journal").read_text().splitlines()) == 3


async def test_outages_before_the_work_began_do_not_count(bench: Bench, tmp_path: Path) -> None:
    async with bench.worker():
        job = await bench.submit(fail="not connected yet", journal=str(tmp_path / "journal"))
        done = await bench.until(job, State.SUCCEEDED)
    assert done.attempt > 3
    assert done.failures == 0


async def test_outages_before_the_work_began_do_not_last_for_ever(bench: Bench) -> None:
    async with bench.worker(queue_ttl_s=0.1):
        failed = await bench.until(await bench.submit(fail="not connected"), State.FAILED)
    assert failed.failures == 3


@pytest.mark.parametrize(
    ("task", "parameters", "code"),
    [
        ("knit", {}, "task_not_served"),
        ("sleep", {"steps": 0}, "invalid_parameter"),
        ("sleep", {"stepps": 1}, "invalid_parameter"),
    ],
)
async def test_jobs_that_this_worker_cannot_read(
    bench: Bench, task: str, parameters: dict[str, object], code: str
) -> None:
    async with bench.worker():
        job = await bench.queue.submit(submission(task, parameters=parameters))
        failed = await bench.until(job, State.FAILED)
    assert failed.error is not None
    assert failed.error.code == code


async def test_a_missing_upload_fails_the_job(bench: Bench) -> None:
    made = submission(upload_key="uploads/gone", upload_type="video/mp4")
    async with bench.worker():
        failed = await bench.until(await bench.queue.submit(made), State.FAILED)
    assert failed.error is not None
    assert failed.error.code == "file_not_found"


async def test_run_time_is_limited(bench: Bench) -> None:
    async with bench.worker(run_timeout_s=0.2):
        failed = await bench.until(await bench.submit(steps=1000), State.FAILED)
    assert failed.error is not None
    assert (failed.error.code, failed.error.message) == (
        "run_timeout",
        "The job ran longer than 0.2 s.",
    )


async def test_cancel_stops_a_running_job(bench: Bench) -> None:
    async with bench.worker():
        job = await bench.submit(steps=1, step_s=60)
        await bench.until(job, State.RUNNING)
        await bench.queue.cancel(job.id)
        canceled = await bench.until(job, State.CANCELED)
    assert canceled.result is None


async def test_as_many_jobs_at_a_time_as_the_settings_say(bench: Bench) -> None:
    async with bench.worker(concurrency=3):
        jobs = [await bench.submit(steps=1, step_s=0.3) for _ in range(7)]
        most = 0
        while not all([(await bench.state(job)).final for job in jobs]):
            most = max(most, (await bench.queue.depth()).running)
            await asyncio.sleep(0.01)
    assert most == 3


async def test_drain_finishes_what_it_can(bench: Bench) -> None:
    async with bench.worker() as worker:
        job = await bench.submit(steps=1, step_s=0.5)
        await bench.until(job, State.RUNNING)
        waiting = await bench.submit()
        worker.stop()
        late = await bench.submit()
        await bench.until(job, State.SUCCEEDED)
    assert await bench.state(late) is State.QUEUED
    assert await bench.state(waiting) in (State.QUEUED, State.SUCCEEDED)


async def test_drain_hands_the_rest_back(bench: Bench) -> None:
    async with bench.worker(drain_s=0.1):
        job = await bench.submit(steps=1, step_s=60)
        await bench.until(job, State.RUNNING)
    handed_back = await bench.queue.get(job.id)
    assert (handed_back.state, handed_back.failures) == (State.QUEUED, 0)
    claim = await bench.queue.consumer("next").claim()
    assert claim is not None
    assert claim.job.id == job.id


async def test_a_lost_lease_stops_the_attempt_and_discards_its_results(bench: Bench) -> None:
    async with bench.worker():
        job = await bench.submit(steps=1, step_s=60)
        await bench.until(job, State.RUNNING)
        await bench.store.put(f"results/{job.id}/1/files/a", b"x", "image/png")
        # As if another worker had taken it over while this one was paused.
        await bench.queue.connection.client.hset(
            bench.queue.connection.key("job", job.id), "attempt", "2"
        )

        async def discarded() -> bool:
            return [found async for found in bench.store.objects("results")] == []

        await eventually(discarded)
    assert (await bench.queue.get(job.id)).state is State.RUNNING


async def test_metrics_count_jobs(bench: Bench) -> None:
    async with bench.worker():
        await bench.until(await bench.submit(), State.SUCCEEDED)
        await bench.until(await bench.submit(fail="bad"), State.FAILED)
        await bench.until(await bench.submit(fail="unavailable"), State.FAILED)

    def value(name: str, **labels: str) -> float | None:
        return bench.metrics.registry.get_sample_value(name, labels)

    finished = "vitrine_jobs_finished_total"
    assert value(finished, task="sleep", state="succeeded") == 1
    assert value(finished, task="sleep", state="failed") == 2
    assert value("vitrine_job_wait_seconds_count", task="sleep") == 3
    assert value("vitrine_job_run_seconds_count", task="sleep", state="failed") == 2
    assert value("vitrine_job_redeliveries_total", task="sleep") == 2
    assert value("vitrine_worker_jobs_running") == 0


async def test_redis_may_die_and_come_back(own_redis: RedisServer, tmp_path: Path) -> None:
    redis = RedisSettings(url=own_redis.url, connect_timeout_s=0.5)
    async with bench_over(redis, tmp_path / "storage") as bench, bench.worker(concurrency=1):
        journal = tmp_path / "journal"
        running = await bench.submit(steps=1, step_s=1.0, journal=str(journal))
        queued = await bench.submit()
        await bench.until(running, State.RUNNING)
        own_redis.kill()
        await asyncio.sleep(1.5)
        own_redis.start()
        done = await bench.until(running, State.SUCCEEDED)
        await bench.until(queued, State.SUCCEEDED)
        late = await bench.submit()
        await bench.until(late, State.SUCCEEDED)
    assert done.attempt == 1
    assert len(journal.read_text().splitlines()) == 1


async def test_nothing_is_claimed_while_triton_is_not_ready(bench: Bench) -> None:
    """Against a real client of a Triton that is not there: jobs wait and burn no attempts."""
    async with TritonClient(TritonSettings(url=f"127.0.0.1:{free_port()}")) as triton:
        worker = Worker(bench.settings, bench.queue, bench.store, triton, PIPELINES, bench.metrics)
        running = asyncio.create_task(worker.run())
        job = await bench.submit()
        await asyncio.sleep(1.5)
        waiting = await bench.queue.get(job.id)
        worker.stop()
        await running
    assert (waiting.state, waiting.attempt) == (State.QUEUED, 0)


async def test_metrics_are_served_on_their_port(bench: Bench) -> None:
    settings = bench.settings.model_copy(
        update={"worker": WorkerSettings(metrics_port=free_port())}
    )
    working = asyncio.create_task(work(settings, TRITON, PIPELINES))
    await bench.until(await bench.submit(), State.SUCCEEDED)
    reader, writer = await asyncio.open_connection("127.0.0.1", settings.worker.metrics_port)
    writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
    await writer.drain()
    page = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    os.kill(os.getpid(), signal.SIGTERM)
    await working
    assert 'vitrine_jobs_finished_total{state="succeeded",task="sleep"} 1.0' in page

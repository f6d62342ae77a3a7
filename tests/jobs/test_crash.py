"""SIGKILL and SIGTERM of real worker processes in the middle of jobs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.jobs.queue import Queue
from service.jobs.record import Job, State
from service.jobs.results import ResultStore
from service.settings import RedisSettings, Settings, StorageSettings
from service.storage.store import Store
from tests.jobs.conftest import LEASE_S, eventually, submission

StartWorker = Callable[[], "subprocess.Popen[bytes]"]


@pytest.fixture
def storage(tmp_path: Path) -> StorageSettings:
    return StorageSettings(url=(tmp_path / "storage").as_uri())


@pytest.fixture
def start_worker(redis_settings: RedisSettings, storage: StorageSettings) -> Iterator[StartWorker]:
    environment = os.environ | {
        "VITRINE_REDIS__URL": redis_settings.url,
        "VITRINE_REDIS__QUEUE": redis_settings.queue,
        "VITRINE_STORAGE__URL": storage.url,
        "VITRINE_JOBS__LEASE_S": str(LEASE_S),
        "VITRINE_JOBS__DRAIN_S": "0.1",
    }
    workers: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        worker = subprocess.Popen(
            [sys.executable, "-m", "tests.jobs.worker_with_sleep"],
            env=environment,
            stderr=subprocess.DEVNULL,
        )
        workers.append(worker)
        return worker

    yield start
    for worker in workers:
        worker.kill()
        worker.wait()


async def until(queue: Queue, job: Job, *states: State) -> Job:
    async def reached() -> bool:
        return (await queue.get(job.id)).state in states

    await eventually(reached, within_s=40)
    return await queue.get(job.id)


def starts(journal: Path) -> list[int]:
    """Return the process ids of the workers that started the job, in order."""
    if not journal.exists():
        return []
    return [int(line) for line in journal.read_text().splitlines()]


async def until_started(journal: Path, times: int) -> list[int]:
    async def started() -> bool:
        return len(starts(journal)) == times

    await eventually(started, within_s=40)
    return starts(journal)


async def test_another_worker_takes_over_and_the_job_ends_once(
    queue: Queue, start_worker: StartWorker, storage: StorageSettings, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    workers = {worker.pid: worker for worker in (start_worker(), start_worker())}
    parameters = {"steps": 100, "step_s": 0.02, "journal": str(journal)}
    job = await queue.submit(submission(parameters=parameters))
    (victim,) = await until_started(journal, 1)
    workers[victim].send_signal(signal.SIGKILL)
    workers[victim].wait()
    done = await until(queue, job, State.SUCCEEDED)
    first, second = await until_started(journal, 2)
    assert {first, second} == set(workers)
    assert (done.attempt, done.failures) == (2, 1)
    document = await ResultStore(Store(Settings(storage=storage))).document(done)
    assert document["pid"] == second
    states = [
        event.data["state"] async for event in await queue.events(job.id) if event.kind == "state"
    ]
    assert states == ["queued", "running", "running", "succeeded"]


async def test_a_terminated_worker_hands_its_job_to_the_next(
    queue: Queue, start_worker: StartWorker, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    worker = start_worker()
    parameters = {"steps": 1, "step_s": 60, "journal": str(journal)}
    job = await queue.submit(submission(parameters=parameters))
    await until_started(journal, 1)
    worker.send_signal(signal.SIGTERM)
    handed_back = await until(queue, job, State.QUEUED)
    assert (handed_back.attempt, handed_back.failures) == (1, 0)
    assert worker.wait(timeout=20) == 0
    start_worker()
    await until_started(journal, 2)
    assert (await queue.cancel(job.id)).cancel_requested
    await until(queue, job, State.CANCELED)


async def test_every_job_ends_once_while_workers_are_killed(
    queue: Queue, start_worker: StartWorker, tmp_path: Path
) -> None:
    jobs = [
        await queue.submit(submission(parameters={"steps": 20, "step_s": 0.01})) for _ in range(40)
    ]
    for _ in range(3):
        worker = start_worker()

        async def busy() -> bool:
            return (await queue.depth()).running >= 4

        await eventually(busy, within_s=40)
        worker.kill()
        worker.wait()
    start_worker()
    for job in jobs:
        done = await until(queue, job, State.SUCCEEDED, State.FAILED)
        assert done.state is State.SUCCEEDED or (done.error and done.error.code == "worker_lost")
        finals = [
            event.data["state"]
            async for event in await queue.events(job.id)
            if event.kind == "state" and State(event.data["state"]).final
        ]
        assert finals == [done.state]
    assert (await queue.depth()).running == 0

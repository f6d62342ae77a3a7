"""SIGKILL and SIGTERM of real worker processes in the middle of jobs."""

from __future__ import annotations

import signal
from pathlib import Path

from service.jobs.queue import Queue
from service.jobs.record import Job, State
from service.jobs.results import ResultStore
from service.settings import Settings, StorageSettings
from service.storage.store import Store
from tests.jobs.conftest import StartWorker, eventually, submission


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


async def test_a_job_that_kills_its_workers_fails(
    queue: Queue, start_worker: StartWorker, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    parameters = {"fail": "kill", "journal": str(journal)}
    job = await queue.submit(submission(parameters=parameters))
    workers = [start_worker() for _ in range(4)]
    failed = await until(queue, job, State.FAILED)
    assert failed.error is not None
    assert (failed.error.code, failed.attempt, failed.failures) == ("worker_lost", 3, 3)
    killed = starts(journal)
    assert len(set(killed)) == 3
    (survivor,) = [worker for worker in workers if worker.pid not in killed]
    assert survivor.poll() is None
    after = await queue.submit(submission())
    await until(queue, after, State.SUCCEEDED)


async def test_a_worker_that_was_paused_past_its_lease_is_fenced(
    queue: Queue, start_worker: StartWorker, storage: StorageSettings, tmp_path: Path
) -> None:
    """Both run the job to its end; only the second one's end counts, and only its result is kept."""
    journal = tmp_path / "journal"
    parameters = {"steps": 1, "step_s": 0.5, "journal": str(journal)}
    paused = start_worker()
    job = await queue.submit(submission(parameters=parameters))
    await until_started(journal, 1)
    paused.send_signal(signal.SIGSTOP)
    other = start_worker()
    done = await until(queue, job, State.SUCCEEDED)
    assert starts(journal) == [paused.pid, other.pid]
    other.kill()
    other.wait()
    paused.send_signal(signal.SIGCONT)
    after = await queue.submit(submission())
    await until(queue, after, State.SUCCEEDED)
    store = Store(Settings(storage=storage))

    async def only_the_seconds_result() -> bool:
        return {found.key.split("/")[2] async for found in store.objects(f"results/{job.id}")} == {
            "2"
        }

    await eventually(only_the_seconds_result)
    assert await queue.get(job.id) == done
    assert (done.attempt, done.failures) == (2, 1)
    assert (await ResultStore(store).document(done))["pid"] == other.pid
    assert paused.poll() is None


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

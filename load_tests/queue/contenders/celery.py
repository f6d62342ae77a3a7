"""Celery with its result backend, late acknowledgement (no job is lost with its worker), 4 threads."""

from __future__ import annotations

import asyncio
import os
import sys

from celery import Celery

from load_tests.queue.contenders.stage import Journal, obey

app = Celery("bench", broker=sys.argv[2], backend=sys.argv[2])
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    broker_connection_retry_on_startup=True,
    worker_concurrency=4,
    worker_pool="threads",
)
journal = Journal(sys.argv[3]) if sys.argv[1] == "work" else None


@app.task(name="empty")
def empty() -> None:
    assert journal is not None
    journal.mark()


async def one() -> object:
    return empty.delay()


async def many(count: int) -> None:
    for _ in range(count):
        empty.delay()


if __name__ == "__main__":
    if sys.argv[1] == "submit":
        asyncio.run(obey(one, many))
    else:
        # One name a worker, or they take each other for doubles.
        app.worker_main(["worker", "--loglevel=ERROR", f"--hostname={os.getpid()}@%h"])

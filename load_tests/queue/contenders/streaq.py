"""streaQ as it comes. Its scripts need Redis 7."""

from __future__ import annotations

import asyncio
import sys

from streaq import Worker

from load_tests.queue.contenders.stage import Journal, obey

worker: Worker[None] = Worker(redis_url=sys.argv[2].removesuffix("/0"))
journal = Journal(sys.argv[3]) if sys.argv[1] == "work" else None


@worker.task
async def empty() -> None:
    assert journal is not None
    journal.mark()


async def one() -> object:
    return await empty.enqueue()


async def many(count: int) -> None:
    await worker.enqueue_many([empty.enqueue() for _ in range(count)])


async def submit() -> None:
    async with worker:
        await obey(one, many)


if __name__ == "__main__":
    if sys.argv[1] == "submit":
        asyncio.run(submit())
    else:
        worker.run_sync()

"""arq, tuned: by default it looks for jobs twice a second and so starts at most 20 of them."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from arq import Worker, create_pool
from arq.connections import RedisSettings
from arq.worker import func

from load_tests.queue.contenders.stage import Journal, obey

POLL_S = 0.01
JOBS_AT_ONCE = 64


async def submit(url: str) -> None:
    pool = await create_pool(RedisSettings.from_dsn(url))

    async def one() -> object:
        return await pool.enqueue_job("empty")

    async def many(count: int) -> object:
        left = iter(range(count))

        async def client() -> None:
            for _ in left:
                await one()

        return await asyncio.gather(*(client() for _ in range(32)))

    await obey(one, many)


async def work(url: str, path: str) -> None:
    journal = Journal(path)

    async def empty(context: dict[str, Any]) -> None:
        journal.mark()

    worker = Worker(
        functions=[func(empty, name="empty")],
        redis_settings=RedisSettings.from_dsn(url),
        poll_delay=POLL_S,
        max_jobs=JOBS_AT_ONCE,
    )
    await worker.async_run()


if __name__ == "__main__":
    asyncio.run(submit(sys.argv[2]) if sys.argv[1] == "submit" else work(*sys.argv[2:]))

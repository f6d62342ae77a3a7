"""This repository's queue and worker; the empty job's result goes to a directory, as any other."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import ClassVar, cast

from load_tests.queue.contenders.stage import Journal, obey
from service.jobs.queue import Queue
from service.jobs.record import Submission
from service.jobs.worker import run, work
from service.settings import RedisSettings, Settings, StorageSettings
from service.tasks.contract import Context, Outcome, Pipeline, Report, TaskParameters, Upload
from service.triton.client import Triton

SUBMITTED_AT_ONCE = 32


class Empty(Pipeline[TaskParameters]):
    name: ClassVar[str] = "empty"
    parameters = TaskParameters

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def run(
        self,
        parameters: TaskParameters,
        upload: Upload | None,
        context: Context,
        report: Report,
    ) -> Outcome:
        self._journal.mark()
        return Outcome({})


class NoTriton:
    """The one question that the worker itself asks of Triton."""

    async def ready(self) -> bool:
        return True


async def submit(url: str) -> None:
    settings = Settings()
    async with Queue(RedisSettings(url=url), settings.jobs) as queue:

        async def one() -> object:
            return await queue.submit(Submission(task=Empty.name, model=None, parameters={}))

        async def many(count: int) -> object:
            left = iter(range(count))

            async def client() -> None:
                for _ in left:
                    await one()

            return await asyncio.gather(*(client() for _ in range(SUBMITTED_AT_ONCE)))

        await obey(one, many)


def main() -> None:
    if sys.argv[1] == "submit":
        asyncio.run(submit(sys.argv[2]))
        return
    url, journal = sys.argv[2:]
    settings = Settings(
        redis=RedisSettings(url=url),
        storage=StorageSettings(url=Path(journal).with_name("storage").as_uri()),
    )
    run(work(settings, cast(Triton, NoTriton()), {Empty.name: Empty(Journal(journal))}))


if __name__ == "__main__":
    main()

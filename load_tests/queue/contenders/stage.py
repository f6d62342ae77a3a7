"""What every contender does alike: the empty job notes its start, a client obeys stdin.

    python -m load_tests.queue.contenders.NAME work URL JOURNAL
    python -m load_tests.queue.contenders.NAME submit URL

Runs with nothing but the contender's own packages. Times are CLOCK_MONOTONIC, which all processes
of a machine share.
"""

from __future__ import annotations

import asyncio
import os
import struct
import sys
import time
from collections.abc import Awaitable, Callable

MARK = struct.Struct("dq")


class Journal:
    """A file that all workers append to; one record a job: the time of its start, the worker's process."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def mark(self) -> None:
        os.write(self._file, MARK.pack(time.monotonic(), os.getpid()))


async def obey(
    submit: Callable[[], Awaitable[object]], many: Callable[[int], Awaitable[object]]
) -> None:
    """For each line of stdin: `one`, or a number of jobs; answer with the times before and after."""
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        before = time.monotonic()
        await (submit() if line.strip() == "one" else many(int(line)))
        print(before, time.monotonic(), flush=True)

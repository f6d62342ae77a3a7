"""The Redis of a data directory: that of the service which runs from it, or else one for a moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from service.supervisor import parts, ports, probes
from service.supervisor.directory import DataDirectory, read_note
from service.supervisor.errors import DirectoryInUse, PartFailed
from service.supervisor.process import Process, tail

_START_S = 60.0


@asynccontextmanager
async def redis_of(path: Path) -> AsyncIterator[str]:
    """Yield the URL of the Redis that holds the directory's data, whether a service runs or not.

    Raises DirectoryInUse (a service is just starting), DirectoryUnusable, EmbeddedMissing, PartFailed.
    """
    directory = DataDirectory(path)
    try:
        directory.acquire(patience_s=0.0)
    except DirectoryInUse:
        note = read_note(path)
        if not note or "redis" not in note:
            raise
        yield str(note["redis"])
        return
    try:
        async with standing_redis(directory) as url:
            yield url
    finally:
        directory.release()


@asynccontextmanager
async def standing_redis(directory: DataDirectory) -> AsyncIterator[str]:
    """Run Redis over the data of a directory that is locked already; yield its URL.

    SIGTERM at the end makes it sync its append-only file. Raises EmbeddedMissing, PartFailed.
    """
    (port,) = ports.free_ports(1)
    part = parts.redis(directory, port)
    log = directory.logs / "redis.log"
    process = await Process.start(
        part.argv, part.environment, log, death_signal=part.death_signal, inherits=part.inherits
    )
    url = f"redis://127.0.0.1:{port}/0"
    probe = probes.RedisProbe(url)
    try:
        async with asyncio.timeout(_START_S):
            while not await probe.answers():
                if process.status is not None:
                    raise PartFailed("redis ended while starting.", tail(log))
                await asyncio.sleep(0.02)
        yield url
    except TimeoutError as error:
        raise PartFailed(f"redis did not start within {_START_S:g} s.", tail(log)) from error
    finally:
        await probe.close()
        await process.stop(part.grace_s)

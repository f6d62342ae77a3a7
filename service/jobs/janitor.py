"""What nobody else does: expire jobs, delete what is no longer needed.

Every worker runs one; a lock in Redis lets one of them sweep at a time. Nothing here is needed for
a job to end well: a sweep that dies is repeated by the next.
"""

from __future__ import annotations

import re
import time
from typing import Any

import structlog

from service.jobs.connection import Connection
from service.jobs.queue import Queue
from service.jobs.record import JOB_ID
from service.jobs.results import upload_key
from service.settings import JobSettings
from service.storage.store import Store

_LOG = structlog.get_logger(__name__)
_AT_ONCE = 100
_STORAGE_PERIOD_S = 3600.0


class Janitor:
    """Sweeps a queue and its storage."""

    def __init__(self, queue: Queue, store: Store, jobs: JobSettings) -> None:
        self._connection: Connection = queue.connection
        self._store = store
        self._orphan_age_s = jobs.queue_ttl_s + jobs.run_timeout_s + jobs.result_ttl_s

    async def sweep(self) -> None:
        """Do all of it once. Raises RedisUnavailable, StorageUnavailable."""
        expired = await self._connection.run("expire")
        deleted = await self._delete_garbage()
        if expired or deleted:
            _LOG.info("swept", expired=expired, deleted=deleted)
        if await self.alone("storage", _STORAGE_PERIOD_S):
            await self._delete_orphans()

    async def alone(self, name: str, period_s: float) -> bool:
        """Return whether this is the one process that may do `name` within this period."""
        async with self._connection.guard(2.0):
            taken = await self._connection.client.set(
                self._connection.key("janitor", name), "1", nx=True, px=round(period_s * 1000)
            )
        return bool(taken)

    async def _delete_garbage(self) -> int:
        """Delete the objects of jobs that ended without a result, or whose result has expired."""
        deleted = 0
        while True:
            ids = await self._connection.run("garbage", _AT_ONCE)
            for job_id in ids:
                await self._store.delete(upload_key(job_id))
                await self._store.delete_prefix(f"results/{job_id}")
                async with self._connection.guard(2.0):
                    await self._connection.client.zrem(self._connection.key("garbage"), job_id)
            deleted += len(ids)
            if len(ids) < _AT_ONCE:
                return deleted

    async def _delete_orphans(self) -> None:
        """Delete objects that no job knows, once they are older than any job's could be.

        They come from a client that died between its upload and its job, or a worker between its
        results and the job's end.
        """
        before = time.time() - self._orphan_age_s
        if unfinished := await self._store.delete_unfinished(before):
            _LOG.info("deleted unfinished files", count=unfinished)
        for prefix in ("uploads", "results"):
            async for found in self._store.objects(prefix):
                job_id = found.key.split("/")[1]
                if found.modified < before and re.fullmatch(JOB_ID, job_id):
                    async with self._connection.guard(2.0):
                        known: Any = await self._connection.client.exists(
                            self._connection.key("job", job_id)
                        )
                    if not known:
                        await self._store.delete(found.key)
                        _LOG.info("deleted an orphan", key=found.key)

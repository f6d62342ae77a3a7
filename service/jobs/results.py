"""Results in object storage: a document and media for each attempt, so that attempts never mix."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson

from service.errors import NotFound, ResultNotReady
from service.jobs.record import Job, JobResult, ResultFile
from service.storage.store import Store
from service.tasks.contract import Outcome


def upload_key(job_id: str) -> str:
    """Return where a job's upload lies."""
    return f"uploads/{job_id}"


class ResultStore:
    """Writes what an attempt gave, reads what the job's last attempt gave."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def save(self, job_id: str, attempt: int, outcome: Outcome) -> JobResult:
        """Store the media, then the document. Raises StorageFull, StorageUnavailable."""
        prefix = f"results/{job_id}/{attempt}"
        for medium in outcome.attachments:
            await self._store.put(f"{prefix}/files/{medium.name}", medium.data, medium.content_type)
        document = orjson.dumps(dict(outcome.document), option=orjson.OPT_SERIALIZE_NUMPY)
        await self._store.put(f"{prefix}/document.json", document, "application/json")
        return JobResult(
            prefix=prefix,
            files=tuple(
                ResultFile(name=file.name, content_type=file.content_type, bytes=len(file.data))
                for file in outcome.attachments
            ),
        )

    async def discard(self, job_id: str, attempt: int) -> None:
        """Delete what an attempt wrote that is not the job's any more."""
        await self._store.delete_prefix(f"results/{job_id}/{attempt}")

    async def document(self, job: Job) -> dict[str, Any]:
        """Return the result's JSON document. Raises ResultNotReady, NotFound (`result_expired`)."""
        try:
            document: dict[str, Any] = orjson.loads(
                await self._store.get(f"{_result(job).prefix}/document.json")
            )
        except NotFound as error:
            raise _expired(job) from error
        return document

    async def open(
        self, job: Job, name: str, start: int = 0, end: int | None = None
    ) -> AsyncIterator[bytes]:
        """Return an iterator over the bytes [start, end) of one medium, in pieces of about a MiB.

        Raises ResultNotReady, NotFound (no such medium, or `result_expired`).
        """
        result = _result(job)
        if name not in (file.name for file in result.files):
            raise NotFound(f"The job {job.id} has no file {name!r}.", code="file_not_found")
        try:
            return await self._store.stream(f"{result.prefix}/files/{name}", start, end)
        except NotFound as error:
            raise _expired(job) from error


def _result(job: Job) -> JobResult:
    if job.result is None:
        raise ResultNotReady(f"The job is {job.state} and has no result.", state=job.state)
    return job.result


def _expired(job: Job) -> NotFound:
    return NotFound(
        f"The result of {job.id} was kept until {job.expires_at:.0f} (Unix seconds) and is gone.",
        code="result_expired",
    )

"""What clients of the queue do: hand jobs in, look at them, follow them, cancel them."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Self

import orjson

from service.errors import (
    IdempotencyConflict,
    InvalidParameter,
    JobNotFound,
    TooManyRequests,
)
from service.jobs.connection import BLOCK_S, Connection
from service.jobs.consumer import Consumer
from service.jobs.record import (
    JOB_ID,
    Depth,
    Event,
    Job,
    Lane,
    Page,
    State,
    Submission,
)
from service.jobs.snapshot import parse_job
from service.settings import JobSettings, RedisSettings

QUEUE_FULL_RETRY_S = 10.0


class Queue:
    """The job queue. `async with Queue(settings.redis, settings.jobs) as queue`.

    All methods raise RedisUnavailable (with `retry_after`) within `redis.connect_timeout_s` while
    Redis is down, and work again, without being made anew, once it is back. Where a `tenant` is
    given, the jobs of others do not exist (JobNotFound); None means the operator, who sees all.
    """

    def __init__(self, redis: RedisSettings, jobs: JobSettings) -> None:
        self.connection = Connection(redis, jobs)
        self._jobs = jobs

    async def __aenter__(self) -> Self:
        await self.connection.__aenter__()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.connection.__aexit__(*exception)

    def consumer(self, name: str) -> Consumer:
        """Return the worker's side of the queue; `name` must be that of one process only."""
        return Consumer(self.connection, name, self._jobs.lease_s)

    async def ping(self) -> None:
        """Return when Redis answers and takes writes; raise RedisUnavailable otherwise."""
        await self.connection.run("ping")

    async def submit(self, submission: Submission, *, most_queued: int | None = None) -> Job:
        """Store the job's record and put it into its lane, in one step, and return it.

        A replay (same tenant, same idempotency key, same request hash) returns the job that the
        key made: its id is then not `submission.id`, and the caller deletes the new upload.
        Submitting the same `submission` again makes no second job.

        Raises:
            IdempotencyConflict: the key was used with another request hash.
            TooManyRequests: `jobs.max_queued` jobs wait already (`queue_full`), or `most_queued`
                of this tenant do (`too_many_queued_jobs`).
        """
        status, *rest = await self.connection.run(
            "submit",
            submission.id,
            submission.model_dump_json(exclude_defaults=True),
            submission.task,
            submission.model or "",
            submission.lane,
            submission.tenant,
            _digest(submission.idempotency_key),
            submission.request_hash,
            most_queued or "",
        )
        if status == "conflict":
            raise IdempotencyConflict(
                "This Idempotency-Key was used before with another request.", job=rest[0]
            )
        if status == "full":
            raise TooManyRequests(
                f"The queue holds {rest[0]} waiting jobs, its limit.",
                code="queue_full",
                retry_after=QUEUE_FULL_RETRY_S,
                limit=self._jobs.max_queued,
            )
        if status == "tenant full":
            raise TooManyRequests(
                f"The key has {rest[0]} jobs that wait, its limit (queued_jobs).",
                code="too_many_queued_jobs",
                retry_after=QUEUE_FULL_RETRY_S,
                limit={"name": "queued_jobs", "jobs": most_queued},
            )
        return parse_job(rest[0])

    async def get(self, job_id: str, tenant: str | None = None) -> Job:
        """Return the job with its `queue_position`. Raises JobNotFound."""
        return _found(job_id, await self.connection.run("get", _known(job_id), tenant or ""))

    async def cancel(self, job_id: str, tenant: str | None = None) -> Job:
        """Cancel the job and return it as it is then. Raises JobNotFound.

        A queued job is `canceled` at once. A running one gets `cancel_requested`; its worker ends
        it as `canceled`, unless it succeeds first. A job in a final state stays as it is.
        """
        return _found(job_id, await self.connection.run("cancel", _known(job_id), tenant or ""))

    async def list(
        self,
        tenant: str | None,
        *,
        state: State | None = None,
        task: str | None = None,
        limit: int = 20,
        cursor: str | None = None,
    ) -> Page:
        """Return the tenant's jobs, newest first, from behind `cursor` (of the page before).

        A page may hold fewer than `limit` jobs, even none, and still have a cursor: filters look
        at a bounded number of jobs a call. Raises InvalidParameter for a cursor that is none.
        """
        if cursor is not None and re.fullmatch(JOB_ID, cursor) is None:
            raise InvalidParameter("The cursor is not one of this listing.", param="cursor")
        following, *snapshots = await self.connection.run(
            "list", tenant or "", cursor or "", state or "", task or "", limit
        )
        return Page(jobs=tuple(map(parse_job, snapshots)), cursor=following or None)

    async def depth(self) -> Depth:
        """Return how many jobs wait in each lane and how long, are parked, and run: for gauges and scalers."""
        *lanes, returned, ready, running = await self.connection.run("depth")
        waiting, oldest_ms = lanes[: len(Lane)], lanes[len(Lane) :]
        return Depth(
            waiting=dict(zip(Lane, waiting, strict=True)),
            oldest_s={lane: ms / 1000 for lane, ms in zip(Lane, oldest_ms, strict=True)},
            parked=sum(waiting) - returned - ready,
            running=running,
        )

    async def events(
        self, job_id: str, tenant: str | None = None, last_event_id: str | None = None
    ) -> AsyncIterator[Event]:
        """Return an iterator over the job's events after `last_event_id` (default: from the first kept).

        It waits for new ones and ends after the event of the final state. About 200 events are
        kept a job, to an hour after its end; later, `queued` and the final state are what is told.
        Await this, then iterate: JobNotFound and InvalidParameter (an id that no
        event has) come before the first event. While it iterates, RedisUnavailable may come.
        """
        if (
            last_event_id is not None
            and re.fullmatch(r"\d{1,20}(-\d{1,20})?", last_event_id) is None
        ):
            raise InvalidParameter("Last-Event-ID is not an id of an event.", param="Last-Event-ID")
        return self._follow(await self.get(job_id, tenant), last_event_id)

    async def _follow(self, job: Job, last: str | None) -> AsyncIterator[Event]:
        stream = self.connection.key("events", job.id)
        if last is None:
            # A job that waits has no stream yet: its first event is in its record.
            last = f"{round(job.created_at * 1000) - 1}-0"
            yield Event(id=last, kind="state", data={"state": State.QUEUED, "attempt": 0})
        while True:
            # Look at the state before the read: of a job that is final now, no event comes later.
            async with self.connection.guard(BLOCK_S * 2 + 1):
                final = await self._is_final(job.id)
                answer: Any = await self.connection.blocking.xread(
                    {stream: last}, count=100, block=None if final else round(BLOCK_S * 1000)
                )
            entries: Sequence[tuple[str, Mapping[str, str]]] = answer[0][1] if answer else ()
            for last, fields in entries:
                event = Event(id=last, kind=fields["kind"], data=orjson.loads(fields["data"]))
                yield event
                if event.kind == "state" and State(event.data["state"]).final:
                    return
            if final and not entries:
                if not await self._is_kept(stream):
                    with suppress(JobNotFound):
                        yield _last_event(await self.get(job.id))
                return

    async def _is_kept(self, stream: str) -> bool:
        async with self.connection.guard(BLOCK_S * 2 + 1):
            return bool(await self.connection.client.exists(stream))

    async def _is_final(self, job_id: str) -> bool:
        state: Any = await self.connection.client.hget(self.connection.key("job", job_id), "state")
        return state is None or State(state).final

    async def wait(self, job_id: str, tenant: str | None = None, *, timeout_s: float) -> Job:
        """Return the job once it is final, or as it is after `timeout_s`. Raises JobNotFound."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                async for _ in await self.events(job_id, tenant):
                    pass
        return await self.get(job_id, tenant)


def _last_event(job: Job) -> Event:
    """Return the final state's event of a job whose events are not kept any more."""
    data: dict[str, Any] = {"state": job.state, "attempt": job.attempt}
    if job.error is not None:
        data["error"] = job.error.model_dump()
    return Event(id=f"{round((job.finished_at or 0) * 1000) + 1}-0", kind="state", data=data)


def _digest(idempotency_key: str | None) -> str:
    """Callers choose the key, so only its digest becomes part of a Redis key."""
    if idempotency_key is None:
        return ""
    return hashlib.sha256(idempotency_key.encode()).hexdigest()


def _known(job_id: str) -> str:
    if re.fullmatch(JOB_ID, job_id) is None:
        raise JobNotFound(f"No job {job_id[:64]!r}.")
    return job_id


def _found(job_id: str, snapshot: Any) -> Job:
    if not snapshot:
        raise JobNotFound(f"No job {job_id!r}, or it is gone.")
    return parse_job(snapshot)

"""What workers do with the queue: claim jobs, keep their leases, end them or hand them back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum

from service.jobs.connection import BLOCK_S, Connection
from service.jobs.record import Job, JobError, JobProgress, JobResult, State, Submission
from service.jobs.snapshot import parse_job


class Lease(StrEnum):
    """What a worker's hold on a job is: good; good but the caller wants no result; gone."""

    HELD = "held"
    CANCEL = "cancel"
    LOST = "lost"


class LeaseLost(Exception):
    """Another attempt has taken the job over, or it is final: this attempt may write nothing."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that is this worker's, for as long as it renews the lease."""

    job: Job
    submission: Submission

    @property
    def redelivered(self) -> bool:
        return self.job.attempt > 1


class Consumer:
    """The queue as one worker process sees it.

    The attempt number fences every call: once another worker has taken a job over, the calls of
    the one before change nothing. All methods raise RedisUnavailable.
    """

    def __init__(self, connection: Connection, name: str, lease_s: float) -> None:
        self.name = name
        self.lease_s = lease_s
        self._connection = connection
        self._idle_s = BLOCK_S

    async def claim(self) -> Claim | None:
        """Return the next job, now running, or None when there is none.

        First the jobs that were handed back or whose lease has run out, then the tenants take
        turns, each with the first job of its highest lane, every eighth time of its lowest. A tenant
        with `max_running_per_tenant` started jobs is passed over until one of them ends. Jobs that
        have expired while they waited end on the way, as do those whose workers were lost
        `max_attempts` times: failed (`worker_lost`).
        """
        while True:
            status, *rest = await self._connection.run("claim", self.name)
            if status == "claimed":
                return Claim(parse_job(rest[0]), Submission.model_validate_json(rest[1]))
            if status == "empty":
                due_s = rest[0] / 1000 if rest[0] >= 0 else BLOCK_S
                self._idle_s = min(due_s, BLOCK_S)
                return None

    async def wait(self) -> None:
        """Return when there may be something to claim, at the latest after a second.

        A job that becomes startable after the last empty `claim` wakes one waiting worker, not all
        of them. What becomes due by time (a lease that runs out, a back-off that ends) is known
        from that `claim`. Reads without claiming, so a worker that is stopped here holds nothing;
        should it take a wake with it, the others come by within their second.
        """
        if self._idle_s < 0.001:  # 0 would mean forever
            return
        async with self._connection.guard(BLOCK_S * 2 + 1):
            await self._connection.blocking.blpop(
                [self._connection.key("wake")], timeout=self._idle_s
            )

    async def renew(self, claim: Claim) -> Lease:
        """Start the lease anew, from now by Redis' clock. To be called every sixth of a lease."""
        return Lease(await self._connection.run("renew", claim.job.id, claim.job.attempt))

    async def progress(self, claim: Claim, progress: JobProgress) -> Lease:
        """Write the progress into the record and the events."""
        return Lease(
            await self._connection.run(
                "progress", claim.job.id, claim.job.attempt, progress.model_dump_json()
            )
        )

    async def succeed(self, claim: Claim, result: JobResult) -> Job:
        """End the job with its result, which lies in storage already. Raises LeaseLost."""
        return await self._finish(claim, State.SUCCEEDED, result=result)

    async def fail(self, claim: Claim, error: JobError) -> Job:
        """End the job with its error. Raises LeaseLost."""
        return await self._finish(claim, State.FAILED, error=error)

    async def cancel(self, claim: Claim) -> Job:
        """End the job that was to be canceled. Raises LeaseLost."""
        return await self._finish(claim, State.CANCELED)

    async def _finish(
        self,
        claim: Claim,
        state: State,
        *,
        error: JobError | None = None,
        result: JobResult | None = None,
    ) -> Job:
        snapshot = await self._connection.run(
            "finish",
            claim.job.id,
            claim.job.attempt,
            state,
            error.model_dump_json() if error else "",
            result.model_dump_json() if result else "",
        )
        return _held(claim, snapshot)

    async def release(
        self, claim: Claim, *, failure: JobError | None = None, delay_s: float = 0.0
    ) -> Job:
        """Hand the job back to the queue, to be claimed after `delay_s` (at most a lease). Raises LeaseLost.

        With a `failure` the attempt counts as failed, and the last of `max_attempts` ends the job
        with that error. Without one (a worker that shuts down) it does not count. A job that was
        to be canceled is.
        """
        snapshot = await self._connection.run(
            "release",
            claim.job.id,
            claim.job.attempt,
            round(delay_s * 1000),
            failure.model_dump_json() if failure else "",
        )
        return _held(claim, snapshot)

    async def leave(self) -> None:
        """Pass a wake on that this worker may have taken without a claim."""
        await self._connection.run("leave")

    async def cancellations(self) -> AsyncIterator[str]:
        """Yield the ids of running jobs as their cancellation is asked for.

        Published once: what is missed here (a lost connection) the next `renew` tells.
        """
        pubsub = self._connection.blocking.pubsub(ignore_subscribe_messages=True)
        async with pubsub:
            async with self._connection.guard(BLOCK_S * 2 + 1):
                await pubsub.subscribe(self._connection.key("cancel"))
            while True:
                async with self._connection.guard(BLOCK_S * 2 + 1):
                    message = await pubsub.get_message(timeout=BLOCK_S)
                if message is not None:
                    yield message["data"]


def _held(claim: Claim, snapshot: object) -> Job:
    if not snapshot:
        raise LeaseLost(f"Attempt {claim.job.attempt} of {claim.job.id} is not the job's any more.")
    return parse_job(snapshot)  # type: ignore[arg-type]

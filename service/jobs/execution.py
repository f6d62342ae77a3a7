"""One attempt at a job: the pipeline, its lease and progress, and the attempt's end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any

import structlog
from pydantic import ValidationError

from service.errors import (
    DeadlineExceeded,
    InvalidParameter,
    RedisUnavailable,
    Unavailable,
    VitrineError,
)
from service.jobs.consumer import Claim, Consumer, Lease, LeaseLost
from service.jobs.metrics import WorkerMetrics
from service.jobs.record import Job, JobError, JobProgress, JobResult
from service.jobs.results import ResultStore
from service.observability.tracing import attempt
from service.settings import Settings
from service.storage.scratch import scratch, writing
from service.storage.store import Store
from service.tasks.contract import Context, Pipeline, Progress, Upload
from service.triton.call import Call, calling
from service.triton.client import Triton

_LOG = structlog.stdlib.get_logger("vitrine.worker")
_PROGRESS_PERIOD_S = 0.25
_FINISH_RETRY_S = 0.5


class Interruption(Enum):
    """Why an attempt is stopped before its pipeline is done."""

    CANCELED = "canceled"
    LEASE_LOST = "lease lost"
    SHUTDOWN = "shutdown"


@dataclass(frozen=True, slots=True)
class Workplace:
    """What all attempts of a worker share."""

    settings: Settings
    consumer: Consumer
    store: Store
    triton: Triton
    pipelines: Mapping[str, Pipeline[Any]]
    metrics: WorkerMetrics


class Execution:
    """One attempt. `run` returns once the job is ended, handed back or lost.

    How the attempt's end maps to the job's:

        result                         succeeded
        cancellation asked for         canceled
        worker shuts down              back to the queue, not counted
        a part of the system is down   back to the queue with back-off; failed at `max_attempts`
        it was down before it began    back to the queue with back-off, not counted for `queue_ttl_s`
        any other error, time-out      failed
        lease lost                     nothing is written: the job is another attempt's
    """

    def __init__(self, claim: Claim, workplace: Workplace) -> None:
        self.claim = claim
        self._place = workplace
        self._consumer = workplace.consumer
        self._results = ResultStore(workplace.store)
        self._interruption: Interruption | None = None
        self._work: asyncio.Future[JobResult] | None = None
        self._reported_at = float("-inf")
        self._stage: tuple[str, float] | None = None
        self._log = _LOG.bind(
            job=claim.job.id,
            task=claim.job.task,
            model=claim.job.model,
            tenant=claim.submission.tenant,
            attempt=claim.job.attempt,
            request_id=claim.submission.request_id,
        )

    def interrupt(self, why: Interruption) -> None:
        """Stop the pipeline; the first reason counts. Does nothing once the pipeline is done."""
        if self._interruption is None:
            self._interruption = why
            if self._work is not None:
                self._work.cancel()

    async def run(self) -> None:
        """Do the work, keeping the lease until the end is written."""
        job, submission = self.claim.job, self.claim.submission
        with attempt(
            job.task,
            submission.traceparent,
            {
                "vitrine.job": job.id,
                "vitrine.model": job.model or "",
                "vitrine.tenant": submission.tenant,
                "vitrine.attempt": job.attempt,
            },
            queued=(job.created_at, job.started_at or job.created_at),
        ) as span:
            state = await self._run()
            span.set_attribute("vitrine.state", state)

    async def _run(self) -> str:
        started = time.monotonic()
        heartbeat = asyncio.create_task(self._keep_lease())
        try:
            job = await self._persist(await self._attempt())
        except LeaseLost:
            self._log.warning("lease lost")
            with suppress(VitrineError):
                await self._results.discard(self.claim.job.id, self.claim.job.attempt)
            return "lease lost"
        finally:
            heartbeat.cancel()
            await asyncio.gather(heartbeat, return_exceptions=True)
        self._log.info("attempt ended", state=job.state, error=job.error and job.error.code)
        if job.state.final:
            seconds = time.monotonic() - started
            self._place.metrics.finished.labels(job.task, job.state).inc()
            self._place.metrics.run.labels(job.task, job.state).observe(seconds)
            if self.claim.submission.upload_key is not None:
                with suppress(VitrineError):  # the janitor comes past it later
                    await self._place.store.delete(self.claim.submission.upload_key)
        return job.state

    async def _attempt(self) -> Callable[[], Awaitable[Job]]:
        """Run the pipeline and return the transition that ends this attempt."""
        claim, consumer = self.claim, self._consumer
        limit_s = self._place.settings.jobs.run_timeout_s
        try:
            async with asyncio.timeout(limit_s) as deadline:
                with calling(Call.within(limit_s)):
                    self._work = asyncio.ensure_future(self._result())
                if self._interruption is not None:
                    self._work.cancel()
                result = await self._work
            return lambda: consumer.succeed(claim, result)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            match self._interruption:
                case Interruption.CANCELED:
                    return lambda: consumer.cancel(claim)
                case Interruption.SHUTDOWN:
                    return lambda: consumer.release(claim)
                case Interruption.LEASE_LOST:
                    raise LeaseLost(claim.job.id) from None
            return self._failed(VitrineError("The task stopped itself."))
        except Unavailable as error:
            failure = JobError(code=error.stable_code, message=error.message)
            self._log.warning("part of the system is down", code=failure.code, error=str(error))
            if not error.begun and not self._overdue():
                delay_s = max(error.retry_after or 0.0, 2.0 ** min(claim.job.attempt - 1, 5))
                return lambda: consumer.release(claim, delay_s=delay_s)
            delay_s = max(error.retry_after or 0.0, 2.0**claim.job.failures)
            return lambda: consumer.release(claim, failure=failure, delay_s=delay_s)
        except VitrineError as error:
            return self._failed(error)
        except Exception as error:
            if isinstance(error, TimeoutError) and deadline.expired():
                return self._failed(
                    DeadlineExceeded(f"The job ran longer than {limit_s:g} s.", code="run_timeout")
                )
            self._log.exception("the pipeline raised")
            return self._failed(VitrineError("The task failed for a reason within the service."))

    def _overdue(self) -> bool:
        """Tell whether the job has been kept waiting for as long as one may."""
        return time.time() - self.claim.job.created_at > self._place.settings.jobs.queue_ttl_s

    def _failed(self, error: VitrineError) -> Callable[[], Awaitable[Job]]:
        failure = JobError(code=error.stable_code, message=error.message)
        return lambda: self._consumer.fail(self.claim, failure)

    async def _persist(self, end: Callable[[], Awaitable[Job]]) -> Job:
        """Write the end, for as long as it takes Redis to come back; the fence decides whether it counts."""
        while True:
            try:
                return await end()
            except RedisUnavailable:
                await asyncio.sleep(_FINISH_RETRY_S)

    async def _result(self) -> JobResult:
        submission = self.claim.submission
        pipeline = self._place.pipelines.get(submission.task)
        if pipeline is None:
            raise VitrineError(
                f"This worker has no task {submission.task!r}.", code="task_not_served"
            )
        try:
            parameters = pipeline.parameters.model_validate(submission.parameters)
        except ValidationError as error:
            raise InvalidParameter(str(error)) from error
        context = Context(
            settings=self._place.settings,
            triton=self._place.triton,
            store=self._place.store,
            tenant=self.claim.submission.tenant,
        )
        async with self._upload() as upload:
            outcome = await pipeline.run(parameters, upload, context, self._report)
        return await self._results.save(self.claim.job.id, self.claim.job.attempt, outcome)

    @asynccontextmanager
    async def _upload(self) -> AsyncIterator[Upload | None]:
        """Give the pipeline its upload: a picture as bytes, anything else as a file."""
        submission = self.claim.submission
        if submission.upload_key is None:
            yield None
            return
        content_type = submission.upload_type or "application/octet-stream"
        name = submission.upload_name or "upload"
        if content_type.startswith("image/"):
            yield Upload(content_type, await self._place.store.get(submission.upload_key), name)
            return
        with scratch() as directory:
            path = directory / "upload"
            with writing(), path.open("wb") as file:
                async for piece in await self._place.store.stream(submission.upload_key):
                    await asyncio.to_thread(file.write, piece)
            yield Upload(content_type, path, name)

    async def _report(self, progress: Progress) -> None:
        """Write progress, at most every quarter of a second but for a stage's first and last step."""
        self._stop_if_interrupted()
        now = time.monotonic()
        if self._stage is None or self._stage[0] != progress.stage:
            self._stage = (progress.stage, now)
        elif progress.step != progress.steps and now - self._reported_at < _PROGRESS_PERIOD_S:
            return
        self._reported_at = now
        share = min(1.0, progress.step / progress.steps) if progress.steps else 0.0
        elapsed = now - self._stage[1]
        written = JobProgress(
            percent=round(100 * share, 1),
            step=progress.step,
            steps=progress.steps,
            stage=progress.stage,
            eta_s=round(elapsed / share - elapsed, 1) if share and elapsed else None,
        )
        with suppress(RedisUnavailable):
            self._obey(await self._consumer.progress(self.claim, written))
        self._stop_if_interrupted()

    def _stop_if_interrupted(self) -> None:
        if self._interruption is not None:
            raise asyncio.CancelledError

    async def _keep_lease(self) -> None:
        while True:
            await asyncio.sleep(self._consumer.lease_s / 6)
            try:
                self._obey(await self._consumer.renew(self.claim))
            except RedisUnavailable:
                # Nobody else can claim either; if the job is taken over later, the fence holds.
                self._log.warning("lease not renewed")

    def _obey(self, lease: Lease) -> None:
        if lease is Lease.CANCEL:
            self.interrupt(Interruption.CANCELED)
        elif lease is Lease.LOST:
            self.interrupt(Interruption.LEASE_LOST)

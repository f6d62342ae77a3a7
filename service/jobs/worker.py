"""The worker: claims jobs, runs their pipelines, ends them. `python -m service.jobs.worker`.

SIGTERM and SIGINT drain it: it claims no more, gives what runs `jobs.drain_s` to finish, hands the
rest back to the queue and leaves. SIGKILL at any moment loses nothing: the lease runs out and
another worker takes over. While Redis or Triton is down it waits, and goes on when they are back.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import secrets
import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any

import structlog
from prometheus_client import start_http_server
from uvicorn.loops.auto import auto_loop_factory

from service.errors import RedisUnavailable, Unavailable, VitrineError
from service.jobs.consumer import Claim
from service.jobs.execution import Execution, Interruption, Workplace
from service.jobs.janitor import Janitor
from service.jobs.metrics import WorkerMetrics
from service.jobs.queue import Queue
from service.observability.logs import configure_logging
from service.observability.tracing import tracing
from service.settings import Settings
from service.storage.scratch import remove_abandoned
from service.storage.store import Store
from service.tasks.contract import Pipeline
from service.triton.client import Triton

_LOG = structlog.stdlib.get_logger("vitrine.worker")
_LONGEST_PAUSE_S = 5.0
_HAND_BACK_S = 4.0


class Worker:
    """One worker process: a claim loop and up to `jobs.concurrency` attempts at a time."""

    def __init__(
        self,
        settings: Settings,
        queue: Queue,
        store: Store,
        triton: Triton,
        pipelines: Mapping[str, Pipeline[Any]],
        metrics: WorkerMetrics,
    ) -> None:
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._jobs = settings.jobs
        self._consumer = queue.consumer(self.name)
        self._janitor = Janitor(queue, store, settings.jobs)
        self._place = Workplace(settings, self._consumer, store, triton, pipelines, metrics)
        self._metrics = metrics
        self._executions: dict[asyncio.Task[None], Execution] = {}
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Begin to drain."""
        self._stopping.set()

    async def run(self) -> None:
        """Work until `stop`, then drain."""
        _LOG.info("worker started", worker=self.name, tasks=sorted(self._place.pipelines))
        async with asyncio.TaskGroup() as group:
            background = [
                group.create_task(self._steadily(self._listen)),
                group.create_task(self._steadily(self._sweep)),
            ]
            await self._steadily(self._claim)
            await self._drain()
            for task in background:
                task.cancel()
        with suppress(RedisUnavailable):
            await self._consumer.leave()
        _LOG.info("worker stopped", worker=self.name)

    async def _steadily(self, step: Callable[[], Awaitable[None]]) -> None:
        """Repeat `step` until the worker drains, with growing pauses while a part of the system is down."""
        failures = 0
        while not self._stopping.is_set():
            try:
                await step()
                failures = 0
            except Unavailable as error:
                if failures == 0:
                    _LOG.warning("waiting", code=error.stable_code, error=error.message)
                pause_s = min(_LONGEST_PAUSE_S, 0.1 * 2**failures)
                failures += 1
                await self._pause(pause_s * random.uniform(0.5, 1.0))

    async def _claim(self) -> None:
        """Start one job, or wait for one, or for room."""
        if len(self._executions) >= self._jobs.concurrency:
            await self._until_stopping(
                asyncio.wait(set(self._executions), return_when=asyncio.FIRST_COMPLETED)
            )
            return
        if not await self._place.triton.ready():
            # A job that is claimed now would only burn its attempts.
            await self._pause(1.0)
            return
        claim = await self._consumer.claim()
        if claim is None:
            await self._until_stopping(self._consumer.wait())
        else:
            self._start(claim)

    def _start(self, claim: Claim) -> None:
        job = claim.job
        if claim.redelivered:
            self._metrics.redeliveries.labels(job.task).inc()
        else:
            waited_s = (job.started_at or job.created_at) - job.created_at
            self._metrics.wait.labels(job.task).observe(waited_s)
        execution = Execution(claim, self._place)
        task = asyncio.create_task(execution.run(), name=job.id)
        self._executions[task] = execution
        self._metrics.running.set(len(self._executions))
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._executions[task]
        self._metrics.running.set(len(self._executions))
        if not task.cancelled() and (error := task.exception()) is not None:
            # The job is not lost: its lease runs out, and it counts as a failure there.
            _LOG.error("attempt broke off", job=task.get_name(), exc_info=error)

    async def _listen(self) -> None:
        """Stop what is to be canceled at once; what is missed here the next heartbeat tells."""
        async for job_id in self._consumer.cancellations():
            for execution in self._executions.values():
                if execution.claim.job.id == job_id:
                    execution.interrupt(Interruption.CANCELED)

    async def _sweep(self) -> None:
        period_s = self._jobs.lease_s
        if await self._janitor.alone("sweep", period_s):
            try:
                await self._janitor.sweep()
            except VitrineError as error:
                _LOG.warning("sweep broke off", code=error.stable_code, error=error.message)
        await self._pause(period_s)

    async def _drain(self) -> None:
        """Let running attempts finish within `drain_s`, then hand the rest back."""
        if self._executions:
            _LOG.info("draining", running=len(self._executions), seconds=self._jobs.drain_s)
            await asyncio.wait(self._executions, timeout=self._jobs.drain_s)
        for execution in self._executions.values():
            execution.interrupt(Interruption.SHUTDOWN)
        if self._executions:
            await asyncio.wait(self._executions, timeout=_HAND_BACK_S)
        left = list(self._executions)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def _until_stopping(self, awaitable: Awaitable[Any]) -> None:
        """Await what may be given up at any time, until it is done or the worker drains."""
        waiting = asyncio.ensure_future(awaitable)
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({waiting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                waiting.result()
        finally:
            waiting.cancel()
            stopping.cancel()
            await asyncio.gather(waiting, stopping, return_exceptions=True)


async def work(
    settings: Settings,
    triton: Triton,
    pipelines: Mapping[str, Pipeline[Any]],
    metrics: WorkerMetrics | None = None,
) -> None:
    """Run one worker until SIGTERM or SIGINT, with its metrics on `worker.metrics_port`."""
    metrics = metrics or WorkerMetrics()
    async with Queue(settings.redis, settings.jobs) as queue:
        worker = Worker(settings, queue, Store(settings), triton, pipelines, metrics)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, worker.stop)
        if settings.worker.metrics_port:
            server, thread = start_http_server(
                settings.worker.metrics_port, settings.host, registry=metrics.registry
            )
            try:
                await worker.run()
            finally:
                await asyncio.to_thread(server.shutdown)
                server.server_close()
                thread.join()
        else:
            await worker.run()


def run(working: Coroutine[Any, Any, None]) -> None:
    """Run it on the same event loop as the gateway's: uvloop where there is one."""
    with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
        runner.run(working)


async def _main(settings: Settings) -> None:
    # Here, not above: tests run workers with pipelines of their own and without Triton.
    from service.tasks import PIPELINES
    from service.triton.grpc import TritonClient

    remove_abandoned()
    metrics = WorkerMetrics()
    # What is there now stays: collections need not look at it again.
    gc.freeze()
    async with TritonClient(settings.triton, metrics.triton) as triton:
        await work(settings, triton, PIPELINES, metrics)


def main() -> None:
    """Run the worker with the settings of the environment."""
    settings = Settings()
    configure_logging(settings, "worker")
    with tracing(settings.tracing, "worker"):
        run(_main(settings))


if __name__ == "__main__":
    main()

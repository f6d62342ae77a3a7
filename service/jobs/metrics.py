"""The worker's Prometheus metrics, in a registry of their own; and what workers are scaled on.

That is `vitrine_queue_demand`, the number of jobs that run or could run now. Every gateway's
`/metrics` has it, read from Redis at the scrape, so a query takes `max` over gateways. Workers
wanted: demand over `jobs.concurrency`. Jobs that wait for another one of their tenant to end are
not in it: more workers would not help them. Jobs that run are in it, or a scaler would take the
workers away from under them.

A scaler that reads Redis finds the same number, but for jobs that were handed back, as
`ZCARD {<queue>}:ready` plus `ZCARD {<queue>}:running`.
"""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

from service.triton.metrics import TritonMetrics

_WAIT_S = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600, 14400, 86400)
_RUN_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


class WorkerMetrics:
    """What one worker counts. `task` is a pipeline's name."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.triton = TritonMetrics(registry)
        self.finished = Counter(
            "vitrine_jobs_finished_total",
            "Jobs that this worker brought to a final state.",
            ("task", "state"),
            registry=registry,
        )
        self.wait = Histogram(
            "vitrine_job_wait_seconds",
            "Time from a job's submission to its first start.",
            ("task",),
            buckets=_WAIT_S,
            registry=registry,
        )
        self.run = Histogram(
            "vitrine_job_run_seconds",
            "Time of an attempt that brought its job to a final state.",
            ("task", "state"),
            buckets=_RUN_S,
            registry=registry,
        )
        self.running = Gauge(
            "vitrine_worker_jobs_running", "Jobs that this worker runs.", registry=registry
        )
        self.redeliveries = Counter(
            "vitrine_job_redeliveries_total",
            "Starts of jobs that had been started before.",
            ("task",),
            registry=registry,
        )

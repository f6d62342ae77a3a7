"""The gateway's Prometheus metrics, in a registry of its own."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from service.jobs.record import Lane

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_STAGE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)


class Metrics:
    """What the gateway counts. `route` is the route's template, `model` is empty where none was used."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = Counter(
            "vitrine_requests_total",
            "Requests answered.",
            ("method", "route", "status", "model"),
            registry=registry,
        )
        self.request_duration = Histogram(
            "vitrine_request_duration_seconds",
            "Time from the request's head to the end of its answer.",
            ("method", "route", "status", "model"),
            buckets=_SECONDS,
            registry=registry,
        )
        self.requests_in_flight = Gauge(
            "vitrine_requests_in_flight", "Requests being answered.", registry=registry
        )
        self.stage_duration = Histogram(
            "vitrine_stage_duration_seconds",
            "Time of the stages of a synchronous answer: decode, infer and others.",
            ("stage", "model"),
            buckets=_STAGE_SECONDS,
            registry=registry,
        )
        self.triton_errors = Counter(
            "vitrine_triton_errors_total",
            "Synchronous requests that failed in or before Triton.",
            ("code", "model"),
            registry=registry,
        )
        self.jobs_queued = Gauge(
            "vitrine_jobs_queued", "Jobs waiting, by lane.", ("lane",), registry=registry
        )
        self.jobs_running = Gauge(
            "vitrine_jobs_running", "Jobs that a worker holds.", registry=registry
        )
        self.redis_up = Gauge(
            "vitrine_redis_up", "1 where the queue's Redis answered this scrape.", registry=registry
        )

    def show_queue(self, queued: Mapping[Lane, int], running: int) -> None:
        """Take the queue's figures as read from Redis."""
        self.redis_up.set(1)
        for lane, depth in queued.items():
            self.jobs_queued.labels(lane).set(depth)
        self.jobs_running.set(running)

    def hide_queue(self) -> None:
        """Forget the queue's figures: absent is honest, old is not."""
        self.redis_up.set(0)
        self.jobs_queued.clear()
        self.jobs_running.set(float("nan"))

    def render(self) -> bytes:
        """Return the text exposition format."""
        return generate_latest(self._registry)

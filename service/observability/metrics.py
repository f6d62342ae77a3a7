"""What the gateway counts, in a registry of its own: of this process, or summed over several.

With several gateway processes (service/processes.py) prometheus_client keeps the figures in files
of a directory that they share, and whichever answers a scrape sums them. A gauge therefore says in
`multiprocess_mode` how the processes' values become one. What can be asked for at a scrape is no
instrument here: see surroundings.py.
"""

from __future__ import annotations

import os

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from service.observability.siblings import SiblingsCollector
from service.processes import METRICS_DIRECTORY
from service.triton.metrics import TritonMetrics

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_STAGE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)


class Metrics:
    """What the gateway counts. `route` is the route's template, `model` is empty where none was used."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self._directory = os.environ.get(METRICS_DIRECTORY)
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
            "vitrine_requests_in_flight",
            "Requests being answered.",
            registry=registry,
            multiprocess_mode="livesum",
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

        self.shed = Counter(
            "vitrine_requests_shed_total",
            "Requests refused because their model had too many.",
            ("model",),
            registry=registry,
        )
        self.model_requests = Gauge(
            "vitrine_model_requests_in_flight",
            "Synchronous requests that a model is answering.",
            ("model",),
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.triton = TritonMetrics(registry)

    def render(self, *beside: Collector) -> bytes:
        """Return the figures, and those of `beside`, in Prometheus' text format."""
        registry = CollectorRegistry()
        PlatformCollector(registry=registry)
        if self._directory is None:
            registry.register(self.registry)
            ProcessCollector(registry=registry)
        else:
            # The siblings first: it clears away what processes that died left as their gauges.
            registry.register(SiblingsCollector(self._directory))
            MultiProcessCollector(registry, self._directory)  # type: ignore[no-untyped-call]
        for collector in beside:
            registry.register(collector)
        return generate_latest(registry)

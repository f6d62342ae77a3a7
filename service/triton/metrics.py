"""What a process counts of its calls to Triton; the gateway and the worker each have them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge

from service.triton.breaker import State


class TritonMetrics:
    """Instruments in `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._breaker = Gauge(
            "vitrine_breaker_state",
            "Circuit breaker of a model: 0 closed, 1 half-open, 2 open (requests are refused).",
            ("model",),
            registry=registry,
            # Of several gateway processes, the worst.
            multiprocess_mode="livemax",
        )

    def breaker(self, model: str, state: State) -> None:
        """Take a breaker's state."""
        self._breaker.labels(model).set(state)

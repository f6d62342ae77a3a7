"""What the gateway learns when it is asked for metrics: Triton, Redis, the queue, the storage.

Nothing here is kept between scrapes: what cannot be learnt is absent, never old. Every gateway of a
deployment tells the same queue, so read these with `max`, not with `sum`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.deps import Gateway
from service.errors import VitrineError
from service.jobs.record import Depth
from service.observability.readiness import Readiness, readiness
from service.storage.store import Room

_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Surroundings(Collector):
    """One look around. `depth` is None while Redis does not answer, `room` for buckets."""

    readiness: Readiness
    depth: Depth | None
    room: Room | None

    def collect(self) -> Iterable[Metric]:
        found = self.readiness
        yield _gauge("vitrine_ready", "1 where /readyz answers 200.", found.ready)
        yield _gauge("vitrine_triton_up", "1 where Triton answered this scrape.", found.triton)
        yield _gauge(
            "vitrine_redis_up", "1 where the queue's Redis answered this scrape.", found.redis
        )
        models = GaugeMetricFamily(
            "vitrine_model_ready",
            "1 for each required or default model that is loaded and ready.",
            labels=("model",),
        )
        for model, state in found.models.items():
            models.add_metric((model,), state == "ready")
        yield models
        if self.depth is not None:
            queued = GaugeMetricFamily(
                "vitrine_jobs_queued", "Jobs waiting, by lane.", labels=("lane",)
            )
            for lane, waiting in self.depth.waiting.items():
                queued.add_metric((lane,), waiting)
            yield queued
            oldest = GaugeMetricFamily(
                "vitrine_queue_oldest_seconds",
                "How long the oldest waiting job has waited, by lane; parked jobs count.",
                labels=("lane",),
            )
            for lane, seconds in self.depth.oldest_s.items():
                oldest.add_metric((lane,), seconds)
            yield oldest
            yield _gauge(
                "vitrine_jobs_parked",
                "Jobs waiting for another one of their tenant to end (jobs.max_running_per_tenant).",
                self.depth.parked,
            )
            yield _gauge("vitrine_jobs_running", "Jobs that a worker holds.", self.depth.running)
            yield _gauge(
                "vitrine_queue_demand",
                "Jobs that run or could run now, were there workers enough.",
                self.depth.demand,
            )
        if self.room is not None:
            yield _gauge(
                "vitrine_storage_free_bytes",
                "What may still be written where results and uploads lie; directories only.",
                self.room.free,
            )
            yield _gauge(
                "vitrine_storage_size_bytes",
                "The size of the file system where results and uploads lie; directories only.",
                self.room.total,
            )


async def look_around(gateway: Gateway) -> Surroundings:
    """Ask Triton, Redis and the storage, all at once and never longer than 1.5 s."""
    found, depth, room = await asyncio.gather(readiness(gateway), _depth(gateway), _room(gateway))
    return Surroundings(found, depth, room)


async def _depth(gateway: Gateway) -> Depth | None:
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            return await gateway.queue.depth()
    except (VitrineError, TimeoutError):
        return None


async def _room(gateway: Gateway) -> Room | None:
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            return await gateway.store.room()
    except (VitrineError, TimeoutError):
        return None


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=float(value))

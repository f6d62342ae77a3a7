"""The gateway's processes as one: their number, and their CPU time, memory and files summed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import psutil
from prometheus_client import ProcessCollector
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import mark_process_dead
from prometheus_client.registry import Collector

_COMBINED = {"process_start_time_seconds": min, "process_max_fds": min}


class SiblingsCollector(Collector):
    """Reads who they are from the figures' files, which end in the process id.

    The live gauges of those that ended are deleted on the way; their counters stay in the sums.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def collect(self) -> Iterable[Metric]:
        living: list[int] = []
        for pid in {int(file.stem.rpartition("_")[2]) for file in self._files()}:
            if psutil.pid_exists(pid):
                living.append(pid)
            else:
                mark_process_dead(pid, self._directory)  # type: ignore[no-untyped-call]
        families: dict[str, Metric] = {}
        values: dict[str, list[float]] = {}
        for pid in living:
            for family in ProcessCollector(pid=lambda pid=pid: pid, registry=None).collect():  # type: ignore[misc]
                families[family.name] = family
                for sample in family.samples:
                    values.setdefault(sample.name, []).append(sample.value)
        for family in families.values():
            for index, sample in enumerate(family.samples):
                combined = _COMBINED.get(sample.name, sum)(values[sample.name])
                family.samples[index] = sample._replace(value=combined)
        yield from families.values()
        yield GaugeMetricFamily(
            "vitrine_gateway_processes", "Gateway processes that answer.", value=len(living)
        )

    def _files(self) -> Iterable[Path]:
        return Path(self._directory).glob("*.db")

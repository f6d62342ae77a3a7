"""What a running system holds at one moment, and how it develops."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from redis import Redis

from load_tests.system import System

PERIOD_S = 10.0

Sample = dict[str, float]
"""Quantity -> value; quantities are `<what> [unit] of <whom>`, times in seconds under `time`."""


@dataclass(frozen=True, slots=True)
class Trend:
    """How a quantity developed after the warm-up.

    `slope` is per hour, by least squares; `error` its standard error, with neighbouring samples
    taken as dependent (an effective number of samples from their autocorrelation).
    """

    quantity: str
    first: float
    last: float
    largest: float
    slope: float
    error: float


class Probe:
    """Samples one system. `storage` and `temporary` are directories, `redis` a URL."""

    def __init__(self, system: System, redis: str, storage: Path, temporary: Path) -> None:
        self._system = system
        self._redis = Redis.from_url(redis, socket_timeout=10)
        self._storage = storage
        self._temporary = temporary
        self._roles: dict[int, str] = {}

    def close(self) -> None:
        self._redis.close()

    def sample(self) -> Sample:
        """Return all quantities now (`time` is the caller's to add)."""
        found: Sample = {}
        for process in [self._system.supervisor, *self._system.supervisor.children(recursive=True)]:
            with contextlib.suppress(psutil.Error), process.oneshot():
                role = self._role(process)
                if role and process.status() != psutil.STATUS_ZOMBIE:
                    memory = process.memory_info()
                    found[f"memory [MiB] of {role}"] = memory.rss / 2**20
                    found[f"open files of {role}"] = process.num_fds()
                    found[f"threads of {role}"] = process.num_threads()
                    found[f"CPU [s] of {role}"] = sum(process.cpu_times()[:2])
        information = self._redis.info("memory")
        found["memory [MiB] of Redis' data"] = information["used_memory"] / 2**20
        found["keys of Redis"] = float(self._redis.dbsize())
        sizes = list(_sizes(self._storage))
        found["bytes [MiB] of storage"] = sum(sizes) / 2**20
        found["objects of storage"] = float(len(sizes))
        found["temporary files"] = float(len(list(_sizes(self._temporary))))
        found["shared memory [MiB]"] = sum(_sizes(Path("/dev/shm"), "vitrine_")) / 2**20
        return found

    def _role(self, process: psutil.Process) -> str:
        known = self._roles.get(process.pid)
        if known is None:
            words = process.cmdline()
            known = self._roles[process.pid] = _role(words)
        return known


def _role(words: Sequence[str]) -> str:
    line = " ".join(words)
    if "triton_python_backend_stub" in line:
        model = next((word for word in words if word.endswith("/1/model.py")), "")
        return f"model {Path(model).parts[-3]}" if model else ""
    for sign, role in {
        "service.app": "gateway",
        "service.jobs.worker": "worker",
        "redis-server": "redis-server",
        "tritonserver": "tritonserver",
        "service.cli.main up": "supervisor",
    }.items():
        if sign in line:
            return role
    return ""


def _sizes(directory: Path, prefix: str = "") -> Iterable[int]:
    """Yield the bytes of each file below `directory` that is still there when it is looked at."""
    for folder, _, names in os.walk(directory):
        for name in names:
            if name.startswith(prefix):
                with contextlib.suppress(OSError):
                    yield os.stat(os.path.join(folder, name)).st_size


def trends(samples: Sequence[Sample], warm_up_s: float) -> list[Trend]:
    """Return the trend of every quantity that all samples after the warm-up hold, but CPU times."""
    kept = [sample for sample in samples if sample["time"] >= warm_up_s]
    names = sorted({name for sample in kept for name in sample} - {"time"})
    found = []
    for name in names:
        rows = [(s["time"] / 3600, s[name]) for s in kept if name in s]
        if name.startswith("CPU") or len(rows) < max(8, len(kept) // 2):
            continue
        time, value = np.array(rows).T
        found.append(_trend(name, time, value))
    return found


def _trend(name: str, time: np.ndarray, value: np.ndarray) -> Trend:
    slope, level = np.polyfit(time, value, 1)
    residual = value - (slope * time + level)
    spread = float(residual @ residual)
    dependence = float(residual[1:] @ residual[:-1]) / spread if spread else 0.0
    dependence = min(max(dependence, 0.0), 0.99)
    samples = max(3.0, len(time) * (1 - dependence) / (1 + dependence))
    variance = spread / len(time) * samples / (samples - 2)
    error = float(np.sqrt(variance / (samples * np.var(time))))
    tenth = max(1, len(value) // 10)
    return Trend(
        quantity=name,
        first=float(np.median(value[:tenth])),
        last=float(np.median(value[-tenth:])),
        largest=float(value.max()),
        slope=float(slope),
        error=error,
    )

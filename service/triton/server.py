"""How a Triton server is started: what `vitrine up` and the Triton image have in common."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from service.settings import TracingSettings

EXIT_S = 10
"""Seconds that a stopping Triton gives running requests."""


def server_options(repository: Path, load: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the options of a `tritonserver` that serves `repository`.

    It answers nobody before it has loaded the models of `load`; one that cannot be loaded keeps
    none of the others from being served. Model configurations are complete, so Triton need not
    import every model a second time to complete them.
    """
    return (
        f"--model-repository={repository}",
        "--model-control-mode=explicit",
        *(f"--load-model={model}" for model in load),
        f"--model-load-thread-count={max(2, cores())}",
        "--disable-auto-complete-config",
        "--exit-on-error=false",
        "--strict-readiness=false",
        f"--exit-timeout-secs={EXIT_S}",
        f"--backend-config=python,shm-region-prefix-name={shared_memory_prefix(repository)}",
        "--log-format=ISO8601",
    )


def trace_options(settings: TracingSettings) -> tuple[str, ...]:
    """Return the options by which a `tritonserver` takes part in traces; none while nothing is traced.

    Rate 0: it traces what comes with a trace context, and nothing of its own accord.
    """
    if not settings.url:
        return ()
    return (
        "--trace-config=mode=opentelemetry",
        "--trace-config=level=TIMESTAMPS",
        "--trace-config=rate=0",
        f"--trace-config=opentelemetry,url={settings.traces_url}",
        "--trace-config=opentelemetry,resource=service.name=vitrine-triton",
        "--trace-config=opentelemetry,bsp_schedule_delay=1000",
    )


def thread_environment() -> dict[str, str]:
    """Return the variables that bound the networks' threads, unless the environment has its own."""
    return {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(cores())),
        # Several models share the cores: threads that spin while they wait take them from the others.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
    }


def shared_memory_prefix(repository: Path) -> str:
    """Return the prefix of the shared-memory regions of the Triton that serves `repository`."""
    return f"vitrine_{hashlib.sha256(str(repository).encode()).hexdigest()[:12]}_"


def remove_shared_memory(repository: Path) -> None:
    """Remove the regions that a killed Triton left in /dev/shm."""
    for region in Path("/dev/shm").glob(f"{shared_memory_prefix(repository)}*"):
        region.unlink(missing_ok=True)


def cores(group: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the number of CPUs that this process may use: by its affinity, and its container's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        # "max 100000" or "150000 100000": microseconds of CPU time in each period (cgroup v2).
        quota, period = (group / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return count or 1
    return count or 1 if quota == "max" else min(count or 1, max(1, int(quota) // int(period)))

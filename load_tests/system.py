"""A running Vitrine to measure: its processes, their CPU time and memory, and requests to it."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil


@dataclass(frozen=True)
class System:
    """One `vitrine up`: the gateway's URL, Triton's gRPC address, supervisor and data directory."""

    url: str
    triton: str
    supervisor: psutil.Process
    directory: Path

    def processes(self, part: str) -> list[psutil.Process]:
        """Return the processes of a part: `gateway`, `worker`, `redis` or `triton` (with its models)."""
        signs = {
            "gateway": ("service.app",),
            "worker": ("service.jobs.worker",),
            "redis": ("redis-server",),
            "triton": ("tritonserver", "triton_python_backend_stub"),
        }[part]
        found = [
            child
            for child in self.supervisor.children(recursive=True)
            if any(sign in word for sign in signs for word in child.cmdline())
        ]
        if part == "gateway":  # one of several processes tells no more than that it was spawned
            found += [child for parent in list(found) for child in parent.children()]
        return found

    def cpu_seconds(self, part: str) -> float:
        """Return the CPU time that the part's processes have used, user and system."""
        return sum(sum(p.cpu_times()[:2]) for p in self.processes(part))

    def reset_peak_memory(self, part: str) -> None:
        """Let the peak resident memory of the part's processes start from what they hold now."""
        for process in self.processes(part):
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")

    def peak_memory(self, part: str) -> int:
        """Return the peak resident bytes of the part's largest process since the reset."""
        peaks = []
        for process in self.processes(part):
            status = Path(f"/proc/{process.pid}/status").read_text()
            line = next(row for row in status.splitlines() if row.startswith("VmHWM"))
            peaks.append(int(line.split()[1]) * 1024)
        return max(peaks)


@contextlib.contextmanager
def running(
    models: Sequence[str], prepare: Sequence[str] = (), arguments: Sequence[str] = ()
) -> Iterator[System]:
    """Start `vitrine up` with `models` in a directory of its own and stop it at the end.

    `arguments` are further ones of `vitrine up`. `prepare` is a command that gets the directory as
    its last argument and may write entries first.
    """
    with tempfile.TemporaryDirectory(prefix="vitrine-load-") as directory:
        if prepare:
            subprocess.run([*prepare, directory], check=True)
        command = [sys.executable, "-m", "service.cli.main", "up", "--port", "0"]
        command += ["--data-dir", directory, "--models", ",".join(models), *arguments]
        with subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            # An open-ended run is not to be limited by what protects a public service.
            env={**os.environ, "VITRINE_LIMITS__REQUEST_SECONDS": "600"},
        ) as process:
            try:
                up = Path(directory) / "up.json"
                deadline = time.monotonic() + 600
                while not up.exists():
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError("vitrine up did not start")
                    time.sleep(0.2)
                told = json.loads(up.read_text())
                while not _ready(told["url"]):
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError("vitrine up did not become ready")
                    time.sleep(0.5)
                yield System(
                    told["url"], told["triton"], psutil.Process(process.pid), Path(directory)
                )
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(60)


def _ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readyz", timeout=10).status_code == 200
    except httpx2.TransportError:
        return False


def machine() -> dict[str, str | int | float]:
    """Return what a reader needs to know of the machine that was measured."""
    model = platform.processor() or "unknown"
    with contextlib.suppress(OSError, StopIteration):
        info = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(
            line.split(":", 1)[1].strip() for line in info if line.startswith("model name")
        )
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }

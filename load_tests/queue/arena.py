"""One contender on a Redis of its own: its client and workers as processes, and what they cost."""

from __future__ import annotations

import random
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from redis import Redis

from load_tests.queue.contenders.stage import MARK

START_S = 60.0
WARM_UP = 40


@contextmanager
def redis_server(binary: str) -> Iterator[str]:
    """Yield the URL of a fresh server with an append-only file that is synced every second."""
    with tempfile.TemporaryDirectory(prefix="vitrine-queue-") as directory:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--dir", directory]
        command += ["--appendonly", "yes", "--stream-node-max-bytes", "512"]
        command += ["--loglevel", "warning"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            try:
                client = Redis(port=port, retry_on_error=[ConnectionError])
                deadline = time.monotonic() + START_S
                while True:
                    try:
                        client.ping()
                        break
                    except Exception:
                        if time.monotonic() > deadline:
                            raise
                        time.sleep(0.05)
                yield f"redis://127.0.0.1:{port}/0"
            finally:
                process.kill()


@dataclass
class Arena:
    """A client and workers of one contender. `python` runs it, `name` is its module."""

    name: str
    python: str
    url: str
    directory: Path
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.redis = Redis.from_url(self.url)
        self.journal = self.directory / "journal"
        self.journal.touch()
        self.client = subprocess.Popen(
            [*self._command("submit")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.client.stdout is not None
        if self.client.stdout.readline().strip() != "ready":
            raise RuntimeError(f"{self.name}'s client did not start.")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in (*self.workers, self.client):
            process.kill()
            process.wait()

    def _command(self, role: str) -> list[str]:
        return [self.python, "-m", f"load_tests.queue.contenders.{self.name}", role, self.url]

    def add_worker(self) -> None:
        """Start one more worker and return when it has done a job."""
        worker = subprocess.Popen(
            [*self._command("work"), str(self.journal)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.workers.append(worker)
        deadline = time.monotonic() + START_S
        while worker.pid not in (pid for _, pid in self.marks()):
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name}'s worker did not start.")
            before = self.done()
            self.submit(WARM_UP)
            self.wait(before + WARM_UP)
        time.sleep(0.5)

    def signal(self, number: signal.Signals) -> None:
        for worker in self.workers:
            worker.send_signal(number)

    def submit(self, what: str | int) -> tuple[float, float]:
        """Submit `one` or a number of jobs; return the times before and after."""
        assert self.client.stdin is not None
        assert self.client.stdout is not None
        self.client.stdin.write(f"{what}\n")
        self.client.stdin.flush()
        before, after = self.client.stdout.readline().split()
        return float(before), float(after)

    def done(self) -> int:
        return self.journal.stat().st_size // MARK.size

    def marks(self) -> list[tuple[float, int]]:
        """Return the time and the process of each start, in their order."""
        return list(MARK.iter_unpack(self.journal.read_bytes()))

    def wait(self, count: int, within_s: float = 120.0) -> None:
        deadline = time.monotonic() + within_s
        while self.done() < count:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name}: {self.done()} of {count} jobs were started.")
            time.sleep(0.0005)

    # What is measured

    def latency(self, most: int, seconds: float) -> dict[str, float]:
        """Submit jobs one by one to one idle worker: from before the call to the job's first line."""
        waits, calls = [], []
        until = time.monotonic() + seconds
        draw = random.Random(1)
        while len(waits) < most and time.monotonic() < until:
            count = self.done()
            before, after = self.submit("one")
            self.wait(count + 1)
            waits.append(self.marks()[count][0] - before)
            calls.append(after - before)
            time.sleep(draw.uniform(0.01, 0.03))
        times = np.array(waits) * 1000
        return {
            "jobs": len(waits),
            "start_p50_ms": float(np.percentile(times, 50)),
            "start_p99_ms": float(np.percentile(times, 99)),
            "submit_p50_ms": 1000 * statistics.median(calls),
        }

    def drain(self, jobs: int) -> float:
        """Return jobs/s of all workers over a full queue, from their start to the last job's."""
        self.signal(signal.SIGSTOP)
        before = self.done()
        self.submit(jobs)
        begun = time.monotonic()
        self.signal(signal.SIGCONT)
        self.wait(before + jobs)
        rate = jobs / (max(self.marks()[before:])[0] - begun)
        time.sleep(0.5)
        return rate

    def cost(self, jobs: int) -> dict[str, float]:
        """What a job costs Redis, from submission to end, with one worker over a full queue."""
        counts = self._monitored(jobs)
        self.signal(signal.SIGSTOP)
        time.sleep(0.2)
        before, done = self._info(), self.done()
        self.submit(jobs)
        time.sleep(0.2)
        waiting = self._info()
        self.signal(signal.SIGCONT)
        self.wait(done + jobs)
        time.sleep(0.5)
        after = self._info()

        def per_job(key: str, until: dict[str, Any] = after) -> float:
            return float(until[key] - before[key]) / jobs

        return {
            **counts,
            "network_bytes": per_job("total_net_input_bytes") + per_job("total_net_output_bytes"),
            "waiting_bytes": per_job("used_memory_dataset", waiting),
            "kept_bytes": per_job("used_memory_dataset"),
            "redis_cpu_us": 1e6 * (per_job("used_cpu_user") + per_job("used_cpu_sys")),
        }

    def _info(self) -> dict[str, Any]:
        found: dict[str, Any] = self.redis.info()
        return found

    def _monitored(self, jobs: int) -> dict[str, float]:
        """Count commands by MONITOR, which tells those that scripts call from those that are sent."""
        sent = called = 0
        ready, over = threading.Event(), threading.Event()

        def count() -> None:
            nonlocal sent, called
            with Redis.from_url(self.url).monitor() as monitor:
                ready.set()
                for command in monitor.listen():
                    if "vitrine-benchmark-over" in command["command"]:
                        break
                    if command["client_type"] == "lua":
                        called += 1
                    else:
                        sent += 1
            over.set()

        thread = threading.Thread(target=count)
        thread.start()
        ready.wait()
        done = self.done()
        self.submit(jobs)
        self.wait(done + jobs)
        time.sleep(0.3)
        self.redis.echo("vitrine-benchmark-over")
        over.wait(10)
        thread.join()
        return {"commands_sent": sent / jobs, "commands_called": called / jobs}


def redis_version(binary: str) -> str:
    """Return the server's version, as `7.0.15`."""
    told = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    return told.split("v=")[1].split(" ")[0]


def peer_python(name: str, directory: Path) -> str:
    """Return the Python of the environment that holds a contender, made if it is not there."""
    python = directory / name / "bin" / "python"
    if not python.exists():
        requirements = Path(__file__).parent / "requirements" / f"{name}.txt"
        subprocess.run(["python3.11", "-m", "venv", str(directory / name)], check=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--requirement", requirements], check=True
        )
    return str(python)

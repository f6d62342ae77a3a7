"""What a full queue does to interactive calls: the p99 of `/v1/classify` with and without."""

from __future__ import annotations

import http.client
import signal
import threading
import time
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from load_tests.gateway import SMALL, photograph, through_gateway
from load_tests.system import System, running

CLIENTS = 2
PAUSE_S = 0.05
SECONDS = 15.0
MOST_S = 75.0


def interactive(jobs: int) -> dict[str, Any]:
    """Measure without, then while `jobs` jobs drain, for as long as they take but `MOST_S` at most."""
    with running([SMALL]) as system:
        _loop(system, lambda: False, 3.0)  # warms up
        without = _loop(system, lambda: False, SECONDS)
        _submit(system, jobs)
        started = time.monotonic()
        during = _loop(system, lambda: _left(system) == 0, MOST_S)
        seconds = time.monotonic() - started
        drained = jobs - _left(system)
    rows = {"without": _row(without, SECONDS), "while": _row(during, seconds)}
    rows["while"]["jobs_per_second"] = drained / seconds
    return {
        "model": SMALL,
        "clients": CLIENTS,
        "pause_ms": PAUSE_S * 1000,
        "jobs": jobs,
        "drained": drained,
        **rows,
        "p99_ratio": rows["while"]["p99_ms"] / rows["without"]["p99_ms"],
    }


def _submit(system: System, jobs: int) -> None:
    """Fill the queue while the workers stand still, and let them go."""
    workers = system.processes("worker")
    for worker in workers:
        worker.send_signal(signal.SIGSTOP)
    body = photograph()
    connection = http.client.HTTPConnection(urlsplit(system.url).netloc, timeout=60)
    for _ in range(jobs):
        connection.request(
            "POST", f"/v1/classify?mode=async&model={SMALL}", body, {"Content-Type": "image/jpeg"}
        )
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 202:
            raise RuntimeError(f"{answer.status}: {content[:300]!r}")
    for worker in workers:
        worker.send_signal(signal.SIGCONT)


def _left(system: System) -> int:
    """Return how many jobs wait or run, as `/metrics` tells."""
    connection = http.client.HTTPConnection(urlsplit(system.url).netloc, timeout=60)
    connection.request("GET", "/metrics")
    page = connection.getresponse().read().decode()
    connection.close()
    names = ("vitrine_jobs_queued{", "vitrine_jobs_running ")
    return sum(
        round(float(line.split()[-1])) for line in page.splitlines() if line.startswith(names)
    )


def _loop(system: System, over: Any, seconds: float) -> list[float]:
    """Call, pause and call again until it is over, or for `seconds`; return the latencies."""
    ended = threading.Event()
    latencies: list[float] = []
    failures: list[BaseException] = []
    client = through_gateway(system, SMALL)

    def loop() -> None:
        call = client()
        try:
            while not ended.is_set():
                begun = time.perf_counter()
                call()
                latencies.append(time.perf_counter() - begun)
                time.sleep(PAUSE_S)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=loop) for _ in range(CLIENTS)]
    until = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    while time.monotonic() < until and not over():
        time.sleep(0.25)
    ended.set()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return latencies


def _row(latencies: list[float], seconds: float) -> dict[str, float]:
    times = np.array(latencies) * 1000
    return {
        "requests": len(times),
        "per_second": len(times) / seconds,
        **{f"p{share}_ms": float(np.percentile(times, share)) for share in (50, 95, 99)},
    }

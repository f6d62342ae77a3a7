"""What happens at twice the capacity: with load shedding and without, in one run.

    python -m load_tests.overload [--seconds 25] [--rounds 2]

Two gateways, one of them with `VITRINE_SHEDDING__ENABLED=false`, stand before one Triton and are
measured by turns. The capacity is what closed-loop clients get; then requests (100 kB JPEG bodies to
`/v1/classify`, ConvNeXt-T at 224 with random weights) come in at random, whether or not earlier ones
have been answered: at 0.8 of the capacity, whose p99 is the normal one, and at twice the capacity.
The first seconds of each load are left out. What has no answer at the end of the window counts as
late. Results go to load_tests/results/overload.{json,md}.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx2
import numpy as np

from load_tests.gateway import REALISTIC, photograph
from load_tests.system import System, machine, running

RESULTS = Path(__file__).parent / "results"
WARM_UP_S = 5.0
LOADS = (0.8, 2.0)
WAYS = {"shedding": "true", "none": "false"}


@dataclass
class Seen:
    """What clients saw of the requests that they sent in the window."""

    sent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    answered: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)

    def row(self, seconds: float) -> dict[str, float]:
        late = self.sent - sum(self.statuses.values())
        return {
            "sent": self.sent,
            "answered_per_second": len(self.answered) / seconds,
            "refused": self.statuses[503],
            "late": late,
            "other": sum(n for status, n in self.statuses.items() if status not in (200, 503)),
            "p50_ms": _percentile(self.answered, 50),
            "p99_ms": _percentile(self.answered, 99),
            "refused_p99_ms": _percentile(self.refused, 99),
        }


@contextlib.contextmanager
def gateway(system: System, shedding: str) -> Iterator[str]:
    """Run a further gateway before the system's Triton and Redis, and yield its URL."""
    told = json.loads((system.directory / "up.json").read_text())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "VITRINE_PORT": str(port),
        "VITRINE_DATA_DIR": str(system.directory),
        "VITRINE_TRITON__URL": told["triton"],
        "VITRINE_REDIS__URL": told["redis"],
        "VITRINE_SHEDDING__ENABLED": shedding,
        "OMP_NUM_THREADS": "1",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "service.app"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + 60
            while not _answers(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the gateway did not start")
                time.sleep(0.2)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def _answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/livez", timeout=5).status_code == 200
    except httpx2.TransportError:
        return False


@contextlib.asynccontextmanager
async def client(url: str) -> AsyncIterator[httpx2.AsyncClient]:
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=200)
    async with httpx2.AsyncClient(
        base_url=url, timeout=120, limits=limits, trust_env=False
    ) as opened:
        yield opened


async def ask(http: httpx2.AsyncClient, body: bytes) -> int:
    """Send one request and return its status."""
    answer = await http.post(
        f"/v1/classify?model={REALISTIC}", content=body, headers={"Content-Type": "image/jpeg"}
    )
    return answer.status_code


async def capacity(url: str, body: bytes, seconds: float, clients: int = 16) -> float:
    """Return the requests a second that clients get who send the next one once they have an answer."""
    done = 0

    async def loop(until: float) -> None:
        nonlocal done
        while time.perf_counter() < until:
            if await ask(http, body) != 200:
                raise RuntimeError("refused while the capacity was measured")
            done += 1

    async with client(url) as http:
        for window in (WARM_UP_S, seconds):
            done, started = 0, time.perf_counter()
            await asyncio.gather(*(loop(started + window) for _ in range(clients)))
            elapsed = time.perf_counter() - started
    return done / elapsed


async def offer(url: str, body: bytes, rate: float, seconds: float, seed: int) -> dict[str, float]:
    """Send `rate` requests a second at random times, and return what became of those in the window."""
    draw, seen = random.Random(seed), Seen()

    async def one(counts: bool) -> None:
        started = time.perf_counter()
        status = await ask(http, body)
        if counts and time.perf_counter() < end:
            seen.statuses[status] += 1
            (seen.answered if status == 200 else seen.refused).append(time.perf_counter() - started)

    async with client(url) as http:
        begin = time.perf_counter()
        end = begin + WARM_UP_S + seconds
        at, tasks = begin, set()
        while (at := at + draw.expovariate(rate)) < end:
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            counts = at >= begin + WARM_UP_S
            seen.sent += counts
            task = asyncio.create_task(one(counts))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.sleep(max(0.0, end - time.perf_counter()))
        left = list(tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
    return seen.row(seconds)


async def measure(urls: dict[str, str], seconds: float, rounds: int) -> dict[str, Any]:
    """Measure both ways by turns; medians over the rounds."""
    body = photograph()
    able = await capacity(urls["none"], body, seconds / 2)
    print(f"capacity {able:.1f}/s", flush=True)
    seen: dict[tuple[str, float], list[dict[str, float]]] = {}
    for number in range(rounds):
        for load in LOADS:
            for way, url in urls.items():
                row = await offer(url, body, load * able, seconds, seed=number)
                print(way, load, {key: round(value, 1) for key, value in row.items()}, flush=True)
                seen.setdefault((way, load), []).append(row)
                await asyncio.sleep(3)  # what was given up leaves Triton's queue
    rows = [
        {"way": way, "load": load, **{key: median(row[key] for row in found) for key in found[0]}}
        for (way, load), found in seen.items()
    ]
    return {"capacity_per_second": able, "rows": rows, "ratios": ratios(rows, able)}


def ratios(rows: list[dict[str, Any]], able: float) -> dict[str, float]:
    """Return the figures that the aims speak of."""
    at = {(row["way"], row["load"]): row for row in rows}
    low, high = LOADS
    normal = at["shedding", low]["p99_ms"]
    return {
        "p99 at 2.0 / p99 at 0.8, shedding": at["shedding", high]["p99_ms"] / normal,
        "p99 at 2.0, shedding / p99 at 0.8, none": at["shedding", high]["p99_ms"]
        / at["none", low]["p99_ms"],
        "p99 at 2.0 / p99 at 0.8, none": at["none", high]["p99_ms"] / at["none", low]["p99_ms"],
        "p99 at 2.0, none / shedding": at["none", high]["p99_ms"] / at["shedding", high]["p99_ms"],
        "answered at 2.0 / capacity, shedding": at["shedding", high]["answered_per_second"] / able,
        "refused at 0.8 / sent, shedding": at["shedding", low]["refused"]
        / at["shedding", low]["sent"],
    }


def _percentile(values: list[float], percent: float) -> float:
    return float(np.percentile(values, percent)) * 1000 if values else 0.0


def table(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    on = report["machine"]
    lines = [
        "# Overload",
        "",
        f"`python -m load_tests.overload` on {on['cpu']}, {on['cores']} cores, {on['memory_gib']} GiB; "
        f"clients, gateway and Triton share the cores. Capacity: {report['capacity_per_second']:.1f} "
        "requests/s. Medians over the rounds.",
        "",
        "| shedding | load / capacity | sent | answered/s | refused | late | p50 ms | p99 ms | refused: p99 ms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {'on' if r['way'] == 'shedding' else 'off'} | {r['load']} | {r['sent']:.0f} "
        f"| {r['answered_per_second']:.1f} | {r['refused']:.0f} | {r['late']:.0f} "
        f"| {r['p50_ms']:.0f} | {r['p99_ms']:.0f} | {r['refused_p99_ms']:.0f} |"
        for r in report["rows"]
    ]
    lines += ["", "| ratio | value |", "|---|---|"]
    lines += [f"| {name} | {value:.2f} |" for name, value in report["ratios"].items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=25.0, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=2, help="measurements of each kind, by turns")
    options = parser.parse_args()
    report: dict[str, Any] = {"machine": machine()}
    entry = f"{REALISTIC}=convnext:tiny-1k-224"
    models = [REALISTIC]
    with (
        running(models, [sys.executable, "-m", "load_tests.entries", entry]) as system,
        gateway(system, WAYS["shedding"]) as shedding,
        gateway(system, WAYS["none"]) as none,
    ):
        urls = {"shedding": shedding, "none": none}
        report |= asyncio.run(measure(urls, options.seconds, options.rounds))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "overload.json").write_text(json.dumps(report, indent=1) + "\n")
    (RESULTS / "overload.md").write_text(table(report))
    print(table(report))


if __name__ == "__main__":
    main()

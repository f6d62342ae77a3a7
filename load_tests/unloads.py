"""What loading and unloading leaves behind: memory, processes and shared memory of Triton, cycle by cycle.

    python -m load_tests.unloads [--cycles 40] [--models 5] [--allocators glibc]

Each cycle loads the models side by side, asks each once and unloads them again, by the gateway; a
figure is taken once their processes have gone. They run in what is taken for them by default on this machine. A request
that is not answered ends it all. Done with glibc's allocator as it comes and with two arenas only
(MALLOC_ARENA_MAX=2), each in a system of its own. Results go to load_tests/results/unloads.{json,md}, after each cycle.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil

from load_tests.gateway import photograph
from load_tests.system import System, machine, running
from service.triton.server import shared_memory_prefix

RESULTS = Path(__file__).parent / "results"
MIB = 2**20
# How many of the cycles the table shows, first and last among them.
SHOWN = 9
# From this many rows on a growth can be told of both halves.
LEAST = 6
ALLOCATORS = {"glibc": {}, "glibc, two arenas": {"MALLOC_ARENA_MAX": "2"}}


def figures(system: System) -> dict[str, float]:
    """Return what Triton holds now."""
    triton = system.processes("triton")
    (server,) = [p for p in triton if p.name() == "tritonserver"]
    prefix = shared_memory_prefix(system.directory / "repository")
    regions = [region.stat() for region in Path("/dev/shm").glob(f"{prefix}*")]
    return {
        "server_mib": server.memory_info().rss / MIB,
        "server_threads": server.num_threads(),
        "server_files": server.num_fds(),
        "models": len(triton) - 1,
        "models_mib": sum(p.memory_full_info().uss for p in triton if p.pid != server.pid) / MIB,
        "shared_mib": sum(each.st_blocks * 512 for each in regions) / MIB,
    }


def settled(system: System, models: int, seconds: float = 60) -> dict[str, float]:
    """Return the figures once `models` models have a process."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = figures(system)
        except (psutil.NoSuchProcess, FileNotFoundError):  # one is just ending
            found = {"models": -1}
        if found["models"] == models or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


def cycle(system: System, names: list[str], body: bytes) -> None:
    """Load, use and unload the models."""
    with httpx2.Client(base_url=system.url, timeout=180, trust_env=False) as http:

        def use(name: str) -> None:
            http.post(f"/v1/models/{name}/load").raise_for_status()
            http.post(
                f"/v1/classify?model={name}", content=body, headers={"Content-Type": "image/jpeg"}
            ).raise_for_status()

        with ThreadPoolExecutor(len(names)) as pool:
            list(pool.map(use, names))
    unload(system, names)


def unload(system: System, names: list[str]) -> None:
    """Unload the models."""
    with httpx2.Client(base_url=system.url, timeout=180, trust_env=False) as http:
        for name in names:
            http.post(f"/v1/models/{name}/unload").raise_for_status()


def measure(cycles: int, models: int) -> Iterator[dict[str, float]]:
    """Yield the figures before the first cycle and after each."""
    names = [f"spare-{number}" for number in range(models)]
    entries = [f"{name}=convnext:demo" for name in names]
    body = photograph()
    # What is loaded at the start has its runtime chosen.
    with running(
        ["convnext-demo", *names], [sys.executable, "-m", "load_tests.entries", *entries]
    ) as up:
        remaining = int(figures(up)["models"]) - models
        unload(up, names)
        yield {"unloads": 0, **settled(up, remaining)}
        for number in range(1, cycles + 1):
            cycle(up, names, body)
            yield {"unloads": number * models, **settled(up, remaining)}


def slope(rows: list[dict[str, float]], key: str) -> float:
    """Return the growth of a figure for each unload, after the first cycle."""
    later = rows[1:]
    return float(np.polyfit([r["unloads"] for r in later], [r[key] for r in later], 1)[0])


def halves(rows: list[dict[str, float]], key: str) -> str:
    """Return the growth in KiB for each unload, of the first half of the cycles and of the second."""
    middle = len(rows) // 2
    return " | ".join(f"{1024 * slope(part, key):.0f}" for part in (rows[:middle], rows[middle:]))


def shown(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """Return a few rows, evenly from the first to the last."""
    picked = np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).round()
    return [rows[int(index)] for index in picked]


def table(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    on = report["machine"]
    lines = [
        "# Loading and unloading",
        "",
        f"`python -m load_tests.unloads` on {on['cpu']}, {on['cores']} cores, {on['memory_gib']} GiB. "
        "Each unload follows a load and a request; the catalogue and one model stay loaded. `server` is "
        "the resident memory of tritonserver itself, `models` the memory that the "
        "models' processes share with nobody, `shared` what lies in /dev/shm.",
        "",
        "| allocator | unloads | server MiB | threads | open files | models | models MiB | shared MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for allocator, rows in report["rows"].items():
        lines += [
            f"| {allocator} | {r['unloads']:.0f} | {r['server_mib']:.1f} | {r['server_threads']:.0f} "
            f"| {r['server_files']:.0f} | {r['models']:.0f} | {r['models_mib']:.1f} | {r['shared_mib']:.1f} |"
            for r in shown(rows)
        ]
    lines += [
        "",
        "KiB kept for each unload, in the first half of the cycles and in the second:",
        "",
        "| allocator | server, first half | second half | models, first half | second half |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {allocator} | {halves(rows, 'server_mib')} | {halves(rows, 'models_mib')} |"
        for allocator, rows in report["rows"].items()
        if len(rows) >= LEAST
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cycles", type=int, default=40, help="how often everything is unloaded")
    parser.add_argument("--models", type=int, default=5, help="how many models come and go")
    parser.add_argument("--allocators", nargs="+", choices=ALLOCATORS, default=list(ALLOCATORS))
    options = parser.parse_args()
    report: dict[str, Any] = {"machine": machine(), "rows": {}}
    RESULTS.mkdir(exist_ok=True)
    for name in options.allocators:
        os.environ.update(ALLOCATORS[name])
        rows = report["rows"][name] = []
        for row in measure(options.cycles, options.models):
            rows.append(row)
            print({key: round(value, 1) for key, value in row.items()}, flush=True)
            (RESULTS / "unloads.json").write_text(json.dumps(report, indent=1) + "\n")
            if len(rows) >= LEAST:
                (RESULTS / "unloads.md").write_text(table(report))
    print(table(report))


if __name__ == "__main__":
    main()

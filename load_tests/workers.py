"""One gateway process against two: how much more do they answer?

    python -m load_tests.workers [--seconds 10] [--rounds 3]

Two systems run side by side, `vitrine up --workers 1` and `--workers 2`, and are measured by turns. The
loads are chosen so that the gateway is the limit: a list of jobs (one look into Redis), and a
100 kB JPEG for the small demo model. wrk makes the load where it is installed; it costs a tenth of
the CPU of a client in Python. Client, gateway, Redis and Triton share the machine, so a second process can
only use what the first leaves idle: read the CPU column beside the ratio.
Results go to load_tests/results/workers.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from load_tests.gateway import photograph
from load_tests.system import System, machine, running

RESULTS = Path(__file__).parent / "results"
MODEL = "convnext-demo"
CONCURRENCY = 16


@dataclass(frozen=True)
class Load:
    """A request that is sent again and again."""

    name: str
    method: str
    path: str
    body: bytes = b""
    content_type: str = ""


LOADS = (
    Load("list of jobs", "GET", "/v1/jobs?limit=1"),
    Load("classify 100 kB JPEG", "POST", f"/v1/classify?model={MODEL}", photograph(), "image/jpeg"),
)


@contextmanager
def script(load: Load) -> Iterator[Path]:
    """Write the Lua script by which wrk sends the load."""
    with tempfile.TemporaryDirectory() as directory:
        body, lua = Path(directory) / "body", Path(directory) / "load.lua"
        body.write_bytes(load.body)
        lua.write_text(
            f'wrk.method = "{load.method}"\n'
            f'wrk.body = io.open("{body}", "rb"):read("*a")\n'
            f'wrk.headers["Content-Type"] = "{load.content_type}"\n'
        )
        yield lua


def measure(system: System, load: Load, seconds: float) -> dict[str, float]:
    """Send the load for `seconds` and return what came back, and the CPU time that it took."""
    before = {part: system.cpu_seconds(part) for part in ("gateway", "triton")}
    with script(load) as lua:
        command = [
            "wrk",
            "-t1",
            f"-c{CONCURRENCY}",
            f"-d{seconds:g}s",
            "--latency",
            "--timeout=30s",
        ]
        done = subprocess.run(
            [*command, "-s", str(lua), f"{system.url}{load.path}"],
            capture_output=True,
            text=True,
            check=True,
        )
    text = done.stdout
    if "Socket errors" in text:
        raise RuntimeError(text)
    requests = int(re.search(r"(\d+) requests in", text)[1])  # type: ignore[index]
    # While the gateway learns how long a model takes, it may refuse some.
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    answered = requests - int(refused[1]) if refused else requests
    used = {part: system.cpu_seconds(part) - before[part] for part in before}
    return {
        "per_second": answered / seconds,
        "refused": requests - answered,
        "p50_ms": _milliseconds(text, 50),
        "p99_ms": _milliseconds(text, 99),
        "gateway_cpu_ms": 1000 * used["gateway"] / requests,
        "gateway_cores": used["gateway"] / seconds,
        "triton_cores": used["triton"] / seconds,
    }


def _milliseconds(text: str, share: int) -> float:
    value, unit = re.search(rf"{share}%\s+([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
    return float(value) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[unit]


def table(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    on = report["machine"]
    lines = [
        "# Gateway with 1 and 2 processes",
        "",
        f"`python -m load_tests.workers` on {on['cpu']}, {on['cores']} cores, {on['memory_gib']} GiB; wrk with "
        f"{CONCURRENCY} connections, both systems up at once and measured by turns, medians of {report['rounds']} rounds. "
        "wrk, gateway, Redis and Triton share the cores: what a second process gains is what the first left idle.",
        "",
        "| load | processes | answers/s | refused | p50 ms | p99 ms | gateway CPU ms/request | gateway cores | Triton cores |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['load']} | {r['processes']} | {r['per_second']:.0f} | {r['refused']:.0f} | {r['p50_ms']:.1f} | {r['p99_ms']:.1f} "
        f"| {r['gateway_cpu_ms']:.2f} | {r['gateway_cores']:.2f} | {r['triton_cores']:.2f} |"
        for r in report["rows"]
    ]
    lines += ["", "| 2 processes / 1 | answers/s |", "|---|---|"]
    lines += [f"| {name} | {value:.2f} |" for name, value in report["ratios"].items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each kind, by turns")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        parser.error("wrk is missing: apt-get install wrk")
    report: dict[str, Any] = {"machine": machine(), "rounds": options.rounds, "rows": []}
    with ExitStack() as stack:
        systems = {
            count: stack.enter_context(running([MODEL], arguments=[f"--workers={count}"]))
            for count in (1, 2)
        }
        for load in LOADS:
            for system in systems.values():
                measure(system, load, min(3.0, options.seconds))
            seen: dict[int, list[dict[str, float]]] = {count: [] for count in systems}
            for _ in range(options.rounds):
                for count, system in systems.items():
                    seen[count].append(measure(system, load, options.seconds))
            for count, runs in seen.items():
                row = {key: median(run[key] for run in runs) for key in runs[0]}
                report["rows"].append({"load": load.name, "processes": count, **row})
                print(report["rows"][-1], flush=True)
    report["ratios"] = {
        load.name: _of(report, load, 2)["per_second"] / _of(report, load, 1)["per_second"]
        for load in LOADS
    }
    (RESULTS / "workers.json").write_text(json.dumps(report, indent=1) + "\n")
    (RESULTS / "workers.md").write_text(table(report))
    print(table(report))


def _of(report: dict[str, Any], load: Load, processes: int) -> dict[str, Any]:
    return next(
        row for row in report["rows"] if (row["load"], row["processes"]) == (load.name, processes)
    )


if __name__ == "__main__":
    main()

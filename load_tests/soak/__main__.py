"""`python -m load_tests.soak`: run it, print the slopes, write the report."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from load_tests.soak import __doc__ as about
from load_tests.soak import report as reports
from load_tests.soak.load import SPARE, Load, clip
from load_tests.soak.samples import PERIOD_S, Probe, Sample, trends
from load_tests.system import System, machine, running

RESULTS = Path(__file__).parents[1] / "results"
MODELS = ["convnext-demo", "mtcnn", "genconvit-demo", "micro-dit-demo"]
_SETTINGS = {
    "VITRINE_JOBS__RESULT_TTL_S": "300",
    "VITRINE_JOBS__RECORD_TTL_S": "300",
    "VITRINE_JOBS__IDEMPOTENCY_TTL_S": "300",
    "VITRINE_LOG_LEVEL": "warning",
}
_console = Console()


async def soak(system: System, load: Load, minutes: float, probe: Probe) -> list[Sample]:
    """Run the load and return the samples; a summary is printed every minute."""
    samples: list[Sample] = []
    started = time.monotonic()
    running_load = asyncio.ensure_future(load.run())
    try:
        while (elapsed := time.monotonic() - started) < minutes * 60 and not running_load.done():
            sample = await asyncio.to_thread(probe.sample)
            samples.append({"time": elapsed} | sample)
            if len(samples) % 6 == 1:
                memory = {
                    name.removeprefix("memory [MiB] of "): round(value)
                    for name, value in sample.items()
                    if name.startswith("memory")
                }
                _console.print(
                    f"{elapsed / 60:5.1f} min  {load.answers.total():5} activities, "
                    f"{len(load.surprises)} unexpected  {memory}",
                    soft_wrap=True,
                    highlight=False,
                )
            await asyncio.sleep(max(0.0, len(samples) * PERIOD_S - (time.monotonic() - started)))
    finally:
        running_load.cancel()
        await asyncio.gather(running_load, return_exceptions=True)
    return samples


def cpu_share(samples: list[Sample]) -> float:
    """Return the share of a core that the processes used which lived through the run."""
    first, last = samples[1], samples[-1]
    used = sum(last[n] - first[n] for n in last if n.startswith("CPU") and n in first)
    return used / (last["time"] - first["time"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (default: 60)")
    parser.add_argument("--rate", type=float, default=1.0, help="pace of all activities")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the report goes")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vitrine-soak-")))
        (temporary / "tmp").mkdir()
        # Only the system's own temporary files are to be found there.
        os.environ.update(_SETTINGS, TMPDIR=str(temporary / "tmp"))
        body = clip(temporary / "clip.mp4")
        on = machine()
        prepare = [sys.executable, "-m", "load_tests.entries", f"{SPARE}=convnext:demo"]
        system = stack.enter_context(running(MODELS, prepare))
        told = json.loads((system.directory / "up.json").read_text())
        probe = stack.enter_context(
            contextlib.closing(
                Probe(system, told["redis"], system.directory / "storage", temporary / "tmp")
            )
        )
        load = Load(system.url, body, options.rate)
        samples = asyncio.run(soak(system, load, options.minutes, probe))
    warm_up_s = min(600.0, options.minutes * 60 / 4)
    found = trends(samples, warm_up_s)
    report: dict[str, Any] = {
        "machine": on,
        "minutes": options.minutes,
        "rate": options.rate,
        "ran_minutes": samples[-1]["time"] / 60,
        "warm_up_minutes": warm_up_s / 60,
        "requests": load.answers.total(),
        "unexpected": len(load.surprises),
        "cpu_share": cpu_share(samples),
        "answers": dict(load.answers),
        "surprises": load.surprises[:100],
        "trends": [asdict(trend) for trend in found],
        "samples": [{n: round(v, 2) for n, v in sample.items()} for sample in samples[::6]],
    }
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "soak.json").write_text(json.dumps(report) + "\n")
    (options.results / "soak.md").write_text(reports.table(report, found))
    reports.plot(samples, warm_up_s, options.results / "soak.svg")
    print(reports.table(report, found))
    growing = [trend.quantity for trend in found if reports.grows(trend)]
    sys.exit(1 if growing or report["unexpected"] else 0)


if __name__ == "__main__":
    main()

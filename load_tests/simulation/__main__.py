"""Run the scenarios; write the table and the pictures."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from load_tests.simulation.model import HOUR_S, Record
from load_tests.simulation.scenarios import Scenario, scenarios, simulate

_RESULTS = Path(__file__).parents[1] / "results"


def summary(scenario: Scenario, record: Record) -> dict[str, Any]:
    """Return the figures of one run; waits in s, of jobs that were started."""
    waits = np.array([w for w in record.waits if not math.isnan(w)])
    pods = np.array([paid for *_, paid in record.samples])
    busy = np.array([busy for _, _, busy, _, _ in record.samples])
    p50, p95, p99 = np.percentile(waits, [50, 95, 99])
    return {
        "scenario": scenario.name,
        "about": scenario.about,
        "jobs": len(record.waits),
        "wait_p50_s": round(float(p50), 2),
        "wait_p95_s": round(float(p95), 1),
        "wait_p99_s": round(float(p99), 1),
        "wait_max_s": round(float(waits.max()), 1),
        "longest_queue": max(waiting for _, waiting, *_ in record.samples),
        "most_pods": int(pods.max()),
        "pod_hours": round(record.pod_seconds / HOUR_S, 1),
        "slots_used": round(float(busy.sum() / (pods.sum() * scenario.scaler.slots)), 2),
    }


def write(rows: Sequence[dict[str, Any]], seed: int, folder: Path) -> None:
    """Write the table and the figures behind it."""
    (folder / "simulation.json").write_text(
        json.dumps({"seed": seed, "runs": rows}, indent=2) + "\n"
    )
    names = [name for name in rows[0] if name != "scenario"]
    titles = {
        "about": "scenario",
        "wait_p50_s": "wait p50 s",
        "wait_p95_s": "p95 s",
        "wait_p99_s": "p99 s",
    }
    lines = [
        "# Queue with autoscaling",
        "",
        f"`python -m load_tests.simulation --seed {seed}`; jobs of 8 s on average (log-normal, coefficient "
        "of variation 0.5), 4 at a time in a pod.",
        "",
        "| " + " | ".join(titles.get(n, n.replace("_", " ")) for n in names) + " |",
        "|" + "---|" * len(names),
        *("| " + " | ".join(str(row[n]) for n in names) + " |" for row in rows),
        "",
        *(f"![{row['about']}](simulation-{row['scenario']}.svg)" for row in rows),
    ]
    (folder / "simulation.md").write_text("\n".join(lines) + "\n")


def plot(scenario: Scenario, record: Record, folder: Path) -> None:
    """Draw load, queue, pods and waits over time."""
    import matplotlib

    matplotlib.use("svg")
    # Without these, the same figure is another file each time.
    matplotlib.rcParams["svg.hashsalt"] = "vitrine"
    from matplotlib import pyplot

    samples = record.samples[:: max(1, len(record.samples) // 800)]
    times = np.array([t for t, *_ in samples]) / HOUR_S
    _, _, busy, ready, paid = (np.array(column) for column in zip(*samples, strict=True))
    figure, axes = pyplot.subplots(3, 1, sharex=True, figsize=(8, 6), layout="constrained")
    load, pods, waits = axes
    load.plot(times, [scenario.rate(t * HOUR_S) for t in times], color="tab:gray")
    load.set_ylabel("jobs/s")
    load.set_title(scenario.about)
    slots = scenario.scaler.slots
    pods.plot(times, paid, color="tab:orange", linewidth=1, label="asked for")
    pods.plot(times, ready, color="tab:blue", label="ready")
    pods.fill_between(times, busy / slots, color="tab:blue", alpha=0.25, label="busy")
    pods.set_ylabel("pods")
    pods.legend(loc="upper right", fontsize="small")
    arrived = np.array(record.arrivals) / HOUR_S
    edges = np.linspace(0, scenario.hours, 241)
    place = np.digitize(arrived, edges) - 1
    all_waits = np.array(record.waits)
    centres, p50, p99 = [], [], []
    for index in range(240):
        found = all_waits[place == index]
        found = found[~np.isnan(found)]
        if len(found):
            centres.append((edges[index] + edges[index + 1]) / 2)
            p50.append(np.percentile(found, 50))
            p99.append(np.percentile(found, 99))
    waits.plot(centres, p99, color="tab:red", linewidth=1, label="p99")
    waits.plot(centres, p50, color="tab:green", label="p50")
    waits.set_ylabel("wait, s")
    waits.set_xlabel("hours")
    waits.set_ylim(bottom=0)
    waits.legend(loc="upper right", fontsize="small")
    figure.savefig(folder / f"simulation-{scenario.name}.svg", metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulate the queue with autoscaling.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--only", help="run one scenario: " + ", ".join(s.name for s in scenarios())
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=_RESULTS, help="folder for table and pictures"
    )
    given = parser.parse_args()
    chosen = [s for s in scenarios() if given.only in (None, s.name)]
    if not chosen:
        parser.error(f"there is no scenario {given.only!r}")
    rows = []
    for scenario in chosen:
        record = simulate(scenario, given.seed)
        rows.append(summary(scenario, record))
        plot(scenario, record, given.output)
        print(json.dumps(rows[-1]))
    write(rows, given.seed, given.output)


if __name__ == "__main__":
    main()

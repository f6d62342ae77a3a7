"""What runs of the matrix came to, kept as JSON and as a table."""

from __future__ import annotations

import fcntl
import json
from collections import Counter
from pathlib import Path
from typing import Any

from load_tests.system import machine
from tests.crash.matrix import Tally


def totals(tally: Tally) -> dict[str, int]:
    """Return the counts of a run: jobs, outcomes, attempts, faults, what clients met."""
    found = {"rounds": len(tally.rounds), "jobs": tally.jobs}
    found |= {f"ended: {name}": count for name, count in tally.outcomes.most_common()}
    found |= {f"jobs with {n} attempts": count for n, count in sorted(tally.attempts.items())}
    found |= {f"fault: {name}": count for name, count in tally.faults.most_common()}
    found |= {f"met: {name}": count for name, count in tally.met.most_common()}
    found["stray files, removed in the end"] = tally.strays
    found["violations"] = int(bool(tally.violation))
    return found


def add(path: Path, tally: Tally, jobs: int, seconds: float) -> None:
    """Add a run to the JSON file `path` and write the table of all its runs beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # runs may go on side by side
        file.seek(0)
        text = file.read()
        runs: list[dict[str, Any]] = json.loads(text)["runs"] if text else []
        runs.append(
            {
                "seed": tally.seed,
                "jobs_a_round": jobs,
                "seconds": round(seconds),
                "counts": totals(tally),
                "violation": tally.violation,
            }
        )
        report = {"machine": machine(), "runs": runs}
        file.truncate(0)
        file.write(json.dumps(report, indent=1) + "\n")
        path.with_suffix(".md").write_text(table(report))


def table(report: dict[str, Any]) -> str:
    """Return all runs as Markdown: one row a run, then what they come to together."""
    on, runs = report["machine"], report["runs"]
    lines = [
        "# Crash matrix",
        "",
        f"`python -m tests.crash` on {on['cpu']}, {on['cores']} cores, shared with other work. "
        "What is done and what is checked: `tests/crash/__init__.py` and `tests/crash/checks.py`.",
        "",
        "| seed | rounds | jobs | faults | seconds | violation |",
        "|---|---|---|---|---|---|",
    ]
    together: Counter[str] = Counter()
    for run in runs:
        counts = run["counts"]
        together.update(counts)
        faults = sum(count for name, count in counts.items() if name.startswith("fault: "))
        violation = run["violation"].splitlines()[0] if run["violation"] else "none"
        lines.append(
            f"| {run['seed']} | {counts['rounds']} | {counts['jobs']} | {faults} "
            f"| {run['seconds']} | {violation} |"
        )
    lines += ["", "| all runs | count |", "|---|---|"]
    lines += [f"| {name} | {count} |" for name, count in together.items()]
    return "\n".join(lines) + "\n"

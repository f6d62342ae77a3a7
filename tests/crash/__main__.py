"""`python -m tests.crash`: the matrix with a display; exits with 1 at a violation."""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.crash import __doc__ as about
from tests.crash.matrix import Tally, run

_SHOWN = 12


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.crash",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=20, help="how many (default: 20)")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="of the plan")
    parser.add_argument("--jobs", type=int, default=100, help="jobs a round, about (default: 100)")
    parser.add_argument("--results", type=Path, help="a JSON file to which this run is added")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="vitrine-crash-"))
    console = Console()
    started = time.monotonic()
    bar = Progress(
        TextColumn("seed {task.fields[seed]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[jobs]} jobs"),
        TimeElapsedColumn(),
    )
    task = bar.add_task("rounds", total=options.rounds, seed=options.seed, jobs=0)
    with Live(bar, console=console, refresh_per_second=4) as live:

        def show(tally: Tally) -> None:
            bar.update(task, completed=len(tally.rounds), jobs=tally.jobs)
            live.update(Group(rounds_table(tally), bar))

        tally = asyncio.run(run(options.rounds, options.seed, options.jobs, folder, show))
    seconds = time.monotonic() - started
    console.print(totals_table(tally, seconds))
    if options.results is not None:
        add_result(options.results, tally, seconds)
    if tally.violation:
        console.print(tally.violation, style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    shutil.rmtree(folder)


def rounds_table(tally: Tally) -> Table:
    """Return the newest rounds."""
    table = Table("round", "jobs", "faults", "outcomes", "s", box=None, pad_edge=False)
    for row in tally.rounds[-_SHOWN:]:
        done = ", ".join(f"{count} {name}" for name, count in row.outcomes.most_common(4))
        what = ", ".join(f"{fault.kind} {fault.part}" for fault in row.faults)
        table.add_row(str(row.number), str(row.outcomes.total()), what, done, f"{row.seconds:.1f}")
    return table


def totals_table(tally: Tally, seconds: float) -> Table:
    """Return what all rounds come to."""
    table = Table("what", "count", title=f"{len(tally.rounds)} rounds in {seconds:.0f} s")
    for name, count in totals(tally).items():
        table.add_row(name, str(count))
    return table


def totals(tally: Tally) -> dict[str, int]:
    """Return the counts of a run: jobs, outcomes, attempts, faults, what clients met."""
    found = {"rounds": len(tally.rounds), "jobs": tally.jobs}
    found |= {f"ended: {name}": count for name, count in tally.outcomes.most_common()}
    found |= {f"attempts: {n}": count for n, count in sorted(tally.attempts.items())}
    found |= {f"fault: {name}": count for name, count in tally.faults.most_common()}
    found |= {f"met: {name}": count for name, count in tally.met.most_common()}
    found["stray files removed in the end"] = tally.strays
    found["violations"] = int(bool(tally.violation))
    return found


def add_result(path: Path, tally: Tally, seconds: float) -> None:
    """Add a run to a JSON file of runs."""
    runs: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    runs.append(
        {"seed": tally.seed, "seconds": round(seconds)}
        | totals(tally)
        | {"violation": tally.violation}
    )
    path.write_text(json.dumps(runs, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""`python -m tests.crash`: the matrix with a display; exits with 1 at a violation."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.crash import __doc__ as about
from tests.crash import results
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
    parser.add_argument(
        "--results",
        type=Path,
        help="a JSON file to which this run is added, with a table beside it",
    )
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

        tally = asyncio.run(run(range(options.rounds), options.seed, options.jobs, folder, show))
    seconds = time.monotonic() - started
    console.print(totals_table(results.totals(tally), seconds))
    if options.results is not None:
        results.add(options.results, tally, options.jobs, seconds)
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


def totals_table(counts: dict[str, int], seconds: float) -> Table:
    """Return what all rounds come to."""
    table = Table("what", "count", title=f"{counts['rounds']} rounds in {seconds:.0f} s")
    for name, count in counts.items():
        table.add_row(name, str(count))
    return table


if __name__ == "__main__":
    main()

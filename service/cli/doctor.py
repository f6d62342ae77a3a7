"""`vitrine doctor`: is this machine fit, and if not, what to do?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from service.cli.output import messages, print_json, print_table, settings

_MARKS = {"ok": ("ok", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "bold red")}


def doctor(
    port: Annotated[int, typer.Option(help="Port that `vitrine up` shall use.")] = 8000,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Data directory.", show_default="~/.local/share/vitrine"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check the machine for `vitrine up` and say what to do. Exit status 1 if something fails.

    \b
    Examples:
      vitrine doctor
      vitrine doctor --json | jq '.[] | select(.status != "ok")'
    """
    from service.supervisor.checks import examine

    found = settings()
    directory = (data_dir or found.data_dir).expanduser().absolute()
    with messages.status("looking at this machine"):
        findings = examine(directory, found.host, port)
    if json:
        print_json([asdict(finding) for finding in findings])
    else:
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column()
        for finding in findings:
            mark, style = _MARKS[finding.status]
            about = Text(finding.found)
            if finding.advice:
                about.append(f"\n{finding.advice}", style=style)
            table.add_row(Text(mark, style=style), Text(finding.name), about)
        print_table(table)
    if any(finding.status == "fail" for finding in findings):
        raise typer.Exit(1)

"""What `vitrine up` shows: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from service.supervisor.stack import ModelRow, Progress

_COLOURS = {"ready": "green", "running": "green", "failed": "red", "waiting": "dim"}


class StartView(Protocol):
    """Takes the progress of a start."""

    def show(self, progress: Progress) -> None: ...

    def close(self) -> None: ...


class LiveTable:
    """Redraws one table in place."""

    def __init__(self, console: Console) -> None:
        self._bar = ProgressBar(
            TextColumn("Starting"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn()
        )
        self._step = self._bar.add_task("start", total=None)
        self._live = Live(self._bar, console=console, refresh_per_second=8)
        self._live.start()

    def show(self, progress: Progress) -> None:
        states = [*progress.parts.values(), *(row.state for row in progress.models)]
        done = sum(state in ("ready", "running", "failed") for state in states)
        self._bar.update(self._step, completed=done, total=len(states) or None)
        shown = Group(_parts_line(progress), *_models_table(progress.models), self._bar)
        self._live.update(shown, refresh=True)

    def close(self) -> None:
        self._live.update(Group())
        self._live.stop()


class PlainLines:
    """Prints one line for every change of state, with the seconds since the start."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._shown: dict[str, str] = {}

    def show(self, progress: Progress) -> None:
        for part, state in progress.parts.items():
            self._line(part, state if state in ("ready", "running", "writing") else "starting")
        for row in progress.models:
            about = ", ".join(filter(None, (row.task, row.weights, row.device)))
            reason = f": {row.reason}" if row.reason else ""
            self._line(f"model {row.id}", row.state, f" ({about}){reason}" if about else reason)

    def close(self) -> None:
        """Nothing is held open."""

    def _line(self, name: str, state: str, about: str = "") -> None:
        if self._shown.get(name) != state:
            self._shown[name] = state
            seconds = time.monotonic() - self._began
            self._console.print(
                f"{seconds:6.1f} s  {name}: {state}{about}", markup=False, highlight=False
            )


def view(console: Console) -> StartView:
    """Return the view that fits where the output goes."""
    live = console.is_terminal and not console.is_dumb_terminal
    return LiveTable(console) if live else PlainLines(console)


def models_table(rows: Sequence[ModelRow]) -> RenderableType:
    """Return the table of models as it stands."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for heading in ("MODEL", "TASK", "WEIGHTS", "DEVICE", "STATE"):
        table.add_column(heading, no_wrap=True)
    for row in rows:
        state: RenderableType = Text(row.state, style=_COLOURS.get(row.state, "yellow"))
        if row.state == "loading":
            state = Spinner("dots", text=Text("loading", style="yellow"))
        weights = Text(row.weights, style="yellow" if row.weights in ("demo", "random") else "")
        table.add_row(row.id, row.task, weights, row.device or "-", state)
    return table


def ready_panel(
    url: str, seconds: float, rows: Sequence[ModelRow], logs: str, export: str
) -> RenderableType:
    """Return what a user needs once the service is up. `export` is a line that others must run first, or empty."""
    host = url.removeprefix("http://")
    lines = [
        Text.assemble(
            ("Vitrine is ready", "bold green"), f" after {seconds:.0f} s at ", (url, "bold")
        ),
        Text(f"  in the browser      {url}/"),
        Text(f"  API documentation   {url}/docs"),
        Text(""),
        Text("In another terminal:", style="bold"),
        *([Text(f"  {export}")] if export else []),
        Text('  vitrine generate image "a red circle left of a blue square" -o out.png'),
        Text(f"  curl -H 'Content-Type: image/png' --data-binary @out.png {host}/v1/classify"),
        Text(""),
        Text(f"Logs: {logs}   Stop: Ctrl-C", style="dim"),
    ]
    if any(row.weights == "demo" for row in rows):
        note = (
            "Demo weights know drawn shapes and faces only; `vitrine pull --help` brings real ones."
        )
        lines.insert(-1, Text(note, style="yellow"))
    return Panel(Group(*lines), expand=False, border_style="green", padding=(0, 2))


def _parts_line(progress: Progress) -> Text:
    line = Text()
    for part, state in progress.parts.items():
        mark, colour = ("●", "green") if state in ("ready", "running") else ("○", "yellow")
        line.append(f"{mark} ", style=colour)
        line.append(f"{part}   ")
    line.append("\n")
    return line


def _models_table(rows: Sequence[ModelRow]) -> list[RenderableType]:
    return [models_table(rows), Text("")] if rows else []

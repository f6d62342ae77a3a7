"""What the commands of `python -m models` have in common: errors in one line, bars, the licence, the result."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from models.architecture import Architecture, Source, Variant
    from models.weights.download import Watcher
    from models.weights.pull import Installed, Watch
    from service.triton.cards import Card

console = Console()
notes = Console(stderr=True)


class Refused(Exception):
    """Something on the command line that cannot be done."""


@contextmanager
def plain_errors(*more: type[Exception]) -> Iterator[None]:
    """Turn what a person can put right, and errors of the types `more`, into one line and exit code 1."""
    from models.weights.errors import WeightsError

    expected: tuple[type[Exception], ...] = (Refused, WeightsError, *more)
    try:
        yield
    except KeyboardInterrupt:
        _fail("interrupted")
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except expected as error:
        # A KeyError's own text is the repr of its message.
        _fail(str(error.args[0]) if isinstance(error, KeyError) else str(error))
    except KeyError as error:
        # The subclasses are ours, for names that nobody knows; a bare one is a fault of the program.
        if type(error) is KeyError:
            raise
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    notes.print(f"[bold red]error:[/] {message}", highlight=False, soft_wrap=True)
    raise typer.Exit(1)


def agreed(architecture: Architecture, variant: Variant) -> bool:
    """Show the licence; ask where the weights are not for every use and somebody is there to answer."""
    licence = architecture.terms(variant)
    use = "any use" if licence.commercial else "non-commercial use only"
    notes.print(
        f"{architecture.title}: weights under {licence.weights} ({use}), "
        f"authors' code under {licence.code}",
        highlight=False,
        soft_wrap=True,
    )
    if licence.commercial:
        return True
    return sys.stdin.isatty() and typer.confirm("Is your use non-commercial?", err=True)


@contextmanager
def progress_bars() -> Iterator[Watch]:
    """Show a bar for every file that is downloaded: size, rate, time left."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=notes)

    def watch(source: Source) -> Watcher:
        progress.start()
        bar = progress.add_task(_shown_name(source.url), total=None)
        return lambda received, total: progress.update(bar, completed=received, total=total)

    try:
        yield watch
    finally:
        progress.stop()


def _shown_name(url: str) -> str:
    """Return the last part of the address's path; some end in a slash and say more in the query."""
    return url.partition("?")[0].rstrip("/").rpartition("/")[2]


def report(installed: Installed) -> None:
    card = installed.card
    for warning in installed.warnings:
        notes.print(f"[yellow]warning:[/] {warning}", highlight=False, soft_wrap=True)
    state = "is served as" if installed.fresh else "is there already:"
    default = f", the default for {card.task}" if card.default else ""
    console.print(
        f"{card.architecture}:{card.variant} {state} [bold]{card.id}[/] ({card.task}{default})",
        highlight=False,
        soft_wrap=True,
    )
    if installed.fresh:
        report_runtime(card)
    if installed.fresh and card.weights.sha256:
        console.print(f"SHA-256 {card.weights.sha256}", highlight=False, soft_wrap=True)


def report_runtime(card: Card) -> None:
    """Say what runs a model, how that was checked, and why it is nothing faster."""
    found = card.acceleration
    checked = ""
    if found is not None and found.error is not None:
        same = "" if found.top1 is None else f", best class as there in {found.top1:.0%}"
        checked = f": within {found.error:.2g} of eager float32 on {found.inputs} inputs{same}"
    console.print(
        f"{card.id} runs in {card.runtime}, {card.precision}{checked}",
        highlight=False,
        soft_wrap=True,
    )
    for reason in found.reasons if found is not None else ():
        notes.print(f"[yellow]note:[/] {escape(reason)}", highlight=False, soft_wrap=True)

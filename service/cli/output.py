"""How every command speaks: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from service.settings import Settings

console = Console(highlight=False, soft_wrap=False)
messages = Console(stderr=True, highlight=False)

_PIPE_COLUMNS = 400


def print_json(document: Any) -> None:
    """Print a document for programs: indented JSON, nothing else on standard output."""
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))


def print_table(table: Table) -> None:
    """Print a table; into a pipe with all its columns whole, however many characters that takes."""
    target = console if console.is_terminal else Console(width=_PIPE_COLUMNS, highlight=False)
    target.print(table)


def fail(message: str, details: str = "", status: int = 1) -> NoReturn:
    """End the command with one clear line (and `details` below it)."""
    messages.print(f"[bold red]error:[/] {_escaped(message)}", soft_wrap=True)
    if details:
        messages.print(details, style="dim", markup=False, soft_wrap=True)
    raise typer.Exit(status)


def settings() -> Settings:
    """Return the settings of the environment; a wrong variable ends the command with one line."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        variable = "VITRINE_" + "__".join(str(part) for part in first["loc"]).upper()
        fail(f"{variable}: {first['msg']} (given: {first['input']!r}).")


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)

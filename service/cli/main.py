"""The `vitrine` command."""

from __future__ import annotations

import typer

from service.cli.up import up

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", add_completion=False)
app.command()(up)


@app.callback()
def vitrine() -> None:
    """The networks of 52 vision papers behind one REST API."""


def main() -> None:
    app()

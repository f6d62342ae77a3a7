"""`vitrine up`: the whole service with one command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer


def up(
    port: Annotated[
        int | None,
        typer.Option(help="Port of the API; 0 takes a free one.", show_default="8000"),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Where models, jobs, results and logs are kept.",
            show_default="~/.local/share/vitrine",
        ),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            help="Models to load at the start (a,b or given several times); others are loaded on first use.",
            show_default="the default of every task",
        ),
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Where the networks run.")
    ] = "auto",
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that answer HTTP on the port.", min=1, show_default="1"),
    ] = None,
    auth: Annotated[
        bool | None,
        typer.Option(
            "--auth/--no-auth",
            help="Whether callers need an API key; see: vitrine keys --help.",
            show_default="only where other machines reach the address",
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds to wait for everything to be ready.", min=1)
    ] = 600.0,
) -> None:
    """Start the service: Triton, Redis, the worker and the API, until Ctrl-C.

    \b
    Examples:
      vitrine up                                  at http://127.0.0.1:8000
      vitrine up --port 9000 --data-dir ./data    elsewhere
      vitrine up --models convnext-demo,mtcnn     load only these at first
      vitrine up --host 0.0.0.0                   for others, who need a key: vitrine keys create
      vitrine up --workers 4                      when one core is not enough for the API

    \b
    With VITRINE_TRITON__URL (host:port of gRPC) or VITRINE_REDIS__URL set,
    those servers are used instead of starting new ones. A process that ends
    is started again. Logs are in the folder "logs" of the data directory.
    """
    # gRPC's fork handlers disturb a process that starts others; it reads this at its import.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    from service.cli.serve import serve

    serve(port, host, data_dir, models or [], device, workers, auth, timeout)

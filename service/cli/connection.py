"""What the commands that talk to a service share: its address, and one way to show its errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from service.cli.output import fail, settings
from service.client import ApiError, Client, ServiceNotRunning

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="VITRINE_URL",
        help="The service's address.",
        show_default="the running `vitrine up`",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]


def service_url(url: str | None) -> str:
    """Return `url`, or where the running `vitrine up` of the default data directory listens."""
    if url:
        return url if "://" in url else f"http://{url}"
    from service.supervisor.directory import read_note

    note = read_note(settings().data_dir)
    return str(note["url"]) if note and "url" in note else "http://127.0.0.1:8000"


@contextmanager
def connected(url: str | None) -> Iterator[Client]:
    """Yield a client; the service's errors end the command with one line and status 1."""
    try:
        with Client(service_url(url)) as client:
            yield client
    except ApiError as error:
        fail(f"{error.message} [{error.code}]")
    except ServiceNotRunning as error:
        fail(f"{error} Start it with: vitrine up (or name another with --url).")
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))

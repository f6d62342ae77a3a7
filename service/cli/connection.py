"""What the commands that talk to a service share: its address, and one way to show its errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Annotated, Self

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
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="VITRINE_API_KEY",
        help="Key for a service that asks for one. Better set VITRINE_API_KEY: others on the machine "
        "may see a command's options.",
        show_default=False,
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


@dataclass(frozen=True, slots=True)
class Target:
    """Which service a command talks to, and with which key; a group hands its own to its commands."""

    url: str | None
    api_key: str | None

    @classmethod
    def of(cls, context: typer.Context, url: str | None, api_key: str | None) -> Self:
        """Return what was given to the command, or else to its group."""
        group = context.obj or cls(None, None)
        return cls(url or group.url, api_key or group.api_key)

    def connected(self) -> AbstractContextManager[Client]:
        return connected(self.url, self.api_key)


@contextmanager
def connected(url: str | None, api_key: str | None) -> Iterator[Client]:
    """Yield a client; the service's errors end the command with one line and status 1."""
    try:
        with Client(service_url(url), api_key=api_key) as client:
            yield client
    except ApiError as error:
        advice = (
            " Give it with --api-key, or set VITRINE_API_KEY."
            if error.code == "missing_key"
            else ""
        )
        fail(f"{error.message}{advice} [{error.code}]")
    except ServiceNotRunning as error:
        fail(f"{error} Start it with: vitrine up (or name another with --url).")
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))

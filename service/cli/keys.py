"""`vitrine keys`: who may call."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.table import Table
from rich.text import Text

from service.auth.keys import Scope
from service.cli.output import console, fail, messages, print_json, print_table, settings

if TYPE_CHECKING:
    from service.auth.keys import Key
    from service.auth.store import KeyStore

T = TypeVar("T")

keys = typer.Typer(no_args_is_help=True)

_DURATION = re.compile(r"(\d{1,6})(min|h|d)")
_DURATIONS = {"min": 60, "h": 3600, "d": 86400}
_SIZE = re.compile(r"(\d{1,12})\s*(B|kB|KB|MB|GB|KiB|MiB|GiB)?", re.IGNORECASE)
_SIZES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}

DataDir = Annotated[
    Path | None,
    typer.Option(
        help="Data directory of the service, running or not.",
        show_default="~/.local/share/vitrine",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]


@keys.callback()
def about() -> None:
    """Make, list and revoke API keys.

    \b
    A service on 127.0.0.1 asks nobody for a key; on any other address it asks everybody.
    Callers send it as "Authorization: Bearer KEY" or "x-api-key: KEY"; the other commands
    take it from --api-key or VITRINE_API_KEY.

    \b
    Examples:
      vitrine keys create ci
      vitrine keys create phone-app --scope infer --rate 60/min --burst 10 --concurrency 4
      vitrine keys list
      vitrine keys revoke ci

    \b
    Keys are kept in the service's Redis: that of VITRINE_REDIS__URL if it is set, else that of
    the data directory.
    """


@keys.command()
def create(
    name: Annotated[
        str, typer.Argument(help="What to call it, as the caller.", show_default=False)
    ],
    scope: Annotated[
        list[Scope] | None,
        typer.Option(
            help="What it may do; give it several times. infer: ask for answers; jobs: have them as "
            "jobs, and see its own; admin: all of that, every job, load models, read metrics.",
            show_default="infer and jobs",
        ),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(help="Requests on average: 10/s, 600/min, 1000/h.", show_default="no limit"),
    ] = None,
    burst: Annotated[
        int | None,
        typer.Option(help="Requests at once.", min=1, show_default="as many as in the rate"),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            help="Calls for an answer under way at a time.", min=1, show_default="no limit"
        ),
    ] = None,
    queued_jobs: Annotated[
        int | None, typer.Option(help="Jobs that wait at a time.", min=1, show_default="no limit")
    ] = None,
    body: Annotated[
        str | None,
        typer.Option(
            help="Size of a request: 500kB, 10MB, 10MiB.", show_default="the service's limit"
        ),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(
            help="When it ends: in 90min, 12h or 30d, or on 2027-01-31.", show_default="never"
        ),
    ] = None,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Make a key and print it, this once: only its digest is kept.

    \b
    Examples:
      vitrine keys create ci --expires 30d
      export VITRINE_API_KEY=$(vitrine keys create me)
      vitrine keys create prometheus --scope admin
    """
    from pydantic import ValidationError

    from service.auth.keys import KeyLimits, Rate, make_key
    from service.auth.store import NameTaken

    if burst is not None and rate is None:
        raise typer.BadParameter("a burst needs a rate", param_hint="--burst")
    try:
        limits = KeyLimits(
            rate=Rate.parse(rate, burst) if rate is not None else None,
            concurrency=concurrency,
            queued_jobs=queued_jobs,
            body_bytes=_size(body) if body is not None else None,
        )
        ends = _moment(expires) if expires is not None else None
        scopes = tuple(dict.fromkeys(scope or (Scope.INFER, Scope.JOBS)))
        key, presented = make_key(name, scopes, limits, ends)
    except ValidationError as error:
        found = error.errors()[0]
        raise typer.BadParameter(f"{found['loc'][0]}: {found['msg']}") from error
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    try:
        _with_store(data_dir, lambda store: store.add(key))
    except NameTaken:
        fail(f"There is a key named {name!r} already; revoke it, or choose another name.")
    if json:
        print_json(_view(key) | {"key": presented})
        return
    typer.echo(presented)
    messages.print(
        f"The key {key.name!r} ({', '.join(key.scopes)}) is shown this once: keep it now.",
        style="dim",
        markup=False,
    )


@keys.command("list")
def list_keys(
    everything: Annotated[
        bool, typer.Option("--all", help="Also keys that are revoked or have expired.")
    ] = False,
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """List the keys with their scopes and limits.

    \b
    Examples:
      vitrine keys list
      vitrine keys list --all --json
    """
    found = [
        key
        for key in _with_store(data_dir, lambda store: store.list())
        if everything or key.in_force
    ]
    if json:
        print_json([_view(key) for key in found])
        return
    if not found:
        console.print("No keys.", style="dim")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("ID", "NAME", "SCOPES", "RATE", "CALLS", "JOBS", "BODY", "CREATED", "STATE"):
        table.add_column(heading, no_wrap=True)
    for key in found:
        limits = key.limits
        rate = f"{limits.rate}, burst {limits.rate.burst}" if limits.rate else "-"
        table.add_row(
            key.id,
            Text(key.name),
            " ".join(key.scopes),
            rate,
            str(limits.concurrency or "-"),
            str(limits.queued_jobs or "-"),
            f"{limits.body_bytes:,}" if limits.body_bytes else "-",
            _date(key.created_at),
            _state(key),
        )
    print_table(table)


@keys.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="ID_OR_NAME", help="The key.", show_default=False)],
    data_dir: DataDir = None,
    json: Json = False,
) -> None:
    """Revoke a key. Jobs that it handed in go on.

    \b
    Examples:
      vitrine keys revoke ci
      vitrine keys revoke 8x3k0m2p9qrs
    """
    from service.auth.store import UnknownKey

    try:
        revoked = _with_store(data_dir, lambda store: store.revoke(key))
    except UnknownKey:
        fail(f"There is no key {key!r}; see: vitrine keys list --all")
    if json:
        print_json(_view(revoked))
    else:
        seconds = settings().auth.cache_s
        console.print(f"{revoked.name!r} is revoked; gateways refuse it within {seconds:g} s.")


def _with_store(data_dir: Path | None, work: Callable[[KeyStore], Awaitable[T]]) -> T:
    """Return what `work` gives; what keeps Redis from it ends the command with one line."""
    from service.errors import RedisUnavailable
    from service.supervisor.errors import StartError

    async def run() -> T:
        async with _store(data_dir) as store:
            return await work(store)

    try:
        return asyncio.run(run())
    except StartError as error:
        fail(str(error), error.log)
    except RedisUnavailable as error:
        fail(f"{error} (VITRINE_REDIS__URL={settings().redis.url})")


@asynccontextmanager
async def _store(data_dir: Path | None) -> AsyncIterator[KeyStore]:
    from service.auth.store import KeyStore
    from service.jobs.connection import Connection
    from service.supervisor.standing import redis_of

    configured = settings()
    redis = configured.redis
    if "url" in redis.model_fields_set:
        async with Connection(redis, configured.jobs) as connection:
            yield KeyStore(connection, redis.connect_timeout_s)
        return
    async with redis_of((data_dir or configured.data_dir).expanduser().absolute()) as url:
        local = redis.model_copy(update={"url": url})
        async with Connection(local, configured.jobs) as connection:
            yield KeyStore(connection, redis.connect_timeout_s)


def _view(key: Key) -> dict[str, Any]:
    return key.model_dump(mode="json", exclude={"digest"}) | {"in_force": key.in_force}


def _state(key: Key) -> Text:
    if key.revoked_at is not None:
        return Text(f"revoked {_date(key.revoked_at)}", "red")
    if key.expires_at is None:
        return Text("in force", "green")
    if key.expired:
        return Text(f"expired {_date(key.expires_at)}", "red")
    return Text(f"until {_date(key.expires_at)}", "green")


def _date(moment: float) -> str:
    return datetime.fromtimestamp(moment).strftime("%Y-%m-%d %H:%M")


def _moment(text: str) -> float:
    """Return the Unix time of a duration from now, or of a local date. Raises ValueError."""
    found = _DURATION.fullmatch(text)
    if found is not None:
        return time.time() + int(found[1]) * _DURATIONS[found[2]]
    try:
        moment = datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise ValueError(f"{text!r} is neither like 30d nor like 2027-01-31") from None
    if moment <= time.time():
        raise ValueError(f"{text} is over")
    return moment


def _size(text: str) -> int:
    """Return the bytes of a size. Raises ValueError."""
    found = _SIZE.fullmatch(text.strip())
    if found is None or not int(found[1]):
        raise ValueError(f"{text!r} is no size; give it as 500kB, 10MB or 10MiB")
    return int(found[1]) * _SIZES[(found[2] or "B").lower()]

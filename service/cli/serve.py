"""Running the service in the foreground: start, wait for a signal, stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import structlog

from service.auth.exposure import Exposed, may_lack_keys, refuse_exposure
from service.cli.output import console, fail, messages, settings
from service.cli.start_view import models_table, ready_panel, view
from service.errors import RedisUnavailable
from service.observability.logs import configure_logging
from service.settings import RedisSettings, Settings, TritonSettings
from service.supervisor import ports
from service.supervisor.directory import DataDirectory
from service.supervisor.errors import StartError
from service.supervisor.stack import Options, Stack, chosen_models
from service.supervisor.standing import standing_redis

_LOG = structlog.stdlib.get_logger("vitrine.supervisor")
_DEFAULT_URL = "http://127.0.0.1:8000"


def serve(
    port: int | None,
    host: str | None,
    data_dir: Path | None,
    models: Sequence[str],
    device: Literal["auto", "cpu", "cuda"],
    workers: int | None,
    auth: bool | None,
    timeout_s: float,
) -> None:
    """Run the service until it is told to stop; None means what the settings say."""
    configured = settings()
    if workers is not None:
        configured = configured.model_copy(update={"gateway_workers": workers})
    if auth is not None:
        required = configured.auth.model_copy(update={"required": auth})
        configured = configured.model_copy(update={"auth": required})
    directory = DataDirectory(data_dir or configured.data_dir)
    try:
        bound = host or configured.host
        chosen = ports.claim(bound, configured.port if port is None else port)
        directory.acquire()
        directory.logs.mkdir(exist_ok=True)
        # Opened with the first line: the logs of the run before are set aside until then.
        log = logging.FileHandler(directory.logs / "supervisor.log", delay=True)
        configure_logging(configured, "supervisor", log)
        options = Options(
            host=bound,
            port=chosen,
            models=chosen_models(models),
            device=device,
            triton_url=_named(configured.triton),
            redis_url=_named(configured.redis),
            timeout_s=timeout_s,
        )
        asyncio.run(_refuse_exposure(directory, options, configured))
        asyncio.run(_serve(directory, options, configured))
    except StartError as error:
        fail(str(error), error.log)
    except (Exposed, RedisUnavailable) as error:
        fail(str(error))
    finally:
        directory.release()


def _named(group: TritonSettings | RedisSettings) -> str | None:
    """Return the URL of a server if the user named one."""
    return group.url if "url" in group.model_fields_set else None


async def _refuse_exposure(
    directory: DataDirectory, options: Options, configured: Settings
) -> None:
    """Raise Exposed where callers need a key and there is none."""
    bound = configured.model_copy(update={"host": options.host})
    if options.redis_url is not None:
        await refuse_exposure(bound)
    elif may_lack_keys(bound):
        async with standing_redis(directory) as url:
            redis = configured.redis.model_copy(update={"url": url})
            await refuse_exposure(bound.model_copy(update={"redis": redis}))


def _notify(part: str, event: str) -> None:
    _LOG.warning(event, about=part)
    moment = time.strftime("%H:%M:%S")
    messages.print(f"{moment}  {part}: {event}", style="yellow", markup=False)


async def _serve(directory: DataDirectory, options: Options, configured: Settings) -> None:
    stack = Stack(directory, options, configured, _notify)
    asked = asyncio.Event()

    def ask() -> None:
        if asked.is_set():
            messages.print("Forced: ending everything now.", style="red")
            stack.kill()
        asked.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ask)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as it is under nohup
        loop.add_signal_handler(signal.SIGHUP, ask)
    began = time.monotonic()
    screen = view(console)
    starting = asyncio.create_task(stack.start(screen.show))
    stopping = asyncio.create_task(asked.wait())
    try:
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        screen.close()
        if starting.done():
            starting.result()
            _LOG.info("up", url=stack.addresses.url, seconds=round(time.monotonic() - began, 1))
            _announce(stack, time.monotonic() - began)
            await stopping
        console.print("Stopping; Ctrl-C again to end everything at once.", style="dim")
    finally:
        screen.close()
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await stack.stop()
        stopping.cancel()
    _LOG.info("stopped")
    console.print("Stopped.", style="dim")


def _announce(stack: Stack, seconds: float) -> None:
    rows = stack.progress.models
    url = stack.addresses.url
    if console.is_terminal:
        console.print(models_table(rows), "")
    for row in rows:
        if row.state == "failed":
            messages.print(f"{row.id} could not be loaded: {row.reason}", style="red", markup=False)
    found = stack.directory.path == settings().data_dir.expanduser().absolute()
    export = "" if found or url == _DEFAULT_URL else f"export VITRINE_URL={url}"
    panel = ready_panel(url, seconds, rows, str(stack.directory.logs), export)
    if console.is_terminal:
        console.print(panel)
    else:
        console.print(f"Vitrine is ready after {seconds:.1f} s at {url}", soft_wrap=True)

"""Work on behalf of a caller who may hang up."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from service.errors import DeadlineExceeded

T = TypeVar("T")


async def attended(request: Request, work: Coroutine[Any, Any, T], seconds: float) -> T:
    """Return what `work` gives. It is cancelled when the caller hangs up or the time is over.

    The body must have been read. Raises ClientDisconnect, DeadlineExceeded and what `work` raises.
    """
    task = asyncio.ensure_future(work)
    hang_up = asyncio.ensure_future(_hang_up(request))
    try:
        await asyncio.wait({task, hang_up}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if hang_up.done():
            raise ClientDisconnect
        raise DeadlineExceeded(
            f"The answer took longer than {seconds:g} seconds (limit request_seconds); "
            "send mode=async to have it as a job.",
            limit={"name": "request_seconds", "seconds": seconds},
        )
    finally:
        task.cancel()
        hang_up.cancel()
        await asyncio.gather(task, hang_up, return_exceptions=True)


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

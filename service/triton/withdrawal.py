"""Gives calls up without cancelling them in gRPC, which brings older Tritons down (models/withdrawals.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import grpc

from service.errors import VitrineError

# After this a call is cut all the same. It is far more than a denoising step takes.
_PATIENCE_S = 60.0
# Between two tries to tell a server that does not answer.
_PAUSE_S = 1.0


class Withdrawals:
    """What was begun for callers who have gone.

    `tell` gets the id of a streamed request to be ended, and returns False if that cannot be told.
    """

    def __init__(self, tell: Callable[[str], Awaitable[bool]]) -> None:
        self._tell = tell
        self._tasks: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        """Cut what is still under way."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def forget(self, answer: asyncio.Task[Any]) -> None:
        """Let an answer come that nobody wants any more."""
        self._keep(answer)
        answer.add_done_callback(lambda task: task.cancelled() or task.exception())

    def withdraw(self, id: str, call: Any, reading: asyncio.Task[Any] | None) -> None:
        """Have the streamed request `id` ended; `reading` is the read of `call` that is under way."""
        self._keep(asyncio.ensure_future(self._withdraw(id, call, reading)))

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _withdraw(self, id: str, call: Any, reading: asyncio.Task[Any] | None) -> None:
        end = asyncio.ensure_future(_end(call, reading))
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE_S):
                    if await self._told(id, end):
                        await asyncio.shield(end)
        finally:
            end.cancel()
            await asyncio.gather(end, return_exceptions=True)
            call.cancel()  # does nothing to a call that has ended

    async def _told(self, id: str, end: asyncio.Task[None]) -> bool:
        """Tell the server, however long it does not answer; stop when the call has ended by itself."""
        while not end.done():
            with suppress(VitrineError, grpc.aio.AioRpcError):
                return await self._tell(id)
            await asyncio.wait({end}, timeout=_PAUSE_S)
        return True


async def _end(call: Any, reading: asyncio.Task[Any] | None) -> None:
    """Read what still comes until the call has ended."""
    with suppress(grpc.aio.AioRpcError):
        response = await reading if reading is not None else None
        while response is not grpc.aio.EOF:
            response = await call.read()

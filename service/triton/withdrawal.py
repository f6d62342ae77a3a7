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


class Withdrawals:
    """What was begun for callers who have gone. `tell` gets the id of a streamed request to be ended."""

    def __init__(self, tell: Callable[[str], Awaitable[None]]) -> None:
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
        try:
            with suppress(TimeoutError, VitrineError, grpc.aio.AioRpcError):
                async with asyncio.timeout(_PATIENCE_S):
                    await self._tell(id)
                    response = await reading if reading is not None else None
                    while response is not grpc.aio.EOF:
                        response = await call.read()
        finally:
            call.cancel()  # does nothing to a call that has ended

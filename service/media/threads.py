"""Where pixels are worked on: a few threads, so that decoding never holds up the event loop.

The pool's size is the limit: what waits for a thread has not allocated its pixels yet. Pillow,
libjpeg and FFmpeg release the interpreter's lock while they work.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cache, partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(2, min(16, os.cpu_count() or 2)), thread_name_prefix="media")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `function` in a media thread and return what it returns."""
    call = partial(copy_context().run, function, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_pool(), call)


async def stream_in_thread(items: Generator[T, None, None]) -> AsyncGenerator[T, None]:
    """Yield what `items` yields, each step made in a media thread; closes `items` at the end.

    A step cannot be interrupted: whoever cancels waits for the one under way, so that the
    generator is never closed while a thread is inside it.
    """
    end = object()
    step: asyncio.Future[T | object] | None = None
    try:
        while True:
            step = asyncio.ensure_future(in_thread(next, items, end))
            item = await asyncio.shield(step)
            if item is end:
                return
            yield item  # type: ignore[misc]
    finally:
        if step is not None and not step.done():
            await asyncio.wait([step])
        await in_thread(items.close)

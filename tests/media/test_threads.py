"""Work in threads: results, errors and an end that waits for the step under way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator
from contextlib import aclosing

import pytest

from service.media.threads import in_thread, stream_in_thread


async def test_a_result_and_an_error_come_back() -> None:
    assert await in_thread(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await in_thread(divmod, 7, 0)
    assert await in_thread(threading.get_ident) != threading.get_ident()


async def test_a_generator_is_stepped_and_closed() -> None:
    closed = threading.Event()

    def counted() -> Generator[int, None, None]:
        try:
            yield from range(1000)
        finally:
            closed.set()

    got = []
    async with aclosing(stream_in_thread(counted())) as items:
        async for item in items:
            got.append(item)
            if item == 3:
                break
    assert got == [0, 1, 2, 3]
    assert closed.is_set()


async def test_an_error_in_the_generator_reaches_the_reader() -> None:
    def broken() -> Generator[int, None, None]:
        yield 1
        raise ValueError("no more")

    items = stream_in_thread(broken())
    assert await anext(items) == 1
    with pytest.raises(ValueError, match="no more"):
        await anext(items)


async def test_cancelling_waits_for_the_step_under_way() -> None:
    inside, go_on, closed = threading.Event(), threading.Event(), threading.Event()

    def slow() -> Generator[int, None, None]:
        try:
            inside.set()
            go_on.wait(10)
            yield 1
        finally:
            closed.set()

    async def read() -> None:
        async with aclosing(stream_in_thread(slow())) as items:
            async for _ in items:
                pytest.fail("a cancelled reader got an item")

    reader = asyncio.create_task(read())
    await asyncio.to_thread(inside.wait, 10)
    reader.cancel()
    await asyncio.sleep(0.02)
    assert not reader.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert closed.is_set()

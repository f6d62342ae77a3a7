"""Notices a Triton that keeps its connections but does not answer: stopped, swapping, locked up.

TCP sees nothing of that, and a caller would wait until its deadline. While callers wait, Triton is
asked every second whether it lives; once it stays silent for `stall_s` nobody waits any longer, and
further calls are refused at once until it answers again. The calls themselves are not cancelled:
a Triton that goes on would find them gone while it works on them (models/withdrawals.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from service.errors import TritonUnavailable

_PERIOD_S = 1.0
_PROBES = 2


class Pulse:
    """`probe(seconds)` tells whether Triton answered in time; a refused connection counts as an answer,
    for calls notice that by themselves."""

    def __init__(self, probe: Callable[[float], Awaitable[bool]], stall_s: float) -> None:
        self.lost = False
        self._probe = probe
        self._patience_s = stall_s / _PROBES
        self._waits: set[asyncio.Timeout] = set()
        self._beating: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Stop asking."""
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)

    def check(self) -> None:
        """Raise TritonUnavailable while Triton is lost."""
        if self.lost:
            raise TritonUnavailable("the inference server does not answer", begun=False)

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[None]:
        """Wait for Triton in this block. Raises TritonUnavailable once Triton is lost."""
        if self._beating is None or self._beating.done():
            self._beating = asyncio.ensure_future(self._beat())
        try:
            async with asyncio.timeout(None) as wait:
                self._waits.add(wait)
                try:
                    yield
                finally:
                    self._waits.discard(wait)
        except TimeoutError:
            if not wait.expired():
                raise
            raise TritonUnavailable("the inference server does not answer any more") from None

    async def _beat(self) -> None:
        silent = 0
        while True:
            await asyncio.sleep(_PERIOD_S)
            if not self._waits and not self.lost:
                return
            if await self._probe(self._patience_s):
                silent, self.lost = 0, False
                continue
            silent += 1
            if silent >= _PROBES:
                self.lost = True
                for wait in self._waits:
                    wait.reschedule(asyncio.get_running_loop().time())
                self._waits.clear()  # none can be ended twice

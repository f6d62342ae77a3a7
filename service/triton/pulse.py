"""Notices a Triton that keeps its connections but does not answer: stopped, swapping, locked up.

TCP sees nothing of that, and a caller would wait until its deadline. While calls are under way,
Triton is asked every second whether it lives; once it stays silent for `stall_s` the calls are cut,
and further ones are refused at once until it answers again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from service.errors import TritonUnavailable

_PERIOD_S = 1.0
_PROBES = 2


class Cancellable(Protocol):
    """A call of gRPC."""

    def cancel(self) -> bool: ...


class Pulse:
    """`probe(seconds)` tells whether Triton answered in time; a refused connection counts as an answer,
    for calls notice that by themselves."""

    def __init__(self, probe: Callable[[float], Awaitable[bool]], stall_s: float) -> None:
        self.lost = False
        self._probe = probe
        self._patience_s = stall_s / _PROBES
        self._calls: set[Cancellable] = set()
        self._cut: set[Cancellable] = set()
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

    @contextmanager
    def watch(self, call: Cancellable) -> Iterator[None]:
        """Await `call` in this block. Raises TritonUnavailable once Triton is lost."""
        self._calls.add(call)
        if self._beating is None or self._beating.done():
            self._beating = asyncio.ensure_future(self._beat())
        try:
            yield
        except asyncio.CancelledError:
            if call in self._cut:
                raise TritonUnavailable("the inference server does not answer any more") from None
            raise
        finally:
            self._calls.discard(call)
            self._cut.discard(call)

    async def _beat(self) -> None:
        silent = 0
        while True:
            await asyncio.sleep(_PERIOD_S)
            if not self._calls and not self.lost:
                return
            if await self._probe(self._patience_s):
                silent, self.lost = 0, False
                continue
            silent += 1
            if silent >= _PROBES:
                self.lost = True
                for call in list(self._calls):
                    self._cut.add(call)
                    call.cancel()

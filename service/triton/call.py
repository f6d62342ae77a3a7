"""On whose behalf Triton is called: until when the answer is of use.

It accompanies a request through every pipeline as a context variable, so that no pipeline has to
hand it on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Call:
    """`deadline`: on `time.monotonic`'s clock."""

    deadline: float = float("inf")

    @classmethod
    def within(cls, seconds: float) -> Self:
        """Return a call whose answer is of use for `seconds` from now."""
        return cls(time.monotonic() + seconds)

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline; negative once it has passed."""
        return self.deadline - time.monotonic()


_CURRENT: ContextVar[Call] = ContextVar("call", default=Call())  # noqa: B039 - it is frozen


def current() -> Call:
    """Return the call that this task works for; by default one without deadline."""
    return _CURRENT.get()


@contextmanager
def calling(call: Call) -> Iterator[None]:
    """Work for `call` in this block, and in the tasks that it starts."""
    token = _CURRENT.set(call)
    try:
        yield
    finally:
        _CURRENT.reset(token)

"""The time that decoding one medium may take.

Nothing can stop a thread from outside, so decoders ask at every step of theirs (a block of bytes, a
packet, a frame) whether to go on. What one step costs is bounded by the limits on bytes and pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from time import monotonic

from service.errors import PayloadTooLarge

_CODE = "too_complex"

# Encoders write chunks of some kilobytes, and parsers read each in a few steps.
_FREE_READS = 10_000
_BYTES_A_READ = 512


class Budget:
    """Seconds of work, counted from now. Pauses do not count."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._ends = monotonic() + seconds

    def check(self) -> None:
        """Raise PayloadTooLarge (`too_complex`) once the time is spent."""
        if monotonic() > self._ends:
            raise PayloadTooLarge(
                f"decoding takes longer than {self._seconds:g} s (limit decode_seconds)",
                code=_CODE,
                limit={"name": "decode_seconds", "seconds": self._seconds},
            )

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop counting meanwhile."""
        since = monotonic()
        try:
            yield
        finally:
            self._ends += monotonic() - since


class MeteredBytes(BytesIO):
    """Bytes whose reader is stopped once the budget is spent, or when it reads in crumbs: a file of
    millions of empty chunks is small for its limit but not for a parser."""

    def __init__(self, data: bytes, budget: Budget) -> None:
        super().__init__(data)
        self._budget = budget
        self._reads_left = _FREE_READS + len(data) // _BYTES_A_READ

    def read(self, size: int | None = -1, /) -> bytes:
        self._budget.check()
        self._reads_left -= 1
        if self._reads_left < 0:
            raise PayloadTooLarge("the picture's file is made of too many parts", code=_CODE)
        return super().read(size)

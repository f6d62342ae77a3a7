"""How many pixels are decoded at a time: a small file may unfold to a gigabyte, and several arrive at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Room:
    """Room for pixels. Who finds none waits, and whoever comes later waits behind."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._changed = threading.Condition()
        self._held = 0

    @contextmanager
    def hold(self, pixels: int, most: int) -> Iterator[None]:
        """Hold room for `pixels` in this block, of `most` in all; more than `most` are held alone."""
        with self._turn, self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + pixels <= most)
            self._held += pixels
        try:
            yield
        finally:
            with self._changed:
                self._held -= pixels
                self._changed.notify()

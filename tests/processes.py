"""The processes that a test has started."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psutil


def descendants() -> Iterator[tuple[psutil.Process, list[str]]]:
    """Yield the living processes below this one with their command lines; those that end meanwhile are left out."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            yield process, process.cmdline()

"""Streamed requests that their callers have given up, as files in shared memory.

Cancelling a stream by gRPC is not safe: Triton before 24.12 frees the state of a cancelled stream while
the backend may still be writing to it, and dies (triton-inference-server/server issues 7368 and 8034).
So a caller tells the catalogue which request it withdraws, the backend ends that request at its next
step, and the stream ends as any other does.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

from service.triton.server import shared_memory_prefix

_SHARED_MEMORY = Path("/dev/shm")
_ID = re.compile(r"[0-9a-f]{32}")
# Marks of requests that had ended by themselves.
_KEPT_S = 600


def withdraw(repository: Path, id: str) -> None:
    """Mark the request `id` (32 hexadecimal digits; others are ignored) as withdrawn."""
    if _ID.fullmatch(id):
        _path(repository, id).touch(mode=0o600)
    for mark in _SHARED_MEMORY.glob(f"{shared_memory_prefix(repository)}*.gone"):
        if time.time() - mark.stat().st_mtime > _KEPT_S:
            mark.unlink(missing_ok=True)


def is_withdrawn(repository: Path, id: str) -> bool:
    """Tell whether the request `id` was withdrawn."""
    return bool(id) and _path(repository, id).exists()


def forget(repository: Path, id: str) -> None:
    """Take the mark away, once the request has ended."""
    if id:
        _path(repository, id).unlink(missing_ok=True)


def _path(repository: Path, id: str) -> Path:
    return _SHARED_MEMORY / f"{shared_memory_prefix(repository)}{id}.gone"

"""A loaded model's mark in shared memory: whether it is in use, when it last was, what it holds on a device.

The catalogue reads the marks to decide which models may go when another one needs room. Each process
of a model also holds the lock of a file of its own as long as it lives, by which its death is known;
the file is empty until the process is asked for something. The files lie beside Triton's own
regions, with the same prefix, and are cleared away with them.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from service.triton.server import shared_memory_prefix

_SHARED_MEMORY = Path("/dev/shm")


class Presence:
    """The mark of one instance of `model`, which is in use within `with`."""

    def __init__(self, repository: Path, model: str) -> None:
        self._path = _path(repository, model)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        os.utime(self._descriptor)  # one that was killed may have left its mark
        self._life = _SHARED_MEMORY / f"{_name(repository, model)}.{os.getpid()}.life"
        self._lock = os.open(self._life, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._used = False

    def holds(self, device: str, used: int, total: int) -> None:
        """Tell how many bytes of a device's `total` the model uses."""
        text = json.dumps({"device": device, "used": used, "total": total}).encode()
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, text, 0)

    def __enter__(self) -> Self:
        if not self._used:
            os.write(self._lock, b"used")
            self._used = True
        # Shared, for several instances of a model may run at once.
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.utime(self._descriptor)
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Take the mark away."""
        for path in (self._path, self._life):
            path.unlink(missing_ok=True)
        os.close(self._descriptor)
        os.close(self._lock)


@dataclass(frozen=True, slots=True)
class Mark:
    """What another process sees of a model: `last_used` in seconds since the epoch, bytes on `device`."""

    busy: bool
    last_used: float
    device: str = ""
    used: int = 0
    total: int = 0


def read_mark(repository: Path, model: str) -> Mark | None:
    """Return the mark of `model`, None if it has none (yet)."""
    try:
        descriptor = os.open(_path(repository, model), os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        last_used = os.fstat(descriptor).st_mtime
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            busy = False
        except BlockingIOError:
            busy = True
        text = os.pread(descriptor, 4096, 0)
        return Mark(busy, last_used, **(json.loads(text) if text else {}))
    finally:
        os.close(descriptor)


def forget_dead(repository: Path, model: str) -> bool:
    """Tell whether a process of `model` has died without an end, and forget it: each death is told once."""
    died = False
    for path in _lives(repository, model).values():
        try:
            descriptor = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
            died = True
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)
    return died


def idle_since_start(repository: Path, model: str, seconds: float) -> set[int]:
    """Return the ids of the live processes of `model` that are `seconds` old and were never asked for anything.

    Empty while a younger one is there: instances of a model may start one after the other.
    """
    idle = set()
    for process, path in _lives(repository, model).items():
        try:
            with path.open("rb") as life:
                state = os.fstat(life.fileno())
                fcntl.flock(life, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            continue
        except BlockingIOError:
            if time.time() - state.st_mtime < seconds:
                return set()
            if state.st_size == 0:
                idle.add(process)
    return idle


def end(repository: Path, model: str, process: int) -> None:
    """Kill a process of `model`, whose death is then known."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    (_SHARED_MEMORY / f"{_name(repository, model)}.{process}.life").unlink(missing_ok=True)


def _lives(repository: Path, model: str) -> dict[int, Path]:
    """Return the files of the model's processes by the process's id."""
    prefix = f"{_name(repository, model)}."
    found = {
        path.name.removeprefix(prefix).removesuffix(".life"): path
        for path in _SHARED_MEMORY.glob(f"{glob.escape(prefix)}*.life")
    }
    # Of a model whose name goes on behind a dot, more than a number is left.
    return {int(process): path for process, path in found.items() if process.isdecimal()}


def _path(repository: Path, model: str) -> Path:
    return _SHARED_MEMORY / f"{_name(repository, model)}.mark"


def _name(repository: Path, model: str) -> str:
    return f"{shared_memory_prefix(repository)}{model}"

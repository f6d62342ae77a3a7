"""The data directory of a running service: its lock, its logs and the note about where it listens."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

import psutil

from service.supervisor.errors import DirectoryInUse, DirectoryUnusable

_NOTE = "up.json"
_LOCK = "up.lock"


class DataDirectory:
    """`<data-dir>`, held by at most one service at a time.

    The lock belongs to an open file that Redis and Triton inherit, so a directory stays locked until the
    last process that writes into it has gone, even when the supervisor was killed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self._lock: int | None = None

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def repository(self) -> Path:
        return self.path / "repository"

    @property
    def backends(self) -> Path:
        return self.path / "backends"

    @property
    def redis(self) -> Path:
        return self.path / "redis"

    @property
    def lock_descriptor(self) -> int:
        """The descriptor that carries the lock, for children that must hold it too."""
        if self._lock is None:
            raise RuntimeError("the data directory is not locked")
        return self._lock

    def acquire(self, patience_s: float = 5.0) -> None:
        """Create the directory and lock it.

        A service that was killed may need a moment to end its children: waits up to `patience_s`
        for those. Raises DirectoryInUse, DirectoryUnusable.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            deadline = time.monotonic() + patience_s
            while self._lock is None:
                self._lock = self._try_lock()
                if self._lock is None:
                    note = read_note(self.path)
                    if (note and _alive(note.get("pid"))) or time.monotonic() > deadline:
                        raise DirectoryInUse(_in_use(self.path, note))
                    time.sleep(0.1)
            (self.path / _NOTE).unlink(missing_ok=True)
        except OSError as error:
            raise DirectoryUnusable(
                f"{self.path} cannot be used as the data directory: {error.strerror}. "
                "Give another one with --data-dir."
            ) from error

    def _try_lock(self) -> int | None:
        lock = self.path / _LOCK
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have removed the file between our open and our lock.
            if lock.exists() and lock.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except BlockingIOError:
            pass
        os.close(descriptor)
        return None

    def set_logs_aside(self) -> None:
        """Keep the logs of the run before as `*.log.1`, and begin new ones."""
        for log in self.logs.glob("*.log"):
            log.replace(log.with_name(f"{log.name}.1"))

    def write_note(self, note: dict[str, Any]) -> None:
        """Record where the service listens, for the other commands (`up.json`)."""
        partial = self.path / f"{_NOTE}.part"
        partial.write_text(json.dumps(note, indent=2) + "\n")
        partial.replace(self.path / _NOTE)

    def release(self) -> None:
        """Remove the note and the lock."""
        if self._lock is None:
            return
        (self.path / _NOTE).unlink(missing_ok=True)
        (self.path / _LOCK).unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = None


def read_note(path: Path) -> dict[str, Any] | None:
    """Return what a running service noted in its data directory, or None."""
    try:
        note = json.loads((path.expanduser() / _NOTE).read_text())
    except (OSError, ValueError):
        return None
    return note if isinstance(note, dict) else None


def _alive(pid: object) -> bool:
    return isinstance(pid, int) and psutil.pid_exists(pid)


def _in_use(path: Path, note: dict[str, Any] | None) -> str:
    if note and _alive(note.get("pid")):
        return (
            f"{path} is in use: a service runs from it at {note.get('url')} (pid {note['pid']}). "
            "Use that one, stop it, or give another directory with --data-dir."
        )
    return (
        f"{path} is in use by another `vitrine up` that is starting or stopping. "
        "Wait for it, or give another directory with --data-dir."
    )

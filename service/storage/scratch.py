"""Temporary directories that outlive no process for long, whatever ends it."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from service.errors import StorageFull, StorageUnavailable

NO_ROOM = (errno.EFBIG, errno.ENOSPC, errno.EDQUOT)
"""What the system says where a file system or a quota is full."""

_PREFIX = "vitrine-scratch-"


@contextmanager
def scratch() -> Iterator[Path]:
    """Give a new directory in the system's place for such, and remove it in the end.

    The process holds a lock on it, which the kernel takes back however the process ends; whatever
    has no lock is `remove_abandoned`'s. Raises StorageFull, StorageUnavailable.
    """
    with writing():
        path, lock = _make()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


@contextmanager
def writing() -> Iterator[None]:
    """Tell callers of a file system that takes no temporary files. Raises StorageFull, StorageUnavailable."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise StorageFull("There is no room for temporary files.") from error
        raise StorageUnavailable("Temporary files cannot be written.") from error


def remove_abandoned() -> None:
    """Remove the directories of processes that were killed. To be called when a process starts."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # in use, another user's, or gone meanwhile
            lock = _lock(path, fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def _make() -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        with suppress(FileNotFoundError):
            lock = _lock(path)
            # Between being made and being locked, it may have looked abandoned.
            if path.exists():
                return path, lock
            os.close(lock)


def _lock(path: Path, how: int = 0) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | how)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor

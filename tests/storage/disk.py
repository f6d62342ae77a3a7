"""A small file system of its own for tests: it can be filled, and made read-only, also for root."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Disk:
    """Where it is mounted."""

    path: Path

    def read_only(self, yes: bool) -> None:
        _mount("-o", f"remount,{'ro' if yes else 'rw'}", str(self.path))

    def fill(self) -> None:
        """Write until nothing more fits."""
        with contextlib.suppress(OSError), (self.path / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def clear(self) -> None:
        """Take away what `fill` wrote."""
        (self.path / "filler").unlink()


@contextlib.contextmanager
def small_disk(path: Path, size: str = "1m") -> Iterator[Disk]:
    """Mount one at `path`; skips the test where that is not allowed."""
    path.mkdir(parents=True)
    try:
        _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path))
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a file system needs root (CAP_SYS_ADMIN)")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)

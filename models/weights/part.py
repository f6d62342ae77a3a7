"""The unfinished file of a download: its bytes, their running SHA-256, and which version they belong to."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from models.weights.errors import DownloadError


@dataclass(frozen=True)
class Version:
    """What tells one version of a file on a server from the next. `sha256` is what the hub states."""

    url: str
    etag: str | None
    total: int | None
    sha256: str | None


class Part:
    """`NAME.part` with its record `NAME.part.json`, held by one process at a time.

    The lock goes with the process, however that ends; the bytes stay, and are hashed again when the
    next process opens the part.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(target.name + ".part")
        self.record = target.with_name(target.name + ".part.json")

    def __enter__(self) -> Part:
        while True:
            self.file = self.path.open("a+b")
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                self.file.close()
                raise DownloadError(
                    f"{self.target.name} is being downloaded by another process"
                ) from error
            # Between open and lock the holder before may have finished or removed this very file.
            if self._current():
                break
            self.file.close()
        self.file.seek(0)
        self.hash = hashlib.file_digest(self.file, "sha256")
        self.size = self.file.seek(0, os.SEEK_END)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.size == 0:
            self.path.unlink(missing_ok=True)
            self.record.unlink(missing_ok=True)
        self.file.close()

    def _current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self.file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def version(self, url: str) -> Version | None:
        """Return what the bytes belong to, or None where nothing (readable) says so."""
        try:
            version = Version(**json.loads(self.record.read_text()))
        except (OSError, ValueError, TypeError):
            return None
        return version if version.url == url else None

    def restart(self, version: Version) -> None:
        """Forget the bytes; those to come belong to `version`."""
        self.discard()
        scratch = self.record.with_name(self.record.name + ".new")
        scratch.write_text(json.dumps(asdict(version)))
        scratch.replace(self.record)

    def append(self, data: bytes) -> None:
        self.file.write(data)
        self.hash.update(data)
        self.size += len(data)

    def discard(self) -> None:
        self.record.unlink(missing_ok=True)
        self.file.truncate(0)
        self.hash, self.size = hashlib.sha256(), 0

    def finish(self) -> None:
        """Give the complete file its name, once it is on the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.path.replace(self.target)
        self.record.unlink(missing_ok=True)

"""Put, read and delete objects through `obstore`, with the errors of the service."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, S3Store

from service.errors import NotFound, StorageFull, StorageUnavailable
from service.settings import Settings
from service.storage.scratch import NO_ROOM

CHUNK_BYTES = 1024 * 1024
_KEY = re.compile(r"(uploads|results|examples)(/[A-Za-z0-9][A-Za-z0-9_.-]{0,127}){1,5}")
# How the local store names a file until it is whole; listings leave it out.
_UNFINISHED = re.compile(r"#\d+$")
# EFBIG, ENOSPC and EDQUOT as the local store words them; the codes of S3 servers with quotas.
_FULL = re.compile(r"os error (27|28|122)\)|QuotaExceeded|XMinioStorageFull|InsufficientStorage")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object of a listing; `modified` in Unix seconds by the storage's clock."""

    key: str
    bytes: int
    modified: float


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes of the file system below a directory: what may still be written, and all."""

    free: int
    total: int


class Store:
    """Objects by key, at `settings.storage_url`.

    That is `file:///directory` or `s3://bucket/prefix` (credentials: the `AWS_*` variables).

    All methods raise StorageUnavailable when the storage does not answer or refuses, and
    ValueError for a key that the service would not make.
    """

    def __init__(self, settings: Settings) -> None:
        self._min_free_bytes = settings.storage.min_free_bytes
        self._directory: Path | None = None
        self._store: Any
        parts = urlsplit(settings.storage_url)
        endpoint = settings.storage.endpoint
        if parts.scheme == "file":
            self._directory = Path(unquote(parts.path))
            with _mapped("The storage's directory cannot be made."):
                self._directory.mkdir(parents=True, exist_ok=True)
                self._store = LocalStore(self._directory, automatic_cleanup=True)
        elif parts.scheme == "s3":
            config: Any = {"endpoint": endpoint} if endpoint else {}
            self._store = S3Store(
                parts.netloc,
                prefix=parts.path.strip("/") or None,
                client_options={
                    "allow_http": (endpoint or "").startswith("http://"),
                    "connect_timeout": timedelta(seconds=2),
                    "timeout": timedelta(seconds=60),
                },
                retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=5)},
                config=config,
            )
        else:
            raise ValueError(f"storage.url: {parts.scheme!r} is not one of file, s3.")

    async def put(self, key: str, data: bytes | Path, content_type: str) -> None:
        """Store bytes, or a file's, under `key`: whole, or not at all. Raises StorageFull.

        A directory must keep `min_free_bytes` free. Directories store no content types; the job's
        record has them.
        """
        _check(key)
        attributes = None if self._directory else {"Content-Type": content_type}
        with _mapped("The storage takes no writes."):
            if self._directory is not None:
                await asyncio.to_thread(self._refuse_when_full, self._directory, data)
            await obstore.put_async(self._store, key, data, attributes=attributes)

    def _refuse_when_full(self, directory: Path, data: bytes | Path) -> None:
        size = len(data) if isinstance(data, bytes) else data.stat().st_size
        free = _room(directory).free
        if free - size < self._min_free_bytes:
            raise StorageFull(
                f"The storage has {free} bytes free, would take {size} and "
                f"must keep {self._min_free_bytes}."
            )

    async def room(self) -> Room | None:
        """Return the directory's room; None for buckets, which have no end that they tell."""
        if self._directory is None:
            return None
        with _mapped("The storage cannot be read."):
            return await asyncio.to_thread(_room, self._directory)

    async def get(self, key: str) -> bytes:
        """Return the object whole. Raises NotFound."""
        _check(key)
        with _mapped("The storage cannot be read."):
            result = await obstore.get_async(self._store, key)
            return bytes(await result.bytes_async())

    async def stream(
        self, key: str, start: int = 0, end: int | None = None
    ) -> AsyncIterator[bytes]:
        """Return an iterator over the bytes [start, end) in pieces of about a MiB. Raises NotFound.

        Await this, then iterate: NotFound comes before the first piece. The range must lie within
        the object's `size`.
        """
        _check(key)
        span: Any = {"offset": start} if end is None else (start, end)
        with _mapped("The storage cannot be read."):
            result = await obstore.get_async(self._store, key, options={"range": span})
        return self._pieces(result)

    @staticmethod
    async def _pieces(result: Any) -> AsyncIterator[bytes]:
        with _mapped("The storage cannot be read."):
            async for piece in result.stream(min_chunk_size=CHUNK_BYTES):
                yield bytes(piece)

    async def size(self, key: str) -> int:
        """Return the object's bytes. Raises NotFound."""
        _check(key)
        with _mapped("The storage cannot be read."):
            meta = await obstore.head_async(self._store, key)
            return int(meta["size"])

    async def delete(self, key: str) -> None:
        """Delete the object if there is one."""
        _check(key)
        await self._delete([key])

    async def delete_prefix(self, prefix: str) -> None:
        """Delete all objects below `prefix/`."""
        _check(prefix)
        await self._delete([found.key async for found in self.objects(prefix)])

    async def objects(self, prefix: str) -> AsyncIterator[StoredObject]:
        """Yield the objects below `prefix/`."""
        with _mapped("The storage cannot be listed."):
            async for page in obstore.list(self._store, prefix):
                for meta in page:
                    modified = meta["last_modified"].timestamp()
                    yield StoredObject(meta["path"], int(meta["size"]), modified)

    async def delete_unfinished(self, before: float) -> int:
        """Delete what writers that were killed had begun before that time; return how many there were.

        Only directories have such files, beside the object that they were to become; a bucket
        forgets unfinished uploads by its own lifecycle rule.
        """
        if self._directory is None:
            return 0
        with _mapped("The storage takes no deletions."):
            return await asyncio.to_thread(_delete_unfinished, self._directory, before)

    async def _delete(self, keys: list[str]) -> None:
        with _mapped("The storage takes no deletions."):
            for key in keys:
                try:
                    await obstore.delete_async(self._store, key)
                except FileNotFoundError:
                    continue


def _room(directory: Path) -> Room:
    disk = os.statvfs(directory)
    return Room(free=disk.f_bavail * disk.f_frsize, total=disk.f_blocks * disk.f_frsize)


def _delete_unfinished(directory: Path, before: float) -> int:
    deleted = 0
    for folder, _, names in os.walk(directory):
        for name in filter(_UNFINISHED.search, names):
            path = Path(folder, name)
            with suppress(FileNotFoundError):  # it may just have become the object
                if path.stat().st_mtime < before:
                    path.unlink()
                    deleted += 1
    return deleted


def _check(key: str) -> None:
    if _KEY.fullmatch(key) is None or ".." in key:
        raise ValueError(f"{key!r} is no storage key.")


@contextmanager
def _mapped(message: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound("The stored file is gone.", code="file_not_found") from error
    except (BaseError, OSError) as error:
        if _FULL.search(str(error)) or (isinstance(error, OSError) and error.errno in NO_ROOM):
            raise StorageFull("The storage has no room.") from error
        raise StorageUnavailable(message) from error

"""One medium on its way in: a picture stays in memory, a video goes to a temporary file."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path

from service.errors import BadInput, PayloadTooLarge, UnsupportedMedia
from service.media.sniff import HEAD_BYTES, Kind, sniff
from service.settings import LimitSettings
from service.storage.scratch import scratch, writing
from service.tasks.contract import Upload

_FLUSH_BYTES = 1024 * 1024
_NAME_LENGTH = 120
_OPAQUE = (
    "",
    "application/octet-stream",
    "binary/octet-stream",
    "application/x-www-form-urlencoded",
)


def too_large(what: str, name: str, limit: int) -> PayloadTooLarge:
    """Return the 413 that names the limit."""
    return PayloadTooLarge(
        f"{what} is larger than {limit:,} bytes (limit {name}).",
        limit={"name": name, "bytes": limit},
    )


class Spool:
    """Takes the bytes of one medium and gives the `Upload`.

    `declared` is the media type that the sender named. The first bytes decide; the declared type
    only speaks where they say nothing. A medium of the wrong kind or beyond its limit is refused
    as soon as that is known, not when all of it has been read.
    """

    def __init__(
        self,
        limits: LimitSettings,
        kinds: Collection[Kind],
        declared: str = "",
        name: str = "upload",
    ) -> None:
        self._limits = limits
        self._kinds = kinds
        self._declared = declared.partition(";")[0].strip().lower()
        self._name = _label(name)
        self._buffer = bytearray()
        self._size = 0
        self._media: tuple[Kind, str] | None = None
        self._path: Path | None = None
        self._scratch = ExitStack()
        if not _plausible(self._declared):
            raise self._unsupported(f"media type {self._declared}")

    async def write(self, chunk: bytes) -> None:
        """Take the next bytes.

        Raises UnsupportedMedia, PayloadTooLarge, StorageFull, StorageUnavailable.
        """
        self._size += len(chunk)
        self._buffer += chunk
        if self._media is None:
            if len(self._buffer) < HEAD_BYTES:
                return
            self._media = self._identify()
        if self._media[0] == "image":
            if self._size > self._limits.image_body_bytes:
                raise too_large("The picture", "image_body_bytes", self._limits.image_body_bytes)
        else:
            if self._size > self._limits.body_bytes:
                raise too_large("The video", "body_bytes", self._limits.body_bytes)
            if len(self._buffer) >= _FLUSH_BYTES:
                await self._flush()

    async def finish(self) -> Upload:
        """Return the upload once all bytes are in. Raises BadInput where there were none, and as `write`."""
        if not self._size:
            raise BadInput("The file is empty.", code="empty_body")
        kind, content_type = self._media or self._identify()
        if kind == "image":
            return Upload(content_type, bytes(self._buffer), self._name)
        await self._flush()
        assert self._path is not None
        return Upload(content_type, self._path, self._name)

    def close(self) -> None:
        """Delete what was written."""
        self._buffer.clear()
        self._path = None
        self._scratch.close()

    def _identify(self) -> tuple[Kind, str]:
        media = sniff(bytes(self._buffer[:HEAD_BYTES]))
        if media is None:
            # A damaged file of a declared kind gets its exact error from the decoder.
            kind = _declared_kind(self._declared)
            if kind is None:
                raise self._unsupported("a file that is no known picture or video")
            media = kind, self._declared
        if media[0] not in self._kinds:
            raise self._unsupported(f"{media[1]}")
        return media

    async def _flush(self) -> None:
        if self._path is None:
            folder = await asyncio.to_thread(self._scratch.enter_context, scratch())
            self._path = folder / "upload"
        chunk, self._buffer = self._buffer, bytearray()
        await asyncio.to_thread(_append, self._path, chunk)

    def _unsupported(self, given: str) -> UnsupportedMedia:
        takes = " or ".join(f"{kind}s" for kind in sorted(self._kinds)) or "no media"
        return UnsupportedMedia(f"This endpoint takes {takes}; given was {given}.")


def _label(name: str) -> str:
    """Return the name as something to show: no folders, nothing unprintable, of bounded length.

    It names no file here: those have names of their own.
    """
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    shown = "".join(c if c.isprintable() else "_" for c in last[-_NAME_LENGTH:]).strip()
    return shown if shown.strip(".") else "upload"


def _plausible(declared: str) -> bool:
    return declared in _OPAQUE or _declared_kind(declared) is not None


def _declared_kind(declared: str) -> Kind | None:
    if declared.startswith("image/"):
        return "image"
    return "video" if declared.startswith("video/") else None


def _append(path: Path, chunk: bytearray) -> None:
    with writing(), path.open("ab") as file:
        file.write(chunk)

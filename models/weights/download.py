"""Download of published weights: resumable, hashed on the way, never half a file under its final name.

The bytes go to `NAME.part`, with the validator that the server gave beside it; a later attempt, in this
process or another, asks for the rest with `Range` and `If-Range` (RFC 9110, sections 13.1.5 and 14.2)
and starts again from zero where the server or the file changed. Only a file whose length, and
SHA-256 where one is known, are right is renamed to `NAME`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, unquote, urlsplit

import httpx2

from models.weights.errors import (
    AccessRefused,
    DownloadError,
    HashMismatch,
    HostUnreachable,
    NoSpace,
    NotPublished,
    TransferFailed,
)
from models.weights.part import Part, Version

HUB = "https://huggingface.co"
SHA256 = re.compile(r"[0-9a-f]{64}")


class Watcher(Protocol):
    """Told how many bytes are there, of how many (None: the server does not say)."""

    def __call__(self, received: int, total: int | None) -> None: ...


@dataclass(frozen=True)
class Patience:
    """How often and how long to try again. `attempts` counts failures in a row without a new byte."""

    attempts: int = 6
    first_pause_s: float = 0.5
    longest_pause_s: float = 30.0
    connect_s: float = 10.0
    silence_s: float = 60.0

    def pause(self, failures: int, asked: float | None) -> float:
        """Return the seconds to wait: what the server asked for, else exponential with jitter."""
        if asked is not None:
            return min(asked, self.longest_pause_s)
        pause = self.first_pause_s * 2.0 ** (failures - 1)
        return min(pause, self.longest_pause_s) * random.uniform(0.5, 1.0)


PATIENCE = Patience()


@dataclass(frozen=True)
class Downloaded:
    """A complete file and its SHA-256 (hex)."""

    path: Path
    sha256: str
    bytes: int


class _Interrupted(Exception):
    """A failure worth another attempt; `pause_s` is the server's wish."""

    def __init__(
        self, cause: str, *, unreachable: bool = False, pause_s: float | None = None
    ) -> None:
        super().__init__(cause)
        self.unreachable = unreachable
        self.pause_s = pause_s


def resolve(url: str, hub: str | None = None) -> str:
    """Return the HTTP address of a source: `hf://owner/repository/path` on the hub, others as they are.

    `hub` replaces https://huggingface.co; without it the environment's HF_ENDPOINT does. Raises
    DownloadError for other schemes.
    """
    scheme, _, rest = url.partition("://")
    if scheme in ("http", "https"):
        return url
    parts = rest.split("/", 2)
    if scheme != "hf" or len(parts) != 3 or not all(parts):
        raise DownloadError(f"{url} is no source: use https://… or hf://owner/repository/path")
    owner, repository, path = parts
    base = (hub or os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    return f"{base}/{owner}/{repository}/resolve/main/{quote(path)}"


def download(
    url: str,
    folder: Path,
    *,
    sha256: str | None = None,
    hub: str | None = None,
    watch: Watcher = lambda received, total: None,
    patience: Patience = PATIENCE,
    sleep: Callable[[float], None] = time.sleep,
) -> Downloaded:
    """Fetch `url` into `folder` and return the complete file.

    A file that an earlier call completed is hashed and returned without any traffic. `sha256` is the
    published hash, if there is one; the hub's own hash of a large file is checked as well.

    Raises NotPublished, AccessRefused, HostUnreachable, TransferFailed, HashMismatch, NoSpace.
    """
    address = resolve(url, hub)
    target = folder / _file_name(address)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with Part(target) as part:
            if not target.exists():
                transfer = _Transfer(address, part, sha256, _login(url), watch)
                timeout = httpx2.Timeout(patience.silence_s, connect=patience.connect_s)
                with httpx2.Client(timeout=timeout, follow_redirects=True) as client:
                    transfer.run(client, patience, sleep)
                return Downloaded(target, part.hash.hexdigest(), part.size)
            actual = sha256_of(target)
            if sha256 not in (None, actual):
                target.unlink()
                raise HashMismatch(_mismatch(address, sha256, actual))
            return Downloaded(target, actual, target.stat().st_size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise NoSpace(
                f"the disk of {folder} takes no more ({error.strerror}); what arrived of {address} is "
                "kept: make room and run the same command again"
            ) from error
        raise


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file (hex)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_text(count: float) -> str:
    """Return a number of bytes as people read it (decimal units)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


@dataclass(frozen=True)
class _Transfer:
    """The attempts to complete one part."""

    url: str
    part: Part
    sha256: str | None
    login: Mapping[str, str]
    watch: Watcher

    def run(
        self, client: httpx2.Client, patience: Patience, sleep: Callable[[float], None]
    ) -> None:
        failures, furthest = 0, self.part.size
        while True:
            try:
                return self._attempt(client)
            except _Interrupted as interruption:
                if self.part.size > furthest:
                    furthest, failures = self.part.size, 0
                failures += 1
                # A name that does not resolve or a closed port seldom heals within seconds.
                unreachable = interruption.unreachable
                if failures >= (min(3, patience.attempts) if unreachable else patience.attempts):
                    kept = (
                        f"; {size_text(self.part.size)} are kept for the next attempt"
                        if self.part.size
                        else ""
                    )
                    kind = HostUnreachable if unreachable else TransferFailed
                    raise kind(f"{self.url}: {interruption}, {failures} times{kept}") from None
                sleep(patience.pause(failures, interruption.pause_s))

    def _attempt(self, client: httpx2.Client) -> None:
        """Make one request and take what it gives. Raises _Interrupted where another may get further."""
        known = self.part.version(self.url)
        # Without a validator nothing says that the rest of the file would belong to these bytes,
        # unless the published hash will tell in the end.
        if known is None or (known.etag is None and self.sha256 is None):
            self.part.discard()
            known = None
        headers = {"Accept-Encoding": "identity", **self.login}
        if self.part.size and known is not None:
            headers["Range"] = f"bytes={self.part.size}-"
            if known.etag is not None:
                headers["If-Range"] = known.etag
        try:
            with client.stream("GET", self.url, headers=headers) as response:
                _refuse(response, self.url)
                version = self._agree(response, known)
                if response.status_code != 416:
                    self._room(version)
                    self._receive(response, version)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise _Interrupted(f"cannot connect ({error})", unreachable=True) from error
        except httpx2.TransportError as error:
            raise _Interrupted(f"connection lost ({error or type(error).__name__})") from error
        except (httpx2.TooManyRedirects, httpx2.InvalidURL) as error:
            raise TransferFailed(f"{self.url}: {error}") from error
        self._complete(version)

    def _agree(self, response: httpx2.Response, known: Version | None) -> Version:
        """Return the version that comes, with the part set to the offset at which it begins."""
        headers, part = response.headers, self.part
        if headers.get("Content-Encoding", "identity") != "identity":
            raise TransferFailed(f"{self.url}: the server insists on compressing the file")
        etag: str | None = headers.get("ETag")
        if etag is not None and etag.startswith("W/"):
            etag = None
        if response.status_code == 416:
            # All of it may be here already; any other reason means to begin again.
            if known is not None and known.total == part.size:
                return known
            part.discard()
            raise _Interrupted("the server does not have the rest of the file")
        if response.status_code == 206:
            content = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
            if known is None or content is None or int(content[1]) != part.size:
                part.discard()
                raise _Interrupted("the server sends another range than asked for")
            total = None if content[2] == "*" else int(content[2])
            if (None not in (known.total, total) and known.total != total) or (
                None not in (known.etag, etag) and known.etag != etag
            ):
                part.discard()
                raise _Interrupted("the file on the server has changed")
            return known
        length = headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
        version = Version(self.url, etag, total, _hub_hash(response))
        part.restart(version)
        return version

    def _room(self, version: Version) -> None:
        if version.total is None:
            return
        folder = self.part.path.parent
        free, needed = shutil.disk_usage(folder).free, version.total - self.part.size
        if needed > free:
            raise NoSpace(
                f"{self.url} needs {size_text(needed)} more and the disk of {folder} "
                f"has {size_text(free)} free"
            )

    def _receive(self, response: httpx2.Response, version: Version) -> None:
        self.watch(self.part.size, version.total)
        # As they come: chunks of a given size would keep back, and lose, what precedes a cut.
        for chunk in response.iter_raw():
            self.part.append(chunk)
            self.watch(self.part.size, version.total)

    def _complete(self, version: Version) -> None:
        """Finish the part. Raises _Interrupted if it is short, HashMismatch if it is another file."""
        part, expected = self.part, self.sha256 or version.sha256
        if version.total is None and expected is None:
            part.discard()
            raise TransferFailed(
                f"{self.url}: the server gives no length and no hash of the file is known, "
                "so nothing would show that it is whole"
            )
        if version.total is not None and part.size < version.total:
            raise _Interrupted(
                f"connection lost after {size_text(part.size)} of {size_text(version.total)}"
            )
        if version.total is not None and part.size > version.total:
            part.discard()
            raise _Interrupted("more bytes than the server announced")
        actual = part.hash.hexdigest()
        if expected not in (None, actual):
            part.discard()
            raise HashMismatch(_mismatch(self.url, expected, actual))
        part.finish()


def _refuse(response: httpx2.Response, url: str) -> None:
    status = response.status_code
    if status in (200, 206, 416):
        return
    said = f"{status} {response.reason_phrase}".strip()
    if status in (404, 410):
        raise NotPublished(f"{url} does not exist ({said})")
    if status in (401, 403):
        raise AccessRefused(
            f"{url} is not open to you ({said}): accept its terms on the site, "
            "then set HF_TOKEN to a token of your account"
        )
    if status in (408, 425, 429) or status >= 500:
        wait = response.headers.get("Retry-After", "")
        pause_s = float(wait) if wait.isdigit() else None
        raise _Interrupted(f"the server answers {said}", pause_s=pause_s)
    raise TransferFailed(f"{url}: the server answers {said}")


def _login(url: str) -> dict[str, str]:
    """Return the hub's login for the hub's files. A redirect to another host does not carry it on."""
    token = os.environ.get("HF_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token and url.startswith("hf://") else {}


def _hub_hash(response: httpx2.Response) -> str | None:
    """Return the SHA-256 that the hub states for a file kept in its large-file storage."""
    for answer in (*response.history, response):
        stated = answer.headers.get("X-Linked-ETag", "").strip('"')
        if SHA256.fullmatch(stated):
            return str(stated)
    return None


def _file_name(url: str) -> str:
    """Return a name that is readable and differs for every address."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", unquote(urlsplit(url).path).rsplit("/", 1)[-1])
    return f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{readable or 'file'}"


def _mismatch(url: str, expected: str | None, actual: str) -> str:
    return (
        f"{url} is not the published file: its SHA-256 is {actual}, expected {expected}; "
        "it was thrown away"
    )

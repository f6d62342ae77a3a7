"""The one client that opens URLs given by callers: public addresses only.

Server-side request forgery is refused where it happens: the host is resolved here, every address
it has must be public, and the connection goes to the very address that was checked, so a name that
resolves differently the second time gains nothing. Redirects are followed by hand, each checked anew.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import PurePosixPath
from typing import Self

import httpx2

from service.errors import BadInput, PayloadTooLarge, UnsupportedMedia
from service.settings import LimitSettings

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_REDIRECTS = 3
_MEDIA_TYPES = ("image/", "video/", "application/octet-stream", "binary/octet-stream")
_NAT64 = IPv6Network("64:ff9b::/96")
_PIECE_BYTES = 16 * 1024
_HEADERS = {"User-Agent": "vitrine", "Accept": "image/*, video/*", "Accept-Encoding": "identity"}


@dataclass(frozen=True, slots=True)
class Remote:
    """An open answer: its media type, the last part of its path, and its bytes as they arrive."""

    content_type: str
    name: str
    chunks: AsyncIterator[bytes]


class _Patience:
    """How long a fetch may still take: `seconds` in all, and `stall_seconds` from `renew` to `renew`."""

    def __init__(self, limits: LimitSettings) -> None:
        self._stall_s = limits.fetch_stall_seconds
        self._end = asyncio.get_running_loop().time() + limits.fetch_seconds
        self.timeout = asyncio.timeout_at(self._next())

    def renew(self) -> None:
        self.timeout.reschedule(self._next())

    @property
    def over(self) -> bool:
        """Whether it is the time in all that has run out."""
        return self.timeout.when() == self._end

    def _next(self) -> float:
        return min(self._end, asyncio.get_running_loop().time() + self._stall_s)


class Fetcher:
    """Opens public `http` and `https` URLs.

    Each fetch may take `limits.fetch_seconds` in all and `limits.body_bytes`; each answer must begin,
    and each 16 KiB of it come, within `limits.fetch_stall_seconds`, so that a server which is too
    slow is known soon. Addresses inside `allowed` pass although they are not public.
    """

    def __init__(self, limits: LimitSettings, allowed: Sequence[Network] = ()) -> None:
        self._limits = limits
        self._allowed = allowed

    @asynccontextmanager
    async def open(self, url: str) -> AsyncIterator[Remote]:
        """Open `url` and yield the answer.

        Raises BadInput (`url_not_allowed`, `url_failed`, `url_timeout`), UnsupportedMedia,
        PayloadTooLarge.
        """
        patience = _Patience(self._limits)
        try:
            async with patience.timeout, _PinnedClient(self._tls) as client:
                target = _parse(url)
                for _ in range(_REDIRECTS + 1):
                    async with client.stream_pinned(target, await self._resolve(target)) as answer:
                        patience.renew()
                        if not answer.has_redirect_location:
                            yield self._remote(target, answer, patience)
                            return
                        target = _parse(str(target.join(answer.headers["location"])))
                raise BadInput(
                    f"The URL redirects more than {_REDIRECTS} times.", code="url_failed"
                )
        except TimeoutError as error:
            if not patience.timeout.expired():
                raise
            raise BadInput(
                f"The URL was not read within {self._limits.fetch_seconds:g} seconds (limit "
                "fetch_seconds)."
                if patience.over
                else f"The URL's server gave less than {_PIECE_BYTES:,} bytes in "
                f"{self._limits.fetch_stall_seconds:g} seconds (limit fetch_stall_seconds).",
                code="url_timeout",
            ) from error
        except httpx2.HTTPError as error:
            raise BadInput(
                f"The URL cannot be read: {type(error).__name__}.", code="url_failed"
            ) from error

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return httpx2.create_ssl_context()

    def _remote(self, url: httpx2.URL, answer: httpx2.Response, patience: _Patience) -> Remote:
        if answer.status_code != 200:
            raise BadInput(f"The URL answered {answer.status_code}.", code="url_failed")
        content_type = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type and not content_type.startswith(_MEDIA_TYPES):
            raise UnsupportedMedia(f"The URL gives {content_type}; pictures and videos are taken.")
        length = answer.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._limits.body_bytes:
            raise self._too_large()
        name = PurePosixPath(url.path).name or "upload"
        return Remote(content_type, name, self._read(answer, patience))

    async def _read(self, answer: httpx2.Response, patience: _Patience) -> AsyncIterator[bytes]:
        size = counted = 0
        async for chunk in answer.aiter_raw():
            size += len(chunk)
            if size - counted >= _PIECE_BYTES:
                patience.renew()
                counted = size
            if size > self._limits.body_bytes:
                raise self._too_large()
            yield chunk

    def _too_large(self) -> PayloadTooLarge:
        limit = self._limits.body_bytes
        return PayloadTooLarge(
            f"The URL gives more than {limit:,} bytes (limit body_bytes).",
            limit={"name": "body_bytes", "bytes": limit},
        )

    async def _resolve(self, url: httpx2.URL) -> Address:
        """Return an address of the URL's host; all of them must be allowed."""
        port = url.port or (443 if url.scheme == "https" else 80)
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(url.host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise BadInput(
                f"The host of the URL, {url.host}, is not known.", code="url_failed"
            ) from error
        addresses = [ip_address(entry[4][0]) for entry in found]
        if not addresses or not all(map(self._permits, addresses)):
            raise _not_allowed(f"{url.host} is not a public address")
        return addresses[0]

    def _permits(self, address: Address) -> bool:
        return public(address) or any(address in network for network in self._allowed)


class _PinnedClient(httpx2.AsyncClient):
    """A client that connects to a given address and speaks to it by the URL's host name."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        # No keep-alive: a kept connection is known by its address and could serve another name.
        super().__init__(
            verify=tls,
            trust_env=False,
            follow_redirects=False,
            timeout=None,
            limits=httpx2.Limits(max_keepalive_connections=0),
        )

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        return self

    @asynccontextmanager
    async def stream_pinned(
        self, url: httpx2.URL, address: Address
    ) -> AsyncIterator[httpx2.Response]:
        host = url.netloc.decode("ascii")
        async with self.stream(
            "GET",
            url.copy_with(host=str(address)),
            headers=_HEADERS | {"Host": host},
            extensions={"sni_hostname": url.host},
        ) as answer:
            yield answer


def public(address: Address) -> bool:
    """Whether an address, and the IPv4 address that it may carry, belongs to the public Internet."""
    if isinstance(address, IPv6Address):
        carried = address.ipv4_mapped or address.sixtofour
        if address.teredo is not None:
            return False
        if address in _NAT64:
            carried = IPv4Address(int(address) & 0xFFFFFFFF)
        if carried is not None:
            return public(carried)
        if address.is_site_local:
            return False
    return address.is_global and not (
        address.is_multicast
        or address.is_reserved
        or address.is_unspecified
        or address.is_loopback
        or address.is_link_local
    )


def _parse(url: str) -> httpx2.URL:
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise _not_allowed("it cannot be read") from error
    if parsed.scheme not in ("http", "https"):
        raise _not_allowed("only http and https are taken")
    if not parsed.host:
        raise _not_allowed("it names no host")
    if parsed.userinfo:
        raise _not_allowed("it carries a user name or a password")
    return parsed


def _not_allowed(reason: str) -> BadInput:
    return BadInput(f"The URL is refused: {reason}.", code="url_not_allowed")

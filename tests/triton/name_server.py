"""A DNS server for tests: one name, whose addresses change while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from typing import cast

_A, _IN = 1, 1
_HEADER = struct.Struct("!6H")


class NameServer(asyncio.DatagramProtocol):
    """Answers every question for an A record with `addresses`, and others with nothing (RFC 1035)."""

    def __init__(self, addresses: list[str]) -> None:
        self.addresses = addresses
        self.port = 0
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, client: tuple[str, int]) -> None:
        assert self._transport is not None
        end = data.index(b"\0", _HEADER.size) + 1
        question = data[_HEADER.size : end + 4]
        kind, _ = struct.unpack("!2H", question[-4:])
        addresses = self.addresses if kind == _A else []
        authoritative_answer = 0x8400
        header = _HEADER.pack(
            int.from_bytes(data[:2]), authoritative_answer, 1, len(addresses), 0, 0
        )
        pointer_to_name, ttl_s = 0xC000 | _HEADER.size, 0
        records = (
            struct.pack("!HHHIH", pointer_to_name, _A, _IN, ttl_s, 4) + socket.inet_aton(address)
            for address in addresses
        )
        self._transport.sendto(b"".join((header, question, *records)), client)


@contextlib.asynccontextmanager
async def name_server(addresses: list[str]) -> AsyncIterator[NameServer]:
    """Serve on a free UDP port of the loopback."""
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(
        lambda: NameServer(addresses), local_addr=("127.0.0.1", 0)
    )
    try:
        yield server
    finally:
        transport.close()

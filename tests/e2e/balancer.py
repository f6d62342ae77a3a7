"""A small reverse proxy: connections go by turns to the gateways that say that they are ready.

It balances connections, not requests, and repeats nothing: what a gateway does wrong, the client sees.
Only a connection that no gateway took (nothing was sent yet) is tried at the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import httpx2

PERIOD_S = 0.1


class Balancer:
    """`ports` are those of the gateways; `ready` those that answered their last probe with 200."""

    def __init__(self, ports: Sequence[int]) -> None:
        self.ready: set[int] = set()
        self.port = 0
        self._ports = ports
        self._turn = 0

    async def probe(self) -> None:
        """Ask every gateway for its readiness, again and again."""
        async with httpx2.AsyncClient(timeout=2.0, trust_env=False) as client:
            while True:
                await asyncio.gather(*(self._ask(client, port) for port in self._ports))
                await asyncio.sleep(PERIOD_S)

    async def _ask(self, client: httpx2.AsyncClient, port: int) -> None:
        try:
            answer = await client.get(f"http://127.0.0.1:{port}/readyz")
            ready = answer.status_code == 200
        except httpx2.TransportError:
            ready = False
        (self.ready.add if ready else self.ready.discard)(port)

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Copy the bytes of one connection in both directions until either side is done."""
        try:
            up_reader, up_writer = await self._connect()
        except OSError:
            writer.close()
            return
        up = asyncio.ensure_future(_copy(reader, up_writer))
        down = asyncio.ensure_future(_copy(up_reader, writer))
        await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
        if down.done():  # the gateway closed: so do we, once all of it is through
            up.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(up, down, return_exceptions=True)
        for each in (writer, up_writer):
            each.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        for _ in self._ports:
            candidates = [port for port in self._ports if port in self.ready]
            if not candidates:
                break
            self._turn += 1
            with suppress(OSError):
                port = candidates[self._turn % len(candidates)]
                return await asyncio.open_connection("127.0.0.1", port)
        raise OSError("no gateway takes connections")


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


@asynccontextmanager
async def balancing(ports: Sequence[int]) -> AsyncIterator[Balancer]:
    """Run a balancer on a free port in front of the gateways on `ports`."""
    balancer = Balancer(ports)
    server = await asyncio.start_server(balancer.relay, "127.0.0.1", 0)
    balancer.port = server.sockets[0].getsockname()[1]
    probing = asyncio.create_task(balancer.probe())
    try:
        yield balancer
    finally:
        probing.cancel()
        server.close()
        await asyncio.gather(probing, return_exceptions=True)

"""A real Triton for tests: started on free ports over a repository, stopped at the end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from service.errors import TritonUnavailable
from service.settings import TritonSettings
from service.supervisor import embedded
from service.supervisor.process import Process
from service.triton.grpc import TritonClient
from service.triton.server import remove_shared_memory


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


async def loaded(client: TritonClient, model: str) -> None:
    """Load a model, however long that takes on a busy machine."""
    while True:
        try:
            return await client.load(model)
        except TritonUnavailable as loading:
            if loading.stable_code != "model_loading":
                raise


@contextlib.asynccontextmanager
async def triton(
    repository: Path, load: Iterable[str] = (), timeout_s: float = 60.0
) -> AsyncIterator[TritonClient]:
    """Serve `repository` and yield a client of it, once Triton is ready; a request may take `timeout_s`."""
    backends = repository.parent / "backends"
    embedded.write_backends(backends)
    grpc_port, http_port, metrics_port = free_ports(3)
    ports = embedded.TritonPorts(grpc_port, http_port, metrics_port)
    log = repository.parent / "triton.log"
    process = await Process.start(
        embedded.triton_command(repository, backends, ports, load),
        embedded.triton_environment(),
        log,
    )
    try:
        async with TritonClient(
            TritonSettings(url=f"127.0.0.1:{grpc_port}", timeout_s=timeout_s)
        ) as client:
            async with asyncio.timeout(60):
                while not await client.ready():
                    if process.status is not None:
                        raise RuntimeError(log.read_text()[-4000:])
                    await asyncio.sleep(0.1)
            yield client
    finally:
        # Its orderly end takes up to ten seconds and is the supervisor's to test.
        process.kill()
        await process.wait()
        remove_shared_memory(repository)

"""One client before three real Triton servers, as behind a headless service of Kubernetes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from tritonclient.grpc import aio as triton_grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from models.repository import write_catalogue
from service.settings import TritonSettings
from service.supervisor import embedded
from service.supervisor.process import Process
from service.triton.cards import CATALOGUE, Task
from service.triton.grpc import TritonClient
from service.triton.server import remove_shared_memory
from tests.triton.name_server import name_server
from tests.triton.server import free_ports
from tests.triton.toys import write_toy

pytestmark = pytest.mark.asyncio(loop_scope="module")

_HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
_AGE_S = 2
_PICTURE = {"IMAGE": np.full((1, 3, 8, 8), 100, np.uint8)}


class Server:
    """A Triton on an address and a repository of its own; the gRPC port is that of its fellows."""

    def __init__(self, folder: Path, host: str, port: int) -> None:
        self._repository = folder / host / "repository"
        write_catalogue(self._repository)
        write_toy(self._repository, "brightness", "brightness", default=True)
        write_toy(self._repository, "brightness", "spare")
        self.host = host
        self._port = port
        self._process: Process | None = None
        self.client = triton_grpc.InferenceServerClient(f"{host}:{port}")

    async def start(self) -> None:
        backends = self._repository.parent / "backends"
        embedded.write_backends(backends)
        ports = embedded.TritonPorts(self._port, *free_ports(2))
        command = embedded.triton_command(
            self._repository, backends, ports, [CATALOGUE, "brightness"]
        )
        self._process = await Process.start(
            [
                *(word.replace("127.0.0.1", self.host) for word in command),
                f"--grpc-max-connection-age={_AGE_S * 1000}",
            ],
            embedded.triton_environment(),
            self._repository.parent / "triton.log",
        )
        async with asyncio.timeout(60):
            while not await self.ready():
                assert self._process.status is None, "Triton ended"
                await asyncio.sleep(0.1)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def ready(self, model: str = "brightness") -> bool:
        with contextlib.suppress(Exception):
            return bool(await self.client.is_model_ready(model, client_timeout=1))
        return False

    async def served(self) -> int:
        """Return how many requests the server has answered since it started."""
        try:
            statistics = await self.client.get_inference_statistics("brightness", client_timeout=10)
        except InferenceServerException as error:
            raise AssertionError(f"{error}\n{self._log()}") from error
        return sum(model.inference_stats.success.count for model in statistics.model_stats)

    def _log(self) -> str:
        """Return what tells why it does not answer."""
        status = self._process and self._process.status
        lines = (self._repository.parent / "triton.log").read_text(errors="replace").splitlines()
        return "\n".join([f"{self.host}: exit status {status}", *lines[-30:]])

    async def stop(self) -> None:
        assert self._process is not None
        await self._process.stop(0.1)
        remove_shared_memory(self._repository)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[Server]]:
    folder = tmp_path_factory.mktemp("replicas")
    (port,) = free_ports(1)
    servers = [Server(folder, host, port) for host in _HOSTS]
    try:
        async with asyncio.TaskGroup() as group:
            for server in servers:
                group.create_task(server.start())
        yield servers
    finally:
        for server in servers:
            await server.stop()
            await server.client.close()


@pytest.fixture
def listed(servers: list[Server]) -> str:
    return "ipv4:" + ",".join(f"{server.host}:{server._port}" for server in servers)


async def counts(client: TritonClient, servers: list[Server], requests: int) -> Counter[str]:
    """Return how many of `requests` reached each server, by the servers' own count."""
    before = await settled(servers)
    for _ in range(requests):
        await client.infer("brightness", _PICTURE)
    return Counter(await settled(servers)) - Counter(before)


async def settled(servers: list[Server]) -> dict[str, int]:
    """Return the servers' counts: a request is counted only after its answer has been sent."""
    seen: dict[str, int] = {}
    while (now := {server.host: await server.served() for server in servers}) != seen:
        seen = now
        await asyncio.sleep(0.2)
    return now


async def until_served_by(client: TritonClient, servers: list[Server], hosts: set[str]) -> None:
    while set(+await counts(client, servers, 6)) != hosts:  # noqa: ASYNC110 - other processes
        await asyncio.sleep(0.2)


async def test_the_addresses_of_a_name_share_the_requests(servers: list[Server]) -> None:
    async with name_server(list(_HOSTS)) as names:
        url = f"dns://127.0.0.1:{names.port}/triton.test:{servers[0]._port}"
        async with TritonClient(TritonSettings(url=url)) as client:
            await client.infer("brightness", _PICTURE)
            found = await counts(client, servers, 30)
    assert found.total() == 30
    assert min(found.values()) >= 8, found


async def test_an_address_that_joins_the_name_gets_requests_and_one_that_leaves_gets_none(
    servers: list[Server],
) -> None:
    first, second, third = servers
    async with name_server([first.host, second.host]) as names:
        url = f"dns://127.0.0.1:{names.port}/triton.test:{first._port}"
        async with TritonClient(TritonSettings(url=url)) as client:
            assert set(+await counts(client, servers, 10)) == {first.host, second.host}
            names.addresses = [second.host, third.host]
            async with asyncio.timeout(20):
                await until_served_by(client, servers, {second.host, third.host})


async def test_a_model_is_loaded_and_unloaded_on_every_server(
    servers: list[Server], listed: str
) -> None:
    async with TritonClient(TritonSettings(url=listed)) as client:
        await client.load("spare")
        assert [await server.ready("spare") for server in servers] == [True] * 3
        await client.unload("spare")
        assert [await server.ready("spare") for server in servers] == [False] * 3


async def test_a_server_that_lacks_a_model_gets_it_before_requests(
    servers: list[Server], listed: str
) -> None:
    await servers[1].client.unload_model("brightness")
    async with TritonClient(TritonSettings(url=listed)) as client:
        states = {model.card.id: model.state for model in await client.models()}
        assert states["brightness"] != "ready"
        card = await client.resolve(Task.CLASSIFICATION, "brightness")
        assert card.id == "brightness"
        assert await servers[1].ready()
        assert set(+await counts(client, servers, 9)) == set(_HOSTS)


async def test_a_server_that_dies_is_left_out_and_taken_back(
    servers: list[Server], listed: str
) -> None:
    async with TritonClient(TritonSettings(url=listed)) as client:
        await client.infer("brightness", _PICTURE)
        await servers[2].stop()
        found = await counts(client, servers[:2], 20)
        assert found.total() == 20
        assert {model.card.id: model.state for model in await client.models()}[
            "brightness"
        ] == "ready"
        await servers[2].start()
        async with asyncio.timeout(20):
            await until_served_by(client, servers, set(_HOSTS))


async def test_a_server_that_hangs_does_not_hide_the_others(
    servers: list[Server], listed: str
) -> None:
    async with TritonClient(TritonSettings(url=listed)) as client:
        os.kill(servers[2].pid, signal.SIGSTOP)
        try:
            index = await client._connection.replicas.index(
                pb.RepositoryIndexRequest(), timeout=1.0
            )
        finally:
            os.kill(servers[2].pid, signal.SIGCONT)
        states = {model.name: model.state for model in index.models}
        assert states["brightness"] == "READY"

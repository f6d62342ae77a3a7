"""The system under test: real processes on free ports, kept running by the real supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx2
import psutil
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from models.repository import write_catalogue
from service.settings import JobSettings, RedisSettings, Settings
from service.supervisor import embedded, parts
from service.supervisor.directory import DataDirectory
from service.supervisor.parts import Addresses
from service.supervisor.ports import free_ports
from service.supervisor.process import adopt_orphans
from service.supervisor.supervisor import Backoff, Supervisor
from service.triton.cards import CATALOGUE, Parameter
from tests.triton.toys import write_toy

ROOT = Path(__file__).parents[2]
MODEL = "imprint"
GATEWAYS = ("gateway-1", "gateway-2")
WORKERS = ("worker-1", "worker-2")
ORDER = (*GATEWAYS, *WORKERS, "triton", "redis")
"""How it is stopped: against the flow of requests."""

JOBS = JobSettings(
    lease_s=1.5,
    max_attempts=3,
    concurrency=4,
    queue_ttl_s=6.0,
    run_timeout_s=20.0,
    result_ttl_s=15.0,
    record_ttl_s=120.0,
    idempotency_ttl_s=120.0,
    drain_s=1.0,
)


@dataclass
class System:
    """Its addresses, directories and processes. `events` is what the supervisor told."""

    data: Path
    temporary: Path
    gateways: dict[str, str]
    redis_url: str
    supervisor: Supervisor
    events: list[tuple[str, str]] = field(default_factory=list)

    @property
    def settings(self) -> Settings:
        """The settings that gateways and workers have, as far as the queue and the storage go."""
        redis = RedisSettings(url=self.redis_url, connect_timeout_s=5.0)
        return Settings(data_dir=self.data, redis=redis, jobs=JOBS)

    def pid(self, part: str) -> int | None:
        """Return the process id of a part, None while it is down."""
        process = self.supervisor.members[part].process
        return process.pid if process is not None and process.status is None else None

    def stubs(self) -> list[psutil.Process]:
        """Return Triton's model processes."""
        pid = self.pid("triton")
        with contextlib.suppress(psutil.Error):
            return [
                child
                for child in psutil.Process(pid).children(recursive=True)
                if child.status() != psutil.STATUS_ZOMBIE
            ]
        return []

    def send(self, part: str, number: signal.Signals) -> bool:
        """Send a signal to a part; tell whether it was up."""
        pid = self.pid(part)
        if pid is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        return True

    async def ready(self, seconds: float = 60.0) -> None:
        """Return once every part runs and both gateways can take jobs. Raises TimeoutError."""
        async with httpx2.AsyncClient(timeout=3.0, trust_env=False) as client:
            async with asyncio.timeout(seconds):
                for url in self.gateways.values():
                    while not await _answers(client, f"{url}/readyz"):  # noqa: ASYNC110
                        await asyncio.sleep(0.1)
                while not all(self.pid(part) for part in ORDER):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)

    def strangers(self) -> list[str]:
        """Return the processes below this one that belong to no living part."""
        groups = {self.pid(part) for part in ORDER}
        found = []
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if child.status() != psutil.STATUS_ZOMBIE and os.getpgid(child.pid) not in groups:
                    found.append(f"{child.pid} {' '.join(child.cmdline())[:120]}")
        return found


async def _answers(client: httpx2.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(url)).status_code == 200
    except httpx2.TransportError:
        return False


@contextlib.asynccontextmanager
async def running(folder: Path, **settings: str) -> AsyncIterator[System]:
    """Start the system with its data in `folder`; at the end no process of it is left.

    `settings` are variables for gateways and workers, over those of the matrix.
    """
    adopt_orphans()
    directory = DataDirectory(folder / "data")
    directory.acquire()
    temporary = folder / "tmp"
    temporary.mkdir()
    write_catalogue(directory.repository)
    write_toy(directory.repository, MODEL, MODEL, default=True, parameters=_parameters())
    grpc, http, metrics, redis_port, *gateway_ports = free_ports(4 + len(GATEWAYS))
    triton_ports = embedded.TritonPorts(grpc, http, metrics)
    redis_url = f"redis://127.0.0.1:{redis_port}/0"
    events: list[tuple[str, str]] = []
    supervisor = Supervisor(directory.logs, lambda part, event: events.append((part, event)))
    urls = {
        name: f"http://127.0.0.1:{port}" for name, port in zip(GATEWAYS, gateway_ports, strict=True)
    }
    system = System(directory.path, temporary, urls, redis_url, supervisor, events)
    configured = system.settings

    def add(part: parts.Part) -> None:
        supervisor.add(part, Backoff(first_s=0.1, longest_s=0.1))

    try:
        add(parts.redis(directory, redis_port))
        add(_triton(directory, triton_ports))
        for name, port in zip(GATEWAYS, gateway_ports, strict=True):
            where = Addresses("127.0.0.1", port, f"127.0.0.1:{grpc}", redis_url)
            add(_own(parts.gateway(directory, where, configured), name, temporary, settings))
        for name in WORKERS:
            add(_own(parts.worker(directory, where, configured, 0), name, temporary, settings))
        await system.ready()
        yield system
    finally:
        for part in ORDER:
            system.send(part, signal.SIGCONT)
        await supervisor.stop(ORDER)
        directory.release()


def _triton(directory: DataDirectory, ports: embedded.TritonPorts) -> parts.Part:
    async def nothing() -> None: ...

    part = parts.triton(directory, ports, nothing)
    command = embedded.triton_command(
        directory.repository, directory.backends, ports, (CATALOGUE, MODEL)
    )
    environment = {**part.environment, "PYTHONPATH": str(ROOT)}
    return replace(part, argv=command, environment=environment, after_start=None, grace_s=8.0)


def _own(part: parts.Part, name: str, temporary: Path, settings: Mapping[str, str]) -> parts.Part:
    """Return a gateway or a worker with short leases and one task more."""
    given = JOBS.model_dump(exclude_unset=True)
    jobs = {f"VITRINE_JOBS__{key.upper()}": str(value) for key, value in given.items()}
    return replace(
        part,
        name=name,
        argv=parts.python(f"tests.crash.{part.name}"),
        grace_s=30.0,
        environment={
            **part.environment,
            **jobs,
            "VITRINE_REDIS__CONNECT_TIMEOUT_S": "1",
            "VITRINE_TRITON__TIMEOUT_S": "5",
            "VITRINE_TRITON__INDEX_PERIOD_S": "1",
            "VITRINE_LIMITS__DRAIN_SECONDS": "2",
            "VITRINE_LIMITS__DRAIN_DELAY_SECONDS": "0.2",
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(temporary),
            **settings,
        },
    )


def _parameters() -> dict[str, Parameter]:
    return {
        "prompt": Parameter(type="string", max_length=500),
        "seed": Parameter(type="integer"),
        "steps": Parameter(type="integer", default=2, minimum=1, maximum=1000),
        "guidance": Parameter(type="number", default=1.0),
        "width": Parameter(type="integer", default=32),
        "height": Parameter(type="integer", default=32),
    }


async def connect(system: System) -> Redis:
    """Return a client of the system's Redis, which waits while that is being started again."""
    retry = Retry(ExponentialBackoff(cap=0.5, base=0.1), 40)
    return Redis.from_url(
        system.redis_url, decode_responses=True, socket_timeout=10, protocol=2, retry=retry
    )

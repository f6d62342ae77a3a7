"""The whole service: writes the model repository, starts the parts, waits until they serve."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from service.settings import Settings
from service.supervisor import parts, ports, probes
from service.supervisor.directory import DataDirectory
from service.supervisor.embedded import TritonPorts
from service.supervisor.errors import PartFailed, RepositoryFailed
from service.supervisor.parts import Addresses
from service.supervisor.process import Process, adopt_orphans, describe, tail
from service.supervisor.supervisor import Member, Supervisor
from service.triton.cards import CATALOGUE
from service.triton.faults import LOADS, is_dead

# How often a part that was up may end before the start is given up.
_STARTS = 3
_SETTLED = ("ready", "failed")
START_ORDER = ("redis", "triton", "worker", "gateway")
STOP_ORDER = START_ORDER[::-1]
_POLL_S = 0.2
# Reading the weights of a large model from a slow disk takes minutes.
_LOAD_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for. `models` None means the default set."""

    host: str
    port: int
    models: tuple[str, ...] | None
    device: Literal["auto", "cpu", "cuda"]
    triton_url: str | None
    redis_url: str | None
    timeout_s: float


@dataclass(slots=True)
class ModelRow:
    """A model of the start-up table. `state`: waiting, loading, ready, failed."""

    id: str
    task: str
    weights: str
    device: str = ""
    state: str = "waiting"
    reason: str = ""


@dataclass(slots=True)
class Progress:
    """How far the start is: a state for every part, and a row for every model."""

    parts: dict[str, str] = field(default_factory=dict)
    models: list[ModelRow] = field(default_factory=list)


class Stack:
    """One service on one data directory, which must be locked already."""

    def __init__(
        self,
        directory: DataDirectory,
        options: Options,
        settings: Settings,
        notify: Callable[[str, str], None],
    ) -> None:
        self.directory = directory
        self.progress = Progress()
        self._options = options
        self._settings = settings
        self._supervisor = Supervisor(directory.logs, self._observe)
        self._notify = notify
        self._started = False
        self._seen: set[str] = set()
        grpc, http, metrics, redis, worker = ports.free_ports(5)
        self._triton_ports = TritonPorts(grpc, http, metrics)
        own_triton = options.triton_url is None
        self._triton_metrics = f"http://127.0.0.1:{metrics}/metrics" if own_triton else None
        self._redis_port = redis
        self._worker_port = settings.worker.metrics_port or worker
        self.addresses = Addresses(
            host=options.host,
            port=options.port,
            triton=options.triton_url or f"127.0.0.1:{grpc}",
            redis=options.redis_url or f"redis://127.0.0.1:{redis}/0",
        )
        self._triton = probes.TritonProbe(self.addresses.triton)
        self._redis = probes.RedisProbe(self.addresses.redis)
        self._http = probes.HttpProbe(self.addresses.url, self._worker_port)
        self._repository: Process | None = None
        self._chosen = asyncio.Event()
        self._catalogue_failure = ""

    async def start(self, show: Callable[[Progress], None]) -> None:
        """Start everything and return when the gateway says it is ready; `show` is called as things go on.

        Raises StartError; the caller then calls `stop`.
        """
        adopt_orphans()
        self.directory.set_logs_aside()
        starting = asyncio.create_task(self._start_parts())
        deadline = time.monotonic() + self._options.timeout_s
        try:
            while not (await self._look() and starting.done()):
                if starting.done():
                    starting.result()
                self._refuse_failures()
                if time.monotonic() > deadline:
                    raise self._overdue()
                show(self.progress)
                await asyncio.sleep(_POLL_S)
            show(self.progress)
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
        self._started = True
        self.directory.write_note(self._note())

    def _observe(self, part: str, event: str) -> None:
        if part in self._seen:
            self._notify(part, event)
        if self._started:
            self.directory.write_note(self._note())

    async def stop(self) -> None:
        """Stop everything in order, each part within its grace period."""
        if self._repository is not None:
            await self._repository.stop(1.0)
        await self._supervisor.stop(STOP_ORDER)
        await asyncio.gather(self._triton.close(), self._redis.close(), self._http.close())

    def kill(self) -> None:
        """End everything at once; `stop` then returns quickly."""
        if self._repository is not None:
            self._repository.kill()
        self._supervisor.kill()

    async def _start_parts(self) -> None:
        add, directory, settings = self._supervisor.add, self.directory, self._settings
        if self._options.redis_url is None:
            add(parts.redis(directory, self._redis_port))
        add(parts.gateway(directory, self.addresses, settings, self._options.models))
        add(parts.worker(directory, self.addresses, settings, self._worker_port))
        if self._options.triton_url is None:
            add(parts.triton(directory, self._triton_ports, self._load_models, settings.tracing))
            self.progress.models = await self._write_repository()
            self._chosen.set()
        else:
            self.progress.models = [ModelRow(id, "", "") for id in self._options.models or ()]
            self._chosen.set()
            await self._load_models()

    async def _write_repository(self) -> list[ModelRow]:
        log = self.directory.logs / "repository.log"
        self.progress.parts["repository"] = "writing"
        chosen = [f"--models={model}" for model in self._options.models or ()]
        self._repository = await Process.start(
            [
                *parts.python("models"),
                "repository",
                f"--repository={self.directory.repository}",
                f"--device={self._options.device}",
                *chosen,
                "--json",
            ],
            parts.own_environment(self.directory, self.addresses),
            log,
            stdout=asyncio.subprocess.PIPE,
        )
        output = await self._repository.read()
        status, self._repository = self._repository.status, None
        if status:
            raise RepositoryFailed(
                f"The model repository could not be written ({describe(status)}).", tail(log)
            )
        self.progress.parts["repository"] = "ready"
        return [
            ModelRow(entry["id"], entry["task"], entry["weights"]) for entry in json.loads(output)
        ]

    async def _load_models(self) -> None:
        """Load the chosen models side by side; at every start of Triton, so also after a crash."""
        probe = self._triton
        await self._chosen.wait()
        for row in self.progress.models:
            row.state, row.reason = "waiting", ""
        await probe.wait()

        async def load(row: ModelRow) -> None:
            row.state, row.reason = "loading", ""
            for attempt in range(1, LOADS + 1):
                try:
                    await probe.load(row.id, _LOAD_TIMEOUT_S)
                except probes.LoadFailed as failure:
                    if is_dead(str(failure)) and attempt < LOADS:
                        continue
                    row.state, row.reason = "failed", str(failure)
                else:
                    row.state, row.device = "ready", await probe.device(row.id)
                return

        if self._options.triton_url is None:
            try:
                await probe.load(CATALOGUE, _LOAD_TIMEOUT_S)
            except probes.LoadFailed as failure:
                self._catalogue_failure = str(failure)
                return
        await asyncio.gather(*(load(row) for row in self.progress.models))

    async def _look(self) -> bool:
        """Update the states of the parts; tell whether the service is up."""
        states = self.progress.parts
        redis, triton, worker, gateway = await asyncio.gather(
            self._redis.answers(),
            self._triton.answers(),
            self._http.worker_answers(),
            self._http.gateway(),
        )
        rows = self.progress.models
        # With a model that cannot be loaded, the service still serves those it has.
        partial = self._options.triton_url is not None or any(row.state == "failed" for row in rows)
        up = gateway.ready or (partial and gateway.serving)
        states["redis"] = "ready" if redis else "starting"
        states["triton"] = "ready" if triton else "starting"
        states["worker"] = "ready" if worker else "starting"
        states["gateway"] = "ready" if up else gateway.missing
        self._seen.update(name for name in START_ORDER if states[name] == "ready")
        return redis and triton and worker and up and all(row.state in _SETTLED for row in rows)

    def _refuse_failures(self) -> None:
        if self._catalogue_failure:
            raise PartFailed(
                f"triton cannot run Python models: {self._catalogue_failure}",
                tail(self.directory.logs / "triton.log"),
            )
        for name, member in self._supervisor.members.items():
            # One that never came up will not; one that did may have met a passing fault.
            if member.exits > (_STARTS if name in self._seen else 0):
                raise self._ended(member)

    def _ended(self, member: Member) -> PartFailed:
        how = describe(member.last_status) if member.last_status is not None else "cannot be run"
        return PartFailed(
            f"{member.part.name} ended while starting ({how}); its log is {member.log}.",
            tail(member.log),
        )

    def _overdue(self) -> PartFailed:
        states = self.progress.parts
        late = next((name for name in START_ORDER if states.get(name) != "ready"), "triton")
        elsewhere = {"redis": self._options.redis_url, "triton": self._options.triton_url}.get(late)
        if elsewhere is not None:
            return PartFailed(f"{late} at {elsewhere} does not answer.")
        log = self.directory.logs / f"{late}.log"
        loading = [row.id for row in self.progress.models if row.state not in _SETTLED]
        about = f"loading {', '.join(loading)}" if loading else states.get(late, "not started")
        return PartFailed(
            f"{late} was not ready within {self._options.timeout_s:g} s ({about}); its log is {log}.",
            tail(log),
        )

    def _note(self) -> dict[str, object]:
        return {
            "pid": os.getpid(),
            "url": self.addresses.url,
            "triton": self.addresses.triton,
            "redis": self.addresses.redis,
            "worker_metrics": f"http://127.0.0.1:{self._worker_port}/metrics",
            "triton_metrics": self._triton_metrics,
            "pids": {
                name: member.process.pid
                for name, member in self._supervisor.members.items()
                if member.process is not None
            },
            "data_dir": str(self.directory.path),
        }


def chosen_models(values: Sequence[str]) -> tuple[str, ...] | None:
    """Return the ids of `--models a,b --models c`, or None when there are none."""
    ids = tuple(id for value in values for id in value.replace(",", " ").split())
    return ids or None

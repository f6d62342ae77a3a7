"""The four processes as the supervisor runs them: command lines, environments, grace periods."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from service.settings import Settings, TracingSettings
from service.supervisor import embedded
from service.supervisor.directory import DataDirectory
from service.supervisor.supervisor import Part
from service.triton.server import EXIT_S, remove_shared_memory, trace_options

# Beyond what a process grants its own running work.
_MARGIN_S = 8.0


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the parts listen: the gateway's host and port, and the URLs of Triton (gRPC) and Redis."""

    host: str
    port: int
    triton: str
    redis: str

    @property
    def url(self) -> str:
        """The gateway's URL as seen from this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


def python(module: str) -> tuple[str, ...]:
    """Return the command that runs one of our modules.

    `-P`: a folder named `models` or `service` in the user's working directory must not be imported instead.
    """
    return (sys.executable, "-P", "-m", module)


def own_environment(directory: DataDirectory, addresses: Addresses) -> Mapping[str, str]:
    """Return the environment of the gateway and the worker: the user's own, with the addresses."""
    return {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "VITRINE_HOST": addresses.host,
        "VITRINE_PORT": str(addresses.port),
        "VITRINE_DATA_DIR": str(directory.path),
        "VITRINE_TRITON__URL": addresses.triton,
        "VITRINE_REDIS__URL": addresses.redis,
    }


def redis(directory: DataDirectory, port: int) -> Part:
    """Redis: SIGTERM makes it write and sync its append-only file before it ends."""
    directory.redis.mkdir(parents=True, exist_ok=True)
    return Part(
        "redis",
        embedded.redis_command(directory.redis, port),
        dict(os.environ),
        grace_s=10.0,
        death_signal=signal.SIGTERM,
        inherits=(directory.lock_descriptor,),
    )


def triton(
    directory: DataDirectory,
    ports: embedded.TritonPorts,
    after_start: Callable[[], Awaitable[None]],
    tracing: TracingSettings | None = None,
) -> Part:
    """Triton: SIGTERM makes it end its stubs, which a SIGKILL of it alone would leave behind."""
    embedded.write_backends(directory.backends)
    directory.repository.mkdir(parents=True, exist_ok=True)
    return Part(
        "triton",
        (
            *embedded.triton_command(directory.repository, directory.backends, ports),
            *(trace_options(tracing) if tracing is not None else ()),
        ),
        embedded.triton_environment(),
        grace_s=EXIT_S + _MARGIN_S,
        death_signal=signal.SIGTERM,
        inherits=(directory.lock_descriptor,),
        after_start=after_start,
        after_end=lambda: remove_shared_memory(directory.repository),
    )


def worker(
    directory: DataDirectory, addresses: Addresses, settings: Settings, metrics_port: int
) -> Part:
    """The worker, with its metrics on the loopback: SIGTERM makes it finish or hand back its jobs."""
    return Part(
        "worker",
        python("service.jobs.worker"),
        {
            **own_environment(directory, addresses),
            "VITRINE_HOST": "127.0.0.1",
            "VITRINE_WORKER__METRICS_PORT": str(metrics_port),
        },
        grace_s=settings.jobs.drain_s + _MARGIN_S,
    )


def gateway(
    directory: DataDirectory,
    addresses: Addresses,
    settings: Settings,
    models: Sequence[str] | None = None,
) -> Part:
    """The gateway: SIGTERM makes it stop accepting and finish the requests it has.

    It is ready once `models` are; by default, those that the settings require.
    """
    environment = {
        **own_environment(directory, addresses),
        "VITRINE_GATEWAY_WORKERS": str(settings.gateway_workers),
    }
    if settings.auth.required is not None:
        environment["VITRINE_AUTH__REQUIRED"] = json.dumps(settings.auth.required)
    if models is not None:
        environment["VITRINE_TRITON__REQUIRED_MODELS"] = json.dumps(models)
    return Part(
        "gateway",
        python("service.app"),
        environment,
        grace_s=settings.limits.drain_delay_seconds + settings.limits.drain_seconds + _MARGIN_S,
    )

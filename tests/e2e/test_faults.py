"""Parts that die while the service runs: what answers meanwhile, and that nothing is lost."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import httpx2
import psutil
import pytest

from models.demo import shapes
from tests.e2e.service import Service
from tests.e2e.test_main_job import png

pytestmark = pytest.mark.slow

PICTURE = png(shapes.draw(shapes.HELD_OUT + 2)[0])


def classify(service: Service) -> httpx2.Response:
    return service.client.post(
        "/v1/classify", content=PICTURE, headers={"Content-Type": "image/png"}
    )


def until(condition: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come back"
        time.sleep(0.2)


def kill(process: psutil.Process) -> None:
    process.send_signal(signal.SIGKILL)
    # Triton does not reap its models' processes; a zombie is dead enough.
    until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, 10)


def test_a_killed_worker_loses_no_job(service: Service) -> None:
    """SIGKILL in the middle of a job: another attempt takes over, the job ends once in effect."""
    accepted = service.client.post(
        "/v1/generate/image", json={"prompt": "a red circle", "steps": 60, "n": 4, "seed": 9}
    ).json()
    for event in service.follow(accepted["id"]):
        if event["event"] == "progress" and event["data"]["percent"] > 0:
            break
    kill(service.process("service.jobs.worker"))
    job = service.finished(accepted["id"])
    assert job["state"] == "succeeded"
    assert job["attempt"] == 2
    assert len(job["result"]["files"]) == 4
    states = [e["data"]["state"] for e in service.events(accepted["id"]) if e["event"] == "state"]
    assert states == ["queued", "running", "running", "succeeded"]


def test_triton_dies_and_comes_back(service: Service) -> None:
    assert classify(service).status_code == 200
    kill(service.process("tritonserver"))
    down = classify(service)
    assert down.status_code == 503
    assert down.json()["code"] in ("inference_unavailable", "model_not_loaded", "model_loading")
    assert int(down.headers["retry-after"]) >= 1
    assert service.client.get("/livez").status_code == 200
    until(lambda: classify(service).status_code == 200)
    until(lambda: service.client.get("/readyz").status_code == 200)


def test_a_model_process_dies_and_comes_back(service: Service) -> None:
    assert classify(service).status_code == 200
    kill(service.process("convnext-demo/1/model.py"))
    until(lambda: classify(service).status_code == 200)


def test_redis_dies_and_comes_back(service: Service) -> None:
    before = service.generate("a red circle", seed=1, steps=2)
    assert classify(service).status_code == 200
    kill(service.process("redis-server"))
    assert classify(service).status_code == 200
    jobs = service.client.get("/v1/jobs")
    if jobs.status_code != 200:  # the supervisor may have been faster
        assert jobs.status_code == 503
        assert jobs.json()["code"] == "queue_unavailable"
        assert int(jobs.headers["retry-after"]) >= 1
    until(lambda: service.client.get("/v1/jobs").status_code == 200)
    assert service.client.get(f"/v1/jobs/{before['id']}").json()["state"] == "succeeded"
    until(
        lambda: (
            service.client.post(
                "/v1/generate/image", json={"prompt": "a red circle", "steps": 2}
            ).status_code
            == 202
        )
    )


def test_the_gateway_dies_and_comes_back(service: Service) -> None:
    kill(service.process("service.app"))

    def answers() -> bool:
        try:
            return classify(service).status_code == 200
        except httpx2.TransportError:
            return False

    until(answers)


def test_an_added_model_is_served_without_a_restart(service: Service, tmp_path) -> None:
    import subprocess
    import sys

    import torch

    from models.registry import architecture

    made = architecture("convnext")
    torch.manual_seed(3)
    network = made.network(made.config("demo", 3))
    checkpoint, labels = tmp_path / "mine.pth", tmp_path / "labels.txt"
    torch.save({"model": network.state_dict()}, checkpoint)
    labels.write_text("ant\nbee\ncat\n")
    command = [sys.executable, "-m", "service.cli.main", "add", "mine"]
    command += ["--architecture", "convnext:demo", "--checkpoint", str(checkpoint)]
    command += ["--labels", str(labels), "--repository", str(service.data_dir / "repository")]
    subprocess.run(command, check=True, timeout=120)
    answer = service.post("/v1/classify?model=mine&top_k=3", PICTURE, "image/png")
    assert {p["label"] for p in answer["predictions"]} == {"ant", "bee", "cat"}
    assert answer["weights"] == "own"
    shown = service.client.get("/v1/models/mine").json()
    assert shown["state"] == "ready"
    service.client.post("/v1/models/mine/unload").raise_for_status()
    assert service.client.get("/v1/models/mine").json()["state"] == "unloaded"
    service.post("/v1/classify?model=mine", PICTURE, "image/png")

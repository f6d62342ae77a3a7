"""`vitrine up` as a process: with a Triton that runs elsewhere, so that no network must be loaded."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from service.client import Client
from service.jobs.queue import Queue
from service.jobs.record import Submission
from service.settings import JobSettings, RedisSettings
from service.supervisor import embedded, ports, probes
from service.supervisor.process import Process
from tests.cli.running import Up, alive, run_vitrine, until_gone


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The gRPC address of a Triton with an empty repository."""
    folder = tmp_path_factory.mktemp("triton")
    (folder / "repository").mkdir()
    embedded.write_backends(folder / "backends")
    triton_ports = embedded.TritonPorts(*ports.free_ports(3))

    async def start() -> Process:
        process = await Process.start(
            embedded.triton_command(folder / "repository", folder / "backends", triton_ports),
            embedded.triton_environment(),
            folder / "triton.log",
        )
        probe = probes.TritonProbe(f"127.0.0.1:{triton_ports.grpc}")
        async with asyncio.timeout(30):
            await probe.wait()
        await probe.close()
        return process

    with asyncio.Runner() as runner:
        process = runner.run(start())
        yield f"127.0.0.1:{triton_ports.grpc}"
        runner.run(process.stop(15))


@pytest.fixture
def up(tmp_path: Path, triton: str) -> Iterator[Up]:
    up = Up.start(tmp_path / "data", VITRINE_TRITON__URL=triton)
    yield up
    up.stop(signal.SIGKILL)


def eventually(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.1)


def answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/v1/jobs", timeout=5).status_code == 200
    except httpx2.TransportError:
        return False


def test_parts_come_back_and_sigterm_leaves_nothing(up: Up) -> None:
    url, pids = up.url, up.note["pids"]
    assert set(pids) == {"redis", "worker", "gateway"}
    assert answers(url)
    assert httpx2.get(up.note["worker_metrics"]).status_code == 200

    refused = run_vitrine("up", "--port", "0", "--data-dir", str(up.data_dir))
    assert refused.returncode == 1
    assert f"{up.data_dir} is in use: a service runs from it at {url}" in refused.stderr
    taken = run_vitrine("up", "--port", url.rsplit(":", 1)[1], "--data-dir", f"{up.data_dir}-2")
    assert taken.returncode == 1
    assert f"(pid {pids['gateway']})" in taken.stderr
    assert "--port " in taken.stderr

    for part in ("gateway", "worker", "redis"):
        os.kill(pids[part], signal.SIGKILL)
    eventually(lambda: all(up.note["pids"][part] != pids[part] for part in pids))
    eventually(lambda: answers(url))
    assert "redis: ended (killed by SIGKILL); starting it again in 0.5 s" in up.text()
    assert "gateway: started again" in up.text()

    family = up.family()
    assert len(family) >= 3
    assert up.stop() == 0
    assert not alive(family)
    assert up.text().endswith("Stopped.\n")
    # Data and logs stay; the lock and the note are gone.
    assert sorted(p.name for p in up.data_dir.iterdir()) == ["logs", "redis", "storage"]


def test_following_a_job_survives_the_gateway(up: Up) -> None:
    pids = up.note["pids"]
    os.kill(pids["worker"], signal.SIGSTOP)  # so that the job stays in the queue

    async def submit() -> str:
        async with Queue(RedisSettings(url=up.note["redis"]), JobSettings()) as queue:
            submission = Submission(task="classify", model=None, parameters={})
            return (await queue.submit(submission)).id

    job_id = asyncio.run(submit())
    with Client(up.url) as client, ThreadPoolExecutor(1) as pool:
        following = client.follow(job_id)
        assert next(following)["state"] == "queued"
        rest = pool.submit(list, following)
        os.kill(pids["gateway"], signal.SIGKILL)
        eventually(lambda: up.note["pids"]["gateway"] != pids["gateway"] and answers(up.url))
        assert httpx2.delete(f"{up.url}/v1/jobs/{job_id}").json()["state"] == "canceled"
        assert rest.result(timeout=30)[-1]["state"] == "canceled"
    os.kill(pids["worker"], signal.SIGCONT)
    shown = run_vitrine("jobs", "watch", job_id, "--url", up.url)
    assert (shown.returncode, shown.stderr) == (1, "error: The job is canceled. [canceled]\n")


def test_a_killed_supervisor_takes_its_children_along(up: Up, triton: str) -> None:
    family = up.family()
    assert up.stop(signal.SIGKILL) == -signal.SIGKILL
    until_gone(family)
    successor = Up.start(up.data_dir, VITRINE_TRITON__URL=triton)
    served = answers(successor.url)
    assert successor.stop(signal.SIGINT) == 0
    assert served


def test_a_second_signal_ends_everything_at_once(up: Up) -> None:
    family = up.family()
    # A gateway that does not react to SIGTERM would be given its whole grace period.
    os.kill(up.note["pids"]["gateway"], signal.SIGSTOP)
    up.process.send_signal(signal.SIGINT)
    eventually(lambda: "Stopping" in up.text())
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(timeout=10) == 0
    assert not alive(family)
    assert "Forced" in up.text()


def test_a_signal_while_starting_stops_what_was_started(tmp_path: Path) -> None:
    up = Up.launch(tmp_path / "data", VITRINE_TRITON__URL="127.0.0.1:1")
    eventually(lambda: "redis: ready" in up.text())
    family = up.family()
    assert up.stop() == 0
    assert not alive(family)
    assert not (tmp_path / "data" / "up.json").exists()


def test_a_part_that_ends_after_it_was_up_is_started_again(tmp_path: Path) -> None:
    up = Up.launch(tmp_path / "data", VITRINE_TRITON__URL="127.0.0.1:1")
    eventually(lambda: "worker: ready" in up.text())
    (worker,) = [p for p in up.family() if "service.jobs.worker" in p.cmdline()]
    worker.kill()
    eventually(lambda: "worker: started again" in up.text())
    assert up.process.poll() is None
    assert up.stop() == 0


def test_a_part_that_cannot_start_shows_its_log(tmp_path: Path, triton: str) -> None:
    failed = run_vitrine(
        *("up", "--port", "0", "--data-dir", str(tmp_path)),
        VITRINE_TRITON__URL=triton,
        VITRINE_STORAGE__URL="ftp://nowhere",
    )
    assert failed.returncode == 1
    assert "ended while starting (exit status 1); its log is" in failed.stderr
    assert "'ftp' is not one of file, s3" in failed.stderr


def test_a_server_elsewhere_that_does_not_answer_is_named(tmp_path: Path) -> None:
    failed = run_vitrine(
        *("up", "--port", "0", "--data-dir", str(tmp_path), "--timeout", "3"),
        VITRINE_TRITON__URL="127.0.0.1:1",
    )
    assert failed.returncode == 1
    assert "error: triton at 127.0.0.1:1 does not answer." in failed.stderr


def test_a_wrong_variable_is_named() -> None:
    failed = run_vitrine("up", VITRINE_PORT="many")
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: VITRINE_PORT: Input should be a valid integer")
    assert "Traceback" not in failed.stderr

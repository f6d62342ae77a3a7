"""The supervisor with real processes: Redis and Triton from the wheels, and small Python programs."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from service.supervisor import parts, ports, probes
from service.supervisor.directory import DataDirectory
from service.supervisor.embedded import TritonPorts
from service.supervisor.process import Process, describe, tail
from service.supervisor.supervisor import Backoff, Part, Supervisor
from service.triton.server import shared_memory_prefix

ECHO_CONFIG = """
name: "echo"
backend: "python"
max_batch_size: 0
input { name: "X" data_type: TYPE_FP32 dims: [-1] }
output { name: "Y" data_type: TYPE_FP32 dims: [-1] }
instance_group { kind: KIND_CPU count: 1 }
"""
ECHO_MODEL = """
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("Y",
            pb_utils.get_input_tensor_by_name(r, "X").as_numpy())]) for r in requests]
"""


def quick() -> Backoff:
    return Backoff(first_s=0.05, longest_s=0.2)


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - other processes, no event to wait for
            await asyncio.sleep(0.02)


def regions(directory: DataDirectory) -> list[Path]:
    return list(Path("/dev/shm").glob(f"{shared_memory_prefix(directory.repository)}*"))


def program(source: str) -> tuple[str, ...]:
    return (sys.executable, "-c", source)


def part(name: str, source: str, **changes: object) -> Part:
    fields = {"argv": program(source), "environment": dict(os.environ), "grace_s": 5.0} | changes
    return Part(name, **fields)  # type: ignore[arg-type]


@pytest.fixture
def directory(tmp_path: Path):
    directory = DataDirectory(tmp_path / "data")
    directory.acquire()
    yield directory
    directory.release()


@pytest.fixture
async def supervisor(tmp_path: Path) -> AsyncIterator[Supervisor]:
    events: list[tuple[str, str]] = []
    supervisor = Supervisor(tmp_path / "logs", lambda part, event: events.append((part, event)))
    supervisor.events = events  # type: ignore[attr-defined]
    yield supervisor
    supervisor.kill()
    await supervisor.stop(list(supervisor.members))


def test_backoff_doubles_to_its_limit_and_starts_over_after_a_stable_run() -> None:
    backoff = Backoff(first_s=1.0, longest_s=5.0, stable_s=60.0)
    assert [backoff.after(0.1) for _ in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert backoff.after(61.0) == 1.0
    assert backoff.after(0.1) == 2.0


async def test_a_child_that_ends_is_started_again(supervisor: Supervisor) -> None:
    member = supervisor.add(part("fleeting", "raise SystemExit(3)"), quick())
    await until(lambda: member.exits >= 3)
    assert member.last_status == 3
    events = supervisor.events  # type: ignore[attr-defined]
    assert ("fleeting", "ended (exit status 3); starting it again in 0.05 s") in events
    assert ("fleeting", "ended (exit status 3); starting it again in 0.1 s") in events


async def test_a_command_that_does_not_exist_is_reported(supervisor: Supervisor) -> None:
    member = supervisor.add(part("absent", "", argv=("/nonexistent/program",)), quick())
    await until(lambda: member.exits >= 1)
    ((_, event), *_) = supervisor.events  # type: ignore[attr-defined]
    assert event.startswith("cannot be started: [Errno 2]")


async def test_stop_lets_a_child_finish_and_returns_when_it_has(supervisor: Supervisor) -> None:
    source = (
        "import signal, sys, time\n"
        "def finish(*_): time.sleep(0.3); print('finished', flush=True); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, finish); print('up', flush=True); time.sleep(60)"
    )
    member = supervisor.add(part("steady", source), quick())
    await until(lambda: "up" in tail(member.log))
    await supervisor.stop(["steady"])
    assert tail(member.log) == "up\nfinished"
    assert member.last_status == 0
    assert member.exits == 0


async def test_a_child_that_ignores_sigterm_is_killed_with_its_descendants(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    source = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    member = supervisor.add(part("stubborn", source, grace_s=0.3), quick())
    await until(lambda: tail(member.log).isdigit())
    grandchild = psutil.Process(int(tail(member.log)))
    await supervisor.stop(["stubborn"])
    assert member.last_status == -signal.SIGKILL
    assert not grandchild.is_running()


async def test_descendants_end_when_their_parent_is_killed(supervisor: Supervisor) -> None:
    source = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    member = supervisor.add(part("parent", source), Backoff(first_s=60.0))
    await until(lambda: tail(member.log).isdigit())
    orphan = psutil.Process(int(tail(member.log)))
    assert member.process is not None
    os.kill(member.process.pid, signal.SIGKILL)
    await until(lambda: member.exits == 1)
    assert not orphan.is_running()


async def test_children_end_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    source = (
        "import asyncio, os, sys\nfrom pathlib import Path\n"
        "from service.supervisor.process import Process\n"
        "async def main():\n"
        "    child = await Process.start([sys.executable, '-c', 'import time; time.sleep(60)'],\n"
        "                                os.environ, Path(sys.argv[1]))\n"
        "    print(child.pid, flush=True)\n"
        "    await child.wait()\n"
        "asyncio.run(main())"
    )
    parent = await asyncio.create_subprocess_exec(
        *program(source), str(tmp_path / "log"), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    child = psutil.Process(int(await parent.stdout.readline()))
    parent.kill()
    await parent.wait()
    await until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


async def test_redis_keeps_its_data_over_a_kill(
    supervisor: Supervisor, directory: DataDirectory
) -> None:
    from redis.asyncio import Redis

    (port,) = ports.free_ports(1)
    url = f"redis://127.0.0.1:{port}/0"
    probe = probes.RedisProbe(url)
    assert not await probe.answers()
    member = supervisor.add(parts.redis(directory, port), quick())
    async with asyncio.timeout(20), Redis.from_url(url) as client:
        while not await probe.answers():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await client.set("job", "kept")
        assert (await client.config_get("appendonly"))["appendonly"] == "yes"
        assert (await client.config_get("maxmemory-policy"))["maxmemory-policy"] == "noeviction"
        # With everysec it may answer before it writes.
        assert (await client.config_get("appendfsync"))["appendfsync"] == "always"
        assert member.process is not None
        os.kill(member.process.pid, signal.SIGKILL)
        while member.exits == 0 or not await probe.answers():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    async with Redis.from_url(url) as client:
        assert await client.get("job") == b"kept"
    await probe.close()
    await supervisor.stop(["redis"])
    assert member.last_status == 0


async def test_triton_loads_again_after_a_kill_and_leaves_nothing(
    supervisor: Supervisor, directory: DataDirectory
) -> None:
    entry = directory.repository / "echo" / "1"
    entry.mkdir(parents=True)
    (entry.parent / "config.pbtxt").write_text(ECHO_CONFIG)
    (entry / "model.py").write_text(ECHO_MODEL)
    triton_ports = TritonPorts(*ports.free_ports(3))
    probe = probes.TritonProbe(f"127.0.0.1:{triton_ports.grpc}")
    loaded: list[str] = []

    async def load() -> None:
        await probe.wait()
        await probe.load("echo", 30.0)
        loaded.append(await probe.device("echo"))

    member = supervisor.add(parts.triton(directory, triton_ports, load), quick())
    await until(lambda: loaded == ["cpu"], 40)
    assert member.process is not None
    stubs = psutil.Process(member.process.pid).children(recursive=True)
    assert [stub.name() for stub in stubs] == ["triton_python_backend_stub"]
    assert regions(directory)

    with pytest.raises(probes.LoadFailed, match="nobody"):
        await probe.load("nobody", 10.0)

    os.kill(member.process.pid, signal.SIGKILL)
    await until(lambda: member.exits == 1)
    assert not any(stub.is_running() for stub in stubs)
    await until(lambda: loaded == ["cpu", "cpu"], 40)

    stubs = psutil.Process(member.process.pid).children(recursive=True)
    await supervisor.stop(["triton"])
    assert member.last_status == 0
    assert not any(stub.is_running() for stub in stubs)
    assert not regions(directory)
    await probe.close()


@pytest.mark.parametrize(
    ("status", "words"),
    [(1, "exit status 1"), (-9, "killed by SIGKILL"), (-200, "killed by signal 200")],
)
def test_exit_statuses_in_words(status: int, words: str) -> None:
    assert describe(status) == words


async def test_output_can_be_read_while_errors_go_to_the_log(tmp_path: Path) -> None:
    source = "import sys; print('answer'); print('note', file=sys.stderr)"
    process = await Process.start(
        program(source), os.environ, tmp_path / "log", stdout=asyncio.subprocess.PIPE
    )
    assert await process.read() == b"answer\n"
    assert process.status == 0
    assert tail(tmp_path / "log") == "note"


def test_tail_gives_the_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert tail(log) == ""
    log.write_text("".join(f"line {n}\n" for n in range(100_000)))
    assert tail(log, 2) == "line 99998\nline 99999"

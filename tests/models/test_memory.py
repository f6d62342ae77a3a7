"""Which models go when another needs room: the rules alone, with memory as the test says it is."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from models.memory import GPU, HOST, MIB, Room, Verdict, host_budget
from models.presence import Mark, Presence, end, forget_dead, idle_since_start, read_mark

GIB = 1024 * MIB


class Server:
    """Models that hold 1 GiB each, and a clock."""

    def __init__(self, repository: Path, budget: dict[str, int]) -> None:
        self.now = 1000.0
        self.held: dict[str, int] = {}
        self.marks: dict[str, Mark] = {}
        self.unloaded: list[str] = []
        self.room = Room(
            repository,
            budget,
            self.unloaded.append,
            lambda _: dict(self.held),
            lambda _, model: self.marks.get(model),
            lambda: self.now,
        )

    def make(self, model: str, *pinned: str) -> str:
        self.now += 1
        return self.make_verdict(model, *pinned).verdict

    def make_verdict(self, model: str, *pinned: str) -> Verdict:
        return self.room.make(model, pinned)

    def load(self, model: str, size: int = GIB, gpu: int = 0) -> None:
        """Have the model come, as Triton does after a grant."""
        self.now += 1
        self.held[model] = size
        self.marks[model] = Mark(False, self.now, "cuda:0" if gpu else "", gpu, 8 * GIB)

    def use(self, model: str, *, busy: bool = False) -> None:
        self.now += 1
        self.marks[model] = Mark(busy, self.now)

    def end(self, model: str) -> None:
        del self.held[model], self.marks[model]


@pytest.fixture
def server(tmp_path: Path) -> Server:
    for model in ("a", "b", "c", "d"):
        (tmp_path / model / "1").mkdir(parents=True)
        (tmp_path / model / "config.pbtxt").write_text("kind: KIND_CPU")
    server = Server(tmp_path, {HOST: 3 * GIB + 100 * MIB})
    for model in ("a", "b", "c"):
        assert server.make(model) == "granted"
        server.load(model)
    return server


def test_the_least_recently_used_goes_and_its_end_is_waited_for(server: Server) -> None:
    server.use("a")
    assert server.make("d") == "wait"
    assert server.unloaded == ["b"]
    assert server.make("d") == "wait"
    assert server.unloaded == ["b"]  # one is enough, and it is still on its way out
    server.end("b")
    assert server.make("d") == "granted"


def test_what_was_measured_counts_when_it_comes_again(server: Server) -> None:
    for model in ("a", "b"):
        server.end(model)
    server.make("c")
    server.held["c"] = 2 * GIB + 200 * MIB
    # Its estimate would fit (350 MiB and its weights); the gibibyte that it had before does not.
    assert server.make("a") == "wait"
    assert server.make("d") == "granted"


@pytest.mark.parametrize("kept", ["busy", "pinned", "coming"])
def test_some_models_stay(server: Server, kept: str) -> None:
    if kept == "busy":
        for model in ("a", "b", "c"):
            server.use(model, busy=True)
    if kept == "coming":
        server.marks.clear()
    assert server.make("d", *("abc" if kept == "pinned" else "")) == "wait"
    assert not server.unloaded
    if kept == "busy":
        server.use("c")
        assert server.make("d") == "wait"
        assert server.unloaded == ["c"]


def test_two_at_once_do_not_get_the_same_memory(server: Server) -> None:
    for model in ("a", "b"):
        server.end(model)
    server.held["c"] = 2 * GIB + 500 * MIB
    assert server.make("d") == "granted"
    assert server.make("d") == "granted"  # asked by another gateway: the same grant
    assert server.make("a") == "wait"
    server.now += 31  # d was never loaded
    server.held["c"] = 2 * GIB
    assert server.make("a") == "granted"


def test_a_model_that_is_there_needs_no_room(server: Server) -> None:
    server.held["a"] = 9 * GIB
    assert server.make("a") == "granted"
    assert not server.unloaded


def test_a_model_that_never_fits_evicts_nobody(server: Server, tmp_path: Path) -> None:
    with (tmp_path / "d" / "1" / "model.safetensors").open("wb") as file:
        file.truncate(2 * GIB)
    verdict = server.make_verdict("d")
    assert verdict.verdict == "too_large"
    assert verdict.needed[HOST] > verdict.budget[HOST]
    assert not server.unloaded


def test_gpu_memory_is_a_budget_of_its_own(tmp_path: Path) -> None:
    for model in ("a", "b"):
        (tmp_path / model / "1").mkdir(parents=True)
        (tmp_path / model / "config.pbtxt").write_text("kind: KIND_GPU")
    with (tmp_path / "b" / "1" / "model.safetensors").open("wb") as file:
        file.truncate(2 * GIB)
    server = Server(tmp_path, {HOST: 100 * GIB})
    assert server.make("a") == "granted"
    server.load("a", gpu=4 * GIB)
    # Four fifths of 8 GiB, of which 4 are taken; b needs twice its weights and the runtime.
    assert server.make("b") == "wait"
    assert server.unloaded == ["a"]
    server.end("a")
    verdict = server.make_verdict("b")
    assert verdict.verdict == "granted"
    assert verdict.needed[GPU] > 4 * GIB


def test_a_mark_tells_use_and_device(tmp_path: Path) -> None:
    assert read_mark(tmp_path, "m") is None
    presence = Presence(tmp_path, "m")
    try:
        first = read_mark(tmp_path, "m")
        assert first is not None
        assert not first.busy
        presence.holds("cuda:0", 5, 7)
        with presence:
            mark = read_mark(tmp_path, "m")
            assert mark is not None
            assert (mark.busy, mark.device, mark.used, mark.total) == (True, "cuda:0", 5, 7)
        after = read_mark(tmp_path, "m")
        assert after is not None
        assert not after.busy
        assert after.last_used >= first.last_used
    finally:
        presence.close()
    assert read_mark(tmp_path, "m") is None


def test_a_death_is_told_once(tmp_path: Path) -> None:
    alive = f"from models.presence import Presence; Presence({str(tmp_path)!r}, 'm')"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{alive}; print('up', flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert not forget_dead(tmp_path, "m")
        process.kill()
        process.wait()
    assert not forget_dead(tmp_path, "other")
    assert forget_dead(tmp_path, "m")
    assert not forget_dead(tmp_path, "m")


def test_a_model_that_ends_has_not_died(tmp_path: Path) -> None:
    Presence(tmp_path, "m").close()
    assert not forget_dead(tmp_path, "m")


def test_a_containers_limit_is_the_budgets(tmp_path: Path) -> None:
    whole = host_budget(tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    assert host_budget(tmp_path) == whole
    (tmp_path / "memory.max").write_text(f"{MIB}\n")
    assert host_budget(tmp_path) == round(0.8 * MIB)


def test_a_process_that_was_never_asked_for_anything_is_known(tmp_path: Path) -> None:
    alive = (
        f"from models.presence import Presence; presence = Presence({str(tmp_path)!r}, 'm.1')\n"
        "print('up', flush=True); input()\n"
        "with presence: print('used', flush=True); input()"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", alive], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    with processes[0] as first, processes[1] as second:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
        assert idle_since_start(tmp_path, "m.1", 0) == {first.pid, second.pid}
        assert not idle_since_start(tmp_path, "m.1", 3600)
        assert not idle_since_start(tmp_path, "m", 0)
        assert first.stdin is not None
        assert first.stdout is not None
        first.stdin.write(b"\n")
        first.stdin.flush()
        assert first.stdout.readline() == b"used\n"
        assert idle_since_start(tmp_path, "m.1", 0) == {second.pid}
        end(tmp_path, "m.1", second.pid)
        assert second.wait(10) == -signal.SIGKILL
        assert not idle_since_start(tmp_path, "m.1", 0)
        assert not forget_dead(tmp_path, "m.1")
        first.kill()
    assert not idle_since_start(tmp_path, "m.1", 0)
    assert forget_dead(tmp_path, "m.1")

"""Child processes that decode one file after another within limits, watched from outside.

A crash, a hang or a file that needs too much memory ends the child and not the fuzzing.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import resource
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

SECONDS = 10.0
"""A file of some kilobytes that takes longer is a hang."""

MEMORY_BYTES = 256 * 2**20
"""What decoding one file may add: several times the pixels that the fuzzing's limits allow."""

_ADDRESS_SPACE_BYTES = 6 * 2**30
_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one file. `failure` is None where a request would have been answered well,
    else `exception`, `crash`, `hang` or `memory`; `detail` then says more."""

    outcome: str
    seconds: float
    memory_bytes: int
    failure: str | None = None
    detail: str = ""


class Child:
    """A process that decodes; it is replaced when a file has killed it."""

    def __init__(self) -> None:
        self._start()

    def examine(self, data: bytes) -> Verdict:
        """Decode `data` in the process."""
        started = time.perf_counter()
        try:
            self._pipe.send_bytes(data)
            if self._pipe.poll(SECONDS):
                verdict: Verdict = self._pipe.recv()
                return verdict
        except (EOFError, ConnectionError):
            self._process.join()
            status = self._process.exitcode or 0
            verdict = Verdict("", time.perf_counter() - started, 0, "crash", f"exit {status}")
        else:
            verdict = Verdict("", SECONDS, 0, "hang", f"no end after {SECONDS:g} s")
        self.stop()
        self._start()
        return verdict

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _start(self) -> None:
        self._pipe, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        if not self._pipe.poll(60) or self._pipe.recv() != "ready":
            raise RuntimeError("The decoding process does not start.")


def _serve(pipe: Connection) -> None:
    import av.logging

    from tests.fuzz.target import outcome

    av.logging.set_level(None)
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE_BYTES, _ADDRESS_SPACE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe.send("ready")
    with asyncio.Runner() as runner:
        while True:
            try:
                data = pipe.recv_bytes()
            except EOFError:
                return
            before = _peak_memory(reset=True)
            started = time.perf_counter()
            answer, failure, detail = "", None, ""
            try:
                answer = runner.run(outcome(data))
            except Exception:
                failure, detail = "exception", traceback.format_exc()
            seconds = time.perf_counter() - started
            grown = _peak_memory() - before
            if failure is None and grown > MEMORY_BYTES:
                failure, detail = "memory", f"{grown / 2**20:.0f} MiB"
            pipe.send(Verdict(answer, seconds, grown, failure, detail))


def _peak_memory(reset: bool = False) -> int:
    """Return the process's highest resident memory in bytes since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024

"""A child process with its own session, its log file and its descendants."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_SWEEP_S = 3.0


def adopt_orphans() -> None:
    """Make grandchildren whose parent died children of this process, so that it can reap them."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def tied_to_parent(death_signal: signal.Signals, parent: int) -> Callable[[], None]:
    """Return what a new process calls so that the kernel sends it `death_signal` when `parent` dies."""

    def tie() -> None:
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
            if os.getppid() != parent:  # died between fork and prctl
                os._exit(1)

    return tie


class Process:
    """One run of a command. It leads a session, so its process group holds all its descendants."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid

    @classmethod
    async def start(
        cls,
        argv: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        *,
        death_signal: signal.Signals = signal.SIGKILL,
        inherits: tuple[int, ...] = (),
        stdout: int | None = None,
    ) -> Process:
        """Start `argv`; its standard error (and output, unless `stdout` says otherwise) is appended to `log`.

        `death_signal` is what the kernel sends it if this process dies; `inherits` are file
        descriptors that stay open in it. Raises OSError if the command cannot be run.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as sink:
            process = await asyncio.create_subprocess_exec(
                *argv,
                env=dict(environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=sink if stdout is None else stdout,
                stderr=sink,
                start_new_session=True,
                pass_fds=inherits,
                preexec_fn=tied_to_parent(death_signal, os.getpid()),
            )
        return cls(process)

    async def read(self) -> bytes:
        """Return everything that it writes to its standard output (`stdout=PIPE`) and wait for its end."""
        output, _ = await self._process.communicate()
        await self._sweep()
        return output

    @property
    def status(self) -> int | None:
        """Exit status; negative for a signal, None while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        """Wait for its end and for the end of every descendant; return the exit status."""
        status = await self._process.wait()
        await self._sweep()
        return status

    async def stop(self, grace_s: float) -> None:
        """Ask it to end (SIGTERM), and after `grace_s` seconds kill it with all descendants."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await self._process.wait()
        except TimeoutError:
            self.kill()
        await self.wait()

    def kill(self) -> None:
        """Kill it and every descendant at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    async def _sweep(self) -> None:
        """Kill and reap what is left of the process group once its leader has gone."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SWEEP_S):
                while _group_exists(self.pid):
                    self.kill()
                    await asyncio.sleep(0.02)


def _group_exists(group: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-group, os.WNOHANG)[0]:
            pass
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def describe(status: int) -> str:
    """Return an exit status in words: `exit status 1`, `killed by SIGKILL`."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def tail(log: Path, lines: int = 15) -> str:
    """Return the last `lines` lines of a log file (of its last 64 KiB)."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.rstrip().splitlines()[-lines:])

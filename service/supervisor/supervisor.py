"""Keeps children running: restarts those that end, with back-off, and stops them in order."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from service.supervisor.process import Process, describe


@dataclass(frozen=True, slots=True)
class Part:
    """A process of the service: how to run it and how long it may take to stop.

    `after_start` runs beside every run of the process and is cancelled when that ends; `after_end`
    clears away what the process may have left.
    """

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    grace_s: float
    death_signal: signal.Signals = signal.SIGKILL
    inherits: tuple[int, ...] = ()
    after_start: Callable[[], Awaitable[None]] | None = None
    after_end: Callable[[], None] | None = None


@dataclass(slots=True)
class Backoff:
    """Seconds to wait before the next start: doubles at every quick end, starts over after a stable run."""

    first_s: float = 0.5
    longest_s: float = 30.0
    stable_s: float = 60.0
    _next_s: float = field(default=0.0, init=False)

    def after(self, ran_s: float) -> float:
        """Return the delay after a run of `ran_s` seconds."""
        if ran_s >= self.stable_s or not self._next_s:
            self._next_s = self.first_s
        delay = self._next_s
        self._next_s = min(self.longest_s, delay * 2)
        return delay


# Told of every end and restart: the part's name and a sentence about it.
Observer = Callable[[str, str], None]


class Member:
    """One supervised part: the running process, and how often it has ended by itself."""

    def __init__(self, part: Part, log: Path, observer: Observer, backoff: Backoff) -> None:
        self.part = part
        self.log = log
        self.exits = 0
        self.last_status: int | None = None
        self.process: Process | None = None
        self._observer = observer
        self._backoff = backoff
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to keep the part running."""
        self._task = asyncio.create_task(self._keep_running(), name=f"supervise-{self.part.name}")

    async def stop(self) -> None:
        """Stop the part for good, within its grace period."""
        self._stopping.set()
        if self.process is not None:
            await self.process.stop(self.part.grace_s)
        if self._task is not None:
            await self._task

    def kill(self) -> None:
        """Kill the part now; `stop` then returns at once."""
        self._stopping.set()
        if self.process is not None:
            self.process.kill()

    async def _keep_running(self) -> None:
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                self.process = await Process.start(
                    self.part.argv,
                    self.part.environment,
                    self.log,
                    death_signal=self.part.death_signal,
                    inherits=self.part.inherits,
                )
            except OSError as error:
                self.last_status, reason = 127, f"cannot be started: {error}"
            else:
                if self.exits:
                    self._observer(self.part.name, f"started again (pid {self.process.pid})")
                if self._stopping.is_set():  # asked while it was being started
                    await self.process.stop(self.part.grace_s)
                self.last_status = await self._accompany(self.process)
                reason = f"ended ({describe(self.last_status)})"
            if self.part.after_end is not None:
                self.part.after_end()
            if self._stopping.is_set():
                return
            self.exits += 1
            delay = self._backoff.after(time.monotonic() - began)
            self._observer(self.part.name, f"{reason}; starting it again in {delay:g} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)

    async def _accompany(self, process: Process) -> int:
        if self.part.after_start is None:
            return await process.wait()
        task = asyncio.ensure_future(self.part.after_start())
        try:
            return await process.wait()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class Supervisor:
    """All members by name."""

    def __init__(self, logs: Path, observer: Observer) -> None:
        self._logs = logs
        self._observer = observer
        self.members: dict[str, Member] = {}

    def add(self, part: Part, backoff: Backoff | None = None) -> Member:
        """Start a part and keep it running."""
        log = self._logs / f"{part.name}.log"
        member = Member(part, log, self._observer, backoff or Backoff())
        self.members[part.name] = member
        member.start()
        return member

    async def stop(self, order: Sequence[str]) -> None:
        """Stop the named members one after the other."""
        for name in order:
            if name in self.members:
                await self.members[name].stop()

    def kill(self) -> None:
        """Kill every member with its descendants at once."""
        for member in self.members.values():
            member.kill()

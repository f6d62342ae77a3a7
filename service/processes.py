"""Several gateway processes behind one listening socket: `python -m service.app --workers N`.

    parent: binds the socket, starts the workers, starts again what ends, passes SIGTERM on
      └─ worker 1..N: the same server as with one process, accepting from the shared socket

The socket is shared rather than bound N times (SO_REUSEPORT): connections that nobody has accepted
yet outlive the worker that ends. uvicorn's own multi-process mode runs its plain server, which
knows nothing of this gateway's draining.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from typing import Self

import structlog

from service.observability.logs import configure_logging
from service.settings import Settings
from service.supervisor.process import describe, tied_to_parent
from service.supervisor.supervisor import Backoff

METRICS_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus_client's variable: where the processes keep their figures, so that one can sum them."""

Work = Callable[[Settings, socket.socket], None]

_log = structlog.stdlib.get_logger("vitrine.processes")
_multiprocessing = multiprocessing.get_context("spawn")


def run(settings: Settings, work: Work) -> None:
    """Run `work(settings, socket)` in `settings.gateway_workers` processes until SIGTERM or SIGINT.

    `work` is a function of a module, and ends by itself on SIGTERM. A process that ends otherwise is
    started again, with growing pauses if it ends soon. Raises OSError where the address is taken.
    """
    with (
        tempfile.TemporaryDirectory(prefix="vitrine-metrics-") as metrics,
        _listen(settings) as listener,
        _Signals() as signals,
    ):
        # prometheus_client reads it when it is imported, so only the new processes obey it.
        os.environ[METRICS_DIRECTORY] = metrics
        workers = [_Worker(settings, work, listener) for _ in range(settings.gateway_workers)]
        while not signals.count:
            for worker in workers:
                worker.keep_running()
            signals.wait(workers)
        # Open here, the socket would take connections that nobody accepts.
        listener.close()
        passed_on = 0
        while any(worker.running for worker in workers):
            # Every signal: workers take a second one as being told to hurry.
            if passed_on < signals.count:
                passed_on = signals.count
                for worker in workers:
                    worker.stop()
            signals.wait(workers)


class _Signals:
    """Counts SIGTERM and SIGINT."""

    def __init__(self) -> None:
        self.count = 0
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def __enter__(self) -> Self:
        signal.set_wakeup_fd(self._writer.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.set_wakeup_fd(-1)
        self._reader.close()
        self._writer.close()

    def _receive(self, number: int, frame: object) -> None:
        self.count += 1

    def wait(self, workers: Sequence[_Worker]) -> None:
        """Return when a signal comes or a running worker ends, at the latest after a quarter of a second."""
        sentinels = [worker.sentinel for worker in workers if worker.running]
        ready = wait([self._reader.fileno(), *sentinels], timeout=0.25)
        if self._reader.fileno() in ready:
            self._reader.recv(64)


class _Worker:
    """One of the processes, and the next one in its place."""

    def __init__(self, settings: Settings, work: Work, listener: socket.socket) -> None:
        self._arguments = (settings, work, listener, os.getpid())
        self._process: SpawnProcess | None = None
        self._backoff = Backoff()
        self._began = 0.0
        self._start_at = 0.0

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.exitcode is None

    @property
    def sentinel(self) -> int:
        """What becomes readable when the process ends."""
        assert self._process is not None
        return self._process.sentinel

    def keep_running(self) -> None:
        """Start the process if it does not run and its pause is over."""
        now = time.monotonic()
        if self._process is not None:
            if self._process.exitcode is None:
                return
            delay = self._backoff.after(now - self._began)
            _log.error(
                "gateway process ended",
                worker=self._process.pid,
                how=describe(self._process.exitcode),
                restart_in_s=delay,
            )
            self._process, self._start_at = None, now + delay
        if now >= self._start_at:
            self._began = now
            process = _multiprocessing.Process(target=_work, args=self._arguments)
            process.start()
            self._process = process

    def stop(self) -> None:
        """Ask the process to end."""
        if self._process is not None and self.running:
            self._process.terminate()


def _listen(settings: Settings) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def _work(settings: Settings, work: Work, listener: socket.socket, parent: int) -> None:
    tied_to_parent(signal.SIGTERM, parent)()
    # Ctrl-C reaches every process of the terminal; the parent turns it into one SIGTERM a worker.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    configure_logging(settings, "gateway")
    work(settings, listener)

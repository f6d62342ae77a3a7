"""`vitrine up` as a process of its own, for tests."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

VITRINE = (sys.executable, "-m", "service.cli.main")


def run_vitrine(
    *arguments: str, timeout: float = 120, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command of the CLI to its end; wide enough that no line is folded."""
    return subprocess.run(
        [*VITRINE, *arguments],
        env=os.environ | {"COLUMNS": "200", "NO_COLOR": "1"} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@dataclass
class Up:
    """A running `vitrine up`."""

    process: subprocess.Popen[bytes]
    data_dir: Path
    output: Path

    @classmethod
    def start(
        cls, data_dir: Path, *arguments: str, seconds: float = 280, **environment: str
    ) -> "Up":
        """Start it on a free port and wait until it is ready."""
        up = cls.launch(data_dir, *arguments, **environment)
        up.wait_ready(seconds)
        return up

    @classmethod
    def launch(cls, data_dir: Path, *arguments: str, **environment: str) -> "Up":
        data_dir.parent.mkdir(parents=True, exist_ok=True)
        output = data_dir.parent / f"{data_dir.name}.out"
        with output.open("wb") as sink:
            process = subprocess.Popen(
                [*VITRINE, "up", "--port", "0", "--data-dir", str(data_dir), *arguments],
                env=os.environ | {"COLUMNS": "200", "NO_COLOR": "1"} | environment,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return cls(process, data_dir, output)

    def wait_ready(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.note.get("pid") != self.process.pid:
            if self.process.poll() is not None:
                raise RuntimeError(f"vitrine up ended: {self.text()}")
            if time.monotonic() > deadline:
                self.stop(signal.SIGKILL)
                raise RuntimeError(f"vitrine up was not ready: {self.text()}")
            time.sleep(0.1)

    @property
    def note(self) -> dict:
        """What `up.json` says; nothing before it is written."""
        try:
            return json.loads((self.data_dir / "up.json").read_text())
        except FileNotFoundError:
            return {}

    @property
    def url(self) -> str:
        return self.note["url"]

    def text(self) -> str:
        return self.output.read_text()

    def family(self) -> list[psutil.Process]:
        """Return all processes that belong to it, without itself."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, wait for the end and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout=90)


def alive(processes: list[psutil.Process]) -> list[str]:
    """Return the names of those that still run (a zombie does not)."""
    names = []
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                names.append(process.name())
        except psutil.NoSuchProcess:
            continue
    return names


def until_gone(processes: list[psutil.Process], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while left := alive(processes):
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.05)

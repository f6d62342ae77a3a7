"""Containers without an engine: an image's own entry point, user and health check, on a read-only root."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from deploy.images.buildah import command_line, inspect, root_of

_CONFINED = Path(__file__).with_name("confined.py")


class Container:
    """A process that runs from an image.

    `output` has what it prints, `health` is the image's health check, `volumes` says which folder
    here stands for which path inside.
    """

    def __init__(
        self, root: Path, image: str, environment: Mapping[str, str], extra: Mapping[str, str]
    ) -> None:
        document = inspect(image)
        self._config: dict[str, Any] = document["OCIv1"]["config"]
        kind, *test = document["Docker"]["config"]["Healthcheck"]["Test"]
        self.health: list[str] = ["/bin/sh", "-c", *test] if kind == "CMD-SHELL" else test
        self._root = root
        own = dict(pair.split("=", 1) for pair in self._config["Env"])
        self._environment = {**own, **environment}
        self._state = Path(tempfile.mkdtemp(prefix="container-"))
        self.output = self._state / "output"
        self.volumes = {**dict(self._make_volumes()), **extra}
        self._process: subprocess.Popen[bytes] | None = None

    def _make_volumes(self) -> Iterator[tuple[str, str]]:
        """A new named volume takes owner and mode from the image's folder, as with Docker."""
        for path in self._config.get("Volumes") or ():
            inside = (self._root / path.lstrip("/")).stat()
            folder = self._state / "volumes" / path.strip("/").replace("/", "-")
            folder.mkdir(parents=True)
            os.chown(folder, inside.st_uid, inside.st_gid)
            folder.chmod(inside.st_mode & 0o7777)
            yield path, str(folder)

    def start(self, arguments: Sequence[str] = ()) -> None:
        """Start the entry point; `arguments` replace the image's."""
        with self.output.open("wb") as output:
            self._process = self._spawn(command_line(self._config, arguments), output)

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run another command in the same surroundings to its end."""
        with tempfile.TemporaryFile("w+") as output:
            status = self._spawn(argv, output).wait(120)
            output.seek(0)
            return subprocess.CompletedProcess(argv, status, output.read())

    def healthy(self) -> str | None:
        """Run the image's health check; return what is wrong, or None."""
        done = self.run(*self.health)
        return None if done.returncode == 0 else done.stdout

    def wait_until_healthy(self, timeout_s: float) -> float:
        """Return the seconds until the health check passed. Raises RuntimeError with the output."""
        began = time.monotonic()
        while (reason := self.healthy()) is not None:
            if self.status is not None or time.monotonic() - began > timeout_s:
                raise RuntimeError(f"{reason}\n{self.output.read_text()[-4000:]}")
        return time.monotonic() - began

    @property
    def status(self) -> int | None:
        """The exit status of the entry point, None while it runs."""
        return self._process.poll() if self._process is not None else None

    def wait(self, timeout_s: float) -> int:
        """Wait for the entry point's end; return its status."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    def stop(self, grace_s: float = 30.0) -> int:
        """Send SIGTERM to process 1 and return the exit status. Raises TimeoutExpired."""
        assert self._process is not None
        for child in psutil.Process(self._process.pid).children():
            child.send_signal(signal.SIGTERM)
        return self._process.wait(grace_s)

    def close(self) -> None:
        """Kill what runs and remove the volumes."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._state, ignore_errors=True)

    def _spawn(self, argv: Sequence[str], output: Any) -> subprocess.Popen[bytes]:
        specification = {
            "argv": list(argv),
            "environment": self._environment,
            "user": self._config["User"],
            "folder": self._config.get("WorkingDir") or "/",
            "volumes": self.volumes,
        }
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child=SIGKILL"]
        return subprocess.Popen(
            [*unshare, sys.executable, "-P", _CONFINED, self._root, json.dumps(specification)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


@contextmanager
def container(
    image: str, environment: Mapping[str, str], volumes: Mapping[str, str] | None = None
) -> Iterator[Container]:
    """Yield a container of `image`, not yet started; it is gone at the end.

    `environment` is added to the image's; `volumes` (paths inside -> folders here) replace new ones.
    """
    with root_of(image) as root:
        made = Container(root, image, environment, volumes or {})
        try:
            yield made
        finally:
            made.close()

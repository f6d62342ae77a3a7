"""A real Prometheus for tests: scrapes given targets every second, over the repository's rules."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import yaml

from tests.jobs.redis_server import free_port

BINARY = shutil.which("prometheus")


class Prometheus:
    """Asks it over HTTP."""

    def __init__(self, url: str) -> None:
        self._client = httpx2.Client(base_url=url, timeout=30, trust_env=False)

    def ask(self, path: str, **parameters: str) -> Any:
        answer = self._client.get(f"/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", (parameters, answer)
        return answer["data"]

    def query(self, expr: str) -> list[dict[str, Any]]:
        """Return the series of an instant query, with their values."""
        return self.ask("query", query=expr)["result"]

    def wait_for(self, expr: str, seconds: float = 60) -> None:
        """Return once the query has a result."""
        deadline = time.monotonic() + seconds
        while not self.query(expr):
            if time.monotonic() > deadline:
                raise AssertionError(f"nothing for {expr}: {self.ask('targets')}")
            time.sleep(0.2)

    def ready(self) -> bool:
        try:
            return self._client.get("/-/ready").is_success
        except httpx2.TransportError:
            return False

    def close(self) -> None:
        self._client.close()


@contextmanager
def scraping(
    directory: Path, targets: Mapping[str, str], rules: Sequence[Path]
) -> Iterator[Prometheus]:
    """Run it over `targets`: the host and port of each job."""
    config = directory / "prometheus.yml"
    config.write_text(
        yaml.safe_dump(
            {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": [str(path) for path in rules],
                "scrape_configs": [
                    {"job_name": job, "static_configs": [{"targets": [target]}]}
                    for job, target in targets.items()
                ],
            }
        )
    )
    port = free_port()
    assert BINARY is not None
    command = [
        BINARY,
        f"--config.file={config}",
        f"--storage.tsdb.path={directory / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    prometheus = Prometheus(f"http://127.0.0.1:{port}")
    try:
        deadline = time.monotonic() + 30
        while not prometheus.ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((directory / "prometheus.log").read_text())
            time.sleep(0.1)
        yield prometheus
    finally:
        prometheus.close()
        process.terminate()
        process.wait(20)

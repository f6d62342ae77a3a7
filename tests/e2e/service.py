"""A running Vitrine as a test sees it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil

FINAL = {"succeeded", "failed", "canceled", "expired"}


@dataclass(frozen=True)
class Service:
    """One `vitrine up` on free ports with a data directory of its own."""

    url: str
    data_dir: Path
    client: httpx2.Client

    @property
    def supervisor(self) -> psutil.Process:
        return psutil.Process(json.loads((self.data_dir / "up.json").read_text())["pid"])

    def process(self, sign: str) -> psutil.Process:
        """Return the child whose command line holds `sign`."""
        return next(
            child
            for child in self.supervisor.children(recursive=True)
            if any(sign in word for word in child.cmdline())
        )

    def post(self, path: str, body: bytes, kind: str) -> dict[str, Any]:
        answer = self.client.post(path, content=body, headers={"Content-Type": kind})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def load(self, model: str) -> None:
        """Load a model, which on a busy machine takes longer than one call waits."""
        while True:
            answer = self.client.post(f"/v1/models/{model}/load")
            if answer.status_code == 200:
                return
            assert answer.json()["code"] == "model_loading", answer.text
            time.sleep(1)

    def generate(self, prompt: str, **parameters: Any) -> dict[str, Any]:
        """Make pictures and return the job at its end."""
        accepted = self.client.post("/v1/generate/image", json={"prompt": prompt, **parameters})
        assert accepted.status_code == 202, accepted.text
        return self.finished(accepted.json()["id"])

    def finished(self, id: str, seconds: float = 180) -> dict[str, Any]:
        """Poll the job until it is over and return it."""
        deadline = time.monotonic() + seconds
        while True:
            job = self.client.get(f"/v1/jobs/{id}").raise_for_status().json()
            if job["state"] in FINAL:
                return job
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {id} is still {job['state']}: {job}")
            time.sleep(0.1)

    def result(self, id: str) -> bytes:
        return self.client.get(f"/v1/jobs/{id}/result").raise_for_status().content

    def follow(self, id: str, after: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield the job's events: id, event, data."""
        headers = {"Last-Event-ID": after} if after else {}
        with self.client.stream("GET", f"/v1/jobs/{id}/events", headers=headers) as answer:
            answer.raise_for_status()
            event: dict[str, Any] = {}
            for line in answer.iter_lines():
                if not line:
                    if "data" in event:
                        yield event
                    event = {}
                elif not line.startswith(":"):
                    name, _, value = line.partition(": ")
                    event[name] = json.loads(value) if name == "data" else value

    def events(self, id: str, after: str | None = None) -> list[dict[str, Any]]:
        return list(self.follow(id, after))

"""The mixed scenario: people who classify, who check clips, who generate and wait, who look at jobs, who err.

    pip install -e '.[bench]'; vitrine up
    locust -f load_tests/locustfile.py --host http://127.0.0.1:8000                     # web page on :8089
    locust -f load_tests/locustfile.py --host http://127.0.0.1:8000 --headless -u 20 -r 5 -t 2m

Where keys are needed, VITRINE_API_KEY is sent. An answer that is wrong counts as a failure, also when its
status is good; a refusal that is meant (429, 503 with Retry-After) is not one, and its row is named "refused".
"""

from __future__ import annotations

import io
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from locust import HttpUser, between, task
from PIL import Image

# locust puts this file's folder first, where `models` is a benchmark.
sys.path = [place for place in sys.path if Path(place).resolve() != Path(__file__).parent]

from load_tests.gateway import photograph  # noqa: E402
from models.demo.clips import clip_bytes  # noqa: E402

PHOTOGRAPH = photograph()
CLIP = clip_bytes(7, manipulated=True)
COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "triangle")
FINAL = {"succeeded", "failed", "canceled", "expired"}


def drawing() -> bytes:
    """Return a small PNG that no cache has seen."""
    body = io.BytesIO()
    Image.new("RGB", (64, 64), tuple(random.choices(range(256), k=3))).save(body, "PNG")
    return body.getvalue()


class Person(HttpUser):
    """Somebody with a key, or on the machine itself."""

    abstract = True
    wait_time = between(0.1, 1.0)

    def on_start(self) -> None:
        if key := os.environ.get("VITRINE_API_KEY"):
            self.client.headers["Authorization"] = f"Bearer {key}"

    @contextmanager
    def call(
        self, name: str, expected: set[int], method: str, path: str, **request: Any
    ) -> Iterator[Any]:
        """Send a request; the block looks at the answer, and what it raises is a failure of the row."""
        with self.client.request(method, path, name=name, catch_response=True, **request) as answer:
            if answer.status_code in (429, 503) and "Retry-After" in answer.headers:
                answer.request_meta["name"] = f"{name} (refused)"
                answer.success()
                yield None
                return
            if answer.status_code not in expected:
                answer.failure(f"{answer.status_code}: {answer.text[:200]}")
                yield None
                return
            try:
                yield answer
                answer.success()  # locust takes a 404 for a failure, also one that is right
            except (AssertionError, KeyError, ValueError) as wrong:
                answer.failure(f"wrong answer: {wrong!r}")

    def post_media(self, name: str, path: str, body: bytes, kind: str) -> Any:
        headers = {"Content-Type": kind}
        return self.call(name, {200}, "POST", path, data=body, headers=headers)


class Classifier(Person):
    """Sends pictures: photographs of 100 kB and small drawings, raw and as a form."""

    weight = 10

    @task(4)
    def photograph(self) -> None:
        with self.post_media(
            "classify jpeg", "/v1/classify?top_k=5", PHOTOGRAPH, "image/jpeg"
        ) as answer:
            if answer is not None:
                assert len(answer.json()["predictions"]) == 5

    @task(2)
    def form(self) -> None:
        files = {"file": ("drawing.png", drawing(), "image/png")}
        with self.call("classify form", {200}, "POST", "/v1/classify", files=files) as answer:
            if answer is not None:
                scores = [row["score"] for row in answer.json()["predictions"]]
                assert scores == sorted(scores, reverse=True)


class Checker(Person):
    """Has clips looked at."""

    weight = 2

    @task
    def clip(self) -> None:
        with self.post_media("deepfake", "/v1/deepfake?frames=3", CLIP, "video/mp4") as answer:
            if answer is not None:
                assert answer.json()["verdict"] in ("real", "fake", "not_applicable")


class Painter(Person):
    """Has pictures generated: follows the events or polls; changes its mind at times."""

    weight = 3

    def submit(self, **parameters: Any) -> str | None:
        prompt = f"a {random.choice(COLOURS)} {random.choice(SHAPES)}"
        body = {"prompt": prompt, "steps": 4, **parameters}
        with self.call("generate", {202}, "POST", "/v1/generate/image", json=body) as answer:
            return None if answer is None else str(answer.json()["id"])

    @task(3)
    def poll(self) -> None:
        job = self.submit()
        deadline = time.monotonic() + 120
        while job is not None and time.monotonic() < deadline:
            with self.call("job", {200}, "GET", f"/v1/jobs/{job}") as answer:
                state = None if answer is None else answer.json()["state"]
            if state in FINAL:
                self.fetch(job)
                return
            time.sleep(0.5)

    @task(2)
    def follow(self) -> None:
        job = self.submit()
        if job is None:
            return
        path = f"/v1/jobs/{job}/events"
        with self.call("events", {200}, "GET", path, stream=True, timeout=120) as answer:
            if answer is None:
                return
            lines = (line.decode() for line in answer.iter_lines())
            data = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
            assert data[-1]["state"] == "succeeded", data[-1]
        self.fetch(job)

    @task(1)
    def cancel(self) -> None:
        job = self.submit(steps=50)
        if job is not None:
            with self.call("cancel", {200, 202}, "DELETE", f"/v1/jobs/{job}"):
                pass

    def fetch(self, job: str) -> None:
        with self.call("result", {200}, "GET", f"/v1/jobs/{job}/result") as answer:
            if answer is not None:
                assert answer.content.startswith(b"\x89PNG")


class Watcher(Person):
    """Lists jobs and models, as a page that is open all day."""

    weight = 2

    @task(3)
    def jobs(self) -> None:
        with self.call("jobs", {200}, "GET", "/v1/jobs?limit=20") as answer:
            if answer is not None:
                assert len(answer.json()["data"]) <= 20

    @task(1)
    def models(self) -> None:
        with self.call("models", {200}, "GET", "/v1/models") as answer:
            if answer is not None:
                assert answer.json()["data"]


class Blunderer(Person):
    """Sends what cannot be answered and must be refused with a reason."""

    weight = 1

    def refused(self, name: str, status: int, method: str, path: str, **request: Any) -> None:
        with self.call(name, {status}, method, path, **request) as answer:
            if answer is not None:
                assert answer.headers["Content-Type"] == "application/problem+json"
                assert answer.json()["code"]

    @task
    def broken_picture(self) -> None:
        headers = {"Content-Type": "image/jpeg"}
        self.refused(
            "broken jpeg", 400, "POST", "/v1/classify", data=PHOTOGRAPH[:500], headers=headers
        )

    @task
    def unknown_model(self) -> None:
        headers = {"Content-Type": "image/png"}
        path = "/v1/classify?model=nobody"
        self.refused("unknown model", 404, "POST", path, data=drawing(), headers=headers)

    @task
    def unknown_job(self) -> None:
        self.refused("unknown job", 404, "GET", "/v1/jobs/job_nobody")

    @task
    def wrong_parameter(self) -> None:
        body = {"prompt": "a red circle", "steps": 100_000}
        self.refused("wrong steps", 422, "POST", "/v1/generate/image", json=body)

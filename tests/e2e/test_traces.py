"""One trace from the caller through every process, and the ids that log lines share with it."""

from __future__ import annotations

import io
import json
import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx2
import pytest
from PIL import Image

from tests.e2e.service import Service
from tests.observability.collector import Collector, Span

SERVER, CLIENT, CONSUMER = 2, 3, 5
MODEL, GENERATOR = "convnext-demo", "micro-dit-demo"


def picture() -> bytes:
    body = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 30, 30)).save(body, "PNG")
    return body.getvalue()


class Caller:
    """A span of the caller's own, under which it sends requests."""

    def __init__(self, flags: str = "01") -> None:
        self.trace_id, self.span_id = secrets.token_hex(16), secrets.token_hex(8)
        self.headers = {"traceparent": f"00-{self.trace_id}-{self.span_id}-{flags}"}


def traced(
    collector: Collector, send: Callable[[Caller], httpx2.Response], *path: str
) -> tuple[Caller, httpx2.Response, list[Span]]:
    """Send until the spans along `path` are there; Triton 2.51 leaves out about one trace in fourteen."""
    for _ in range(5):
        caller = Caller()
        answer = send(caller)
        with suppress(TimeoutError):
            return caller, answer, collector.wait_for(caller.trace_id, *path, seconds=10)
    raise AssertionError(f"{' > '.join(path)} did not come: {collector.trace(caller.trace_id)}")


def lines(service: Service, part: str) -> list[dict[str, Any]]:
    text = (service.data_dir / "logs" / f"{part}.log").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_a_synchronous_call_is_one_trace(service: Service, collector: Collector) -> None:
    def classify(caller: Caller) -> httpx2.Response:
        headers = {**caller.headers, "Content-Type": "image/png", "x-request-id": caller.span_id}
        return service.client.post("/v1/classify", content=picture(), headers=headers)

    path = ("POST /v1/classify", f"infer {MODEL}", "InferRequest", MODEL, "compute")
    caller, answer, spans = traced(collector, classify, *path)
    assert answer.status_code == 200, answer.text
    assert [span.service for span in spans] == [
        *["vitrine-gateway"] * 2,
        *["vitrine-triton"] * 3,
    ]
    request, infer = spans[:2]
    assert request.parent_id == caller.span_id
    assert (request.kind, infer.kind) == (SERVER, CLIENT)
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["vitrine.model"] == MODEL
    assert request.attributes["vitrine.request_id"] == caller.span_id
    assert request.attributes["vitrine.infer_ms"] > 0
    assert answer.headers["traceresponse"] == f"00-{caller.trace_id}-{request.span_id}-01"
    (line,) = [
        line for line in lines(service, "gateway") if line.get("request_id") == caller.span_id
    ]
    assert line["trace_id"] == caller.trace_id
    assert line["part"] == "gateway"
    assert (line["route"], line["status"], line["model"], line["tenant"]) == (
        "/v1/classify",
        200,
        MODEL,
        "local",
    )


def test_a_job_is_one_trace_across_the_queue(service: Service, collector: Collector) -> None:
    def generate(caller: Caller) -> httpx2.Response:
        headers = {**caller.headers, "x-request-id": caller.span_id}
        headers |= {"Prefer": "wait=50", "Accept": "application/json"}
        body = {"prompt": "a red circle", "steps": 2}
        return service.client.post("/v1/generate/image", json=body, headers=headers)

    path = (
        "POST /v1/generate/image",
        "run generate-image",
        f"infer {GENERATOR}",
        "InferRequest",
        GENERATOR,
    )
    caller, answer, spans = traced(collector, generate, *path)
    job = answer.json()
    assert job["state"] == "succeeded"
    assert [span.service for span in spans] == [
        "vitrine-gateway",
        *["vitrine-worker"] * 2,
        *["vitrine-triton"] * 2,
    ]
    request, run = spans[:2]
    assert request.parent_id == caller.span_id
    _, queued = collector.wait_for(caller.trace_id, path[0], "queued generate-image")
    assert run.kind == CONSUMER
    assert request.attributes["vitrine.job"] == run.attributes["vitrine.job"] == job["id"]
    assert run.attributes["vitrine.state"] == "succeeded"
    assert queued.start < queued.end <= run.start + 0.5
    ended = [
        line
        for line in lines(service, "worker")
        if line["event"] == "attempt ended" and line["job"] == job["id"]
    ]
    assert [(line["trace_id"], line["request_id"], line["tenant"]) for line in ended] == [
        (caller.trace_id, caller.span_id, "local")
    ]


def test_an_error_is_seen_in_the_trace(service: Service, collector: Collector) -> None:
    caller = Caller()
    answer = service.client.post("/v1/classify", content=b"no picture", headers=caller.headers)
    assert answer.status_code in (415, 422), answer.text
    (request,) = collector.wait_for(caller.trace_id, "POST /v1/classify")
    assert request.attributes["http.response.status_code"] == answer.status_code


@pytest.mark.parametrize("header", ["", "00-nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_without_a_valid_parent_a_trace_begins(
    service: Service, collector: Collector, header: str
) -> None:
    answer: httpx2.Response = service.client.get("/v1/jobs", headers={"traceparent": header})
    _, trace_id, span_id, flags = answer.headers["traceresponse"].split("-")
    assert int(flags, 16) & 1  # sampled
    (request,) = collector.wait_for(trace_id, "GET /v1/jobs")
    assert (request.span_id, request.parent_id) == (span_id, "")


def test_a_caller_may_leave_its_trace_out(service: Service, collector: Collector) -> None:
    silent = Caller("00")

    def classify(caller: Caller) -> httpx2.Response:
        headers = {**caller.headers, "Content-Type": "image/png"}
        return service.client.post("/v1/classify", content=picture(), headers=headers)

    assert "traceresponse" not in classify(silent).headers
    # Once these have come, those of the other would have too.
    traced(collector, classify, "POST /v1/classify", f"infer {MODEL}", "InferRequest")
    assert collector.trace(silent.trace_id) == []
    # Its id is in the log all the same.
    assert any(line.get("trace_id") == silent.trace_id for line in lines(service, "gateway"))


def test_probes_are_not_traced(service: Service) -> None:
    for path in ("/livez", "/readyz", "/metrics"):
        assert "traceresponse" not in service.client.get(path).headers


def test_the_supervisor_logs_what_it_does(service: Service) -> None:
    up = next(line for line in lines(service, "supervisor") if line["event"] == "up")
    assert (up["part"], up["url"]) == ("supervisor", service.url)

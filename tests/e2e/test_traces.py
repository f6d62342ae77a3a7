"""One trace from the caller through every process, and the ids that log lines share with it."""

from __future__ import annotations

import io
import json
import secrets
from typing import Any

import httpx2
import pytest
from PIL import Image

from tests.e2e.service import Service
from tests.observability.collector import Collector, Span

SERVER, CLIENT, CONSUMER = 2, 3, 5


def picture() -> bytes:
    body = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 30, 30)).save(body, "PNG")
    return body.getvalue()


class Caller:
    """A span of the caller's own, under which it sends requests."""

    def __init__(self, flags: str = "01") -> None:
        self.trace_id, self.span_id = secrets.token_hex(16), secrets.token_hex(8)
        self.headers = {"traceparent": f"00-{self.trace_id}-{self.span_id}-{flags}"}


def below(parent: Span, spans: list[Span]) -> list[Span]:
    return [span for span in spans if span.parent_id == parent.span_id]


def lines(service: Service, part: str) -> list[dict[str, Any]]:
    text = (service.data_dir / "logs" / f"{part}.log").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_a_synchronous_call_is_one_trace(service: Service, collector: Collector) -> None:
    caller = Caller()
    headers = {**caller.headers, "Content-Type": "image/png", "x-request-id": "traced"}
    answer = service.client.post("/v1/classify", content=picture(), headers=headers)
    assert answer.status_code == 200, answer.text
    model = answer.json()["model"]
    names = ("POST /v1/classify", f"infer {model}", "InferRequest", model, "compute")
    found = collector.wait_for(caller.trace_id, *names)
    request, infer, received, run, compute = (found[name] for name in names)
    assert [span.service for span in (request, infer, received, run, compute)] == [
        "vitrine-gateway",
        "vitrine-gateway",
        *["vitrine-triton"] * 3,
    ]
    parents = [span.parent_id for span in (request, infer, received, run, compute)]
    assert parents == [
        caller.span_id,
        *(span.span_id for span in (request, infer, received, run)),
    ]
    assert (request.kind, infer.kind) == (SERVER, CLIENT)
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["vitrine.model"] == model
    assert request.attributes["vitrine.request_id"] == "traced"
    assert request.attributes["vitrine.infer_ms"] > 0
    assert answer.headers["traceresponse"] == f"00-{caller.trace_id}-{request.span_id}-01"
    (line,) = [line for line in lines(service, "gateway") if line.get("request_id") == "traced"]
    assert line["trace_id"] == caller.trace_id
    assert line["part"] == "gateway"
    assert (line["route"], line["status"], line["model"], line["tenant"]) == (
        "/v1/classify",
        200,
        model,
        "local",
    )


def test_a_job_is_one_trace_across_the_queue(service: Service, collector: Collector) -> None:
    caller = Caller()
    headers = {**caller.headers, "x-request-id": "traced-job"}
    accepted = service.client.post(
        "/v1/generate/image", json={"prompt": "a red circle", "steps": 2}, headers=headers
    )
    job = service.finished(accepted.json()["id"])
    assert job["state"] == "succeeded"
    names = (
        "POST /v1/generate/image",
        "queued generate-image",
        "run generate-image",
        f"infer {job['model']}",
        "InferRequest",
        job["model"],
    )
    found = collector.wait_for(caller.trace_id, *names)
    request, queued, run, infer, received, _ = (found[name] for name in names)
    assert request.parent_id == caller.span_id
    assert queued.parent_id == run.parent_id == request.span_id
    assert infer.parent_id == run.span_id
    assert received.parent_id == infer.span_id
    assert [span.service for span in (request, queued, run, infer, received)] == [
        "vitrine-gateway",
        *["vitrine-worker"] * 3,
        "vitrine-triton",
    ]
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
        (caller.trace_id, "traced-job", "local")
    ]


def test_an_error_is_seen_in_the_trace(service: Service, collector: Collector) -> None:
    caller = Caller()
    answer = service.client.post("/v1/classify", content=b"no picture", headers=caller.headers)
    assert answer.status_code in (415, 422), answer.text
    request = collector.wait_for(caller.trace_id, "POST /v1/classify")["POST /v1/classify"]
    assert request.attributes["http.response.status_code"] == answer.status_code


@pytest.mark.parametrize("header", ["", "00-nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_without_a_valid_parent_a_trace_begins(
    service: Service, collector: Collector, header: str
) -> None:
    answer: httpx2.Response = service.client.get("/v1/jobs", headers={"traceparent": header})
    _, trace_id, span_id, flags = answer.headers["traceresponse"].split("-")
    assert int(flags, 16) & 1  # sampled
    request = collector.wait_for(trace_id, "GET /v1/jobs")["GET /v1/jobs"]
    assert (request.span_id, request.parent_id) == (span_id, "")


def test_a_caller_may_leave_its_trace_out(service: Service, collector: Collector) -> None:
    silent, traced = Caller("00"), Caller()
    for caller in (silent, traced):
        headers = {**caller.headers, "Content-Type": "image/png"}
        answer = service.client.post("/v1/classify", content=picture(), headers=headers)
        assert ("traceresponse" in answer.headers) == (caller is traced)
    collector.wait_for(traced.trace_id, "POST /v1/classify", "InferRequest")
    assert collector.trace(silent.trace_id) == []
    # Its id is in the log all the same.
    assert any(line.get("trace_id") == silent.trace_id for line in lines(service, "gateway"))


def test_probes_are_not_traced(service: Service) -> None:
    for path in ("/livez", "/readyz", "/metrics"):
        assert "traceresponse" not in service.client.get(path).headers


def test_the_supervisor_logs_what_it_does(service: Service) -> None:
    up = next(line for line in lines(service, "supervisor") if line["event"] == "up")
    assert (up["part"], up["url"]) == ("supervisor", service.url)

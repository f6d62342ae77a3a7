"""An OpenTelemetry collector for tests: takes OTLP over HTTP, protobuf or JSON, and keeps the spans."""

from __future__ import annotations

import base64
import gzip
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Span:
    """One span as it was received; ids in hexadecimal, times in seconds."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    start: float
    end: float
    status: int
    attributes: dict[str, Any]


class Collector:
    """What has come so far. `url` is the receiver's base URL."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.spans: list[Span] = []
        self._lock = Lock()

    def take(self, message: ExportTraceServiceRequest) -> None:
        found = [
            Span(
                service=_values(resource.resource.attributes).get("service.name", ""),
                name=span.name,
                trace_id=span.trace_id.hex(),
                span_id=span.span_id.hex(),
                parent_id=span.parent_span_id.hex(),
                kind=span.kind,
                start=span.start_time_unix_nano / 1e9,
                end=span.end_time_unix_nano / 1e9,
                status=span.status.code,
                attributes=_values(span.attributes),
            )
            for resource in message.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        with self._lock:
            self.spans += found

    def trace(self, trace_id: str) -> list[Span]:
        with self._lock:
            return sorted(
                (span for span in self.spans if span.trace_id == trace_id),
                key=lambda span: span.start,
            )

    def wait_for(self, trace_id: str, *path: str, seconds: float = 20) -> list[Span]:
        """Return the spans along `path`, each the child of the one before, once all have come. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while True:
            spans = self.trace(trace_id)
            found = _path([span for span in spans if span.name == path[0]], path[1:], spans)
            if found is not None:
                return found
            if time.monotonic() > deadline:
                seen = [(span.service, span.name, span.span_id, span.parent_id) for span in spans]
                raise TimeoutError(f"{' > '.join(path)} did not come: {seen}")
            time.sleep(0.05)


def _path(heads: list[Span], names: tuple[str, ...], spans: list[Span]) -> list[Span] | None:
    for head in heads:
        if not names:
            return [head]
        children = [s for s in spans if (s.parent_id, s.name) == (head.span_id, names[0])]
        rest = _path(children, names[1:], spans)
        if rest is not None:
            return [head, *rest]
    return None


def _with_ids_as_bytes(node: Any) -> Any:
    """OTLP's JSON has ids in hexadecimal, where protobuf's own JSON has base64."""
    if isinstance(node, list):
        return [_with_ids_as_bytes(each) for each in node]
    if isinstance(node, dict):
        return {
            key: base64.b64encode(bytes.fromhex(value)).decode()
            if key in ("traceId", "spanId", "parentSpanId")
            else _with_ids_as_bytes(value)
            for key, value in node.items()
        }
    return node


def _values(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in pairs}


@contextmanager
def collecting() -> Iterator[Collector]:
    """Run a collector on a free port of the loopback."""

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            message = ExportTraceServiceRequest()
            if self.headers["Content-Type"].startswith("application/json"):
                json_format.ParseDict(_with_ids_as_bytes(json.loads(body)), message)
            else:
                message.ParseFromString(body)
            assert self.path == "/v1/traces"
            collector.take(message)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        server.daemon_threads = True
        collector = Collector(f"http://127.0.0.1:{server.server_port}")
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()

"""Traces by OpenTelemetry, from the caller's `traceparent` through gateway, queue, worker and Triton.

    POST /v1/generate/image        gateway     parent: the caller's span, if it names one
    ├─ queued generate-image       worker      from the job's submission to its start
    └─ run generate-image          worker      one an attempt
       └─ infer micro-dit-demo     worker
          └─ micro-dit-demo        Triton      its own trace mode, with its queue and compute times

Nothing is recorded or sent without `tracing.url`; what the caller sends as trace context is handed
on all the same, to the job and to Triton. Headers, resource attributes and the batches of the
exporter follow OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_HEADERS and others).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.observability.access import PROBES, about
from service.settings import TracingSettings

_EXPORT_TIMEOUT_S = 3.0
_propagator = TraceContextTextMapPropagator()
_tracer = trace.get_tracer("vitrine")

Metadata = tuple[tuple[str, str], ...]
"""gRPC metadata, or HTTP headers, that carry a trace context."""


@contextmanager
def tracing(settings: TracingSettings, part: str) -> Iterator[None]:
    """Record and export the spans of this process, as the service `vitrine-<part>`, while this is open.

    Once a process: OpenTelemetry's provider is global. Leaving sends what is left, for 3 s at most.
    """
    if not settings.url:
        yield
        return
    # Only here: processes that trace nothing need not load the SDK.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    name = os.environ.get("OTEL_SERVICE_NAME", f"vitrine-{part}")
    instance = f"{socket.gethostname()}-{os.getpid()}"
    provider = TracerProvider(
        resource=Resource.create({"service.name": name, "service.instance.id": instance}),
        sampler=ParentBased(TraceIdRatioBased(settings.sample_ratio)),
        shutdown_on_exit=False,
    )
    exporter = OTLPSpanExporter(endpoint=settings.traces_url, timeout=_EXPORT_TIMEOUT_S)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        provider.shutdown()


class Tracing:
    """ASGI middleware: one server span a request, and its trace id in every log line.

    The answer's `traceresponse` names the span, where one is recorded. Probes are not traced.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        status = 500

        async def send_with_trace(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if span.is_recording():
                    MutableHeaders(scope=message)["traceresponse"] = _header(span)
            await send(message)

        with (
            _tracer.start_as_current_span(
                scope["method"], _parent(Headers(scope=scope)), SpanKind.SERVER
            ) as span,
            _logged(span),
        ):
            try:
                await self._app(scope, receive, send_with_trace)
            finally:
                if span.is_recording():
                    _describe(span, scope, status)


def _describe(span: Span, scope: Scope, status: int) -> None:
    route = getattr(scope.get("route"), "path", None)
    span.update_name(f"{scope['method']} {route}" if route else scope["method"])
    span.set_attributes(
        {
            "http.request.method": scope["method"],
            "http.response.status_code": status,
            "url.path": scope["path"],
            "vitrine.request_id": scope["state"]["request_id"],
            **({"http.route": route} if route else {}),
            **{f"vitrine.{name}": value for name, value in about(scope).items()},
        }
    )
    timings = scope["state"].get("timings")
    for stage, milliseconds in timings.stages.items() if timings is not None else ():
        span.set_attribute(f"vitrine.{stage}_ms", round(milliseconds, 3))
    if status >= 500:
        span.set_status(Status(StatusCode.ERROR))


@contextmanager
def client_span(name: str, attributes: Mapping[str, str]) -> Iterator[Metadata]:
    """Span a call to another server that is a part of the current trace; without one, do nothing.

    Yields the metadata that make what the server does a part of the trace. The span does not become
    the current one, so that generators may hold it open between steps.
    """
    context = trace.get_current_span().get_span_context()
    if not (context.is_valid and context.trace_flags.sampled):
        # Triton records whatever comes with a context.
        yield ()
        return
    span = _tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)
    try:
        yield tuple(_carrier(trace.set_span_in_context(span)).items())
    except Exception as error:
        span.set_status(Status(StatusCode.ERROR, str(error)))
        raise
    finally:
        span.end()


def traceparent() -> str:
    """Return the current trace context as a header's value, to be kept with a job; "" without one."""
    return _carrier(None).get("traceparent", "")


@contextmanager
def attempt(
    name: str, traceparent: str, attributes: Mapping[str, str | int], queued: tuple[float, float]
) -> Iterator[Span]:
    """Span an attempt at a job as a part of the trace that handed the job in; it becomes the current span.

    `queued` is when the job was handed in and when it was started (Unix seconds): a span of its own
    for a first attempt.
    """
    parent = _parent({"traceparent": traceparent})
    begin, end = (round(seconds * 1e9) for seconds in queued)
    if attributes.get("vitrine.attempt") == 1:
        _tracer.start_span(f"queued {name}", parent, attributes=attributes, start_time=begin).end(
            max(begin, end)
        )
    with (
        _tracer.start_as_current_span(f"run {name}", parent, SpanKind.CONSUMER, attributes) as span,
        _logged(span),
    ):
        yield span


@contextmanager
def _logged(span: Span) -> Iterator[None]:
    context = span.get_span_context()
    if not context.is_valid:
        yield
        return
    trace_id = trace.format_trace_id(context.trace_id)
    with structlog.contextvars.bound_contextvars(trace_id=trace_id):
        yield


def _parent(headers: Mapping[str, str]) -> Context:
    return _propagator.extract(headers, Context())


def _carrier(context: Context | None) -> dict[str, str]:
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, context)
    return carrier


def _header(span: Span) -> str:
    context = span.get_span_context()
    return (
        f"00-{trace.format_trace_id(context.trace_id)}-{trace.format_span_id(context.span_id)}"
        f"-{context.trace_flags:02x}"
    )

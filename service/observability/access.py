"""One log line, one count and one `Server-Timing` per request."""

from __future__ import annotations

import time
from typing import Any

import structlog
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.observability.metrics import Metrics
from service.tasks.contract import Timings

PROBES = ("/livez", "/readyz", "/metrics")
_UNMATCHED = "unmatched"
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_log = structlog.stdlib.get_logger("vitrine.access")


class AccessLog:
    """Times requests. Endpoints leave what `about` tells, and `timings`, in the request's state."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.perf_counter()
        status = 500

        async def timed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                elapsed = time.perf_counter() - begin
                MutableHeaders(scope=message)["server-timing"] = _server_timing(scope, elapsed)
            await send(message)

        try:
            with self._metrics.requests_in_flight.track_inprogress():
                await self._app(scope, receive, timed)
        finally:
            self._record(scope, status, time.perf_counter() - begin)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", _UNMATCHED)
        model = scope["state"].get("model") or ""
        method = scope["method"] if scope["method"] in _METHODS else "other"
        labels = (method, route, str(status), model)
        self._metrics.requests.labels(*labels).inc()
        self._metrics.request_duration.labels(*labels).observe(seconds)
        line = _log.debug if route in PROBES else _log.info
        line(
            "request",
            method=scope["method"],
            path=scope["path"],
            route=route,
            status=status,
            ms=round(seconds * 1000, 2),
            **about(scope),
            client=scope["client"][0] if scope.get("client") else None,
        )


def about(scope: Scope) -> dict[str, Any]:
    """Return what is known of a request beyond HTTP: its `model`, `tenant` and `job`, where it has them."""
    state = scope["state"]
    known = {
        "model": state.get("model"),
        "tenant": getattr(state.get("caller"), "tenant", None),
        "job": state.get("job") or scope.get("path_params", {}).get("job_id"),
    }
    return {name: value for name, value in known.items() if value}


def _server_timing(scope: Scope, elapsed: float) -> str:
    timings: Timings | None = scope["state"].get("timings")
    stages = dict(timings.stages) if timings is not None else {}
    stages["total"] = elapsed * 1000
    return ", ".join(f"{stage};dur={ms:.2f}" for stage, ms in stages.items())

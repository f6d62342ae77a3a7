"""Pure ASGI middleware around every request, outermost first:

RequestId, AccessLog (service/observability/access.py), Leaving, SecurityHeaders, RateHeaders
(service/limits/headers.py), cross_origin (service/http/origin.py), Faults, BodyLimit.
"""

from __future__ import annotations

import re
import uuid

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.problems import internal_error, problem
from service.http.spool import too_large

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_log = structlog.stdlib.get_logger("vitrine.http")


class RequestId:
    """Takes the caller's `x-request-id` or makes one; every log line and the answer carry it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            await self._app(scope, receive, send_with_id)


class Leaving:
    """Closes connections behind their answers once the gateway is told to end: the caller's next
    request then finds another one, instead of a connection that ends under it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_closing(message: Message) -> None:
            if (
                message["type"] == "http.response.start"
                and scope["app"].state.gateway.leaving.is_set()
            ):
                MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        await self._app(scope, receive, send_closing if scope["type"] == "http" else send)


class SecurityHeaders:
    """Headers that keep browsers from misusing answers; pages bring a content policy of their own.

    No Strict-Transport-Security: that is for whatever ends TLS to promise.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                if scope["path"].startswith("/v1/"):
                    headers.setdefault("cache-control", "no-store")
            await send(message)

        await self._app(scope, receive, send_with_headers)


class Faults:
    """Turns whatever an endpoint did not foresee into a logged 500."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            if scope["type"] != "http":
                raise
            _log.exception("unforeseen error")
            if started:
                raise  # the server closes the connection: the caller must not take it for whole
            await internal_error()(scope, receive, send)


class BodyLimit:
    """Refuses bodies over `limit` bytes: by Content-Length before anything is read, else by count.

    A caller's own, lower limit is in the request's state (`body_limit`) once the caller is known.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "")
        if length.isdecimal() and int(length) > self._limit:
            await problem(too_large("The body", "body_bytes", self._limit))(scope, receive, send)
            return
        size = 0
        state = scope.setdefault("state", {})

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            limit = state.get("body_limit", self._limit)
            if size > limit:
                name = "body_bytes" if limit == self._limit else "key.body_bytes"
                raise too_large("The body", name, limit)
            return message

        await self._app(scope, counted, send)

"""The one place where errors become answers: RFC 9457 `application/problem+json`."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import orjson
import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Mount

from service.errors import VitrineError
from service.http.parameters import explain

CLIENT_CLOSED_REQUEST = 499
_MEDIA_TYPE = "application/problem+json"
_log = structlog.stdlib.get_logger("vitrine.http")


def problem(error: VitrineError) -> Response:
    """Return the answer to an error."""
    return Response(
        orjson.dumps(error.problem(), default=str),
        status_code=error.status,
        media_type=_MEDIA_TYPE,
        headers=error.headers(),
    )


def internal_error() -> Response:
    """Return the answer to a fault of ours; what it was stays in the log."""
    return problem(VitrineError("Something went wrong here; the log has it under the request id."))


def register(app: FastAPI) -> None:
    """Give `app` the handlers of every error that an endpoint may raise."""

    async def vitrine_error(request: Request, error: Any) -> Response:
        if error.status >= 500:
            _log.warning("request failed", code=error.stable_code, detail=error.message)
        return problem(error)

    async def validation_error(request: Request, error: Any) -> Response:
        taken = request.scope["route"].dependant.query_params
        return problem(explain(error.errors(), {each.alias: each.field_info for each in taken}))

    async def http_exception(request: Request, error: Any) -> Response:
        phrase = HTTPStatus(error.status_code).phrase
        code = phrase.lower().replace(" ", "_")
        body = {
            "type": f"https://vitrine.dev/errors/{code}",
            "title": phrase,
            "status": error.status_code,
            "code": code,
            "detail": f"{request.method} {request.url.path}: {phrase.lower()}.",
        }
        headers = error.headers
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            headers = {"Allow": ", ".join(_methods(request) or ("GET", "HEAD"))}
        return Response(
            orjson.dumps(body),
            status_code=error.status_code,
            media_type=_MEDIA_TYPE,
            headers=headers,
        )

    async def client_disconnect(request: Request, error: Any) -> Response:
        # Nobody reads this answer; its status is for the log and the metrics.
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    app.add_exception_handler(VitrineError, vitrine_error)
    app.add_exception_handler(RequestValidationError, validation_error)
    app.add_exception_handler(HTTPException, http_exception)
    app.add_exception_handler(ClientDisconnect, client_disconnect)


def _methods(request: Request) -> list[str]:
    """Return the methods that the path takes: the router's own answer tells those of one route only."""
    return [
        method
        for method in ("DELETE", "GET", "PATCH", "POST", "PUT")
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.routes
            if not isinstance(route, Mount)
        )
    ]

"""Which names the gateway answers to, and which web pages may call it.

A page of any site can send requests to a gateway on the visitor's own machine, and by DNS rebinding
(a name of its own that suddenly resolves to 127.0.0.1) read the answers too. Three things close
that: the Host header must name this gateway, requests that a browser marks as coming from another
site are refused, and CORS tells browsers which origins are welcome; by default none is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from service.auth.exposure import is_loopback
from service.errors import CrossSiteRequest, Misdirected
from service.http.problems import problem
from service.limits.headers import RATE_HEADERS
from service.settings import Settings

_REQUEST_HEADERS = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "Last-Event-ID",
    "Prefer",
    "Range",
    "traceparent",
    "x-api-key",
    "x-request-id",
)
_ANSWER_HEADERS = (
    "Content-Disposition",
    "Content-Range",
    "ETag",
    "Idempotency-Replayed",
    "Image-Size",
    "Location",
    "Model",
    "Model-Weights",
    "Preference-Applied",
    "Retry-After",
    "Server-Timing",
    "Source-Size",
    "x-request-id",
    *RATE_HEADERS,
)
_METHODS = ("GET", "POST", "DELETE")
_SAFE_METHODS = ("GET", "HEAD")
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::\d{1,5})?")


class Hosts:
    """Refuses requests whose Host names another server (421).

    On a loopback bind the loopback's names pass, and those of `names`. On any other bind every
    name passes where `names` is empty; else those, the loopback's, and addresses, which probes and
    scrapers use and which no DNS answer can stand behind.
    """

    def __init__(self, app: ASGIApp, bind: str, names: Sequence[str]) -> None:
        self._app = app
        self._names = [name.lower() for name in names]
        self._local = is_loopback(bind)
        self._open = not self._local and not names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._open:
            for given in Headers(scope=scope).getlist("host"):
                if not self._answers_to(_host_name(given)):
                    error = Misdirected(
                        f"This service does not answer to the name {given[:100]!r}; "
                        "VITRINE_BROWSERS__HOSTS lists the names that it answers to."
                    )
                    await problem(error)(scope, receive, send)
                    return
        await self._app(scope, receive, send)

    def _answers_to(self, name: str) -> bool:
        if is_loopback(name) or name.endswith(".localhost"):
            return True
        if not self._local and _is_address(name):
            return True
        return any(
            name == allowed or (allowed.startswith("*.") and name.endswith(allowed[1:]))
            for allowed in self._names
        )


class Origins:
    """Refuses what a browser sends on behalf of another site's page (403), unless CORS allows it.

    Browsers say so in Sec-Fetch-Site, or where that is missing in Origin; other clients send
    neither. Following a link to a page here is no such request.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._foreign(scope["method"], Headers(scope=scope)):
            error = CrossSiteRequest(
                "A web page of another site sent this request. VITRINE_BROWSERS__ORIGINS lists the "
                "origins that may."
            )
            await problem(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _foreign(self, method: str, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is not None and ("*" in self._origins or origin in self._origins):
            return False
        site = headers.get("sec-fetch-site")
        if site is None:
            return origin is not None and not _same(origin, headers.get("host", ""))
        if site in ("same-origin", "none"):
            return False
        return not (method in _SAFE_METHODS and headers.get("sec-fetch-mode") == "navigate")


def cross_origin(app: ASGIApp, settings: Settings) -> ASGIApp:
    """Return `app` behind the three checks."""
    origins = settings.browsers.origins
    app = Origins(app, origins)
    if origins:
        app = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=_METHODS,
            allow_headers=_REQUEST_HEADERS,
            expose_headers=_ANSWER_HEADERS,
        )
    return Hosts(app, settings.host, settings.browsers.hosts)


def _host_name(host: str) -> str:
    """Return the name in a Host header, without port, brackets and a final dot; empty if malformed."""
    found = _HOST.fullmatch(host.lower())
    return (found[1] or found[2]).removesuffix(".") if found else ""


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _same(origin: str, host: str) -> bool:
    """Whether an Origin names the server that the Host header does; the scheme is the proxy's matter."""
    return urlsplit(origin).netloc.lower() == host.lower()

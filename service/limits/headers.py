"""How the caller's rate stands, on every answer (draft-ietf-httpapi-ratelimit-headers, to version 6).

    RateLimit-Limit      requests that may come at once
    RateLimit-Remaining  of these, how many may still come now
    RateLimit-Reset      seconds until all of them may
    RateLimit-Policy     the limit and its window: `100;w=60`

The later drafts' single structured field is not sent: clients and proxies in use read these four.
"""

from __future__ import annotations

import math

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.limits.admission import Quota

RATE_HEADERS = ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset", "RateLimit-Policy")


class RateHeaders:
    """Writes the quota that the request's admission left in its state (`quota`)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_quota(message: Message) -> None:
            if message["type"] == "http.response.start":
                quota = scope.get("state", {}).get("quota")
                if quota is not None:
                    MutableHeaders(scope=message).update(_headers(quota))
            await send(message)

        await self._app(scope, receive, send_with_quota)


def _headers(quota: Quota) -> dict[str, str]:
    rate = quota.rate
    window = math.ceil(rate.burst * rate.seconds / rate.requests)
    values = (
        str(rate.burst),
        str(quota.remaining),
        str(math.ceil(quota.reset_s)),
        f"{rate.burst};w={window}",
    )
    return dict(zip(RATE_HEADERS, values, strict=True))

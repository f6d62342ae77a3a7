"""How the caller's rate stands, on every answer.

As in draft-ietf-httpapi-ratelimit-headers-10, two structured fields (RFC 9651):

    RateLimit-Policy     the limit and its window: `"key";q=100;w=60`
    RateLimit            what is left of it, and for how long: `"key";r=99;t=1`

and, since many clients in use read these, as in the same draft to its version 6:

    RateLimit-Limit      requests that may come at once
    RateLimit-Remaining  of these, how many may still come now
    RateLimit-Reset      seconds until all of them may
"""

from __future__ import annotations

import math

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.limits.admission import Quota

RATE_HEADERS = (
    "RateLimit-Policy",
    "RateLimit",
    "RateLimit-Limit",
    "RateLimit-Remaining",
    "RateLimit-Reset",
)


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
    reset = math.ceil(quota.reset_s)
    values = (
        f'"key";q={rate.burst};w={window}',
        f'"key";r={quota.remaining};t={reset}',
        str(rate.burst),
        str(quota.remaining),
        str(reset),
    )
    return dict(zip(RATE_HEADERS, values, strict=True))

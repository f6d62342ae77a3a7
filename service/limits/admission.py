"""Rate and concurrency of a key, over all gateways.

The rate is GCRA (the generic cell rate algorithm): one number a key, the time at which the next
request would arrive if all came evenly; a request is refused that comes more than a burst ahead of
it. Calls under way hold slots with leases, which their gateway renews, so that the slots of a
gateway that died are free again seconds later. While Redis is down everything is admitted.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.auth.keys import KeyLimits, Rate
from service.errors import RedisUnavailable, TooManyRequests
from service.jobs.connection import Connection
from service.limits.outage import Outage

LEASE_S = 15.0
_RENEWALS = 3
_BUSY_RETRY_S = 1.0
_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Quota:
    """How a key's rate stands: `remaining` of `rate.burst` requests, all of them again in `reset_s`."""

    rate: Rate
    remaining: int
    reset_s: float


class Refused(TooManyRequests):
    """The key's rate or concurrency is used up; `quota` says how the rate stands."""

    def __init__(self, message: str, *, quota: Quota | None, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.quota = quota


class Admission:
    """Admits calls. `async with Admission(connection, timeout_s) as admission`."""

    def __init__(self, connection: Connection, timeout_s: float, lease_s: float = LEASE_S) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self._lease_s = lease_s
        self._admit = connection.client.register_script((_HERE / "admit.lua").read_text())
        self._renew = connection.client.register_script((_HERE / "renew.lua").read_text())
        self._held: dict[str, str] = {}
        self._outage = Outage("rates and concurrency of keys are not limited")
        self._renewing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Admission:
        self._renewing = asyncio.create_task(self._keep_leases())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)

    @asynccontextmanager
    async def admit(
        self, key_id: str, limits: KeyLimits, *, slot: bool
    ) -> AsyncIterator[Quota | None]:
        """Admit one call of the key; with `slot` it counts against the concurrency until the exit.

        Yields how the key's rate stands, None where it has none or Redis is down. Raises Refused
        (`rate_limited`, `concurrency_exceeded`).
        """
        slots = limits.concurrency if slot else None
        if limits.rate is None and slots is None:
            yield None
            return
        token = secrets.token_hex(8)
        try:
            quota = await self._take(key_id, limits.rate, slots, token)
            yield quota
        finally:
            if token in self._held:
                await asyncio.shield(self._give_back(token))

    async def _take(
        self, key_id: str, rate: Rate | None, slots: int | None, token: str
    ) -> Quota | None:
        if not self._outage.ask():
            return None
        names = [self._connection.key(kind, key_id) for kind in ("rate", "slots")]
        interval_ms = rate.seconds * 1000 / rate.requests if rate else 0
        burst = rate.burst if rate else 0
        if slots is not None:
            self._held[token] = names[1]  # so that a slot is given back whose answer got lost
        try:
            async with self._connection.guard(self._timeout_s):
                verdict, remaining, reset_ms, wait_ms = await self._admit(
                    keys=names,
                    args=[interval_ms, burst, slots or 0, token, round(self._lease_s * 1000)],
                )
        except RedisUnavailable as error:
            self._outage.began(error)
            return None
        self._outage.over()
        quota = Quota(rate, remaining, reset_ms / 1000) if rate else None
        if verdict == "admitted":
            return quota
        self._held.pop(token, None)
        if verdict == "busy":
            raise Refused(
                f"The key has {slots} calls under way, its limit (concurrency).",
                code="concurrency_exceeded",
                retry_after=_BUSY_RETRY_S,
                limit={"name": "concurrency", "calls": slots},
                quota=quota,
            )
        assert rate is not None
        raise Refused(
            f"The key may send {rate} with bursts of {rate.burst} (limit rate); "
            f"the next request is admitted in {wait_ms / 1000:.3g} s.",
            code="rate_limited",
            retry_after=wait_ms / 1000,
            limit={"name": "rate", **rate.model_dump()},
            quota=quota,
        )

    async def _give_back(self, token: str) -> None:
        name = self._held.pop(token)
        if not self._outage.ask():
            return  # the lease ends it
        try:
            async with self._connection.guard(self._timeout_s):
                await self._connection.client.zrem(name, token)
        except RedisUnavailable as error:
            self._outage.began(error)

    async def _keep_leases(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / _RENEWALS)
            held = dict(self._held)
            if not held:
                continue
            lease_ms = round(self._lease_s * 1000)
            with suppress(RedisUnavailable):
                async with self._connection.guard(self._timeout_s):
                    await self._renew(keys=list(held.values()), args=[lease_ms, *held])

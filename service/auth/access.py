"""The guard of every route: who calls, with which scope, within which limits.

A router names what it needs: `APIRouter(dependencies=[INFER])`. Endpoints then find the caller in
`CallerDep`, or in `request.state.caller`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

import structlog
from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes

from service.auth.exposure import key_required
from service.auth.keys import Key, KeyLimits, Scope
from service.deps import Gateway
from service.errors import Forbidden, Unauthorized
from service.http.spool import too_large
from service.limits.admission import Refused

LOCAL = "local"
"""The tenant of callers who need no key."""

_ABOUT = "A key made by `vitrine keys create`. Without one where the service asks for none."
_BEARER = HTTPBearer(auto_error=False, scheme_name="bearer", description=_ABOUT)
_HEADER = APIKeyHeader(
    name="x-api-key", auto_error=False, scheme_name="x-api-key", description=_ABOUT
)


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf a request is done. `tenant` owns the jobs that it makes."""

    tenant: str
    scopes: frozenset[Scope]
    limits: KeyLimits

    @property
    def sees(self) -> str | None:
        """Whose jobs exist for this caller: its own; all of them (None) for an admin."""
        return None if Scope.ADMIN in self.scopes else self.tenant

    def require(self, scope: Scope) -> None:
        """Raise Forbidden where the caller has not the scope."""
        if not self.scopes & {scope, Scope.ADMIN}:
            raise Forbidden(f"This needs a key with the scope {scope}.", scope=scope)


_ANYBODY = Caller(LOCAL, frozenset(Scope), KeyLimits())


async def admitted(
    request: Request,
    needed: SecurityScopes,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)],
    header: Annotated[str | None, Security(_HEADER)],
) -> AsyncIterator[Caller]:
    """Yield the caller; until the answer is sent, the request counts against the key's limits.

    Raises Unauthorized (`missing_key`, `invalid_key`, `key_expired`, `key_revoked`),
    KeysUnavailable, Forbidden, Refused, PayloadTooLarge.
    """
    gateway: Gateway = request.app.state.gateway
    if not key_required(gateway.settings):
        request.state.caller = _ANYBODY
        yield _ANYBODY
        return
    key = await _key(gateway, bearer, header)
    caller = Caller(key.id, frozenset(key.scopes), key.limits)
    structlog.contextvars.bind_contextvars(key=key.id)
    for scope in needed.scopes:
        caller.require(Scope(scope))
    _limit_body(request, caller, gateway.settings.limits.body_bytes)
    request.state.caller = caller
    try:
        slot = Scope.INFER in needed.scopes
        async with gateway.admission.admit(key.id, key.limits, slot=slot) as quota:
            request.state.quota = quota
            yield caller
    except Refused as refusal:
        request.state.quota = refusal.quota
        raise


async def scraping(
    request: Request,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)],
    header: Annotated[str | None, Security(_HEADER)],
) -> None:
    """Admit who reads the metrics: an admin's key, or anybody with `auth.open_metrics`."""
    gateway: Gateway = request.app.state.gateway
    settings = gateway.settings
    if not settings.auth.open_metrics and key_required(settings):
        key = await _key(gateway, bearer, header)
        Caller(key.id, frozenset(key.scopes), key.limits).require(Scope.ADMIN)


async def _key(
    gateway: Gateway, bearer: HTTPAuthorizationCredentials | None, header: str | None
) -> Key:
    presented = bearer.credentials if bearer else header
    if not presented:
        raise Unauthorized(
            "An API key is needed: send it as `Authorization: Bearer KEY` or `x-api-key: KEY`.",
            code="missing_key",
        )
    return await gateway.keyring.find(presented)


def _limit_body(request: Request, caller: Caller, most: int) -> None:
    """Refuse a body that is announced as too large; BodyLimit counts what is not announced."""
    limit = min(caller.limits.body_bytes or most, most)
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise too_large("The body", "key.body_bytes", limit)
    request.state.body_limit = limit


def caller(request: Request) -> Caller:
    found: Caller = request.state.caller
    return found


CallerDep = Annotated[Caller, Depends(caller)]

ANY_KEY = Security(admitted)
INFER = Security(admitted, scopes=[Scope.INFER])
JOBS = Security(admitted, scopes=[Scope.JOBS])
ADMIN = Security(admitted, scopes=[Scope.ADMIN])
METRICS = Security(scraping, scopes=[Scope.ADMIN])

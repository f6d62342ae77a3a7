"""From what a caller presents to the key, with a cache that outlives an outage of Redis."""

from __future__ import annotations

import time
from dataclasses import dataclass

from service.auth.keys import Key, Scope, digest, key_id_of
from service.auth.store import KeyStore
from service.errors import KeysUnavailable, RedisUnavailable, Unauthorized
from service.limits.outage import Outage
from service.settings import AuthSettings

ADMIN_ID = "admin"
"""The id of the key that the settings hold."""


@dataclass(slots=True)
class _Known:
    key: Key
    read_at: float


class Keyring:
    """Looks keys up. One that was read within `auth.cache_s` is taken as it was.

    While Redis is down, a key that was read within `auth.outage_s` stays good, and one that this
    process has not seen cannot be judged (KeysUnavailable). Redis is then asked once a second, so
    that callers do not wait for it one after the other.
    """

    def __init__(self, store: KeyStore, settings: AuthSettings) -> None:
        self._store = store
        self._settings = settings
        self._known: dict[str, _Known] = {}
        self._outage = Outage("known keys stay good, others cannot be checked")
        self._admin: Key | None = None
        if settings.admin_key is not None:
            self._admin = Key(
                id=ADMIN_ID,
                name=ADMIN_ID,
                digest=digest(settings.admin_key.get_secret_value()),
                scopes=(Scope.ADMIN,),
                created_at=time.time(),
            )

    async def find(self, presented: str) -> Key:
        """Return the key that is presented. Raises Unauthorized, KeysUnavailable."""
        if self._admin is not None and self._admin.opens(presented):
            return self._admin
        key_id = key_id_of(presented)
        key = await self._look_up(key_id) if key_id else None
        if key is None or not key.opens(presented):
            raise Unauthorized("The API key is not known.", code="invalid_key")
        if key.revoked_at is not None:
            raise Unauthorized(f"The API key {key.name!r} was revoked.", code="key_revoked")
        if key.expired:
            raise Unauthorized(f"The API key {key.name!r} has expired.", code="key_expired")
        return key

    async def _look_up(self, key_id: str) -> Key | None:
        known = self._known.get(key_id)
        now = time.monotonic()
        if known is not None and now - known.read_at < self._settings.cache_s:
            return known.key
        if not self._outage.ask():
            return self._without_redis(known)
        try:
            key = await self._store.get(key_id)
        except RedisUnavailable as error:
            self._outage.began(error)
            return self._without_redis(known)
        self._outage.over()
        if key is None:
            self._known.pop(key_id, None)
        else:
            self._known[key_id] = _Known(key, now)
        return key

    def _without_redis(self, known: _Known | None) -> Key:
        if known is None or time.monotonic() - known.read_at >= self._settings.outage_s:
            raise KeysUnavailable("The API key cannot be checked at the moment.")
        return known.key

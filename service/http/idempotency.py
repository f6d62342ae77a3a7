"""Idempotency-Key for synchronous answers (jobs have theirs in the queue).

first request ──▶ claimed ──answered──▶ kept for jobs.idempotency_ttl_s: replayed
                    │
                    └──failed, or the gateway died──▶ free again
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
from starlette.requests import Request

from service.errors import Conflict, IdempotencyConflict, InvalidParameter, RedisUnavailable
from service.jobs.connection import Connection
from service.settings import Settings
from service.tasks.contract import Upload

_HEADER = "Idempotency-Key"
_MAX_LENGTH = 255


def idempotency_key(request: Request) -> str | None:
    """Return the caller's key. Raises InvalidParameter where it is no printable ASCII."""
    key = request.headers.get(_HEADER)
    if key is None:
        return None
    if not (0 < len(key) <= _MAX_LENGTH and key.isascii() and key.isprintable()):
        raise InvalidParameter(
            f"{_HEADER} must be 1 to {_MAX_LENGTH} printable ASCII characters.", param=_HEADER
        )
    return key


async def request_hash(task: str, parameters: Mapping[str, Any], upload: Upload | None) -> str:
    """Return the digest of all that makes a request what it is."""
    head = orjson.dumps([task, parameters], option=orjson.OPT_SORT_KEYS)
    media = [sent.data for sent in (upload, *upload.more)] if upload else []
    return await asyncio.to_thread(_digest, head, media)


def _digest(head: bytes, media: Iterable[bytes | Path]) -> str:
    digest = hashlib.sha256(head)
    for data in media:
        if isinstance(data, Path):
            with data.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        else:
            digest.update(hashlib.sha256(data).digest())
    return digest.hexdigest()


class Answers:
    """Answers kept in Redis by key. While Redis is down nothing is kept and nothing replayed:
    interactive calls go on."""

    def __init__(self, connection: Connection, settings: Settings) -> None:
        self._connection = connection
        self._timeout_s = settings.redis.connect_timeout_s
        self._claim_ms = round(settings.limits.request_seconds * 2000)
        self._keep_ms = round(settings.jobs.idempotency_ttl_s * 1000)

    async def claim(self, tenant: str, key: str, fingerprint: str) -> bytes | None:
        """Return the answer to replay, or None: the caller now works it out and keeps or frees it.

        Raises:
            IdempotencyConflict: the key was used with another request.
            Conflict: the first request with this key is still running (`request_in_progress`).
        """
        name = self._name(tenant, key)
        claim = orjson.dumps({"hash": fingerprint}).decode()
        with suppress(RedisUnavailable):
            async with self._connection.guard(self._timeout_s):
                client = self._connection.client
                if await client.set(name, claim, nx=True, px=self._claim_ms):
                    return None
                found = await client.get(name)
            if found is None:
                return None
            record = orjson.loads(found)
            if record["hash"] != fingerprint:
                raise IdempotencyConflict(
                    "This Idempotency-Key was used before with another request."
                )
            if "answer" not in record:
                raise Conflict(
                    "The first request with this Idempotency-Key is still running.",
                    code="request_in_progress",
                    retry_after=1.0,
                )
            return str(record["answer"]).encode()
        return None

    async def keep(self, tenant: str, key: str, fingerprint: str, answer: bytes) -> None:
        """Keep a JSON answer for replays."""
        record = orjson.dumps({"hash": fingerprint, "answer": answer.decode()}).decode()
        with suppress(RedisUnavailable):
            async with self._connection.guard(self._timeout_s):
                await self._connection.client.set(self._name(tenant, key), record, px=self._keep_ms)

    async def free(self, tenant: str, key: str) -> None:
        """Give the key back after a failure, so that the request may be sent again."""
        with suppress(RedisUnavailable):
            async with self._connection.guard(self._timeout_s):
                await self._connection.client.delete(self._name(tenant, key))

    def _name(self, tenant: str, key: str) -> str:
        digest = hashlib.sha256(key.encode()).hexdigest()
        return self._connection.key("answer", tenant, digest)

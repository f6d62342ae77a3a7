"""The keys in Redis: one hash of documents by id, under the queue's hash tag."""

from __future__ import annotations

import time

from service.auth.keys import Key
from service.jobs.connection import Connection


class UnknownKey(Exception):
    """No key has that id or name."""


class NameTaken(Exception):
    """A key that is in force has the name already."""


class KeyStore:
    """Makes, finds and revokes keys. All methods raise RedisUnavailable.

    The keys live where the queue does, so they are as durable as its jobs (an append-only file,
    no eviction) and one connection serves both.
    """

    def __init__(self, connection: Connection, timeout_s: float) -> None:
        self._connection = connection
        self._name = connection.key("keys")
        self._timeout_s = timeout_s

    async def add(self, key: Key) -> None:
        """Keep a new key. Raises NameTaken."""
        if any(known.name == key.name and known.in_force for known in await self.list()):
            raise NameTaken(key.name)
        await self._write(key)

    async def get(self, key_id: str) -> Key | None:
        """Return the key of that id, in force or not."""
        async with self._connection.guard(self._timeout_s):
            document = await self._connection.client.hget(self._name, key_id)
        return Key.model_validate_json(document) if document else None

    async def list(self) -> list[Key]:
        """Return all keys, the oldest first, with those that are revoked or have expired."""
        async with self._connection.guard(self._timeout_s):
            documents = await self._connection.client.hvals(self._name)
        keys = map(Key.model_validate_json, documents)
        return sorted(keys, key=lambda key: key.created_at)

    async def revoke(self, id_or_name: str) -> Key:
        """Revoke the key of that id, or the key in force of that name. Raises UnknownKey.

        The record stays, so that the holder is told, and the id stays taken with its jobs.
        """
        keys = await self.list()
        named = [key for key in keys if key.name == id_or_name and key.in_force]
        for key in [key for key in keys if key.id == id_or_name] + named:
            if key.revoked_at is None:
                key = key.model_copy(update={"revoked_at": time.time()})
                await self._write(key)
            return key
        raise UnknownKey(id_or_name)

    async def _write(self, key: Key) -> None:
        async with self._connection.guard(self._timeout_s):
            await self._connection.client.hset(self._name, key.id, key.model_dump_json())

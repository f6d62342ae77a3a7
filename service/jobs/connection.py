"""The queue's connection to Redis: two clients, the Lua scripts, and one mapping of errors."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any, Self

import orjson
from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as DisconnectedError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as SlowError

from service.errors import RedisUnavailable
from service.settings import JobSettings, RedisSettings

BLOCK_S = 1.0
"""How long a blocking read waits; well below the socket's time-out, or a dead server goes unseen."""

COMMAND_CONNECTIONS = 32
BLOCKING_CONNECTIONS = 10_000

# What a server says that is full, a replica, cannot save or has no quorum; a script's error holds
# it somewhere inside. Redis refuses at a script's first write, so nothing is half done.
_REFUSED = re.compile(r"\b(OOM|READONLY|MISCONF|NOREPLICAS|MASTERDOWN|CLUSTERDOWN|NOSCRIPT)\b")
_LUA = Path(__file__).parent / "lua"


@cache
def script_source(name: str) -> str:
    """Return `lua/<name>.lua` behind the functions that all scripts share."""
    return "\n".join((_LUA / f"{part}.lua").read_text() for part in ("common", name))


class Connection:
    """Redis as the queue uses it.

    Every key starts with the root `{<queue>}`, a hash tag, so that all of them share one slot of a
    Cluster and one script may touch them. Calls fail within `connect_timeout_s` while Redis is
    down and work again once it is back; nothing is retried here, callers know what is safe.
    """

    def __init__(self, redis: RedisSettings, jobs: JobSettings) -> None:
        self.root = f"{{{redis.queue}}}"
        self._timeout_s = redis.connect_timeout_s
        self._config = orjson.dumps(
            {
                "lease": round(jobs.lease_s * 1000),
                "max_attempts": jobs.max_attempts,
                "max_queued": jobs.max_queued,
                "max_running": jobs.max_running_per_tenant or 0,
                "queue_ttl": round(jobs.queue_ttl_s * 1000),
                "result_ttl": round(jobs.result_ttl_s * 1000),
                "record_ttl": round(max(jobs.record_ttl_s, jobs.result_ttl_s) * 1000),
                "idempotency_ttl": round(jobs.idempotency_ttl_s * 1000),
            }
        ).decode()
        self.client = Redis.from_pool(
            BlockingConnectionPool.from_url(
                redis.url,
                max_connections=COMMAND_CONNECTIONS,
                timeout=redis.connect_timeout_s,
                **_options(redis, redis.connect_timeout_s),
            )
        )
        # Each reader that waits holds a connection of its own.
        self.blocking = Redis.from_pool(
            ConnectionPool.from_url(
                redis.url,
                max_connections=BLOCKING_CONNECTIONS,
                **_options(redis, BLOCK_S + redis.connect_timeout_s),
            )
        )
        self._scripts: dict[str, Any] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()
        await self.blocking.aclose()

    def key(self, *parts: str) -> str:
        return ":".join((self.root, *parts))

    async def run(self, name: str, *arguments: str | int | float) -> Any:
        """Run `lua/<name>.lua`: KEYS[1] is the root, ARGV[1] the limits as JSON, then `arguments`."""
        script = self._scripts.get(name)
        if script is None:
            script = self._scripts[name] = self.client.register_script(script_source(name))
        async with self.guard(self._timeout_s):
            return await script(keys=[self.root], args=[self._config, *arguments])

    @asynccontextmanager
    async def guard(self, timeout_s: float) -> AsyncIterator[None]:
        """Raise RedisUnavailable for whatever says that Redis is down, full, loading or not the primary.

        A cancellation comes through: `asyncio.wait_for`, which redis-py writes with, drops one
        that arrives together with its result (Python 3.11), and the task would live on.
        """
        task = asyncio.current_task()
        asked = task.cancelling() if task else 0
        try:
            async with asyncio.timeout(timeout_s):
                yield
        except (DisconnectedError, OSError, SlowError) as error:
            if task and task.cancelling() > asked:
                raise asyncio.CancelledError from error
            raise RedisUnavailable("The job queue does not answer.") from error
        except RuntimeError as error:
            # uvloop, where the server went between the connection and its first command.
            if "the handler is closed" not in str(error):
                raise
            raise RedisUnavailable("The job queue does not answer.") from error
        except ResponseError as error:
            if _REFUSED.search(str(error)) is None:
                raise
            raise RedisUnavailable("The job queue takes no writes at the moment.") from error
        if task and task.cancelling() > asked:
            raise asyncio.CancelledError


def _options(redis: RedisSettings, timeout_s: float) -> dict[str, Any]:
    return {
        "decode_responses": True,
        "protocol": 2,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": redis.connect_timeout_s,
        "retry": Retry(NoBackoff(), 0),
    }

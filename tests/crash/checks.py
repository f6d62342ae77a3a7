"""What must hold once a round has settled, looked at from the outside: API, Redis, files, processes.

* Every accepted job exists, ended once (one final event, the last one), as its record says, and as
  what it may end; what was seen as final has stayed so.
* Every result is whole and of its own job; of a job that did not succeed there is none.
* A key made one job; a request without a key at most one.
* Nothing waits, runs or is claimed: the queue's lanes, turns, leases and counters are empty.
* Every object in storage belongs to a job, or is noted as a stray that the janitor must remove.
* Every process belongs to a part.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import orjson
from redis.asyncio import Redis

from tests.crash.clients import FINAL, Client, Violation
from tests.crash.orders import FAILURES, POISONS, Kind, Order
from tests.crash.system import JOBS, System

_ACCIDENTS = {
    "worker_lost",
    "inference_unavailable",
    "model_restarting",
    "model_load_failed",
    "storage_unavailable",
}
# Such an attempt counts only once the job is older than `queue_ttl_s`.
_TURNED_AWAY = {"model_not_loaded", "model_loading", "model_unavailable"}
_TURNS = 15
_LEGAL = {
    "queued": {"running", "canceled", "expired"},
    "running": {"running", "queued", "succeeded", "failed", "canceled"},
}
# Records of the past, counters and locks; whatever else there is tells of work to do.
_KEPT = (
    *("job", "events", "idempotency", "answer", "jobs", "garbage", "janitor", "ping"),
    *("submitted", "wake"),
)


@dataclass
class Record:
    """A job as Redis has it."""

    id: str
    state: str
    attempt: int
    failures: int
    error: str
    token: str
    lived_s: float
    result: dict[str, Any] | None
    events: list[tuple[str, str, dict[str, Any]]]


@dataclass
class Checks:
    """The checks of one system; `strays` are the files that nobody knows, found so far."""

    system: System
    redis: Redis
    client: Client
    strays: set[str] = field(default_factory=set)

    @property
    def root(self) -> str:
        return f"{{{self.system.settings.redis.queue}}}"

    async def round(self, orders: list[Order], since: str) -> list[Record]:
        """Check a settled round, whose jobs have ids behind `since`. Raises Violation."""
        listed = {job["id"]: job for job in await self.client.listing(since)}
        records = [await self.record(job) for job in listed]
        for record in records:
            if record.state != listed[record.id]["state"]:
                raise Violation(f"listed as {listed[record.id]['state']}", job=record.id)
            _check_events(record)
        await self._check_orders(orders, {record.id: record for record in records})
        await self._check_queue()
        await self._check_storage()
        if strangers := self.system.strangers():
            raise Violation(f"processes of no part: {strangers}")
        return records

    async def record(self, job: str) -> Record:
        """Return the job's record and events. Raises Violation where there is no record."""
        fields: Any = await self.redis.hgetall(f"{self.root}:job:{job}")
        if not fields:
            raise Violation("its record is gone", job=job)
        rows: Any = await self.redis.xrange(f"{self.root}:events:{job}")
        submission = orjson.loads(fields["submission"])
        given = submission["parameters"]
        return Record(
            id=job,
            state=fields["state"],
            attempt=int(fields["attempt"]),
            failures=int(fields["failures"]),
            error=orjson.loads(fields["error"])["code"] if "error" in fields else "",
            token=given.get("token") or given["prompt"].split()[-1],
            lived_s=(int(fields.get("finished", "0")) - int(fields["created"])) / 1000,
            result=orjson.loads(fields["result"]) if "result" in fields else None,
            events=[(id, row["kind"], orjson.loads(row["data"])) for id, row in rows],
        )

    async def _check_orders(self, orders: list[Order], records: dict[str, Record]) -> None:
        by_token: dict[str, list[Record]] = defaultdict(list)
        for record in records.values():
            by_token[record.token].append(record)
        for order in orders:
            made = by_token.pop(order.token, [])
            if len(made) > 1:
                raise Violation(f"{len(made)} jobs of one request", order)
            if order.job is not None and order.job not in records:
                raise Violation("an accepted job is lost", order)
            if order.job is None and made:
                if not order.maybe_made:
                    raise Violation(f"a job of a refused request: {made[0].id}", order)
                order.job = made[0].id
            if order.key and order.job is None and not order.refused:
                raise Violation("never accepted, for all its tries", order)
            if order.job is not None:
                await self._check_end(order, records[order.job])
        if by_token:
            raise Violation(f"jobs of nobody: {sorted(by_token)}")

    async def _check_end(self, order: Order, record: Record) -> None:
        seen = order.states[-1] if order.states else ""
        if seen in FINAL and seen != record.state:
            raise Violation(f"seen as {seen}, and now {record.state}", order)
        match record.state:
            case "succeeded":
                if order.kind in FAILURES or order.kind in POISONS:
                    raise Violation("it succeeded", order)
                await self.client.fetch(order)
            case "failed":
                expected = FAILURES.get(order.kind)
                if record.lived_s > JOBS.queue_ttl_s:
                    accidents = _ACCIDENTS | _TURNED_AWAY
                else:
                    accidents = _ACCIDENTS
                if record.error != expected and not (
                    record.error in accidents and record.failures >= JOBS.max_attempts
                ):
                    raise Violation(f"failed with {record.error}, not {expected}", order)
            case "canceled":
                if not order.cancels:
                    raise Violation("canceled, which nobody asked for", order)
            case "expired":
                if record.attempt or record.lived_s < JOBS.queue_ttl_s:
                    raise Violation(f"expired after {record.lived_s} s, {record.attempt}", order)
        if record.state != "succeeded" and record.result is not None:
            raise Violation(f"{record.state} with a result", order)

    async def _check_queue(self) -> None:
        """Nothing waits, runs or is claimed: of the queue's own keys only counters have anything."""
        for _ in range(_TURNS):  # a worker that finds nothing clears the turns away
            left = {name: content async for name, content in self._contents() if content}
            if not left:
                return
            await asyncio.sleep(0.2)
        raise Violation(f"nothing is left to do, and yet there are {left}")

    async def _contents(self) -> AsyncIterator[tuple[str, Any]]:
        """Yield the queue's own keys and what they hold."""
        async for key in self.redis.scan_iter(match=f"{self.root}:*", count=1000):
            name = key.removeprefix(f"{self.root}:")
            if name.partition(":")[0] not in _KEPT:
                yield name, await self._content(key)

    async def _content(self, key: str) -> Any:
        """Return what a key holds, of collections the first few members; zeros count as nothing."""
        match await self.redis.type(key):
            case "zset":
                return await self.redis.zrange(key, 0, 4, withscores=True)
            case "set":
                return await self.redis.srandmember(key, 5)
            case "list":
                return await self.redis.lrange(key, 0, 4)
            case "stream":
                return await self.redis.xrange(key, count=5)
            case "hash":
                fields: Any = await self.redis.hgetall(key)
                return {name: value for name, value in fields.items() if value not in ("0", "")}
            case "string":
                value = await self.redis.get(key)
                return value if value not in ("0", "", None) else None
        return None

    async def _check_storage(self) -> None:
        """Files are of known jobs; objects of ended jobs are set down for deletion."""
        garbage = set(await self.redis.zrange(f"{self.root}:garbage", 0, -1))
        for path in self.files():
            kind, job, *rest = path.split("/")
            if "#" in path or not await self.redis.exists(f"{self.root}:job:{job}"):
                self.strays.add(path)
            elif job not in garbage:
                if path in self.files():
                    raise Violation(f"{path} is not set down for deletion", job=job)
            elif kind == "results":
                attempt = await self.redis.hget(f"{self.root}:job:{job}", "attempt")
                if int(rest[0]) > int(attempt or 0):
                    raise Violation(f"{path} is of no attempt", job=job)

    def files(self) -> list[str]:
        """Return every file below the storage directory, also those that are being written."""
        root = self.system.data / "storage"
        return [
            os.path.relpath(os.path.join(folder, name), root)
            for folder, _, names in os.walk(root)
            for name in names
        ]


def _check_events(record: Record) -> None:
    states = [data["state"] for _, kind, data in record.events if kind == "state"]
    if record.state not in FINAL:
        raise Violation(f"it never ended: {states}", job=record.id)
    finals = [state for state in states if state in FINAL]
    if finals != [record.state]:
        raise Violation(f"final events {finals} of a job that {record.state}", job=record.id)
    if record.events[-1][1] != "state" or states[-1] not in FINAL:
        raise Violation("events after the final one", job=record.id)
    if len(record.events) < 200 and states[0] not in {"queued", *_LEGAL["queued"]}:
        raise Violation(f"it began as {states[0]}", job=record.id)
    for before, after in itertools.pairwise(states):
        if after not in _LEGAL[before]:
            raise Violation(f"from {before} to {after}: {states}", job=record.id)
    attempts = [data["attempt"] for _, kind, data in record.events if kind == "state"]
    if attempts != sorted(attempts):
        raise Violation(f"attempts went back: {attempts}", job=record.id)


def outcome(order: Order, record: Record | None) -> str:
    """Return in words how an order ended."""
    if record is None:
        return "refused" if order.kind is Kind.WRONG else "not accepted"
    if record.state != "failed":
        return record.state
    return f"failed: {record.error}"

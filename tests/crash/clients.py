"""Clients of the system under test: they hand in, follow, cancel and fetch, whatever happens to it."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2

from tests.crash.orders import Kind, Order

FINAL = ("succeeded", "failed", "canceled", "expired")
PATIENCE_S = 60.0


class Violation(AssertionError):
    """Something that must hold did not. `order` is the job concerned, where there is one."""

    def __init__(self, message: str, order: Order | None = None, job: str | None = None) -> None:
        super().__init__(message)
        self.order = order
        self.job = job or (order.job if order else None)


class Client:
    """Serves orders through all gateways; `counts` tells what it met on the way."""

    def __init__(self, gateways: list[str], rng: random.Random) -> None:
        self.counts: Counter[str] = Counter()
        self._gateways = gateways
        self._rng = rng
        timeout = httpx2.Timeout(6.0, connect=2.0)
        limits = httpx2.Limits(max_connections=200, max_keepalive_connections=20)
        self._http = httpx2.AsyncClient(timeout=timeout, limits=limits, trust_env=False)

    async def close(self) -> None:
        await self._http.aclose()

    async def serve(self, order: Order) -> None:
        """Bring one order to its end, or to where this client loses interest. Raises Violation."""
        await asyncio.sleep(order.delay_s)
        await self._hand_in(order)
        if order.job is None:
            return
        async with asyncio.TaskGroup() as group:
            if order.cancel_after_s is not None:
                group.create_task(self._cancel(order, order.cancel_after_s))
            if order.watch == "events":
                group.create_task(self._follow(order))
            elif order.watch == "poll":
                group.create_task(self._poll(order))
            if order.key and self._rng.random() < 0.3:
                group.create_task(self._replay(order))
        if order.states and order.states[-1] == "succeeded":
            await self.fetch(order)

    async def _hand_in(self, order: Order) -> None:
        """Send the order until it is answered; without a key, once."""
        path, headers, kind, body = order.request
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                answer = await self._post(path, headers, kind, body)
            except httpx2.ConnectError:
                self.counts["refused connections"] += 1
            except httpx2.TransportError as error:
                order.note(f"handing in: {type(error).__name__}")
                self.counts["broken connections"] += 1
                if order.key is None:
                    order.maybe_made += 1
                    return
            else:
                order.note(f"handing in: {answer.status_code} {_code(answer)}")
                if self._settled(order, answer):
                    return
                if order.key is None and answer.status_code == 503:
                    order.maybe_made += 1
                    return
            if time.monotonic() > deadline:
                raise Violation("no answer but faults while the job was handed in", order)
            await asyncio.sleep(self._rng.uniform(0.1, 0.4))

    async def _post(
        self, path: str, headers: dict[str, str], kind: str | None, body: Any
    ) -> httpx2.Response:
        url = self._rng.choice(self._gateways) + path
        if kind is None:
            return await self._http.post(url, json=body, headers=headers)
        return await self._http.post(url, content=body, headers=headers | {"Content-Type": kind})

    def _settled(self, order: Order, answer: httpx2.Response) -> bool:
        """Take an answer to a request that hands in; tell whether it was the last one."""
        if answer.status_code in (200, 202):
            if order.kind is Kind.WRONG:
                raise Violation("a wrong request was accepted", order)
            job = answer.json()["id"]
            if order.job not in (None, job):
                raise Violation(f"one key made {order.job} and {job}", order)
            if answer.headers.get("idempotency-replayed"):
                self.counts["replays"] += 1
            order.job = job
            return True
        if answer.status_code in (400, 422) and order.kind is Kind.WRONG:
            order.refused = True
            return True
        if answer.status_code in (429, 503, 504):
            self.counts[f"{answer.status_code} {_code(answer)}"] += 1
            if "retry-after" not in answer.headers and answer.status_code != 504:
                raise Violation(f"{answer.status_code} without Retry-After", order)
            return False
        raise Violation(f"handing in was answered {answer.status_code} {answer.text[:300]}", order)

    async def _replay(self, order: Order) -> None:
        """Send the same again: the same job. Send something else with the key: a conflict."""
        await asyncio.sleep(self._rng.uniform(0, 1))
        path, headers, kind, body = order.request
        answer = await self._insist(order, lambda: self._post(path, headers, kind, body))
        if answer.status_code not in (200, 202) or answer.json()["id"] != order.job:
            raise Violation(
                f"a replay was answered {answer.status_code} {answer.text[:300]}", order
            )
        self.counts["replays"] += 1
        if self._rng.random() < 0.3:
            other = {"prompt": f"other than {order.token}"}
            answer = await self._insist(
                order, lambda: self._post("/v1/generate/image", headers, None, other)
            )
            if answer.status_code != 409:
                raise Violation(f"another request with one key: {answer.status_code}", order)
            self.counts["conflicts"] += 1

    async def _cancel(self, order: Order, after_s: float) -> None:
        await asyncio.sleep(after_s)
        order.cancels += 1
        answer = await self._insist(order, lambda: self._http.delete(self._job(order)))
        if answer.status_code not in (200, 202):
            raise Violation(f"a cancellation was answered {answer.status_code}", order)
        order.note(f"cancelled: {answer.status_code} {answer.json()['state']}")
        self._see(order, answer.json()["state"])

    async def _poll(self, order: Order) -> None:
        while not (order.states and order.states[-1] in FINAL):
            answer = await self._insist(order, lambda: self._http.get(self._job(order)))
            if answer.status_code != 200:
                raise Violation(f"an accepted job was answered {answer.status_code}", order)
            self._see(order, answer.json()["state"])
            await asyncio.sleep(self._rng.uniform(0.15, 0.4))

    async def _follow(self, order: Order) -> None:
        """Follow the events to the last one, resuming wherever the stream breaks off."""
        last: str | None = None
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            headers = {"Last-Event-ID": last} if last else {}
            try:
                url = f"{self._job(order)}/events"
                async with self._http.stream("GET", url, headers=headers) as answer:
                    if answer.status_code == 200:
                        async for event_id, kind, data in _events(answer):
                            if last is not None and _order(event_id) <= _order(last):
                                raise Violation(f"event {event_id} came after {last}", order)
                            last = event_id
                            if kind == "state":
                                self._see(order, data["state"])
                    elif answer.status_code not in (503, 504):
                        raise Violation(f"the events were answered {answer.status_code}", order)
            except (httpx2.TransportError, httpx2.StreamError):
                self.counts["broken streams"] += 1
            if order.states and order.states[-1] in FINAL:
                return
            self.counts["resumed streams"] += 1
            await asyncio.sleep(self._rng.uniform(0.05, 0.3))
        raise Violation("its events did not come to an end", order)

    async def fetch(self, order: Order) -> None:
        """Fetch the result of a job that succeeded; the bytes must be those of this order."""
        if order.fetched:
            return
        url = f"{self._job(order)}/result"
        answer = await self._insist(order, lambda: self._http.get(url))
        if _code(answer) == "result_expired":
            job = (await self._insist(order, lambda: self._http.get(self._job(order)))).json()
            if job["expires_at"] < time.time():
                self.counts["results fetched too late"] += 1
                return
        if answer.status_code != 200:
            raise Violation(
                f"the result was answered {answer.status_code} {answer.text[:200]}", order
            )
        if not order.is_right(answer.content):
            raise Violation(f"a wrong result of {len(answer.content)} bytes", order)
        order.fetched = True
        self.counts["results compared"] += 1

    async def listing(self, since: str) -> list[dict[str, Any]]:
        """Return the jobs behind the id `since`, newest first, through the API."""
        found: list[dict[str, Any]] = []
        after = ""
        while True:
            query = f"/v1/jobs?limit=100{after}"
            answer = await self._insist(None, lambda q=query: self._get(q))  # type: ignore[misc]
            page = answer.raise_for_status().json()
            found += [job for job in page["data"] if job["id"] > since]
            if page["next"] is None or (page["data"] and page["data"][-1]["id"] <= since):
                return found
            after = f"&after={page['next']}"

    async def _get(self, path: str) -> httpx2.Response:
        return await self._http.get(self._rng.choice(self._gateways) + path)

    def _job(self, order: Order) -> str:
        return f"{self._rng.choice(self._gateways)}/v1/jobs/{order.job}"

    def _see(self, order: Order, state: str) -> None:
        if order.states and order.states[-1] in FINAL and state != order.states[-1]:
            # Several watch: what one saw earlier may be older than what it is told now.
            if state in FINAL:
                raise Violation(f"it was {order.states[-1]} and is {state}", order)
            return
        if not order.states or order.states[-1] != state:
            order.states.append(state)
            order.note(f"seen: {state}")

    async def _insist(
        self, order: Order | None, send: Callable[[], Awaitable[httpx2.Response]]
    ) -> httpx2.Response:
        """Send until the answer tells of no fault."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                answer = await send()
                if answer.status_code not in (429, 503, 504):
                    return answer
                told = f"{answer.status_code} {_code(answer)}"
                self.counts[told] += 1
            except httpx2.TransportError as error:
                told = type(error).__name__
                self.counts["broken connections"] += 1
            if time.monotonic() > deadline:
                raise Violation(f"no answer but faults, at last {told}", order)
            await asyncio.sleep(self._rng.uniform(0.1, 0.4))


async def _events(answer: httpx2.Response) -> Any:
    event_id, kind, data = "", "", ""
    async for line in answer.aiter_lines():
        name, _, value = line.partition(": ")
        match name:
            case "id":
                event_id = value
            case "event":
                kind = value
            case "data":
                data = value
            case "" if not line and data:
                yield event_id, kind, json.loads(data)
                data = ""


def _order(event_id: str) -> tuple[int, int]:
    time_part, _, number = event_id.partition("-")
    return int(time_part), int(number)


def _code(answer: httpx2.Response) -> str:
    try:
        return str(answer.json().get("code", ""))
    except ValueError:
        return ""

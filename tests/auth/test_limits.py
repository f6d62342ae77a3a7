"""What a key may use, counted over all gateways."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator

import httpx2
import pytest

from service.auth.keys import KeyLimits, Rate, Scope
from service.jobs.queue import Queue
from service.limits.admission import Admission, Refused
from service.settings import Settings
from tests.auth.conftest import MakeKey, gateway
from tests.gateway.test_inputs import PNG, VIDEO, refused
from tests.jobs.conftest import eventually

TWO_AN_HOUR = {"requests": 2, "seconds": 3600, "burst": 2}


@pytest.mark.parametrize(
    ("text", "rate"),
    [("10/s", (10, 1)), ("600/min", (600, 60)), ("1000/h", (1000, 3600)), ("5 / min", (5, 60))],
)
def test_rates_are_read_and_written(text: str, rate: tuple[int, int]) -> None:
    parsed = Rate.parse(text)
    assert (parsed.requests, parsed.seconds, parsed.burst) == (*rate, rate[0])
    assert str(parsed) == text.replace(" ", "")
    assert Rate.parse(text, burst=3).burst == 3


@pytest.mark.parametrize("text", ["", "10", "0/s", "-1/s", "10/day", "1.5/s", "10/s/s", "٣/s"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match="10/s"):
        Rate.parse(text)


async def test_the_rate_of_a_key(client: httpx2.AsyncClient, key: MakeKey) -> None:
    headers, other = await key(rate=TWO_AN_HOUR), await key(rate=TWO_AN_HOUR)
    left = []
    for _ in range(2):
        answer = await client.post("/v1/echo", content=PNG, headers=headers)
        assert answer.status_code == 200
        assert answer.headers["ratelimit-limit"] == "2"
        assert answer.headers["ratelimit-policy"] == '"key";q=2;w=3600'
        names = ("ratelimit", "ratelimit-remaining", "ratelimit-reset")
        left.append(tuple(answer.headers[name] for name in names))
    assert left == [('"key";r=1;t=1800', "1", "1800"), ('"key";r=0;t=3600', "0", "3600")]
    late = await client.post("/v1/echo", content=PNG, headers=headers)
    refused(late, 429, "rate_limited", "2/h")
    assert late.json()["limit"] == {"name": "rate", **TWO_AN_HOUR}
    assert 1700 < int(late.headers["retry-after"]) <= 1800
    assert late.headers["ratelimit-remaining"] == "0"
    assert late.headers["ratelimit"].startswith('"key";r=0;t=')
    # Refusals use nothing up; other keys have rates of their own; a page needs none.
    assert (await client.get("/v1/jobs", headers=headers)).headers["retry-after"] == late.headers[
        "retry-after"
    ]
    assert (await client.post("/v1/echo", content=PNG, headers=other)).status_code == 200
    unlimited = await client.post("/v1/echo", content=PNG, headers=await key())
    assert "ratelimit-limit" not in unlimited.headers


async def test_a_rate_is_of_all_gateways(settings: Settings, key: MakeKey) -> None:
    headers = await key(rate=TWO_AN_HOUR)
    async with gateway(settings) as one, gateway(settings) as two:
        statuses = [
            (await client.post("/v1/echo", content=PNG, headers=headers)).status_code
            for client in (one, two, one, two)
        ]
    assert statuses == [200, 200, 429, 429]


async def test_who_waits_as_told_is_admitted(client: httpx2.AsyncClient, key: MakeKey) -> None:
    headers = await key(rate={"requests": 1, "seconds": 1, "burst": 1})
    assert (await client.post("/v1/echo", content=PNG, headers=headers)).status_code == 200
    late = await client.post("/v1/echo", content=PNG, headers=headers)
    refused(late, 429, "rate_limited")
    await asyncio.sleep(int(late.headers["retry-after"]) + 0.05)
    assert (await client.post("/v1/echo", content=PNG, headers=headers)).status_code == 200


async def test_the_rate_is_kept_over_time(admission: Admission) -> None:
    """GCRA: after the burst, one request an interval, neither more nor fewer."""
    limits = KeyLimits(rate=Rate(requests=50, seconds=1, burst=5))
    loop = asyncio.get_running_loop()
    began, admitted = loop.time(), 0
    refusals: list[Refused] = []
    while loop.time() - began < 0.6:
        try:
            async with admission.admit("k", limits, slot=False):
                admitted += 1
        except Refused as refusal:
            refusals.append(refusal)
        passed = loop.time() - began
        assert admitted <= 5 + passed * 50 + 2
    for refusal in refusals:
        assert refusal.quota is not None
        assert refusal.quota.remaining == 0
        assert 0 < (refusal.retry_after or 0) <= 0.021
    # A busy machine may let chances pass; it must not be given more of them.
    assert admitted > 5


async def test_the_calls_of_a_key_under_way(client: httpx2.AsyncClient, key: MakeKey) -> None:
    headers = await key(Scope.INFER, Scope.JOBS, concurrency=2)

    def sleep(seconds: float) -> asyncio.Task[httpx2.Response]:
        body = {"seconds": seconds}
        return asyncio.create_task(client.post("/v1/sleep", json=body, headers=headers))

    first, second = sleep(1.5), sleep(1.5)
    await asyncio.sleep(0.3)
    refusal = await sleep(0)
    refused(refusal, 429, "concurrency_exceeded", "2 calls")
    assert refusal.headers["retry-after"] == "1"
    # Looking at jobs is no call for an answer.
    assert (await client.get("/v1/jobs", headers=headers)).status_code == 200
    assert [(await task).status_code for task in (first, second)] == [200, 200]
    assert (await sleep(0)).status_code == 200
    failing = {"seconds": 0, "fail": True}
    for _ in range(3):
        answer = await client.post("/v1/sleep", json=failing, headers=headers)
        refused(answer, 500, "internal_error")
    assert (await sleep(0)).status_code == 200


@pytest.fixture
async def admission(queue: Queue) -> AsyncIterator[Admission]:
    async with Admission(queue.connection, 10.0, lease_s=0.6) as admission:
        yield admission


async def test_slots_of_a_dead_gateway_come_back(queue: Queue, admission: Admission) -> None:
    limits = KeyLimits(concurrency=1)
    dead = Admission(queue.connection, 10.0, lease_s=0.6)  # never entered: it renews nothing
    await dead.admit("k", limits, slot=True).__aenter__()
    with pytest.raises(Refused):
        async with admission.admit("k", limits, slot=True):
            pass

    async def free() -> bool:
        try:
            async with admission.admit("k", limits, slot=True):
                return True
        except Refused:
            return False

    await eventually(free)
    async with admission.admit("k", limits, slot=True):
        await asyncio.sleep(1.5)  # more than two leases
        assert not await free()
    assert await free()
    assert await queue.connection.client.exists(queue.connection.key("slots", "k")) == 0


async def test_the_queued_jobs_of_a_key(
    client: httpx2.AsyncClient, queue: Queue, key: MakeKey
) -> None:
    headers, other = await key(queued_jobs=2), await key()

    async def submit(headers: dict[str, str], **fields: str) -> httpx2.Response:
        return await client.post("/v1/echo?mode=async", content=PNG, headers=headers | fields)

    jobs = [(await submit(headers)).json()["id"] for _ in range(2)]
    refusal = await submit(headers)
    refused(refusal, 429, "too_many_queued_jobs", "2 jobs")
    assert int(refusal.headers["retry-after"]) >= 1
    assert refusal.json()["limit"] == {"name": "queued_jobs", "jobs": 2}
    assert (await submit(other)).status_code == 202
    assert await queue.consumer("w").claim() is not None  # a running job waits no more
    replayed = {"Idempotency-Key": "k"}
    assert (await submit(headers, **replayed)).status_code == 202
    assert (await submit(headers, **replayed)).status_code == 202
    refused(await submit(headers), 429, "too_many_queued_jobs")
    await client.delete(f"/v1/jobs/{jobs[1]}", headers=headers)
    assert (await submit(headers)).status_code == 202


async def test_the_body_of_a_key(client: httpx2.AsyncClient, key: MakeKey) -> None:
    """Announced, sent in pieces, inside JSON: it is the medium that is bounded."""
    headers = await key(body_bytes=2000)
    assert (await client.post("/v1/echo", content=PNG, headers=headers)).status_code == 200
    large = VIDEO[:10_000]

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(large), 500):
            yield large[start : start + 500]

    for content in (large, pieces()):
        answer = await client.post("/v1/echo", content=content, headers=headers)
        refused(answer, 413, "payload_too_large", "2,000 bytes", "key.body_bytes")
        assert answer.json()["limit"] == {"name": "key.body_bytes", "bytes": 2000}
    b64 = base64.b64encode(large).decode()
    answer = await client.post("/v1/echo", json={"b64": b64}, headers=headers)
    refused(answer, 413, "payload_too_large")
    # A key cannot widen the gateway's own limit (200,000 bytes here).
    wide = await key(body_bytes=10**9)
    answer = await client.post("/v1/echo", content=VIDEO + bytes(100_000), headers=wide)
    refused(answer, 413, "payload_too_large", "200,000 bytes")
    assert answer.json()["limit"]["name"] == "body_bytes"

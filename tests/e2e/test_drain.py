"""A rolling restart of two gateways and two workers under load: nobody behind the balancer notices."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from service.jobs.queue import Queue
from tests.crash.system import GATEWAYS, WORKERS, System, running
from tests.crash.tasks import carried
from tests.e2e.balancer import Balancer, balancing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PICTURE = {"Content-Type": "image/png"}
PNG = b"\x89PNG\r\n\x1a\n"


class Load:
    """Clients that go on until told to stop, and all that went wrong for them."""

    def __init__(self, url: str) -> None:
        self.done: Counter[str] = Counter()
        self.errors: list[str] = []
        self.jobs: list[str] = []
        self.resumed = 0
        self.going = True
        self._url = url

    async def repeat(
        self, activity: Callable[[httpx2.AsyncClient], Awaitable[None]], keep_alive: bool
    ) -> None:
        headers = {} if keep_alive else {"Connection": "close"}
        async with httpx2.AsyncClient(
            base_url=self._url, timeout=30, trust_env=False, headers=headers
        ) as client:
            while self.going:
                try:
                    await activity(client)
                except (httpx2.HTTPError, AssertionError) as error:
                    self.errors.append(f"{activity.__name__}: {type(error).__name__}: {error}")
                else:
                    self.done[activity.__name__] += 1
                await asyncio.sleep(0.05)

    async def look(self, client: httpx2.AsyncClient) -> None:
        answer = await client.get("/v1/jobs?limit=1")
        assert answer.status_code == 200, answer.text

    async def carry(self, client: httpx2.AsyncClient) -> None:
        """A picture, answered after a third of a second."""
        token, upload = secrets.token_hex(8), PNG + secrets.token_bytes(100_000)
        path = f"/v1/carry?token={token}&steps=3&step_s=0.1"
        headers = PICTURE | {"Accept": "application/octet-stream"}
        answer = await client.post(path, content=upload, headers=headers)
        assert answer.status_code == 200, answer.text
        assert answer.content == carried(token, upload)

    async def upload_slowly(self, client: httpx2.AsyncClient) -> None:
        """A clip that takes a second and a half to come in."""
        token, parts = secrets.token_hex(8), [b"\0\0\0\x18ftypisom" + secrets.token_bytes(10_000)]
        parts += [secrets.token_bytes(200_000) for _ in range(14)]

        async def body() -> AsyncIterator[bytes]:
            for part in parts:
                yield part
                await asyncio.sleep(0.1)

        headers = {"Content-Type": "video/mp4", "Content-Length": str(sum(map(len, parts)))}
        answer = await client.post(f"/v1/carry?token={token}", content=body(), headers=headers)
        assert answer.status_code == 200, answer.text

    async def wait_for_a_job(self, client: httpx2.AsyncClient) -> None:
        """`Prefer: wait`: done, or the job as it is when the gateway goes."""
        answer = await client.post(
            "/v1/generate/image",
            json={"prompt": secrets.token_hex(8), "steps": 100},
            headers={"Prefer": "wait=10"},
        )
        assert answer.status_code in (200, 202), answer.text
        self.jobs.append(answer.headers["location"].rpartition("/")[2])

    async def follow_a_job(self, client: httpx2.AsyncClient) -> None:
        """A job of two seconds, followed to its end over as many streams as that takes."""
        token, upload = secrets.token_hex(8), PNG + b"x" * 1000
        path = f"/v1/carry?token={token}&steps=40&step_s=0.05&mode=async"
        answer = await client.post(path, content=upload, headers=PICTURE)
        assert answer.status_code == 202, answer.text
        job = answer.json()
        self.jobs.append(job["id"])
        states, ids, streams = ["-"], ["0"], 0
        while states[-1] not in ("succeeded", "failed"):
            streams += 1
            # The end of a stream may be that of its connection, which nobody can announce in time.
            after = {"Connection": "close"}
            if streams > 1:
                after["Last-Event-ID"] = ids[-1]
            async with client.stream("GET", job["links"]["events"], headers=after) as events:
                assert events.status_code == 200
                kind = ""
                async for line in events.aiter_lines():
                    name, _, value = line.partition(": ")
                    if name == "id":
                        ids.append(value)
                    elif name == "event":
                        kind = value
                    elif name == "data" and kind == "state":
                        states.append(json.loads(value)["state"])
        self.resumed += streams - 1
        assert states[-1] == "succeeded", states
        assert len(ids) == len(set(ids)), "an event came twice"
        result = await client.get(job["links"]["result"])
        assert result.content == carried(token, upload)


async def restart(system: System, part: str, balancer: Balancer) -> None:
    """SIGTERM; the supervisor starts it again; wait until the balancer sends there (again)."""
    pid = system.pid(part)
    assert system.send(part, signal.SIGTERM)
    while system.pid(part) in (pid, None):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    if part in GATEWAYS:
        port = urlsplit(system.gateways[part]).port
        while port not in balancer.ready:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_rolling_restart_goes_unnoticed(tmp_path: Path) -> None:
    """Zero errors: uploads under way, kept-alive connections, new ones, waiting calls, streams."""
    drain = {
        "VITRINE_LIMITS__DRAIN_SECONDS": "20",
        "VITRINE_LIMITS__DRAIN_DELAY_SECONDS": "1",
        "VITRINE_JOBS__LEASE_S": "10",
        "VITRINE_JOBS__QUEUE_TTL_S": "60",
        "VITRINE_SHEDDING__ENABLED": "false",
        # Busy cores are no outage of Redis, which this is not about.
        "VITRINE_REDIS__CONNECT_TIMEOUT_S": "20",
    }
    async with running(tmp_path, **drain) as system:
        ports = [urlsplit(url).port or 0 for url in system.gateways.values()]
        async with balancing(ports) as balancer:
            while len(balancer.ready) < len(ports):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            load = Load(f"http://127.0.0.1:{balancer.port}")
            clients = [
                asyncio.create_task(load.repeat(activity, keep_alive))
                for activity, keep_alive in (
                    (load.look, True),
                    (load.look, False),
                    (load.carry, True),
                    (load.carry, False),
                    (load.upload_slowly, True),
                    (load.upload_slowly, False),
                    (load.wait_for_a_job, True),
                    (load.follow_a_job, True),
                    (load.follow_a_job, False),
                )
            ]
            for gateway, worker in zip(GATEWAYS, WORKERS, strict=True):
                await asyncio.sleep(1)
                await restart(system, gateway, balancer)
                await restart(system, worker, balancer)
            await asyncio.sleep(1)
            load.going = False
            await asyncio.gather(*clients)
        print(f"\n{dict(load.done)}, {load.resumed} streams resumed, {len(load.errors)} errors")
        assert load.errors == []
        assert load.resumed > 0
        assert min(load.done.values()) >= 3
        async with Queue(system.settings.redis, system.settings.jobs) as queue:
            for id in load.jobs:
                job = await queue.wait(id, timeout_s=30)
                assert (job.state, job.failures) == ("succeeded", 0)

"""`python -m service.app` as a process: its log, and how it stops."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2

from tests.gateway.test_inputs import refused
from tests.jobs.redis_server import RedisServer, free_port

_PROGRAM = """
from fastapi import Request, Response
from service import app as gateway
from service.settings import Settings
from tests.gateway.tasks import router

create_app = gateway.create_app

def with_tasks(settings):
    app = create_app(settings)
    app.include_router(router)
    return app

gateway.create_app = with_tasks
gateway.main()
"""


class Process:
    """A gateway process, a client to it, and its log."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self.process = process
        self.client = httpx2.AsyncClient(base_url=url, timeout=20.0, trust_env=False)
        self.url = url

    async def stop(self) -> list[dict[str, object]]:
        """Wait for the end (after a signal) and return the log's lines."""
        _, log = await asyncio.wait_for(self.process.communicate(), 20)
        return [json.loads(line) for line in log.splitlines()]


@asynccontextmanager
async def running(redis: RedisServer, directory: Path, drain_s: float) -> AsyncIterator[Process]:
    port = free_port()
    environment = os.environ | {
        "VITRINE_PORT": str(port),
        "VITRINE_DATA_DIR": str(directory),
        "VITRINE_LOG_LEVEL": "info",
        "VITRINE_REDIS__URL": redis.url,
        "VITRINE_REDIS__QUEUE": f"test-{port}",
        "VITRINE_TRITON__URL": f"127.0.0.1:{free_port()}",
        "VITRINE_LIMITS__DRAIN_SECONDS": str(drain_s),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PROGRAM, env=environment, stderr=asyncio.subprocess.PIPE
    )
    gateway = Process(process, f"http://127.0.0.1:{port}")
    try:
        async with gateway.client as client:
            for _ in range(400):
                try:
                    await client.get("/livez")
                    break
                except httpx2.TransportError:
                    assert process.returncode is None
                    await asyncio.sleep(0.05)
            yield gateway
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def refused_connections(url: str) -> bool:
    async with httpx2.AsyncClient(trust_env=False) as fresh:
        for _ in range(200):
            try:
                await fresh.get(f"{url}/livez", headers={"Connection": "close"})
            except httpx2.TransportError:
                return True
            await asyncio.sleep(0.02)
    return False


async def test_sigterm_lets_requests_finish_and_ends_streams(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with running(redis_server, tmp_path, drain_s=10) as gateway:
        client = gateway.client
        headers = {"x-request-id": "the-last-one"}
        last = asyncio.create_task(client.post("/v1/sleep", json={"seconds": 1.5}, headers=headers))
        job = (await client.post("/v1/sleep-job", json={"seconds": 1})).json()
        async with client.stream("GET", job["links"]["events"]) as events:
            received = events.aiter_bytes()
            assert b"queued" in await anext(received)
            waiting = asyncio.create_task(
                client.post("/v1/sleep-job?seconds=1", headers={"Prefer": "wait=15"})
            )
            await asyncio.sleep(0.3)
            gateway.process.send_signal(signal.SIGTERM)
            assert [chunk async for chunk in received] == []
        assert (await waiting).status_code == 202
        assert await refused_connections(gateway.url)
        assert (await last).json() == {"slept": 1.5}
        log = await gateway.stop()
    assert gateway.process.returncode in (0, -signal.SIGTERM)
    lines = [line for line in log if line.get("request_id") == "the-last-one"]
    assert [(line["event"], line["status"], line["route"]) for line in lines] == [
        ("request", 200, "/v1/sleep")
    ]


async def test_draining_is_bounded(redis_server: RedisServer, tmp_path: Path) -> None:
    async with running(redis_server, tmp_path, drain_s=1) as gateway:
        endless = asyncio.create_task(gateway.client.post("/v1/sleep", json={"seconds": 50}))
        await asyncio.sleep(0.3)
        gateway.process.send_signal(signal.SIGTERM)
        await gateway.stop()
        try:
            answer = await endless
        except httpx2.TransportError:
            return
        assert answer.status_code == 500


async def test_faults_are_logged_with_the_request(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with running(redis_server, tmp_path, drain_s=1) as gateway:
        answer = await gateway.client.post("/v1/sleep", json={"seconds": 0, "fail": True})
        refused(answer, 500, "internal_error")
        gateway.process.send_signal(signal.SIGTERM)
        log = await gateway.stop()
    (fault,) = [line for line in log if line["level"] == "error"]
    assert fault["request_id"] == answer.headers["x-request-id"]
    assert "a fault that nobody foresaw" in str(fault["exception"])

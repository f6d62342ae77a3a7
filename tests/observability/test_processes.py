"""Several gateway processes behind one port: what they share, count, and how they stop."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import psutil
import pytest
from prometheus_client import Gauge
from prometheus_client.parser import text_string_to_metric_families

from service.observability.metrics import Metrics
from tests.gateway.test_inputs import PNG
from tests.jobs.redis_server import RedisServer, free_port

PROCESSES = 2


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


class Gateway:
    """The parent of the gateway processes, and requests to them on a connection each."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, temporary: Path) -> None:
        self.process = process
        self.url = url
        self.temporary = temporary

    def client(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(base_url=self.url, timeout=20.0, trust_env=False)

    async def post(self, path: str, **request: object) -> httpx2.Response:
        async with self.client() as client:
            return await client.post(path, **request)

    def workers(self) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children()
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]

    async def pids(self, count: int = PROCESSES) -> set[int]:
        """Ask on new connections until `count` processes have answered."""
        seen: set[int] = set()
        async with asyncio.timeout(120):
            while len(seen) < count:
                # At once: of calls one after the other, the same process may take nearly all.
                seen.update(filter(None, await asyncio.gather(*(self._pid() for _ in range(8)))))
        return seen

    async def _pid(self) -> int | None:
        async with self.client() as client:
            try:
                return int((await client.get("/pid")).json())
            except httpx2.TransportError:
                await asyncio.sleep(0.05)
                return None

    async def samples(self) -> dict[str, float]:
        """Return one scrape: the sums over labels, by sample name."""
        async with self.client() as client:
            text = (await client.get("/metrics")).text
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                assert "pid" not in sample.labels
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
        return found

    async def until_in_flight(self, count: int) -> dict[str, float]:
        """Scrape until `count` requests beside the scrape are in flight; return that scrape."""
        async with asyncio.timeout(60):
            while True:
                found = await self.samples()
                if found["vitrine_requests_in_flight"] == count + 1:
                    return found
                await asyncio.sleep(0.05)


@contextmanager
def running(redis: RedisServer, directory: Path) -> Iterator[Gateway]:
    port, temporary = free_port(), directory / "tmp"
    temporary.mkdir()
    environment = os.environ | {
        "TMPDIR": str(temporary),
        "VITRINE_GATEWAY_WORKERS": str(PROCESSES),
        "VITRINE_PORT": str(port),
        "VITRINE_DATA_DIR": str(directory),
        "VITRINE_REDIS__URL": redis.url,
        "VITRINE_REDIS__QUEUE": f"test-{port}",
        "VITRINE_TRITON__URL": f"127.0.0.1:{free_port()}",
        "VITRINE_STORAGE__MIN_FREE_BYTES": "1",
    }
    with (
        (directory / "log").open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-m", "tests.observability.gateway"], env=environment, stderr=log
        ) as process,
    ):
        try:
            yield Gateway(process, f"http://127.0.0.1:{port}", temporary)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def gateway(redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running(redis, tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


async def test_processes_count_as_one(gateway: Gateway) -> None:
    await gateway.pids()
    before = await gateway.samples()
    assert before["vitrine_gateway_processes"] == PROCESSES
    answers = await asyncio.gather(*(gateway.post("/v1/echo", content=PNG) for _ in range(40)))
    assert {answer.status_code for answer in answers} == {200}
    # More than one process took part, or there would be nothing to sum.
    assert len({answer.json()["run"] for answer in answers}) < 40
    after = await gateway.samples()
    # The scrape before counts too.
    assert after["vitrine_requests_total"] - before["vitrine_requests_total"] == 41
    stages = "vitrine_stage_duration_seconds_count"
    assert after[stages] - before.get(stages, 0) == 40
    assert after["vitrine_requests_in_flight"] == 1  # this scrape
    resident = sum(worker.memory_info().rss for worker in gateway.workers())
    assert after["process_resident_memory_bytes"] == pytest.approx(resident, rel=0.2)


async def test_an_idempotency_key_holds_in_every_process(gateway: Gateway) -> None:
    await gateway.pids()
    headers = {"Idempotency-Key": "once"}
    first = await gateway.post("/v1/echo", content=PNG, headers=headers)
    again = await asyncio.gather(
        *(gateway.post("/v1/echo", content=PNG, headers=headers) for _ in range(20))
    )
    assert {answer.text for answer in again} == {first.text}
    assert {answer.headers["Idempotency-Replayed"] for answer in again} == {"true"}


async def test_killed_processes_are_replaced_and_their_counts_stay(gateway: Gateway) -> None:
    await gateway.pids()
    naps = [asyncio.create_task(gateway.post("/v1/sleep", json={"seconds": 60})) for _ in range(20)]
    before = await gateway.until_in_flight(20)
    victims = gateway.workers()
    for victim in victims:
        victim.kill()
    assert not (await gateway.pids()) & {victim.pid for victim in victims}
    after = await gateway.samples()
    assert after["vitrine_requests_total"] > before["vitrine_requests_total"]
    # What the dead had in flight has gone with them.
    assert after["vitrine_requests_in_flight"] == 1
    assert after["vitrine_gateway_processes"] == PROCESSES
    for nap in naps:
        nap.cancel()
    await asyncio.gather(*naps, return_exceptions=True)


async def test_sigterm_lets_requests_finish_and_leaves_nothing(
    redis: RedisServer, tmp_path: Path
) -> None:
    with running(redis, tmp_path) as gateway:
        await gateway.pids()
        workers = gateway.workers()
        naps = [
            asyncio.create_task(gateway.post("/v1/sleep", json={"seconds": 3})) for _ in range(10)
        ]
        await gateway.until_in_flight(10)
        gateway.process.send_signal(signal.SIGTERM)
        assert [nap.status_code for nap in await asyncio.gather(*naps)] == [200] * 10
        assert await asyncio.to_thread(gateway.process.wait, 20) == 0
        assert not any(worker.is_running() for worker in workers)
        assert list(gateway.temporary.iterdir()) == []
        lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
        assert (
            sum(line["event"] == "request" and line["path"] == "/v1/sleep" for line in lines) == 10
        )


async def test_the_death_of_the_parent_ends_the_processes(
    redis: RedisServer, tmp_path: Path
) -> None:
    with running(redis, tmp_path) as gateway:
        await gateway.pids()
        workers = gateway.workers()
        gateway.process.kill()
        gateway.process.wait()
        _, alive = await asyncio.to_thread(psutil.wait_procs, workers, 20)
        assert not alive


def test_every_gauge_says_how_processes_become_one() -> None:
    gauges = [one for one in Metrics().registry._collector_to_names if isinstance(one, Gauge)]
    assert gauges
    assert {gauge._multiprocess_mode for gauge in gauges} & {"all", "liveall"} == set()

"""Answers at once: deadlines, callers who hang up, replays, and faults of ours."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import httpx2
import pytest

from service.settings import LimitSettings, RedisSettings, Settings
from tests.gateway import tasks
from tests.gateway.conftest import PROMPTLY_S, build, in_process, settings_for
from tests.gateway.test_inputs import PNG, refused
from tests.jobs.redis_server import RedisServer, free_port


async def test_every_answer_says_who_and_how_long(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/v1/echo", content=PNG)
    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])
    assert re.fullmatch(r"decode;dur=2\.00, total;dur=\d+\.\d\d", answer.headers["server-timing"])
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(("given", "kept"), [("mine-1.2:3", True), ("a b", False), ("é", False)])
async def test_request_id_of_the_caller(client: httpx2.AsyncClient, given: str, kept: bool) -> None:
    answer = await client.get("/livez", headers={"x-request-id": given.encode()})
    assert (answer.headers["x-request-id"] == given) is kept


async def test_deadline(settings: Settings) -> None:
    limits = LimitSettings(request_seconds=0.2)
    async with in_process(build(settings.model_copy(update={"limits": limits}))) as client:
        tasks.sleep.cancelled.clear()
        answer = await client.post("/v1/sleep", json={"seconds": 60})
        refused(answer, 504, "deadline_exceeded", "0.2 seconds", "request_seconds")
        assert tasks.sleep.cancelled.is_set()


async def test_hanging_up_cancels_the_pipeline(served: httpx2.AsyncClient) -> None:
    tasks.sleep.cancelled = asyncio.Event()
    with pytest.raises(httpx2.ReadTimeout):
        await served.post("/v1/sleep", json={"seconds": 60}, timeout=0.3)
    await asyncio.wait_for(tasks.sleep.cancelled.wait(), 5)
    assert (await served.get("/livez")).status_code == 200


async def test_unforeseen_fault(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/v1/sleep", json={"seconds": 0, "fail": True})
    refused(answer, 500, "internal_error")
    assert "nobody foresaw" not in answer.text
    assert "x-request-id" in answer.headers


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/nothing"), ("GET", "/v1/echo")])
async def test_no_such_route(client: httpx2.AsyncClient, method: str, path: str) -> None:
    answer = await client.request(method, path)
    status, code = (404, "not_found") if "nothing" in path else (405, "method_not_allowed")
    refused(answer, status, code)


async def test_single_attachment_is_answered_raw_where_accept_names_it(
    client: httpx2.AsyncClient,
) -> None:
    raw = await client.post("/v1/echo?count=91", content=PNG, headers={"Accept": "image/*"})
    assert (raw.headers["content-type"], raw.content) == ("image/png", PNG)
    document = (await client.post("/v1/echo?count=92", content=PNG)).json()
    assert [file["name"] for file in document["files"]] == ["copy-0", "copy-1"]
    assert document["files"][0]["data"].startswith("data:image/png;base64,iVBOR")


async def test_triton_down(client: httpx2.AsyncClient) -> None:
    for mode in ("sync", "async"):
        async with asyncio.timeout(PROMPTLY_S):
            answer = await client.post(f"/v1/resolve?mode={mode}")
        refused(answer, 503, "inference_unavailable")
        assert int(answer.headers["retry-after"]) >= 1
    assert (
        'vitrine_triton_errors_total{code="inference_unavailable",model=""} 2.0'
        in (await client.get("/metrics")).text
    )


async def test_idempotent_answer_is_replayed(client: httpx2.AsyncClient) -> None:
    headers = {"Idempotency-Key": "k-1"}
    first = await client.post("/v1/echo", content=PNG, headers=headers)
    second = await client.post("/v1/echo", content=PNG, headers=headers)
    assert second.content == first.content
    assert second.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    other = await client.post("/v1/echo", content=PNG, headers={"Idempotency-Key": "k-2"})
    assert other.json()["run"] == first.json()["run"] + 1


async def test_idempotency_key_with_another_request(client: httpx2.AsyncClient) -> None:
    headers = {"Idempotency-Key": "k"}
    await client.post("/v1/echo", content=PNG, headers=headers)
    for answer in (
        await client.post("/v1/echo?count=6", content=PNG, headers=headers),
        await client.post("/v1/echo", content=PNG + b"\0", headers=headers),
        await client.post("/v1/sleep", json={"seconds": 0}, headers=headers),
    ):
        refused(answer, 409, "idempotency_conflict")


async def test_idempotency_key_of_a_running_request(client: httpx2.AsyncClient) -> None:
    headers = {"Idempotency-Key": "k"}
    body = {"seconds": 0.5}
    first = asyncio.create_task(client.post("/v1/sleep", json=body, headers=headers))
    await asyncio.sleep(0.2)
    refused(await client.post("/v1/sleep", json=body, headers=headers), 409, "request_in_progress")
    assert (await first).status_code == 200
    again = await client.post("/v1/sleep", json=body, headers=headers)
    assert again.headers["idempotency-replayed"] == "true"


async def test_idempotency_key_is_free_again_after_a_failure(client: httpx2.AsyncClient) -> None:
    headers = {"Idempotency-Key": "k"}
    for _ in range(2):
        answer = await client.post("/v1/sleep", json={"seconds": 0, "fail": True}, headers=headers)
        refused(answer, 500, "internal_error")


@pytest.mark.parametrize("key", ["", "x" * 256, "\t"])
async def test_idempotency_key_that_is_none(client: httpx2.AsyncClient, key: str) -> None:
    answer = await client.post("/v1/echo", content=PNG, headers={"Idempotency-Key": key})
    refused(answer, 422, "invalid_parameter", "Idempotency-Key")


async def test_redis_down(own_redis: RedisServer, tmp_path: Path) -> None:
    """Interactive calls go on, with a key too; jobs are refused within two seconds; then all is well."""
    async with in_process(build(settings_for(own_redis, tmp_path))) as client:
        own_redis.kill()
        for headers in ({}, {"Idempotency-Key": "k"}):
            assert (await client.post("/v1/echo", content=PNG, headers=headers)).is_success
        for method, path, content in (
            ("POST", "/v1/echo?mode=async", PNG),
            ("POST", "/v1/sleep-job?seconds=1", None),
            ("GET", "/v1/jobs", None),
            ("GET", "/v1/jobs/job_00000000000000000000000000", None),
            ("GET", "/v1/jobs/job_00000000000000000000000000/events", None),
            ("DELETE", "/v1/jobs/job_00000000000000000000000000", None),
        ):
            async with asyncio.timeout(PROMPTLY_S):
                answer = await client.request(method, path, content=content)
            refused(answer, 503, "queue_unavailable")
            assert int(answer.headers["retry-after"]) >= 1
        assert not list((tmp_path / "storage").rglob("job_*"))
        own_redis.start()
        answer = await client.post("/v1/echo?mode=async", content=PNG)
        assert answer.status_code == 202


async def test_redis_that_hangs(settings: Settings) -> None:
    """A port that accepts and never answers is as good as closed."""

    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    port = free_port()
    redis = RedisSettings(url=f"redis://127.0.0.1:{port}/0", connect_timeout_s=0.5)
    server = await asyncio.start_server(silence, "127.0.0.1", port)
    async with in_process(build(settings.model_copy(update={"redis": redis}))) as client:
        async with asyncio.timeout(PROMPTLY_S):
            refused(await client.get("/v1/jobs"), 503, "queue_unavailable")
        async with asyncio.timeout(PROMPTLY_S):
            assert (await client.post("/v1/echo", content=PNG)).is_success
    server.close()


async def test_storage_full(settings: Settings) -> None:
    app = build(settings)
    storage = settings.storage.model_copy(update={"min_free_bytes": 1 << 60})
    async with in_process(build(settings.model_copy(update={"storage": storage}))) as client:
        answer = await client.post("/v1/echo?mode=async", content=PNG)
        refused(answer, 507, "storage_full")
        assert (await client.get("/v1/jobs")).json()["data"] == []
        assert (await client.post("/v1/echo", content=PNG)).is_success
    async with in_process(app) as client:
        assert (await client.post("/v1/echo?mode=async", content=PNG)).status_code == 202

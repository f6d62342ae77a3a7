"""Jobs over HTTP, from 202 to the last byte of the result."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from service.jobs.queue import Queue
from service.jobs.record import JobError, JobProgress, State
from service.jobs.results import ResultStore
from service.settings import Settings
from service.storage.store import Store
from service.tasks.contract import Attachment, Outcome
from tests.gateway.test_inputs import PNG, VIDEO, refused

CLIP = Attachment("clip.mp4", "video/mp4", bytes(range(256)) * 8)


async def submit(client: httpx2.AsyncClient, **headers: str) -> str:
    answer = await client.post("/v1/sleep-job", json={"seconds": 1}, headers=headers)
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["id"]
    assert answer.headers["location"] == f"/v1/jobs/{job_id}"
    return job_id


@asynccontextmanager
async def working(queue: Queue, settings: Settings) -> AsyncIterator[None]:
    """A worker's side of the queue that finishes every job with a clip."""
    consumer, results = queue.consumer("w"), ResultStore(Store(settings))

    async def work() -> None:
        while True:
            claim = await consumer.claim()
            if claim is None:
                await consumer.wait()
                continue
            await consumer.progress(claim, JobProgress(percent=50, step=1, steps=2, stage="half"))
            outcome = Outcome({"task": claim.submission.task}, (CLIP,))
            result = await results.save(claim.job.id, claim.job.attempt, outcome)
            await consumer.succeed(claim, result)

    task = asyncio.create_task(work())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def finish(
    queue: Queue, settings: Settings, *attachments: Attachment, error: JobError | None = None
) -> None:
    """Do the oldest waiting job."""
    consumer = queue.consumer("w")
    claim = await consumer.claim()
    assert claim is not None
    if error is not None:
        await consumer.fail(claim, error)
        return
    outcome = Outcome({"answer": 42}, attachments)
    result = await ResultStore(Store(settings)).save(claim.job.id, claim.job.attempt, outcome)
    await consumer.succeed(claim, result)


async def test_job_from_beginning_to_end(
    client: httpx2.AsyncClient, queue: Queue, settings: Settings
) -> None:
    job_id = await submit(client)
    job = (await client.get(f"/v1/jobs/{job_id}")).json()
    assert (job["state"], job["task"], job["queue_position"]) == ("queued", "sleep", 1)
    assert job["links"]["events"] == f"/v1/jobs/{job_id}/events"
    await finish(queue, settings)
    job = (await client.get(f"/v1/jobs/{job_id}")).json()
    assert (job["state"], job["attempt"], job["error"]) == ("succeeded", 1, None)
    assert job["result"] == {"document": {"answer": 42}, "files": []}
    assert job["created_at"] <= job["started_at"] <= job["finished_at"] < job["expires_at"]


async def test_upload_is_stored_for_the_worker(
    client: httpx2.AsyncClient, queue: Queue, settings: Settings
) -> None:
    for content, kind in ((PNG, "image/png"), (VIDEO, "video/mp4")):
        answer = await client.post("/v1/echo?mode=async&count=7&priority=high", content=content)
        assert answer.status_code == 202
        assert answer.json()["priority"] == "high"
        claim = await queue.consumer("w").claim()
        assert claim is not None
        assert claim.submission.parameters["count"] == 7
        assert claim.submission.upload_type == kind
        assert claim.submission.request_id == answer.headers["x-request-id"]
        assert claim.submission.upload_key is not None
        assert await Store(settings).get(claim.submission.upload_key) == content


async def test_prefer_respond_async(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/v1/echo", content=PNG, headers={"Prefer": "respond-async"})
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "respond-async"
    answer = await client.post(
        "/v1/echo?mode=sync", content=PNG, headers={"Prefer": "respond-async"}
    )
    assert answer.status_code == 200


async def test_prefer_wait(client: httpx2.AsyncClient, queue: Queue, settings: Settings) -> None:
    async with working(queue, settings):
        answer = await client.post(
            "/v1/sleep-job", json={"seconds": 1}, headers={"Prefer": "wait=20"}
        )
        assert answer.status_code == 200
        assert answer.json()["state"] == "succeeded"
        assert answer.json()["result"]["document"] == {"task": "sleep"}
        medium = await client.post(
            "/v1/sleep-job",
            json={"seconds": 1},
            headers={"Prefer": "respond-async, wait=20", "Accept": "video/*"},
        )
        assert medium.headers["content-type"] == "video/mp4"
        assert medium.headers["preference-applied"] == "respond-async, wait"
        assert medium.headers["location"].startswith("/v1/jobs/job_")
        assert medium.content == CLIP.data


async def test_prefer_wait_that_is_over(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/v1/sleep-job", json={"seconds": 1}, headers={"Prefer": "wait=1"})
    assert (answer.status_code, answer.json()["state"]) == (202, "queued")


@pytest.mark.parametrize("wait", ["soon", "-1", "1.5", ""])
async def test_prefer_wait_that_is_no_number(client: httpx2.AsyncClient, wait: str) -> None:
    answer = await client.post(
        "/v1/sleep-job", json={"seconds": 1}, headers={"Prefer": f"wait={wait}"}
    )
    refused(answer, 422, "invalid_parameter", "wait")


async def test_sync_where_there_are_only_jobs(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/v1/sleep-job", json={"seconds": 1, "mode": "sync"})
    refused(answer, 422, "invalid_parameter", "mode")


async def test_idempotent_submission(client: httpx2.AsyncClient, settings: Settings) -> None:
    headers = {"Idempotency-Key": "k", "Prefer": "respond-async"}
    first = await client.post("/v1/echo", content=PNG, headers=headers)
    second = await client.post("/v1/echo", content=PNG, headers=headers)
    assert second.json()["id"] == first.json()["id"]
    assert second.headers["idempotency-replayed"] == "true"
    other = await client.post("/v1/echo", content=PNG + b"\0", headers=headers)
    refused(other, 409, "idempotency_conflict")
    stored = [found.key async for found in Store(settings).objects("uploads")]
    assert stored == [f"uploads/{first.json()['id']}"]


async def test_queue_full(client: httpx2.AsyncClient, settings: Settings) -> None:
    app = client._transport.app  # type: ignore[attr-defined]
    limited = settings.jobs.model_copy(update={"max_queued": 1})
    await submit(client)
    async with Queue(settings.redis, limited) as queue:
        object.__setattr__(app.state.gateway, "queue", queue)
        answer = await client.post("/v1/echo?mode=async", content=PNG)
    refused(answer, 429, "queue_full")
    assert [found.key async for found in Store(settings).objects("uploads")] == []


async def test_list(client: httpx2.AsyncClient, queue: Queue, settings: Settings) -> None:
    ids = [await submit(client) for _ in range(5)]
    await client.post("/v1/echo?mode=async", content=PNG)
    await finish(queue, settings)
    page = (await client.get("/v1/jobs?task=sleep&limit=3")).json()
    assert (page["object"], page["has_more"]) == ("list", True)
    found = [job["id"] for job in page["data"]]
    while page["has_more"]:
        page = (await client.get(f"/v1/jobs?task=sleep&limit=3&after={page['next']}")).json()
        found += [job["id"] for job in page["data"]]
    assert found == ids[::-1]
    done = (await client.get("/v1/jobs?state=succeeded")).json()["data"]
    assert [job["id"] for job in done] == ids[:1]
    assert done[0]["result"]["document"] is None


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "state=lost", "after=x"])
async def test_list_refuses(client: httpx2.AsyncClient, query: str) -> None:
    answer = await client.get(f"/v1/jobs?{query}")
    words = ("at least 1 and at most 100",) if query in ("limit=0", "limit=101") else ()
    refused(answer, 422, "invalid_parameter", *words)


@pytest.mark.parametrize("job_id", ["nothing", "job_00000000000000000000000000"])
async def test_unknown_job(client: httpx2.AsyncClient, job_id: str) -> None:
    for method, path in (
        ("GET", ""),
        ("DELETE", ""),
        ("GET", "/events"),
        ("GET", "/result"),
        ("GET", "/result/a"),
    ):
        answer = await client.request(method, f"/v1/jobs/{job_id}{path}")
        refused(answer, 404, "job_not_found", job_id)


async def test_cancel(client: httpx2.AsyncClient, queue: Queue, settings: Settings) -> None:
    job_id = await submit(client)
    for _ in range(2):
        answer = await client.delete(f"/v1/jobs/{job_id}")
        assert (answer.status_code, answer.json()["state"]) == (200, "canceled")
    running = await submit(client)
    claim = await queue.consumer("w").claim()
    assert claim is not None
    for _ in range(2):
        answer = await client.delete(f"/v1/jobs/{running}")
        assert (answer.status_code, answer.json()["state"]) == (202, "running")
        assert answer.json()["cancel_requested"]
    refused(await client.get(f"/v1/jobs/{running}/result"), 409, "result_not_ready", "running")


async def test_result_of_a_failed_job(
    client: httpx2.AsyncClient, queue: Queue, settings: Settings
) -> None:
    job_id = await submit(client)
    answer = await client.get(f"/v1/jobs/{job_id}/result")
    refused(answer, 409, "result_not_ready", "queued")
    assert answer.json()["state"] == "queued"
    assert "retry-after" in answer.headers
    await finish(queue, settings, error=JobError(code="model_failed", message="It broke."))
    answer = await client.get(f"/v1/jobs/{job_id}/result")
    refused(answer, 409, "result_not_ready", "failed")
    assert answer.json()["error"] == {"code": "model_failed", "message": "It broke."}
    assert "retry-after" not in answer.headers


async def test_result_with_one_medium(
    client: httpx2.AsyncClient, queue: Queue, settings: Settings
) -> None:
    job_id = await submit(client)
    await finish(queue, settings, CLIP)
    answer = await client.get(f"/v1/jobs/{job_id}/result")
    assert (answer.headers["content-type"], answer.content) == ("video/mp4", CLIP.data)
    assert answer.headers["content-length"] == str(len(CLIP.data))
    document = await client.get(f"/v1/jobs/{job_id}/result", headers={"Accept": "application/json"})
    assert document.json()["files"] == [
        {
            "name": "clip.mp4",
            "content_type": "video/mp4",
            "bytes": 2048,
            "url": f"/v1/jobs/{job_id}/result/clip.mp4",
        }
    ]


@pytest.mark.parametrize(
    ("wanted", "status", "start", "end"),
    [
        ("bytes=0-9", 206, 0, 10),
        ("bytes=2000-", 206, 2000, 2048),
        ("bytes=2000-9999", 206, 2000, 2048),
        ("bytes=-48", 206, 2000, 2048),
        ("bytes=-9999", 206, 0, 2048),
        ("bytes=2048-", 416, 0, 0),
        ("bytes=9-3", 416, 0, 0),
        ("bytes=-0", 416, 0, 0),
        ("bytes=-", 200, 0, 2048),
        ("bytes=0-1,4-5", 200, 0, 2048),
        ("frames=0-1", 200, 0, 2048),
    ],
)
async def test_ranges(
    client: httpx2.AsyncClient,
    queue: Queue,
    settings: Settings,
    wanted: str,
    status: int,
    start: int,
    end: int,
) -> None:
    job_id = await submit(client)
    await finish(queue, settings, CLIP)
    path = f"/v1/jobs/{job_id}/result/clip.mp4"
    answer = await client.get(path, headers={"Range": wanted})
    assert (answer.status_code, answer.content) == (status, CLIP.data[start:end])
    if status == 206:
        assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/2048"
    if status == 416:
        assert answer.headers["content-range"] == "bytes */2048"
    stale = await client.get(path, headers={"Range": wanted, "If-Range": '"other"'})
    assert (stale.status_code, stale.content) == (200, CLIP.data)


async def test_result_with_several_media(
    client: httpx2.AsyncClient, queue: Queue, settings: Settings
) -> None:
    job_id = await submit(client)
    await finish(queue, settings, CLIP, Attachment("mask.png", "image/png", PNG))
    listed = (await client.get(f"/v1/jobs/{job_id}/result")).json()
    assert listed["document"] == {"answer": 42}
    media = [await client.get(file["url"]) for file in listed["files"]]
    assert [answer.content for answer in media] == [CLIP.data, PNG]
    refused(await client.get(f"/v1/jobs/{job_id}/result/x"), 404, "file_not_found", "'x'")


async def test_result_that_is_gone(
    client: httpx2.AsyncClient, queue: Queue, settings: Settings, tmp_path: Path
) -> None:
    job_id = await submit(client)
    await finish(queue, settings, CLIP)
    await Store(settings).delete_prefix(f"results/{job_id}")
    refused(await client.get(f"/v1/jobs/{job_id}/result"), 404, "result_expired")
    job = (await client.get(f"/v1/jobs/{job_id}")).json()
    assert (job["state"], job["result"]["document"]) == ("succeeded", None)


async def events(
    client: httpx2.AsyncClient, job_id: str, **headers: str
) -> list[tuple[str, str, str]]:
    """Follow a job to its end; return (id, event, data) of each event."""
    found: list[tuple[str, str, str]] = []
    fields: dict[str, str] = {}
    async with client.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for line in answer.aiter_lines():
            name, _, value = line.partition(": ")
            fields[name] = value
            if not line and "data" in fields:
                found.append((fields["id"], fields["event"], fields["data"]))
                fields = {}
    return found


async def test_events(served: httpx2.AsyncClient, queue: Queue, settings: Settings) -> None:
    job_id = await submit(served)
    following = asyncio.create_task(events(served, job_id))
    async with working(queue, settings):
        seen = await asyncio.wait_for(following, 20)
    assert [(name, '"half"' in data) for _, name, data in seen] == [
        ("state", False),
        ("state", False),
        ("progress", True),
        ("state", False),
    ]
    assert '"succeeded"' in seen[-1][2]
    for index, (event_id, _, _) in enumerate(seen[:-1]):
        assert await events(served, job_id, **{"Last-Event-ID": event_id}) == seen[index + 1 :]


async def test_a_long_stream_ends_and_is_resumed(
    served: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.jobs.endpoints._LONGEST_STREAM_S", 0.3)
    job_id = await submit(served)
    ((last, name, data),) = await events(served, job_id)
    assert (name, '"queued"' in data) == ("state", True)
    await served.delete(f"/v1/jobs/{job_id}")
    ((_, name, data),) = await events(served, job_id, **{"Last-Event-ID": last})
    assert (name, '"canceled"' in data) == ("state", True)


async def test_events_refuse_an_id_that_is_none(client: httpx2.AsyncClient) -> None:
    job_id = await submit(client)
    answer = await client.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": "x"})
    refused(answer, 422, "invalid_parameter", "Last-Event-ID")


async def test_follower_who_leaves(served: httpx2.AsyncClient) -> None:
    """A follower who hangs up is let go, which the count of requests in flight shows."""
    job_id = await submit(served)
    async with served.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        received = answer.aiter_bytes()
        assert b"queued" in await anext(received)
        assert "vitrine_requests_in_flight 2.0" in (await served.get("/metrics")).text
    for _ in range(200):
        if "vitrine_requests_in_flight 1.0" in (await served.get("/metrics")).text:
            return
        await asyncio.sleep(0.02)
    pytest.fail("the follower is still being served")


async def test_hanging_up_while_waiting_keeps_the_job(
    served: httpx2.AsyncClient, queue: Queue
) -> None:
    with pytest.raises(httpx2.ReadTimeout):
        await served.post(
            "/v1/sleep-job", json={"seconds": 1}, headers={"Prefer": "wait=20"}, timeout=0.3
        )
    page = await queue.list("local")
    assert [job.state for job in page.jobs] == [State.QUEUED]

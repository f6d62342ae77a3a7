"""Probes, metrics, models without Triton, and the pages."""

from __future__ import annotations

import asyncio
import re
from html.parser import HTMLParser
from pathlib import Path

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

import service
from service.http.openapi import NARROWER_CODES, problems
from tests.gateway.conftest import PROMPTLY_S, build, in_process, settings_for
from tests.gateway.test_inputs import PNG, refused
from tests.jobs.redis_server import RedisServer


async def samples(
    client: httpx2.AsyncClient,
) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = (await client.get("/metrics")).text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_livez(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/livez")).json() == {"status": "ok"}


async def test_readyz_says_what_is_missing(own_redis: RedisServer, tmp_path: Path) -> None:
    async with in_process(build(settings_for(own_redis, tmp_path))) as client:
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json() == {
            "ready": False,
            "triton": False,
            "redis": True,
            "models": {},
            "missing": ["Triton does not answer"],
        }
        own_redis.kill()
        async with asyncio.timeout(PROMPTLY_S):
            answer = await client.get("/readyz")
        assert answer.json()["missing"] == ["Triton does not answer", "Redis does not answer"]


async def test_requests_are_counted_by_template(client: httpx2.AsyncClient) -> None:
    await client.post("/v1/echo", content=PNG)
    await client.get("/v1/jobs/job_1")
    await client.get("/v1/jobs/job_2")
    await client.get("/wp-login.php")
    found = await samples(client)

    def counted(method: str, route: str, status: str) -> float:
        labels = {"method": method, "route": route, "status": status, "model": ""}
        requests = found["vitrine_requests_total", frozenset(labels.items())]
        name = "vitrine_request_duration_seconds_count"
        assert found[name, frozenset(labels.items())] == requests
        return requests

    assert counted("POST", "/v1/echo", "200") == 1
    assert counted("GET", "/v1/jobs/{job_id}", "404") == 2
    assert counted("GET", "unmatched", "404") == 1
    decode = frozenset({"stage": "decode", "model": ""}.items())
    assert found["vitrine_stage_duration_seconds_sum", decode] == pytest.approx(0.002)


async def test_depth_is_read_from_redis(own_redis: RedisServer, tmp_path: Path) -> None:
    async with in_process(build(settings_for(own_redis, tmp_path))) as client:
        for priority in ("low", "normal", "normal"):
            await client.post(f"/v1/sleep-job?seconds=1&priority={priority}")
        await asyncio.sleep(0.01)
        found = await samples(client)
        depth = {
            dict(labels)["lane"]: value
            for (name, labels), value in found.items()
            if name == "vitrine_jobs_queued"
        }
        assert depth == {"high": 0, "normal": 2, "low": 1}
        for lane, waiting in depth.items():
            oldest = found["vitrine_queue_oldest_seconds", frozenset({("lane", lane)})]
            assert (oldest > 0) == (waiting > 0)
        assert found["vitrine_redis_up", frozenset()] == 1
        own_redis.kill()
        found = await samples(client)
        assert found["vitrine_redis_up", frozenset()] == 0
        assert not any(name == "vitrine_jobs_queued" for name, _ in found)


async def test_models_without_triton(client: httpx2.AsyncClient) -> None:
    for method, path in (
        ("GET", "/v1/models"),
        ("GET", "/v1/models/a"),
        ("POST", "/v1/models/a/load"),
        ("POST", "/v1/models/a/unload"),
    ):
        async with asyncio.timeout(PROMPTLY_S):
            answer = await client.request(method, path)
        refused(answer, 503, "inference_unavailable")
    refused(await client.get("/v1/models?task=cooking"), 422, "invalid_parameter", "task")


class Assets(HTMLParser):
    """Collects what a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inline = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag == "script" and "src" not in given:
            self.inline += 1
        self.inline += sum(name == "style" or name.startswith("on") for name in given)
        source = given.get("href" if tag == "link" else "src")
        if source and tag in ("script", "link", "img"):
            self.found.append(source)


@pytest.mark.parametrize("page", ["/", "/docs"])
async def test_pages_load_nothing_from_elsewhere(client: httpx2.AsyncClient, page: str) -> None:
    answer = await client.get(page)
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assets = Assets()
    assets.feed(answer.text)
    assert assets.found
    assert assets.inline == 0
    for source in assets.found:
        assert source.startswith("/")
        fetched = await client.get(source)
        assert fetched.status_code == 200, source
        assert len(fetched.content) > 100


async def test_openapi_is_whole(client: httpx2.AsyncClient) -> None:
    """Every reference resolves, every operation explains itself and its errors."""
    document = (await client.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    for name in re.findall(
        r'"#/components/schemas/([^"]+)"', (await client.get("/openapi.json")).text
    ):
        assert name in schemas
    assert not re.search(r'"#/\$defs/', str(document))
    operations = [
        (f"{method} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if path.startswith("/v1/")
        and path not in ("/v1/echo", "/v1/echo-image", "/v1/sleep")
        and path not in ("/v1/sleep-job", "/v1/resolve")
    ]
    assert len(operations) >= 13
    for name, operation in operations:
        assert operation["description"] or operation["summary"], name
        problem = [
            response
            for status, response in operation["responses"].items()
            if int(status) >= 400 and "application/problem+json" in response["content"]
        ]
        assert problem, name
        assert "HTTPValidationError" not in str(operation), name


def test_an_undocumented_status_is_refused() -> None:
    with pytest.raises(ValueError, match="418"):
        problems(418)


def test_every_stable_code_is_documented() -> None:
    """Codes are part of the API: none is raised that the reference does not name, and none is named
    that nothing raises. What only jobs fail with is on the job's schema."""
    root = Path(service.__file__).parent
    raised = {
        code
        for path in root.rglob("*.py")
        if path.relative_to(root).parts[0] not in ("cli", "client", "supervisor")
        for code in re.findall(r'\bcode="([a-z0-9_]+)"', path.read_text())
    }
    documented = {code for codes in NARROWER_CODES.values() for code in codes}
    assert raised == documented | {"run_timeout", "task_not_served"}

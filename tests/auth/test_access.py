"""Who gets in, and to what."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

import httpx2
import pytest

from service.auth.exposure import Exposed, is_loopback, key_required, refuse_exposure
from service.auth.keys import Scope, make_key
from service.auth.store import KeyStore
from service.jobs.queue import Queue
from service.settings import AuthSettings, Settings
from tests.auth.conftest import CACHE_S, GUARDED, MakeKey, gateway, maker
from tests.gateway.conftest import PROMPTLY_S, settings_for
from tests.gateway.test_inputs import PNG, refused
from tests.jobs.redis_server import RedisServer

OPEN = {"/livez", "/readyz"}
PAGES = ("/", "/docs", "/openapi.json", "/web/vitrine.js")
NO_JOB = "job_" + "0" * 26


async def job_of(client: httpx2.AsyncClient, key: dict[str, str], **headers: str) -> str:
    answer = await client.post("/v1/sleep-job", json={"seconds": 1}, headers=key | headers)
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["id"]
    return job_id


async def test_every_call_needs_a_key(client: httpx2.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    calls = [(path, method) for path, methods in document["paths"].items() for method in methods]
    assert len(calls) >= 16
    for path, method in calls:
        operation = document["paths"][path][method]
        answer = await client.request(method, re.sub(r"\{.*?\}", "x", path))
        if path in OPEN:
            assert answer.status_code in (200, 503), path
            assert "security" not in operation, path
        else:
            refused(answer, 401, "missing_key", "Authorization: Bearer")
            assert answer.headers["www-authenticate"].startswith("Bearer"), path
            assert {"401", "403", "429"} <= set(operation["responses"]), path
    for page in PAGES:
        assert (await client.get(page)).status_code == 200


async def test_the_document_says_which_scope_a_call_needs(client: httpx2.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    assert set(document["components"]["securitySchemes"]) == {"bearer", "x-api-key"}

    def scopes(path: str, method: str) -> list[dict[str, list[str]]]:
        security: list[dict[str, list[str]]] = document["paths"][path][method]["security"]
        return security

    for path, method, scope in (
        ("/v1/classify", "post", ["infer"]),
        ("/v1/generate/image", "post", ["infer"]),
        ("/v1/jobs", "get", ["jobs"]),
        ("/v1/jobs/{job_id}", "delete", ["jobs"]),
        ("/v1/models", "get", []),
        ("/v1/models/{model_id}/load", "post", ["admin"]),
        ("/metrics", "get", ["admin"]),
    ):
        assert scopes(path, method) == [{"bearer": scope}, {"x-api-key": scope}], path


async def test_both_headers_are_taken(client: httpx2.AsyncClient, key: MakeKey) -> None:
    bearer = await key()
    presented = bearer["Authorization"].removeprefix("Bearer ")
    for headers in (bearer, {"x-api-key": presented}, {"Authorization": f"bearer {presented}"}):
        answer = await client.post("/v1/echo", content=PNG, headers=headers)
        assert answer.status_code == 200, answer.text


async def test_keys_that_are_none(client: httpx2.AsyncClient, key: MakeKey) -> None:
    known = (await key())["Authorization"].removeprefix("Bearer ")
    _, never_added = make_key("x", (Scope.ADMIN,))
    for presented in (
        never_added,
        known[:-1] + ("A" if known[-1] != "A" else "B"),
        known + "A",
        known.upper(),
        "vt_",
        "é",
        "*" * 5000,
    ):
        headers = {"x-api-key": presented.encode()}
        refused(await client.post("/v1/echo", headers=headers), 401, "invalid_key")
    basic = {"Authorization": "Basic dXNlcjpwYXNz"}
    refused(await client.post("/v1/echo", headers=basic), 401, "missing_key")


async def test_only_a_digest_is_kept(queue: Queue, key: MakeKey) -> None:
    presented = (await key(name="a"))["Authorization"].removeprefix("Bearer ")
    kept = str(await queue.connection.client.hgetall(queue.connection.key("keys")))
    identity, secret = presented[3:15], presented[16:]
    assert identity in kept
    assert secret not in kept


@pytest.mark.parametrize(
    ("scopes", "allowed"),
    [
        ((Scope.INFER,), {"echo", "models"}),
        ((Scope.JOBS,), {"jobs", "models"}),
        ((Scope.INFER, Scope.JOBS), {"echo", "submit", "jobs", "models"}),
        ((Scope.ADMIN,), {"echo", "submit", "jobs", "models", "load", "metrics"}),
    ],
)
async def test_scopes(
    client: httpx2.AsyncClient, key: MakeKey, scopes: tuple[Scope, ...], allowed: set[str]
) -> None:
    headers = await key(*scopes)
    answers = {
        "echo": await client.post("/v1/echo", content=PNG, headers=headers),
        "submit": await client.post("/v1/echo?mode=async", content=PNG, headers=headers),
        "jobs": await client.get("/v1/jobs", headers=headers),
        "models": await client.get("/v1/models", headers=headers),
        "load": await client.post("/v1/models/a/load", headers=headers),
        "metrics": await client.get("/metrics", headers=headers),
    }
    for name, answer in answers.items():
        if name in allowed:
            assert answer.status_code in (200, 202, 503), name  # 503: there is no Triton here
        else:
            refused(answer, 403, "insufficient_scope", "scope")


async def test_a_key_ends_by_revocation_and_by_time(
    client: httpx2.AsyncClient, store: KeyStore, key: MakeKey
) -> None:
    headers = await key(name="ci")
    assert (await client.post("/v1/echo", content=PNG, headers=headers)).status_code == 200
    await store.revoke("ci")
    await asyncio.sleep(CACHE_S * 2)
    refused(await client.post("/v1/echo", headers=headers), 401, "key_revoked", "ci")
    short = await key(name="ci", expires_at=time.time() + 1)
    assert (await client.post("/v1/echo", content=PNG, headers=short)).status_code == 200
    await asyncio.sleep(1.05)
    refused(await client.post("/v1/echo", headers=short), 401, "key_expired")


async def test_the_cache_lasts_as_long_as_it_says(
    settings: Settings, queue: Queue, store: KeyStore, key: MakeKey
) -> None:
    headers = await key(name="ci")
    slow = settings.model_copy(update={"auth": AuthSettings(required=True, cache_s=60)})
    async with gateway(slow) as client:
        assert (await client.get("/v1/jobs", headers=headers)).status_code == 200
        await store.revoke("ci")
        assert (await client.get("/v1/jobs", headers=headers)).status_code == 200


async def test_jobs_are_seen_by_their_key_only(client: httpx2.AsyncClient, key: MakeKey) -> None:
    owner, other, admin = await key(), await key(), await key(Scope.ADMIN)
    job_id = await job_of(client, owner)
    path = f"/v1/jobs/{job_id}"
    for method, suffix in (
        ("GET", ""),
        ("GET", "/events"),
        ("GET", "/result"),
        ("GET", "/result/a.png"),
        ("DELETE", ""),
    ):
        theirs = await client.request(method, path + suffix, headers=other)
        refused(theirs, 404, "job_not_found")
        # In the same words as for a job that never was.
        nobodys = await client.request(method, f"/v1/jobs/{NO_JOB}{suffix}", headers=other)
        assert theirs.json()["detail"].replace(job_id, NO_JOB) == nobodys.json()["detail"]
    assert (await client.get("/v1/jobs", headers=other)).json()["data"] == []
    for headers in (owner, admin):
        assert (await client.get(path, headers=headers)).json()["state"] == "queued"
        (listed,) = (await client.get("/v1/jobs", headers=headers)).json()["data"]
        assert listed["id"] == job_id
    assert (await client.delete(path, headers=admin)).json()["state"] == "canceled"


async def test_idempotency_keys_belong_to_their_api_key(
    client: httpx2.AsyncClient, key: MakeKey
) -> None:
    one, two = await key(), await key()
    again = {"Idempotency-Key": "k"}
    first = await job_of(client, one, **again)
    assert await job_of(client, two, **again) != first
    assert await job_of(client, one, **again) == first
    runs = [
        (await client.post("/v1/echo", content=PNG, headers=headers | again)).json()["run"]
        for headers in (one, two, one)
    ]
    assert runs[0] == runs[2] != runs[1]


async def test_known_keys_outlive_redis(own_redis: RedisServer, tmp_path: Path) -> None:
    settings = settings_for(
        own_redis, tmp_path, auth=AuthSettings(required=True, cache_s=0, outage_s=2.5)
    )
    async with gateway(settings) as client, Queue(settings.redis, settings.jobs) as queue:
        make = maker(KeyStore(queue.connection, 10))
        known = await make(rate={"requests": 1, "seconds": 60, "burst": 1}, concurrency=1)
        unknown = await make()
        answer = await client.post("/v1/echo", content=PNG, headers=known)
        assert answer.status_code == 200
        refused(await client.post("/v1/echo", headers=known), 429, "rate_limited")
        own_redis.kill()
        async with asyncio.timeout(PROMPTLY_S):
            # Beyond its rate too: who is within limits cannot be told now.
            for _ in range(3):
                answer = await client.post("/v1/echo", content=PNG, headers=known)
                assert answer.status_code == 200
                assert "ratelimit-limit" not in answer.headers
            answer = await client.post("/v1/echo", content=PNG, headers=unknown)
            refused(answer, 503, "keys_unavailable")
            assert answer.headers["retry-after"]
            refused(await client.get("/v1/jobs", headers=known), 503, "queue_unavailable")
        await asyncio.sleep(2.5)
        answer = await client.post("/v1/echo", content=PNG, headers=known)
        refused(answer, 503, "keys_unavailable")
        own_redis.start()
        await asyncio.sleep(1.1)
        answer = await client.post("/v1/echo", content=PNG, headers=unknown)
        assert answer.status_code == 200


async def test_the_key_of_the_settings(settings: Settings) -> None:
    secret = "of-a-kubernetes-secret-with-32-characters"
    auth = AuthSettings.model_validate({"required": True, "admin_key": secret})
    guarded = settings.model_copy(update={"auth": auth})
    await refuse_exposure(guarded)
    async with gateway(guarded) as client:
        headers = {"Authorization": f"Bearer {secret}"}
        assert (await client.get("/metrics", headers=headers)).status_code == 200
        refused(await client.get("/metrics"), 401, "missing_key")
        refused(await client.get("/metrics", headers={"x-api-key": secret[1:]}), 401, "invalid_key")


async def test_metrics_may_be_open(settings: Settings) -> None:
    auth = GUARDED.model_copy(update={"open_metrics": True})
    async with gateway(settings.model_copy(update={"auth": auth})) as client:
        assert "vitrine_requests" in (await client.get("/metrics")).text
        refused(await client.get("/v1/jobs"), 401, "missing_key")


async def test_without_keys_what_is_sent_is_not_looked_at(settings: Settings) -> None:
    """OpenAI's SDK always sends a key; where none is needed, any will do."""
    open_to_all = settings.model_copy(update={"auth": AuthSettings(required=False)})
    async with gateway(open_to_all) as client:
        for headers in ({}, {"Authorization": "Bearer none"}):
            answer = await client.post("/v1/echo", content=PNG, headers=headers)
            assert answer.status_code == 200
            assert (await client.get("/metrics", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("192.168.1.2", False),
        ("localhost.example.com", False),
    ],
)
def test_which_addresses_are_loopback(settings: Settings, host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
    bound = settings.model_copy(update={"host": host, "auth": AuthSettings()})
    assert key_required(bound) is not loopback


async def test_a_gateway_for_others_needs_a_key_to_start(
    settings: Settings, store: KeyStore, key: MakeKey
) -> None:
    bound = settings.model_copy(update={"host": "0.0.0.0", "auth": AuthSettings()})
    with pytest.raises(Exposed, match=r"0\.0\.0\.0.*vitrine keys create.*--no-auth"):
        await refuse_exposure(bound)
    with pytest.raises(Exposed, match="VITRINE_AUTH__REQUIRED"):
        await refuse_exposure(settings)
    await refuse_exposure(bound.model_copy(update={"auth": AuthSettings(required=False)}))
    await refuse_exposure(bound.model_copy(update={"host": "127.0.0.1"}))
    await key(name="a")
    await refuse_exposure(bound)
    await store.revoke("a")
    with pytest.raises(Exposed):
        await refuse_exposure(bound)

"""Host names, web pages of other sites, CORS, and the headers that browsers obey."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from service.settings import AuthSettings, BrowserSettings, Settings
from tests.auth.conftest import gateway
from tests.gateway.test_inputs import PNG, refused

APP = "https://app.example.com"
EVIL = "https://evil.example"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"auth": AuthSettings(required=False)})


def browsers(settings: Settings, host: str = "127.0.0.1", **fields: Any) -> Settings:
    return settings.model_copy(update={"host": host, "browsers": BrowserSettings(**fields)})


async def answered(client: httpx2.AsyncClient, host: str) -> bool:
    answer = await client.get("/livez", headers={"Host": host})
    if answer.status_code == 421:
        refused(answer, 421, "host_not_allowed", "VITRINE_BROWSERS__HOSTS")
    return answer.status_code == 200


async def test_on_loopback_only_its_names_are_answered(client: httpx2.AsyncClient) -> None:
    """DNS rebinding: the page's own name stays in the Host header, whatever it resolves to."""
    for host in (
        "localhost",
        "localhost:8000",
        "127.0.0.1:1",
        "[::1]:8000",
        "a.localhost",
        "LOCALHOST.",
    ):
        assert await answered(client, host), host
    for host in (
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.example#localhost",
        "192.168.1.2",
        "[::1",
        "@localhost:x",
        "",
    ):
        assert not await answered(client, host), host


async def test_hosts_of_the_settings(settings: Settings) -> None:
    async with gateway(browsers(settings, hosts=("api.example.com", "*.corp"))) as client:
        for host in ("api.example.com", "API.example.com:443", "a.b.corp", "localhost"):
            assert await answered(client, host), host
        for host in ("example.com", "xapi.example.com", "corp", "xcorp", "10.0.0.1"):
            assert not await answered(client, host), host
    async with gateway(browsers(settings, "0.0.0.0", hosts=("api.example.com",))) as client:
        # Probes and scrapers come by the address, which no name server can forge.
        for host in ("api.example.com", "10.0.0.1:8000", "[2001:db8::1]", "127.0.0.1"):
            assert await answered(client, host), host
        assert not await answered(client, "evil.example")
    async with gateway(browsers(settings, "0.0.0.0")) as client:
        assert await answered(client, "whatever.example")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "same-origin", "Origin": "http://127.0.0.1"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "http://127.0.0.1"},
        # Behind a proxy that speaks TLS; the browser has compared the whole origin.
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://127.0.0.1"},
    ],
)
async def test_own_pages_and_programs_may_call(
    client: httpx2.AsyncClient, headers: dict[str, str]
) -> None:
    assert (await client.post("/v1/echo", content=PNG, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site", "Origin": EVIL},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:3000"},
        {"Origin": EVIL},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:3000"},
        {"Origin": "http://127.0.0.1.evil.example"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Origin": EVIL},
    ],
)
async def test_pages_of_other_sites_may_not_call(
    client: httpx2.AsyncClient, headers: dict[str, str]
) -> None:
    """Also not by what needs no preflight: a form, or `fetch` with a plain-text body."""
    form = headers | {"Content-Type": "text/plain"}
    answer = await client.post("/v1/generate/image", content="{}", headers=form)
    refused(answer, 403, "cross_site_request", "VITRINE_BROWSERS__ORIGINS")
    assert "access-control-allow-origin" not in answer.headers
    if "Sec-Fetch-Mode" not in headers:
        refused(await client.get("/v1/jobs", headers=headers), 403, "cross_site_request")
    preflight = headers | {"Access-Control-Request-Method": "POST"}
    answer = await client.options("/v1/echo", headers=preflight)
    assert answer.status_code >= 400
    assert "access-control-allow-origin" not in answer.headers


async def test_a_link_to_a_page_may_be_followed(client: httpx2.AsyncClient) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert (await client.get("/docs", headers=link)).status_code == 200


async def test_origins_of_the_settings(settings: Settings) -> None:
    page = {"Origin": APP, "Sec-Fetch-Site": "cross-site"}
    async with gateway(browsers(settings, origins=(APP,))) as client:
        asked = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,idempotency-key",
        }
        preflight = await client.options("/v1/echo", headers=page | asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == APP
        assert "access-control-allow-credentials" not in preflight.headers
        answer = await client.post("/v1/echo", content=PNG, headers=page)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == APP
        exposed = answer.headers["access-control-expose-headers"].lower().split(", ")
        assert {"retry-after", "ratelimit-remaining", "location", "x-request-id"} <= set(exposed)
        # A page can read why it was refused.
        answer = await client.get("/v1/jobs/x", headers=page)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (404, APP)
        refused(
            await client.get("/v1/jobs", headers=page | {"Origin": EVIL}), 403, "cross_site_request"
        )
    async with gateway(browsers(settings, origins=("*",))) as client:
        answer = await client.post("/v1/echo", content=PNG, headers=page)
        assert answer.headers["access-control-allow-origin"] == "*"


async def test_security_headers(client: httpx2.AsyncClient) -> None:
    answers = [
        await client.get("/"),
        await client.get("/docs"),
        await client.get("/web/vitrine.js"),
        await client.get("/livez"),
        await client.get("/v1/jobs"),
        await client.get("/v1/jobs/x"),
        await client.get("/livez", headers={"Host": "evil.example"}),
        await client.post("/v1/sleep", json={"seconds": 0, "fail": True}),
    ]
    assert [a.status_code for a in answers] == [200, 200, 200, 200, 200, 404, 421, 500]
    for answer in answers:
        headers = answer.headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-frame-options"] == "DENY"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert "camera=()" in headers["permissions-policy"]
        policy = headers["content-security-policy"]
        assert "frame-ancestors 'none'" in policy
        assert "unsafe-eval" not in policy
        assert "script-src 'unsafe-inline'" not in policy
        # Only what the service says itself: neither its software nor versions.
        assert not {"server", "x-powered-by"} & set(headers)
    assert answers[4].headers["cache-control"] == "no-store"

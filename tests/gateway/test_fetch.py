"""URLs given by callers: public addresses only, bounded in time and bytes, and only media."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_network

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from service.errors import BadInput, PayloadTooLarge, UnsupportedMedia, VitrineError
from service.media.fetch import Fetcher, public
from service.settings import LimitSettings, Settings
from tests.gateway.conftest import build, in_process, listening
from tests.gateway.test_inputs import PNG, refused

LIMITS = LimitSettings(body_bytes=100_000, fetch_seconds=20)
HURRIED = LimitSettings(fetch_seconds=0.3)
IMPATIENT = LimitSettings(fetch_seconds=60, fetch_stall_seconds=0.3)
LOOPBACK = [ip_network("127.0.0.1/32")]


async def remote_picture(request: Request) -> Response:
    return Response(PNG, media_type="image/png")


async def remote_page(request: Request) -> Response:
    return Response("<p>hello", media_type="text/html")


async def remote_slow(request: Request) -> Response:
    await asyncio.sleep(30)
    return Response(PNG, media_type="image/png")


async def remote_trickle(request: Request) -> Response:
    async def drops() -> AsyncIterator[bytes]:
        while True:
            yield PNG[:1]
            await asyncio.sleep(0.05)

    return StreamingResponse(drops(), media_type="image/png")


async def remote_steady(request: Request) -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        yield PNG + bytes(16_384)
        for _ in range(6):
            await asyncio.sleep(0.3)
            yield bytes(16_384)

    return StreamingResponse(pieces(), media_type="image/png")


async def remote_endless(request: Request) -> Response:
    async def flood() -> AsyncIterator[bytes]:
        for _ in range(100_000):
            yield b"\0" * 10_000
            await asyncio.sleep(0.001)

    return StreamingResponse(flood(), media_type="video/mp4")


async def remote_huge(request: Request) -> Response:
    return Response(bytes(100_001), media_type="video/mp4")


async def remote_error(request: Request) -> Response:
    return Response(status_code=404)


async def remote_redirect(request: Request) -> Response:
    return RedirectResponse(request.query_params["to"])


async def remote_loop(request: Request) -> Response:
    return RedirectResponse("/loop")


@asynccontextmanager
async def remote() -> AsyncIterator[str]:
    """A server on 127.0.0.1 that does what servers of strangers do."""
    handlers: list[Callable[[Request], object]] = [
        remote_picture,
        remote_page,
        remote_slow,
        remote_trickle,
        remote_steady,
        remote_endless,
        remote_huge,
        remote_error,
        remote_redirect,
        remote_loop,
    ]
    routes = [Route(f"/{h.__name__.removeprefix('remote_')}", h) for h in handlers]  # type: ignore[attr-defined]
    async with listening(Starlette(routes=routes)) as url:
        yield url


async def fetch(fetcher: Fetcher, url: str) -> tuple[str, str, bytes]:
    async with fetcher.open(url) as answer:
        data = b"".join([chunk async for chunk in answer.chunks])
    return answer.content_type, answer.name, data


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/a.png",
        "http://127.1/a.png",
        "http://2130706433/a.png",
        "http://0x7f.0.0.1/a.png",
        "http://localhost/a.png",
        "http://0.0.0.0/a.png",
        "http://[::1]/a.png",
        "http://[::]/a.png",
        "http://[::ffff:127.0.0.1]/a.png",
        "http://[::ffff:10.0.0.1]/a.png",
        "http://[64:ff9b::127.0.0.1]/a.png",
        "http://[2002:7f00:1::]/a.png",
        "http://[fe80::1]/a.png",
        "http://[fc00::1]/a.png",
        "http://[ff02::1]/a.png",
        "http://10.0.0.1/a.png",
        "http://172.16.0.1/a.png",
        "http://192.168.1.1/a.png",
        "http://169.254.169.254/latest/meta-data",
        "http://100.64.0.1/a.png",
        "http://224.0.0.1/a.png",
        "http://255.255.255.255/a.png",
        "https://127.0.0.1/a.png",
        "http://user:secret@example.com/a.png",
        "ftp://example.com/a.png",
        "file:///etc/passwd",
        "gopher://example.com/",
        "http://",
        "nonsense",
        "http://[::1",
    ],
)
async def test_url_not_allowed(client: httpx2.AsyncClient, url: str) -> None:
    answer = await client.post("/v1/echo", json={"url": url})
    refused(answer, 400, "url_not_allowed")


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1", "64:ff9b::8.8.8.8"])
def test_public_addresses(address: str) -> None:
    assert public(ip_address(address))


async def test_unknown_host(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/v1/echo", json={"url": "http://nowhere.invalid/a.png"})
    refused(answer, 400, "url_failed", "nowhere.invalid")


async def test_picture() -> None:
    async with remote() as url:
        fetched = await fetch(Fetcher(LIMITS, LOOPBACK), f"{url}/picture?size=1")
    assert fetched == ("image/png", "picture", PNG)


async def test_redirect_to_a_relative_place() -> None:
    async with remote() as url:
        fetched = await fetch(Fetcher(LIMITS, LOOPBACK), f"{url}/redirect?to=/picture")
    assert fetched[2] == PNG


@pytest.mark.parametrize(
    ("path", "kind", "code"),
    [
        ("page", UnsupportedMedia, "unsupported_media"),
        ("endless", PayloadTooLarge, "payload_too_large"),
        ("huge", PayloadTooLarge, "payload_too_large"),
        ("error", BadInput, "url_failed"),
        ("loop", BadInput, "url_failed"),
        ("redirect?to=http://127.0.0.2/a.png", BadInput, "url_not_allowed"),
        ("redirect?to=http://[::1]/a.png", BadInput, "url_not_allowed"),
        ("redirect?to=http://169.254.169.254/", BadInput, "url_not_allowed"),
        ("redirect?to=file:///etc/passwd", BadInput, "url_not_allowed"),
    ],
)
async def test_strange_servers(path: str, kind: type[VitrineError], code: str) -> None:
    async with remote() as url:
        with pytest.raises(kind) as raised:
            await fetch(Fetcher(LIMITS, LOOPBACK), f"{url}/{path}")
    assert raised.value.stable_code == code


@pytest.mark.parametrize("path", ["slow", "trickle", "redirect?to=/slow"])
@pytest.mark.parametrize(
    ("limits", "named"), [(HURRIED, "fetch_seconds"), (IMPATIENT, "fetch_stall_seconds")]
)
async def test_slow_servers(path: str, limits: LimitSettings, named: str) -> None:
    async with remote() as url:
        with pytest.raises(BadInput) as raised:
            await fetch(Fetcher(limits, LOOPBACK), f"{url}/{path}")
    assert raised.value.stable_code == "url_timeout"
    assert f"(limit {named})" in raised.value.message


async def test_a_server_that_keeps_giving_may_take_longer() -> None:
    limits = LimitSettings(fetch_seconds=60, fetch_stall_seconds=1.5)
    async with remote() as url:
        _, _, data = await fetch(Fetcher(limits, LOOPBACK), f"{url}/steady")
    assert data == PNG + bytes(7 * 16_384)


def test_a_slow_server_is_given_up_within_two_seconds() -> None:
    """As bad input of any other kind; unless the operator says otherwise."""
    assert LimitSettings().fetch_stall_seconds < 2


async def test_nobody_listens() -> None:
    async with remote() as url:
        pass
    with pytest.raises(BadInput) as raised:
        await fetch(Fetcher(LIMITS, LOOPBACK), f"{url}/picture")
    assert raised.value.stable_code == "url_failed"


async def test_the_checked_address_is_the_one_connected_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name that changes its address after the check is not looked up a second time."""
    loop = asyncio.get_running_loop()
    lookups: list[str] = []
    resolve = loop.getaddrinfo

    async def rebinding(host: str, port: int, **options: object) -> object:
        if host == "rebinding.example":
            lookups.append(host)
            host = "127.0.0.1" if len(lookups) == 1 else "127.0.0.2"
        return await resolve(host, port, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "getaddrinfo", rebinding)
    async with remote() as url:
        port = url.rpartition(":")[2]
        fetched = await fetch(Fetcher(LIMITS, LOOPBACK), f"http://rebinding.example:{port}/picture")
    assert fetched[2] == PNG
    assert lookups == ["rebinding.example"]


@pytest.mark.parametrize("later", ["10.0.0.1", "169.254.169.254", "127.0.0.2", "::1"])
async def test_a_name_that_turns_private_gains_nothing_by_a_redirect(
    monkeypatch: pytest.MonkeyPatch, later: str
) -> None:
    """Every hop is looked up, and checked, by itself: 127.0.0.1 stands for the public address here."""
    loop = asyncio.get_running_loop()
    lookups: list[str] = []

    async def rebinding(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        lookups.append(host)
        return [(2, 1, 6, "", ("127.0.0.1" if len(lookups) == 1 else later, port))]

    monkeypatch.setattr(loop, "getaddrinfo", rebinding)
    async with remote() as url:
        port = url.rpartition(":")[2]
        target = f"http://rebinding.example:{port}/redirect?to=/picture"
        with pytest.raises(BadInput) as raised:
            await fetch(Fetcher(LIMITS, LOOPBACK), target)
    assert raised.value.stable_code == "url_not_allowed"
    assert lookups == ["rebinding.example", "rebinding.example"]


async def test_one_private_address_among_public_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()

    async def mixed(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        return [(2, 1, 6, "", (address, port)) for address in ("93.184.216.34", "10.0.0.1")]

    monkeypatch.setattr(loop, "getaddrinfo", mixed)
    with pytest.raises(BadInput) as raised:
        await fetch(Fetcher(LIMITS), "http://mixed.example/a.png")
    assert raised.value.stable_code == "url_not_allowed"


async def test_fetched_medium_reaches_the_pipeline(settings: Settings) -> None:
    app = build(settings)
    async with remote() as url, in_process(app) as client:
        app.state.gateway = replace(app.state.gateway, fetcher=Fetcher(LIMITS, LOOPBACK))
        answer = await client.post("/v1/echo", json={"url": f"{url}/picture"})
        app.state.gateway = replace(app.state.gateway, fetcher=Fetcher(HURRIED, LOOPBACK))
        late = await client.post("/v1/echo", json={"url": f"{url}/slow"})
    assert (answer.json()["bytes"], answer.json()["name"]) == (len(PNG), "picture")
    refused(late, 400, "url_timeout", "0.3 seconds", "fetch_seconds")

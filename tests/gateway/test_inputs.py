"""Every way to send a medium, and every way to send it wrongly."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from PIL import Image

from service.settings import Settings
from tests.gateway.conftest import PROMPTLY_S, build, in_process

VIDEO = b"\0\0\0\x18ftypisom\0\0\0\0isomiso2" + b"\0" * 150_000


def picture(kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "teal").save(buffer, kind)
    return buffer.getvalue()


PNG = picture()


def refused(answer: httpx2.Response, status: int, code: str, *words: str) -> None:
    """Check a problem: its status, stable code and the words that its sentence must have."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body = answer.json()
    assert (answer.status_code, body["code"]) == (status, code), body
    assert body["status"] == status
    for word in words:
        assert word in body["detail"], body


async def test_raw_body_is_told_by_its_bytes(client: httpx2.AsyncClient) -> None:
    for declared in ("image/jpeg", "application/octet-stream", "application/x-www-form-urlencoded"):
        answer = await client.post("/v1/echo", content=PNG, headers={"Content-Type": declared})
        assert answer.json()["type"] == "image/png"
        assert answer.json()["bytes"] == len(PNG)
        assert answer.json()["in_memory"]


async def test_raw_body_without_content_type(client: httpx2.AsyncClient) -> None:
    assert (await client.post("/v1/echo", content=PNG)).json()["type"] == "image/png"


async def test_video_lies_in_a_file_that_is_deleted(
    client: httpx2.AsyncClient, spool_directory: Path
) -> None:
    answer = await client.post("/v1/echo", content=VIDEO, headers={"Content-Type": "video/mp4"})
    assert answer.json()["type"] == "video/mp4"
    assert answer.json()["bytes"] == len(VIDEO)
    assert not answer.json()["in_memory"]
    assert os.listdir(spool_directory) == []


async def test_multipart(client: httpx2.AsyncClient) -> None:
    answer = await client.post(
        "/v1/echo", files={"file": ("a b.png", PNG, "image/png")}, data={"count": "7"}
    )
    assert answer.json() | {"run": 0} == {
        "type": "image/png",
        "name": "a b.png",
        "bytes": len(PNG),
        "in_memory": True,
        "run": 0,
        "model": None,
        "count": 7,
        "ratio": 0.5,
        "word": "yes",
    }


@pytest.mark.parametrize("name", ["b64", "image", "input"])
@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
async def test_json_base64(client: httpx2.AsyncClient, name: str, prefix: str) -> None:
    source = prefix + base64.encodebytes(PNG).decode()
    answer = await client.post("/v1/echo", json={name: source, "count": 3})
    assert (answer.json()["bytes"], answer.json()["count"]) == (len(PNG), 3)


async def test_a_data_url_is_a_url_too(client: httpx2.AsyncClient) -> None:
    source = "data:image/png;base64," + base64.b64encode(PNG).decode()
    answer = await client.post("/v1/echo", json={"url": source})
    assert answer.json()["bytes"] == len(PNG)
    refused(await client.post("/v1/echo", json={"url": "data:,x"}), 400, "malformed_base64", "url")


async def test_query_parameters_are_merged(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/v1/echo?count=9&ratio=0.25", content=PNG)
    assert (answer.json()["count"], answer.json()["ratio"]) == (9, 0.25)


async def test_the_same_value_twice_is_no_conflict(client: httpx2.AsyncClient) -> None:
    answer = await client.post(
        "/v1/echo?count=9", json={"b64": base64.b64encode(PNG).decode(), "count": 9}
    )
    assert answer.status_code == 200


async def test_conflicting_parameters(client: httpx2.AsyncClient) -> None:
    b64 = base64.b64encode(PNG).decode()
    answer = await client.post("/v1/echo?count=9", json={"b64": b64, "count": 8})
    refused(answer, 422, "invalid_parameter", "count", "twice")
    answer = await client.post("/v1/echo?count=9&count=8", content=PNG)
    refused(answer, 422, "invalid_parameter", "count", "twice")


@pytest.mark.parametrize("content_type", ["image/png", "application/json", ""])
async def test_empty_body(client: httpx2.AsyncClient, content_type: str) -> None:
    for path in ("/v1/echo", "/v1/echo?count=3"):
        answer = await client.post(path, content=b"", headers={"Content-Type": content_type})
        refused(answer, 400, "empty_body")


async def test_empty_file(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/v1/echo", files={"file": ("a.png", b"", "image/png")})
    refused(answer, 400, "empty_body")


@pytest.mark.parametrize("body", [b"{", b"[1]", b"nul", b'{"a": NaN}', b"\xff", b"[" * 100_000])
async def test_malformed_json(client: httpx2.AsyncClient, body: bytes) -> None:
    answer = await client.post(
        "/v1/echo", content=body, headers={"Content-Type": "application/json"}
    )
    refused(answer, 400, "malformed_json")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no boundary",
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc',
        b"--x\r\nContent-Disposition: form-data\r\n\r\nabc\r\n--x--\r\n",
        b'--x\r\nContent-Disposition: form-data; name="doc"; filename="a"\r\n\r\nabc\r\n--x--\r\n',
        b'--x\r\nContent-Disposition: form-data; name="word"\r\n\r\n\xff\r\n--x--\r\n',
    ],
)
async def test_malformed_multipart(client: httpx2.AsyncClient, body: bytes) -> None:
    answer = await client.post(
        "/v1/echo", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    refused(answer, 400, "malformed_multipart" if body else "empty_body")


async def test_multipart_without_boundary(client: httpx2.AsyncClient) -> None:
    answer = await client.post(
        "/v1/echo", content=b"x", headers={"Content-Type": "multipart/form-data"}
    )
    refused(answer, 400, "malformed_multipart", "boundary")


async def test_two_files(client: httpx2.AsyncClient) -> None:
    files = [("file", ("a.png", PNG, "image/png")), ("image", ("b.png", PNG, "image/png"))]
    refused(await client.post("/v1/echo", files=files), 400, "malformed_multipart", "more than one")


async def test_two_sources(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/v1/echo?url=http://example.com/a.png", content=PNG)
    refused(answer, 422, "invalid_parameter", "more than once")


async def test_no_source(client: httpx2.AsyncClient) -> None:
    refused(
        await client.post("/v1/echo", json={"count": 3}), 422, "missing_input", "image or video"
    )


@pytest.mark.parametrize("source", ["%%%", "data:image/png,abc", "data:image/png;base64,%", "é"])
async def test_malformed_base64(client: httpx2.AsyncClient, source: str) -> None:
    refused(await client.post("/v1/echo", json={"image": source}), 400, "malformed_base64")


async def test_source_of_wrong_type(client: httpx2.AsyncClient) -> None:
    refused(await client.post("/v1/echo", json={"image": 7}), 422, "invalid_parameter", "string")


@pytest.mark.parametrize("content_type", ["text/plain", "application/pdf", "audio/mpeg"])
async def test_other_media_types(client: httpx2.AsyncClient, content_type: str) -> None:
    answer = await client.post("/v1/echo", content=PNG, headers={"Content-Type": content_type})
    refused(answer, 415, "unsupported_media", content_type, "images or videos")


async def test_not_a_medium(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/v1/echo", content=b"%PDF-1.7 and so on")
    refused(answer, 415, "unsupported_media", "no known picture or video")


async def test_medium_of_the_wrong_kind(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/v1/echo-image", content=VIDEO)
    refused(answer, 415, "unsupported_media", "video/mp4", "takes images")


async def test_media_where_none_are_taken(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/v1/sleep", content=PNG)
    refused(answer, 415, "unsupported_media", "no media")


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("count=0", ("count", "at least 1 and at most 100", "'0'")),
        ("count=101", ("count", "at least 1 and at most 100", "'101'")),
        ("count=many", ("count", "integer", "'many'")),
        ("word=maybe", ("word", "'yes' or 'no'")),
        ("colour=red", ("colour", "no parameter")),
        ("mode=later", ("mode", "'sync' or 'async'")),
        ("priority=urgent", ("priority", "'high', 'normal' or 'low'")),
    ],
)
async def test_invalid_parameters(
    client: httpx2.AsyncClient, query: str, words: tuple[str, ...]
) -> None:
    answer = await client.post(f"/v1/echo?{query}", content=PNG)
    refused(answer, 422, "invalid_parameter", *words)
    assert answer.json()["param"] == query.partition("=")[0]


@pytest.mark.parametrize("value", ["x", [1], {"a": 1}, True, 2.5, None])
async def test_wrong_json_types(client: httpx2.AsyncClient, value: object) -> None:
    body = {"b64": base64.b64encode(PNG).decode(), "count": value}
    refused(await client.post("/v1/echo", json=body), 422, "invalid_parameter", "count")


async def test_missing_parameter(client: httpx2.AsyncClient) -> None:
    refused(
        await client.post("/v1/sleep", json={}), 422, "invalid_parameter", "seconds", "required"
    )


async def test_body_limit_by_content_length(served: httpx2.AsyncClient) -> None:
    """The refusal comes before a single byte of the body is sent."""
    url = served.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(
        b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: video/mp4\r\n"
        b"Content-Length: 200001\r\n\r\n"
    )
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PROMPTLY_S)
    assert b" 413 " in head
    assert b"x-request-id" in head
    writer.close()
    await writer.wait_closed()


async def test_image_limit_by_content_length(served: httpx2.AsyncClient) -> None:
    url = served.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(
        b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
        b"Content-Length: 100001\r\n\r\n"
    )
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PROMPTLY_S)
    assert b" 413 " in head
    writer.close()
    await writer.wait_closed()


async def test_body_limit_by_count(client: httpx2.AsyncClient) -> None:
    """A chunked body without end is refused once it is over the limit."""
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield VIDEO[:1000]
        while sent < 50_000_000:
            sent += 10_000
            yield b"\0" * 10_000
            await asyncio.sleep(0)

    answer = await client.post("/v1/echo", content=endless())
    refused(answer, 413, "payload_too_large", "200,000", "body_bytes")
    assert answer.json()["limit"] == {"name": "body_bytes", "bytes": 200_000}


async def test_image_limit_by_count(client: httpx2.AsyncClient) -> None:
    for how in (
        {"content": PNG + b"\0" * 100_000},
        {"files": {"file": ("a.png", PNG + b"\0" * 100_000, "image/png")}},
    ):
        answer = await client.post("/v1/echo", **how)  # type: ignore[arg-type]
        refused(answer, 413, "payload_too_large", "100,000", "image_body_bytes")


async def test_form_text_is_limited(client: httpx2.AsyncClient) -> None:
    answer = await client.post(
        "/v1/echo",
        files={"file": ("a.png", PNG, "image/png")},
        data={f"p{i}": "x" for i in range(100)},
    )
    refused(answer, 413, "payload_too_large", "64 text parts")


async def test_upload_that_is_broken_off(served: httpx2.AsyncClient, spool_directory: Path) -> None:
    """A caller who vanishes in the middle of a body leaves no file, and the gateway goes on."""
    url = served.base_url
    connection = socket.create_connection((url.host, url.port))
    connection.sendall(
        b"POST /v1/echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: video/mp4\r\n"
        b"Content-Length: 190000\r\n\r\n" + VIDEO[:120_000]
    )
    await asyncio.sleep(0.1)
    connection.close()
    for _ in range(100):
        text = (await served.get("/metrics")).text
        if 'route="/v1/echo",status="499"' in text:
            break
        await asyncio.sleep(0.02)
    else:
        pytest.fail("the broken-off upload was not counted as 499")
    assert os.listdir(spool_directory) == []


async def test_body_that_does_not_come(settings: Settings) -> None:
    """A caller who sends the head and then nothing is told so after limits.request_seconds."""
    limits = settings.limits.model_copy(update={"request_seconds": 0.2})

    async def stalled() -> AsyncIterator[bytes]:
        yield PNG
        await asyncio.sleep(30)

    async with in_process(build(settings.model_copy(update={"limits": limits}))) as client:
        answer = await client.post("/v1/echo", content=stalled())
    refused(answer, 408, "request_timeout", "0.2 seconds", "request_seconds")

"""The storage over S3's interface."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from service.errors import NotFound, StorageFull, StorageUnavailable
from service.settings import Settings, StorageSettings
from service.storage.store import Store
from tests.storage.s3_server import S3Server

KEY = "results/job_1/1/files/a.png"


@pytest.fixture
def server() -> Iterator[S3Server]:
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def store(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "an-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
    storage = StorageSettings(url="s3://media/vitrine", endpoint=server.url)
    return Store(Settings(storage=storage))


async def test_objects_lie_in_the_bucket_under_the_prefix(store: Store, server: S3Server) -> None:
    await store.put(KEY, b"abcdef", "image/png")
    assert server.objects == {f"/media/vitrine/{KEY}": ("image/png", b"abcdef")}
    assert await store.get(KEY) == b"abcdef"
    assert b"".join([piece async for piece in await store.stream(KEY, 2, 4)]) == b"cd"
    assert await store.size(KEY) == 6
    assert [(found.key, found.bytes) async for found in store.objects("results")] == [(KEY, 6)]


async def test_a_large_file_goes_in_parts(store: Store, server: S3Server, tmp_path: Path) -> None:
    body = np.random.default_rng(0).bytes(11 * 2**20 + 7)
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(body)
    await store.put("uploads/job_1", clip, "video/mp4")
    assert server.objects == {"/media/vitrine/uploads/job_1": ("video/mp4", body)}
    assert server.uploads == {}
    pieces = [piece async for piece in await store.stream("uploads/job_1")]
    assert b"".join(pieces) == body
    assert len(pieces) > 1


async def test_deleting(store: Store, server: S3Server) -> None:
    for key in (KEY, "results/job_2/1/document.json"):
        await store.put(key, b"x", "image/png")
    await store.delete("uploads/job_1")
    await store.delete_prefix("results/job_1")
    assert list(server.objects) == ["/media/vitrine/results/job_2/1/document.json"]
    with pytest.raises(NotFound):
        await store.get(KEY)


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (403, "AccessDenied", StorageUnavailable),
        (507, "XMinioStorageFull", StorageFull),
        (403, "QuotaExceeded", StorageFull),
    ],
)
async def test_refusals(
    store: Store, server: S3Server, status: int, code: str, error: type[Exception]
) -> None:
    server.refusal = (status, code)
    with pytest.raises(error):
        await store.put(KEY, b"x", "image/png")
    assert server.objects == {}


async def test_a_server_that_is_not_there(store: Store, server: S3Server) -> None:
    server.stop()
    with pytest.raises(StorageUnavailable):
        await store.put(KEY, b"x", "image/png")

"""The storage over a real directory."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.errors import NotFound, StorageFull, StorageUnavailable
from service.settings import StorageSettings
from service.storage.store import Storage

KEY = "results/job_1/1/files/a.png"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "a directory"


@pytest.fixture
def storage(directory: Path) -> Storage:
    return Storage(directory.as_uri(), StorageSettings())


async def pieces(storage: Storage, key: str, *span: int) -> bytes:
    return b"".join([piece async for piece in await storage.stream(key, *span)])


async def test_bytes_and_files_come_back(storage: Storage, tmp_path: Path) -> None:
    data = os.urandom(12_000_000)
    (tmp_path / "clip").write_bytes(data)
    await storage.put("uploads/job_1", tmp_path / "clip", "video/mp4")
    await storage.put(KEY, b"abc", "image/png")
    assert await storage.get("uploads/job_1") == data
    assert await pieces(storage, "uploads/job_1") == data
    assert await pieces(storage, "uploads/job_1", 5_000_000, 9_000_001) == data[5_000_000:9_000_001]
    assert await pieces(storage, "uploads/job_1", 11_999_999) == data[-1:]
    assert (await storage.get(KEY), await storage.size(KEY)) == (b"abc", 3)


async def test_put_replaces(storage: Storage) -> None:
    await storage.put(KEY, b"first", "image/png")
    await storage.put(KEY, b"2", "image/png")
    assert await storage.get(KEY) == b"2"


async def test_readers_see_an_object_whole_or_not_at_all(storage: Storage) -> None:
    versions = {bytes([number]) * 3_000_000 for number in range(4)}

    async def write() -> None:
        for version in versions:
            await storage.put(KEY, version, "image/png")

    writing = asyncio.create_task(write())
    seen = 0
    while not writing.done():
        try:
            assert await storage.get(KEY) in versions
            seen += 1
        except NotFound:
            await asyncio.sleep(0)
    await writing
    assert seen


async def test_what_is_not_there(storage: Storage) -> None:
    for call in (storage.get, storage.stream, storage.size):
        with pytest.raises(NotFound) as caught:
            await call(KEY)
        assert caught.value.stable_code == "file_not_found"
    await storage.delete(KEY)
    await storage.delete_prefix("results/job_1")


async def test_delete_prefix_keeps_its_neighbours(storage: Storage, directory: Path) -> None:
    for key in (KEY, "results/job_1/2/document.json", "results/job_10/1/document.json"):
        await storage.put(key, b"x", "image/png")
    await storage.delete_prefix("results/job_1")
    assert [found.key async for found in storage.objects("results")] == [
        "results/job_10/1/document.json"
    ]
    assert sorted(path.name for path in (directory / "results").iterdir()) == ["job_10"]


@pytest.mark.parametrize(
    "key",
    ["", "x", "uploads", "uploads/../y", "/uploads/x", "uploads/.x", "other/x", "uploads/a b"],
)
async def test_keys_that_the_service_would_not_make(storage: Storage, key: str) -> None:
    with pytest.raises(ValueError, match="no storage key"):
        await storage.put(key, b"", "text/plain")


async def test_a_directory_keeps_its_free_bytes(directory: Path) -> None:
    storage = Storage(directory.as_uri(), StorageSettings(min_free_bytes=1 << 60))
    with pytest.raises(StorageFull, match=f"must keep {1 << 60}"):
        await storage.put(KEY, b"abc", "image/png")
    assert [found async for found in storage.objects("results")] == []


def test_a_write_that_finds_no_room_leaves_nothing(directory: Path) -> None:
    """A process that may write files of at most 1 MB gets the kernel's refusal in the middle."""
    program = f"""
import asyncio, resource, signal
from service.errors import StorageFull
from service.settings import StorageSettings
from service.storage.store import Storage

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
storage = Storage({directory.as_uri()!r}, StorageSettings())
try:
    asyncio.run(storage.put({KEY!r}, bytes(3_000_000), "image/png"))
except StorageFull:
    print("full")
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "full\n"
    assert [path for path in directory.rglob("*") if path.is_file()] == []


def test_a_broken_directory_is_unavailable(storage: Storage, directory: Path) -> None:
    directory.rmdir()
    directory.write_text("a file now")
    with pytest.raises(StorageUnavailable) as caught:
        asyncio.run(storage.put(KEY, b"abc", "image/png"))
    assert caught.value.headers()["Retry-After"]


def test_unknown_scheme() -> None:
    with pytest.raises(ValueError, match="'ftp' is not one of file, s3"):
        Storage("ftp://host/x", StorageSettings())

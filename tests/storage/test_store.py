"""The store over a real directory."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service.errors import NotFound, StorageFull, StorageUnavailable
from service.settings import Settings, StorageSettings
from service.storage.store import Store

KEY = "results/job_1/1/files/a.png"


def store_in(directory: Path, **settings: int) -> Store:
    return Store(Settings(storage=StorageSettings(url=directory.as_uri(), **settings)))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "a directory"


@pytest.fixture
def store(directory: Path) -> Store:
    return store_in(directory)


async def pieces(store: Store, key: str, *span: int) -> bytes:
    return b"".join([piece async for piece in await store.stream(key, *span)])


async def test_bytes_and_files_come_back(store: Store, tmp_path: Path) -> None:
    data = os.urandom(12_000_000)
    (tmp_path / "clip").write_bytes(data)
    await store.put("uploads/job_1", tmp_path / "clip", "video/mp4")
    await store.put(KEY, b"abc", "image/png")
    assert await store.get("uploads/job_1") == data
    assert await pieces(store, "uploads/job_1") == data
    assert await pieces(store, "uploads/job_1", 5_000_000, 9_000_001) == data[5_000_000:9_000_001]
    assert await pieces(store, "uploads/job_1", 11_999_999) == data[-1:]
    assert (await store.get(KEY), await store.size(KEY)) == (b"abc", 3)


async def test_put_replaces(store: Store) -> None:
    await store.put(KEY, b"first", "image/png")
    await store.put(KEY, b"2", "image/png")
    assert await store.get(KEY) == b"2"


async def test_readers_see_an_object_whole_or_not_at_all(store: Store) -> None:
    versions = {bytes([number]) * 3_000_000 for number in range(4)}

    async def write() -> None:
        for version in versions:
            await store.put(KEY, version, "image/png")

    writing = asyncio.create_task(write())
    seen = 0
    while not writing.done():
        try:
            assert await store.get(KEY) in versions
            seen += 1
        except NotFound:
            await asyncio.sleep(0)
    await writing
    assert seen


async def test_what_is_not_there(store: Store) -> None:
    for call in (store.get, store.stream, store.size):
        with pytest.raises(NotFound) as caught:
            await call(KEY)
        assert caught.value.stable_code == "file_not_found"
    await store.delete(KEY)
    await store.delete_prefix("results/job_1")


async def test_delete_prefix_keeps_its_neighbours(store: Store, directory: Path) -> None:
    for key in (KEY, "results/job_1/2/document.json", "results/job_10/1/document.json"):
        await store.put(key, b"x", "image/png")
    await store.delete_prefix("results/job_1")
    assert [found.key async for found in store.objects("results")] == [
        "results/job_10/1/document.json"
    ]
    assert sorted(path.name for path in (directory / "results").iterdir()) == ["job_10"]


@pytest.mark.parametrize(
    "key",
    ["", "x", "uploads", "uploads/../y", "/uploads/x", "uploads/.x", "other/x", "uploads/a b"],
)
async def test_keys_that_the_service_would_not_make(store: Store, key: str) -> None:
    with pytest.raises(ValueError, match="no storage key"):
        await store.put(key, b"", "text/plain")


async def test_a_directory_keeps_its_free_bytes(directory: Path) -> None:
    store = store_in(directory, min_free_bytes=1 << 60)
    with pytest.raises(StorageFull, match=f"must keep {1 << 60}"):
        await store.put(KEY, b"abc", "image/png")
    assert [found async for found in store.objects("results")] == []


def test_a_write_that_finds_no_room_leaves_nothing(directory: Path) -> None:
    """A process that may write files of at most 1 MB gets the kernel's refusal in the middle."""
    program = f"""
import asyncio, resource, signal
from service.errors import StorageFull
from service.settings import Settings, StorageSettings
from service.storage.store import Store

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
store = Store(Settings(storage=StorageSettings(url={directory.as_uri()!r})))
try:
    asyncio.run(store.put({KEY!r}, bytes(3_000_000), "image/png"))
except StorageFull:
    print("full")
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "full\n"
    assert [path for path in directory.rglob("*") if path.is_file()] == []


def test_what_a_killed_writer_left_is_deleted(
    store: Store, directory: Path, tmp_path: Path
) -> None:
    (tmp_path / "clip").write_bytes(bytes(200_000_000))
    program = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from service.settings import Settings, StorageSettings\n"
        "from service.storage.store import Store\n"
        "store = Store(Settings(storage=StorageSettings(url=sys.argv[1])))\n"
        "asyncio.run(store.put('uploads/job_1', Path(sys.argv[2]), 'video/mp4'))\n"
    )
    command = [sys.executable, "-c", program, directory.as_uri(), str(tmp_path / "clip")]
    with subprocess.Popen(command, env={"PYTHONPATH": ":".join(sys.path)}) as writer:
        while not list(directory.glob("uploads/*#*")):
            assert writer.poll() is None, "it was too fast to be killed"
        writer.kill()
    assert asyncio.run(store.delete_unfinished(time.time() - 3600)) == 0
    assert asyncio.run(store.delete_unfinished(time.time() + 1)) == 1
    assert list(directory.rglob("*#*")) == []


def test_a_broken_directory_is_unavailable(store: Store, directory: Path) -> None:
    directory.rmdir()
    directory.write_text("a file now")
    with pytest.raises(StorageUnavailable) as caught:
        asyncio.run(store.put(KEY, b"abc", "image/png"))
    assert caught.value.headers()["Retry-After"]


def test_unknown_scheme() -> None:
    with pytest.raises(ValueError, match="'ftp' is not one of file, s3"):
        Store(Settings(storage=StorageSettings(url="ftp://host/x")))

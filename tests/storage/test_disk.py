"""The directory storage on a disk that is full or has become read-only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.errors import StorageFull, StorageUnavailable
from service.settings import Settings, StorageSettings
from service.storage.store import Store
from tests.storage.disk import Disk, small_disk

KEPT, NEW = "results/kept/1/a.png", "results/new/1/a.png"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "disk") as disk:
        yield disk


@pytest.fixture
def store(disk: Disk) -> Store:
    url = (disk.path / "storage").as_uri()
    return Store(Settings(storage=StorageSettings(url=url, min_free_bytes=0)))


async def test_a_full_disk_takes_again_once_there_is_room(store: Store, disk: Disk) -> None:
    await store.put(KEPT, b"kept", "image/png")
    disk.fill()
    with pytest.raises(StorageFull) as full:
        await store.put(NEW, bytes(200_000), "image/png")
    assert full.value.status == 507
    assert await store.get(KEPT) == b"kept"
    assert [found.key async for found in store.objects("results")] == [KEPT]
    await store.delete(KEPT)  # deleting needs no room
    disk.clear()
    await store.put(NEW, bytes(200_000), "image/png")
    assert await store.size(NEW) == 200_000


async def test_a_disk_that_fills_up_while_it_is_written_keeps_no_half(
    store: Store, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    # There was room when it was looked; another process took it.
    monkeypatch.setattr(store, "_refuse_when_full", lambda directory, data: None)
    with pytest.raises(StorageFull):
        await store.put(NEW, bytes(3_000_000), "image/png")
    assert [path for path in disk.path.rglob("*") if path.is_file()] == []


async def test_a_read_only_disk_is_unavailable_until_it_takes_writes(
    store: Store, disk: Disk
) -> None:
    await store.put(KEPT, b"kept", "image/png")
    disk.read_only(True)
    with pytest.raises(StorageUnavailable) as refused:
        await store.put(NEW, b"new", "image/png")
    assert refused.value.status == 503
    assert refused.value.headers()["Retry-After"]
    with pytest.raises(StorageUnavailable):
        await store.delete(KEPT)
    assert await store.get(KEPT) == b"kept"
    disk.read_only(False)
    await store.put(NEW, b"new", "image/png")
    assert await store.get(NEW) == b"new"

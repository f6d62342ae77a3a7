"""The disk is full or read-only while clients are being served: what is refused, what goes on."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from service.settings import Settings
from tests.gateway.test_inputs import PNG, VIDEO, refused
from tests.storage.disk import Disk, small_disk

CLIP = {"Content-Type": "video/mp4"}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "disk") as disk:
        yield disk


@pytest.fixture
def settings(settings: Settings, disk: Disk) -> Settings:
    return settings.model_copy(update={"data_dir": disk.path})


@pytest.fixture
def temporary(disk: Disk, spool_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let temporary files lie on the disk too."""
    monkeypatch.setattr(tempfile, "tempdir", str(disk.path))


async def test_a_storage_that_is_read_only(client: httpx2.AsyncClient, disk: Disk) -> None:
    disk.read_only(True)
    answer = await client.post("/v1/echo?mode=async", content=PNG)
    refused(answer, 503, "storage_unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    assert (await client.get("/v1/jobs")).json()["data"] == []
    for content in (PNG, VIDEO):
        assert (await client.post("/v1/echo", content=content)).is_success
    assert (await client.post("/v1/sleep-job", json={"seconds": 1})).status_code == 202
    disk.read_only(False)
    assert (await client.post("/v1/echo?mode=async", content=PNG)).status_code == 202


@pytest.mark.usefixtures("temporary")
@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_no_room_for_temporary_files(
    client: httpx2.AsyncClient, disk: Disk, mode: str
) -> None:
    disk.fill()
    answer = await client.post(f"/v1/echo?mode={mode}", content=VIDEO, headers=CLIP)
    refused(answer, 507, "storage_full")
    # A picture needs none.
    assert (await client.post("/v1/echo", content=PNG)).is_success
    disk.clear()
    assert list(disk.path.glob("vitrine-scratch-*")) == []
    answer = await client.post(f"/v1/echo?mode={mode}", content=VIDEO, headers=CLIP)
    assert answer.is_success


@pytest.mark.usefixtures("temporary")
async def test_temporary_files_cannot_be_written(client: httpx2.AsyncClient, disk: Disk) -> None:
    disk.read_only(True)
    answer = await client.post("/v1/echo", content=VIDEO, headers=CLIP)
    refused(answer, 503, "storage_unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    disk.read_only(False)
    assert (await client.post("/v1/echo", content=VIDEO, headers=CLIP)).is_success

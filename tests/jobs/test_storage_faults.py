"""Jobs whose results find a full or a read-only disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.jobs.record import Job, State
from service.jobs.results import upload_key
from service.settings import RedisSettings
from tests.jobs.conftest import eventually, submission
from tests.jobs.test_worker import Bench, bench_over
from tests.storage.disk import Disk, small_disk

PICTURE = b"\x89PNG" + bytes(2000)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    # A little more than what the storage keeps free (64 MiB).
    with small_disk(tmp_path / "disk", "70m") as disk:
        yield disk


async def with_upload(bench: Bench, media_type: str = "image/png") -> Job:
    """Submit a job that gives its upload back."""
    made = submission()
    key = upload_key(made.id)
    await bench.store.put(key, PICTURE, media_type)
    described = {"upload_key": key, "upload_type": media_type, "upload_name": "a.png"}
    return await bench.queue.submit(made.model_copy(update=described))


async def test_a_full_disk_fails_the_job_with_its_reason(
    redis_settings: RedisSettings, disk: Disk
) -> None:
    async with bench_over(redis_settings, disk.path / "storage") as bench:
        job = await with_upload(bench)
        with (disk.path / "filler").open("wb") as file:
            file.write(bytes(8 << 20))
        async with bench.worker():
            failed = await bench.until(job, State.FAILED)
            disk.clear()
            await bench.until(await with_upload(bench), State.SUCCEEDED)
    assert failed.error is not None
    assert failed.error.code == "storage_full"
    assert failed.result is None


async def test_a_read_only_disk_is_waited_for(redis_settings: RedisSettings, disk: Disk) -> None:
    async with bench_over(redis_settings, disk.path / "storage") as bench:
        job = await with_upload(bench)
        disk.read_only(True)

        async def tried() -> bool:
            return (await bench.queue.get(job.id)).failures > 0

        async with bench.worker():
            await eventually(tried)
            waiting = await bench.queue.get(job.id)
            disk.read_only(False)
            done = await bench.until(job, State.SUCCEEDED)
    assert waiting.state is State.QUEUED
    assert done.result is not None
    assert [file.bytes for file in done.result.files] == [len(PICTURE)]


@pytest.mark.parametrize(
    ("fault", "code"), [("full", "storage_full"), ("read-only", "storage_unavailable")]
)
async def test_a_worker_without_room_for_temporary_files(
    redis_settings: RedisSettings,
    disk: Disk,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    code: str,
) -> None:
    """A clip is fetched into a temporary file first."""
    monkeypatch.setattr(tempfile, "tempdir", str(disk.path))
    async with bench_over(redis_settings, tmp_path / "storage") as bench:
        job = await with_upload(bench, "video/mp4")
        if fault == "full":
            disk.fill()
        else:
            disk.read_only(True)
        async with bench.worker():
            failed = await bench.until(job, State.FAILED)
    assert failed.error is not None
    assert failed.error.code == code
    assert failed.failures == (0 if fault == "full" else 3)

"""A short run of `python -m tests.fuzz`: another seed finds other files, this one the same each time."""

from __future__ import annotations

import os

import pytest

from service.media.container import DEMUXERS
from service.media.images import FORMATS
from service.media.sniff import sniff
from tests.fuzz.campaign import cases, minimised, run
from tests.fuzz.children import Child, Verdict
from tests.fuzz.report import markdown
from tests.fuzz.seeds import seeds


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return seeds()


def test_every_undamaged_seed_is_decoded(files: dict[str, bytes]) -> None:
    child = Child()
    try:
        outcomes = {name: child.examine(data).outcome for name, data in files.items()}
    finally:
        child.stop()
    videos = ("mp4", "mov", "mkv", "webm", "avi", "flv", "ogg", "ts", "mpeg")
    assert outcomes == {
        name: "video" if name.partition("-")[0] in videos else "picture" for name in files
    }


def test_every_media_type_that_is_taken_has_a_seed(files: dict[str, bytes]) -> None:
    found = {media[1] for media in map(sniff, files.values()) if media is not None}
    assert found == FORMATS.keys() | DEMUXERS.keys()


def test_damaged_files_are_decoded_or_refused(files: dict[str, bytes]) -> None:
    campaign = run(seed=0, inputs=1000, seeds=files, workers=min(2, os.cpu_count() or 1))
    assert not campaign.failures, markdown(campaign)
    outcomes = {outcome for _, outcome in campaign.outcomes}
    assert {"picture", "video", "corrupt_image", "corrupt_video", "unsupported_media"} <= outcomes


def test_a_seed_and_a_number_make_a_file_again(files: dict[str, bytes]) -> None:
    first, second = (list(cases(7, 60, files)) for _ in range(2))
    assert [case.data for case in first] == [case.data for case in second]
    assert len({case.data for case in first}) > 50


class _Fragile:
    """Breaks on files that hold three bytes in a row."""

    def examine(self, data: bytes) -> Verdict:
        return Verdict("", 0.0, 0, "crash" if b"\1\2\3" in data else None)


def test_a_file_that_fails_is_made_shorter() -> None:
    data = bytes(1000) + b"\1\2\3" + bytes(1000)
    child: Child = _Fragile()  # type: ignore[assignment]
    shorter = minimised(child, data, Verdict("", 0.0, 0, "crash"))
    assert b"\1\2\3" in shorter
    assert len(shorter) < 64

"""Videos: what is in them, exactly the frames that were asked for, and what is refused."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import VitrineError
from service.media import video
from service.media.video import Frame, linspace_indices, probe, sampled_frames
from service.settings import LimitSettings
from tests.media.clips import number_of, write_clip, write_sound

LIMITS = LimitSettings()


def sampled(source: bytes | Path, wanted: list[int]) -> list[Frame]:
    return list(sampled_frames(source, probe(source, LIMITS), wanted, LIMITS))


# What a video holds


def test_the_index_of_a_clip(tmp_path: Path) -> None:
    index = probe(write_clip(tmp_path / "a.mp4", frames=45, fps=30, sound=True), LIMITS)
    assert (index.width, index.height, index.rotation, index.frames) == (128, 96, 0, 45)
    assert index.fps == pytest.approx(30)
    assert index.duration_s == pytest.approx(1.5)
    assert len(index.keyframes) >= 3


@pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="counts threads as Linux lists them"
)
def test_decoders_and_their_threads_do_not_pile_up(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mp4", frames=5)
    gc.collect()
    gc.disable()
    try:
        counts = []
        for _ in range(15):
            sampled(source, [3])
            counts.append(len(list(Path("/proc/self/task").iterdir())))
    finally:
        gc.enable()
    assert max(counts[8:]) <= max(counts[:8])


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_a_rotated_video_comes_upright(tmp_path: Path, rotation: int) -> None:
    source = write_clip(tmp_path / "a.mp4", frames=5, rotation=rotation)
    index = probe(source, LIMITS)
    turned = (128, 96) if rotation == 180 else (96, 128)
    assert (index.width, index.height) == turned
    (frame,) = sampled(source, [3])
    assert frame.image.size == turned
    # The mark of the top left corner has gone round counter-clockwise.
    pixels = np.asarray(frame.image.convert("L"))
    corner = {90: pixels[-10:, :10], 180: pixels[-10:, -10:], -90: pixels[:10, -10:]}[rotation]
    assert corner.min() > 240


# Which frames are taken


def test_fifteen_of_three_hundred_as_the_released_code_takes_them() -> None:
    assert linspace_indices(300, 15) == [
        0, 21, 42, 64, 85, 106, 128, 149, 170, 192, 213, 234, 256, 277, 299,
    ]  # fmt: skip


@given(st.integers(1, 100_000), st.integers(1, 64))
def test_indices_are_distinct_and_within_the_video(total: int, count: int) -> None:
    indices = linspace_indices(total, count)
    assert len(indices) == min(total, count)
    assert indices == sorted(set(indices))
    assert indices[0] == 0
    assert count == 1 or indices[-1] == total - 1


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"crf": "10", "bf": "3", "b_strategy": "0"}),
        ("open-gop.mp4", "libx264", {"crf": "10", "x264-params": "open-gop=1:bframes=3"}),
        ("a.mov", "libx265", {"crf": "8", "x265-params": "log-level=none"}),
        ("a.webm", "libvpx-vp9", {"b": "3000000", "deadline": "realtime"}),
        ("a.webm", "libvpx", {"b": "3000000", "deadline": "realtime"}),
        ("a.mkv", "libsvtav1", {"crf": "10", "preset": "12"}),
        ("a.mkv", "mpeg4", {"b": "3000000", "bf": "2"}),
        ("a.avi", "mpeg4", {"b": "3000000", "bf": "2"}),
        ("a.avi", "mjpeg", {"b": "9000000"}),
        ("a.ts", "libx264", {"crf": "10"}),
        ("a.mpg", "mpeg2video", {"b": "3000000"}),
        ("a.flv", "libx264", {"crf": "10"}),
    ],
)
def test_the_frames_asked_for_come_out(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    source = write_clip(tmp_path / name, frames=75, codec=codec, options=options)
    index = probe(source, LIMITS)
    assert index.frames == 75
    wanted = [0, 1, 7, 14, 15, 16, 37, 61, 73, 74]
    frames = list(sampled_frames(source, index, wanted, LIMITS))
    assert [frame.index for frame in frames] == wanted
    assert [number_of(frame.image) for frame in frames] == wanted
    assert [frame.time_s for frame in frames] == pytest.approx([i / 30 for i in wanted], abs=2e-3)


def test_a_variable_frame_rate_keeps_each_frame_s_own_time(tmp_path: Path) -> None:
    times = [0, 10, 20, 30, 500, 510, 2000, 2040, 2050, 4000]
    source = write_clip(tmp_path / "a.mp4", frames=10, times=times, gop=4)
    index = probe(source, LIMITS)
    assert index.frames == 10
    frames = sampled(source, [0, 3, 4, 6, 9])
    assert [number_of(frame.image) for frame in frames] == [0, 3, 4, 6, 9]
    assert [round(frame.time_s * 1000) for frame in frames] == [0, 30, 500, 2000, 4000]
    assert index.duration_s >= 4.0


def test_what_an_edit_list_hides_is_not_seen(tmp_path: Path) -> None:
    source = write_clip(
        tmp_path / "a.mp4", frames=40, trimmed=15, gop=10, options={"crf": "10", "bf": "0"}
    )
    assert probe(source, LIMITS).frames == 25
    frames = sampled(source, [0, 1, 13, 24])
    assert [number_of(frame.image) for frame in frames] == [15, 16, 28, 39]
    assert [frame.time_s for frame in frames] == pytest.approx(
        [0, 1 / 30, 13 / 30, 24 / 30], abs=1e-3
    )


def test_bytes_and_files_give_the_same(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mp4", frames=20)
    from_file, from_bytes = sampled(source, [4, 19]), sampled(source.read_bytes(), [4, 19])
    for one, other in zip(from_file, from_bytes, strict=True):
        assert one.time_s == other.time_s
        assert np.array_equal(one.image, other.image)


def test_only_the_way_from_the_keyframe_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_clip(tmp_path / "a.mp4", frames=75, gop=10, options={"crf": "10", "bf": "0"})
    index = probe(source, LIMITS)
    decoded = []
    check = video.check_pixels
    monkeypatch.setattr(
        video, "check_pixels", lambda w, h, limits: (decoded.append(w), check(w, h, limits))
    )
    frames = list(sampled_frames(source, index, [12, 65], LIMITS))
    assert [number_of(frame.image) for frame in frames] == [12, 65]
    # 10 to 12, 60 to 65, and what the decoder's threads had under way.
    assert len(decoded) <= 9 + 2 * 4


def test_a_single_frame(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mp4", frames=1)
    index = probe(source, LIMITS)
    assert index.frames == 1
    assert linspace_indices(index.frames, 15) == [0]
    assert number_of(sampled(source, [0])[0].image) == 0


# What is refused


def refused(source: bytes | Path, limits: LimitSettings = LIMITS) -> VitrineError:
    try:
        index = probe(source, limits)
        list(sampled_frames(source, index, linspace_indices(index.frames, 15), limits))
    except VitrineError as error:
        return error
    pytest.fail("the video was taken")


def test_sound_alone_has_no_video_stream(tmp_path: Path) -> None:
    assert refused(write_sound(tmp_path / "a.mp4")).stable_code == "no_video_stream"


def test_a_video_stream_without_frames(tmp_path: Path) -> None:
    data = write_clip(tmp_path / "a.mp4", frames=3).read_bytes()
    assert refused(without_samples(data)).stable_code == "no_frames"


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_video_is_corrupt(tmp_path: Path, suffix: str, share: float) -> None:
    data = write_clip(tmp_path / f"a{suffix}", frames=60).read_bytes()
    error = refused(data[: int(len(data) * share)])
    assert (error.status, error.stable_code) == (400, "corrupt_video")


def test_garbage_after_the_header_is_corrupt(tmp_path: Path) -> None:
    data = bytearray(write_clip(tmp_path / "a.mp4", frames=20).read_bytes())
    data[40:] = np.random.default_rng(0).bytes(len(data) - 40)
    assert refused(bytes(data)).stable_code == "corrupt_video"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"<?xml version='1.0'?><MPD/>",
    ],
)
def test_playlists_are_no_videos(data: bytes) -> None:
    assert refused(data).stable_code == "unsupported_media"


def test_each_limit_is_named(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mp4", frames=60)
    long = refused(source, LimitSettings(video_seconds=1.5))
    assert (long.status, long.stable_code) == (413, "video_too_long")
    assert "2.0 s; the limit is 1.5 s" in long.message
    large = refused(source, LimitSettings(video_pixels=5000))
    assert (large.status, large.stable_code) == (413, "too_many_pixels")
    assert "128 x 96" in large.message
    assert large.problem()["limit"] == {"name": "video_pixels", "pixels": 5000}


def test_a_codec_that_is_not_taken(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.avi", frames=3, codec="ffv1")
    error = refused(source)
    assert (error.status, error.stable_code) == (415, "unsupported_codec")


def without_samples(mp4: bytes) -> bytes:
    """Return the file with every sample table of its tracks emptied."""
    data = bytearray(mp4)
    for name, count_at in (
        ("stts", 8),
        ("ctts", 8),
        ("stss", 8),
        ("stsc", 8),
        ("stco", 8),
        ("stsz", 12),
    ):
        at = 0
        while (at := data.find(name.encode(), at + 1)) > 0:
            data[at + count_at : at + count_at + 4] = bytes(4)
    return bytes(data)

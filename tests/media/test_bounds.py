"""Files made to cost much more than they weigh: refused by what they would cost, and quickly."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from service.errors import BadInput, PayloadTooLarge, VitrineError
from service.media import budget
from service.media.budget import Budget
from service.media.images import decode_image
from service.media.video import linspace_indices, probe, sampled_frames
from service.settings import LimitSettings
from tests.fuzz.children import Child
from tests.media.clips import write_clip

LIMITS = LimitSettings()


def encoded(format: str, **options: object) -> bytes:
    file = BytesIO()
    Image.new("RGB", (64, 64), "teal").save(file, format, **options)
    return file.getvalue()


def too_complex(data: bytes, limits: LimitSettings = LIMITS) -> PayloadTooLarge:
    with pytest.raises(PayloadTooLarge) as caught:
        decode_image(data, limits)
    assert caught.value.stable_code == "too_complex"
    return caught.value


def test_a_progressive_jpeg_of_thousands_of_scans() -> None:
    data = encoded("JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    refusal = too_complex(data[:last] + data[last:-2] * 3000 + data[-2:])
    assert "100 scans" in refusal.message


def test_what_stands_behind_a_jpeg_or_in_its_header_is_no_scan() -> None:
    clip = b"\xff\xda\0\x02" * 1000  # as in the clip that some phones append
    thumbnail = b"\xff\xe5\x0f\xa2" + b"\xff\xda\0\x02" * 1000
    data = encoded("JPEG", progressive=True)
    for file in (data + clip, data[:2] + thumbnail + data[2:]):
        assert decode_image(file, LIMITS).size == (64, 64)


@pytest.mark.parametrize("segment", [b"\xff\xe5\0\x02", b"\xff\xfe\0\x03a"])
def test_a_jpeg_of_a_million_segments(segment: bytes) -> None:
    data = encoded("JPEG")
    too_complex(data[:2] + segment * 1_000_000 + data[2:])


def test_a_png_of_a_million_empty_chunks() -> None:
    data = encoded("PNG")
    chunk = b"\0\0\0\0tEXt" + struct.pack(">I", zlib.crc32(b"tEXt"))
    assert decode_image(data[:33] + chunk * 100 + data[33:], LIMITS).size == (64, 64)
    too_complex(data[:33] + chunk * 1_000_000 + data[33:])


def test_a_gif_of_a_million_comments() -> None:
    data = encoded("GIF")
    start = data.index(b"\x2c", 13)
    too_complex(data[:start] + b"\x21\xfe\x01a\0" * 1_000_000 + data[start:])


def wide_gif(side: int) -> bytes:
    screen = b"GIF89a" + struct.pack("<HHBBB", 16, 16, 0, 0, 0)
    # Disposal 2: the frame's place is to be cleared behind it.
    control = b"!\xf9\x04" + bytes((2 << 2, 0, 0, 0, 0))
    frame = b"," + struct.pack("<HHHHB", 0, 0, side, side, 0)
    return screen + control + frame + b"\x08\x02\0\0\0;"


@pytest.mark.parametrize("side", [9_000, 40_000])
def test_a_gif_whose_first_frame_is_larger_than_its_screen(side: int) -> None:
    """Pillow makes room for it when it only opens the file: 1.6 GB, for 37 bytes."""
    with pytest.raises(PayloadTooLarge) as caught:
        decode_image(wide_gif(side), LIMITS)
    assert caught.value.stable_code == "too_many_pixels"
    assert caught.value.problem()["limit"] == {
        "name": "image_pixels",
        "pixels": LIMITS.image_pixels,
    }


def test_its_room_is_not_taken() -> None:
    child = Child()
    try:
        assert child.examine(wide_gif(40_000)).failure is None
    finally:
        child.stop()


def test_a_picture_that_takes_longer_than_the_limit_names_it() -> None:
    limits = LimitSettings(decode_seconds=1e-9)
    refusal = too_complex(encoded("PNG"), limits)
    assert refusal.problem()["limit"] == {"name": "decode_seconds", "seconds": 1e-9}


def test_a_video_that_takes_longer_than_the_limit_names_it(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mp4", frames=20)
    spent = LimitSettings(decode_seconds=1e-9)
    with pytest.raises(PayloadTooLarge) as caught:
        probe(source, spent)
    assert caught.value.stable_code == "too_complex"
    index = probe(source, LIMITS)
    with pytest.raises(PayloadTooLarge) as caught:
        list(sampled_frames(source, index, [0, 10, 19], spent))
    assert caught.value.problem()["limit"] == {"name": "decode_seconds", "seconds": 1e-9}


def test_time_while_nothing_is_decoded_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(budget, "monotonic", lambda: clock[0])
    source = write_clip(tmp_path / "a.mp4", frames=20)
    index = probe(source, LIMITS)
    frames = []
    for frame in sampled_frames(source, index, linspace_indices(20, 5), LIMITS):
        clock[0] += LIMITS.decode_seconds  # whoever asked for the frame takes long with it
        frames.append(frame.index)
    assert frames == [0, 4, 9, 14, 19]
    spending = Budget(10)
    clock[0] += 9
    spending.check()
    clock[0] += 2
    with pytest.raises(PayloadTooLarge):
        spending.check()


@pytest.mark.parametrize("suffix", [".avi", ".mov"])
def test_frames_larger_than_the_header_says(tmp_path: Path, suffix: str) -> None:
    source = write_clip(
        tmp_path / f"a{suffix}", frames=3, size=(1000, 800), codec="mjpeg", options={}
    )
    data = source.read_bytes()
    for order in "<I", ">H":
        true, lie = (struct.pack(order[0] + order[1] * 2, *s) for s in ((1000, 800), (64, 48)))
        data = data.replace(true, lie, 1 if order == ">H" else -1)
    source.write_bytes(data)
    with pytest.raises((PayloadTooLarge, BadInput)) as caught:
        probe(source, LimitSettings(video_pixels=100_000))
    assert caught.value.stable_code in ("too_many_pixels", "corrupt_video")


def test_a_chunk_that_claims_gigabytes_gets_none(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.avi", frames=10, codec="mpeg4", options={})
    data = source.read_bytes()
    # A list of notes, one of which claims 1.5 GB: FFmpeg would allocate and clear them.
    notes = b"INFOISFT" + struct.pack("<I", 1_500_000_000) + b"note"
    bomb = b"LIST" + struct.pack("<I", 1_600_000_000) + notes
    source.write_bytes(data[:12] + bomb + data[12:])
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident()
    with pytest.raises(VitrineError):
        probe(source, LIMITS)
    assert _resident() - before < 300 * 2**20


def _resident() -> int:
    """Return the highest resident memory since it was reset, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def test_metadata_that_is_no_text(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mp4", frames=5)
    data = source.read_bytes()
    assert b"VideoHandler" in data
    source.write_bytes(data.replace(b"VideoHandler", b"VideoHandl\xe9r"))
    assert probe(source, LIMITS).frames == 5

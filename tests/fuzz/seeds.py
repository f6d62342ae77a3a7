"""One small valid file of every kind that the service takes (and a few that it refuses)."""

from __future__ import annotations

import os
import struct
import tempfile
import zlib
from collections.abc import Iterator
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import ExifTags, Image

from tests.media.clips import write_clip

_SIZE = (61, 47)  # odd, so that blocks, strips and rows end within a block


def seeds() -> dict[str, bytes]:
    """Return files by name, e.g. `jpeg-progressive` and `mp4-h264`."""
    return dict(_pictures()) | dict(_videos())


def _pictures() -> Iterator[tuple[str, bytes]]:
    picture = _picture()
    grey, palette, alpha = picture.convert("L"), picture.quantize(16), picture.convert("RGBA")
    alpha.putalpha(grey)
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    frames: dict[str, Any] = {
        "save_all": True,
        "append_images": [picture.rotate(90 * turn) for turn in (1, 2, 3)],
        "duration": 40,
    }
    deep = Image.fromarray(np.asarray(grey, np.uint16) * 257)
    for name, image, format_, options in (
        ("jpeg", picture, "JPEG", {"quality": 90}),
        ("jpeg-progressive", picture, "JPEG", {"progressive": True, "restart_marker_rows": 1}),
        ("jpeg-grey", grey, "JPEG", {}),
        ("jpeg-cmyk", picture.convert("CMYK"), "JPEG", {}),
        ("jpeg-exif", picture, "JPEG", {"exif": turned, "comment": "a comment"}),
        ("png", picture, "PNG", {}),
        ("png-1", picture.convert("1"), "PNG", {}),
        ("png-16", deep, "PNG", {}),
        ("png-palette", palette, "PNG", {"transparency": 3}),
        ("png-alpha", alpha, "PNG", {"exif": turned}),
        ("apng", picture, "PNG", frames),
        ("gif", palette, "GIF", {"interlace": True, "comment": b"a comment"}),
        ("gif-animated", picture, "GIF", frames),
        ("webp", picture, "WEBP", {"quality": 80, "exif": turned}),
        ("webp-lossless", alpha, "WEBP", {"lossless": True}),
        ("webp-animated", picture, "WEBP", frames),
        ("bmp", picture, "BMP", {}),
        ("bmp-palette", palette, "BMP", {}),
        ("tiff", picture, "TIFF", {}),
        ("tiff-16", deep, "TIFF", {}),
        ("tiff-lzw", picture, "TIFF", {"compression": "tiff_lzw", "exif": turned}),
        ("tiff-deflate", alpha, "TIFF", {"compression": "tiff_deflate"}),
        ("tiff-jpeg", picture, "TIFF", {"compression": "jpeg"}),
        ("tiff-fax", picture.convert("1"), "TIFF", {"compression": "group4"}),
        ("tiff-pages", picture, "TIFF", {"save_all": True, "append_images": [grey]}),
        ("avif", picture, "AVIF", {"speed": 10}),
        ("avif-alpha", alpha, "AVIF", {"speed": 10, "exif": turned}),
        ("avif-animated", picture, "AVIF", frames | {"speed": 10}),
    ):
        file = BytesIO()
        image.copy().save(file, format_, **options)  # a save leaves its marks on a picture
        yield name, file.getvalue()
    yield "png-interlaced", _interlaced_png()
    yield "bmp-rle", _rle_bmp()


def _videos() -> Iterator[tuple[str, bytes]]:
    x264 = {"preset": "ultrafast", "crf": "30"}
    x265 = {"preset": "ultrafast", "crf": "35", "x265-params": "log-level=none:pools=none"}
    vp9 = {"deadline": "realtime", "cpu-used": "8", "b": "100k"}
    av1 = {"preset": "13", "crf": "50"}
    plain: dict[str, str] = {"b": "100000"}
    kinds: tuple[tuple[str, str, str, dict[str, str], dict[str, Any]], ...] = (
        ("mp4-h264", ".mp4", "libx264", {"preset": "veryfast", "crf": "30"}, {}),
        ("mp4-h264-sound", ".mp4", "libx264", x264, {"sound": True}),
        ("mp4-h264-rotated", ".mp4", "libx264", x264, {"rotation": 90}),
        ("mp4-h264-vfr", ".mp4", "libx264", x264, {"times": _UNEVEN}),
        ("mp4-h264-trimmed", ".mp4", "libx264", x264, {"trimmed": 4}),
        ("mp4-hevc", ".mp4", "libx265", x265, {}),
        ("mp4-av1", ".mp4", "libsvtav1", av1, {}),
        ("mp4-mpeg4", ".mp4", "mpeg4", plain, {}),
        ("mov-h264", ".mov", "libx264", x264, {}),
        ("mov-mjpeg", ".mov", "mjpeg", {}, {}),
        ("mkv-h264", ".mkv", "libx264", x264, {"times": _UNEVEN}),
        ("mkv-mpeg4", ".mkv", "mpeg4", plain, {}),
        ("webm-vp8", ".webm", "libvpx", vp9, {}),
        ("webm-vp9", ".webm", "libvpx-vp9", vp9, {}),
        ("ogg-vp8", ".ogv", "libvpx", vp9, {}),
        ("avi-mpeg4", ".avi", "mpeg4", plain, {}),
        ("avi-mjpeg", ".avi", "mjpeg", {}, {}),
        ("flv-h264", ".flv", "libx264", x264, {}),
        ("ts-h264", ".ts", "libx264", x264, {}),
        ("ts-mpeg2", ".ts", "mpeg2video", plain, {}),
        ("mpeg-mpeg1", ".mpg", "mpeg1video", plain, {}),
    )
    os.environ["SVT_LOG"] = "1"  # the AV1 encoder's own log: errors only
    with tempfile.TemporaryDirectory() as folder:
        for name, suffix, codec, options, more in kinds:
            path = Path(folder, name + suffix)
            write_clip(
                path,
                frames=12,
                size=(64, 48),
                fps=25,
                codec=codec,
                gop=5,
                options=options,
                draw=_moving,
                **more,
            )
            yield name, path.read_bytes()
        path = Path(folder, "elementary.mpg")
        yield "mpeg-elementary", _elementary(path)
    # 12 frames of FFmpeg's `testsrc`: PyAV's wheels only read Theora.
    yield "ogg-theora", Path(__file__).with_name("theora.ogv").read_bytes()


_UNEVEN = (0, 40, 80, 200, 220, 260, 400, 440, 700, 720, 900, 1000)


def _picture() -> Image.Image:
    return Image.fromarray(_moving(0, *_SIZE))


def _moving(number: int, width: int, height: int) -> np.ndarray:
    """Return smooth colours that move, with a little noise: both long and short codes occur."""
    y, x = np.mgrid[:height, :width]
    x = x + 2 * number
    planes = np.stack([x * 4, y * 5, (x + y) * 2], -1) % 256
    noise = np.random.default_rng(number).integers(0, 24, planes.shape)
    return np.clip(planes + noise, 0, 255).astype(np.uint8)


def _interlaced_png() -> bytes:
    """Return an Adam7 PNG, which Pillow only reads."""
    width, height = _SIZE
    pixels = np.asarray(_picture())
    rows = bytearray()
    for x0, y0, dx, dy in _ADAM7:
        for row in pixels[y0::dy, x0::dx]:
            if row.size:
                rows += b"\0" + row.tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(rows))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)


def _rle_bmp() -> bytes:
    """Return an 8-bit BMP of runs, which Pillow only reads."""
    width, height = 32, 16
    body = b"".join(bytes((width, row * 8)) + b"\0\0" for row in range(height)) + b"\0\1"
    palette = b"".join(bytes((i, 255 - i, i, 0)) for i in range(256))
    start = 14 + 40 + len(palette)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 256, 0)
    return struct.pack("<2sIHHI", b"BM", start + len(body), 0, 0, start) + info + palette + body


def _elementary(path: Path) -> bytes:
    """Return an MPEG-1 video stream without a container around it."""
    with av.open(str(path), "w", format="mpeg1video") as container:
        stream = container.add_stream("mpeg1video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(12):
            frame = av.VideoFrame.from_ndarray(_moving(number, 64, 48), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()

"""Opening a video: only known containers and codecs, and FFmpeg held to the limits."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from itertools import count
from pathlib import Path

import av
from av import Packet
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream

from service.errors import BadInput, PayloadTooLarge, UnsupportedMedia
from service.media.budget import Budget
from service.media.sniff import HEAD_BYTES, sniff
from service.settings import MIB, LimitSettings

# FFmpeg's demuxer of each container. It is fixed by the magic bytes and never probed, so that no
# upload can be read as a playlist that names other files or addresses.
DEMUXERS = {
    "video/mp4": "mov",
    "video/quicktime": "mov",
    "video/webm": "matroska",
    "video/x-matroska": "matroska",
    "video/x-msvideo": "avi",
    "video/x-flv": "flv",
    "video/ogg": "ogg",
    "video/mpeg": "mpeg",
    "video/mp2t": "mpegts",
}

_CODECS = frozenset(
    ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg2video", "mpeg1video", "mjpeg", "theora")
)

# Each thread of a decoder holds a frame of its own.
_THREADS = min(4, os.cpu_count() or 1)

# PyAV's containers and streams refer to each other: only the garbage collector frees a decoder, and
# with it its threads and some tens of megabytes of frames, which look small to the collector.
_DECODERS_KEPT = 4
_openings = count(1)

# No frame or packet within the limits needs more in one piece. Without it, a RIFF chunk that claims
# gigabytes gets them.
_MAX_ALLOCATION = 256 * MIB


@contextmanager
def opened(
    source: bytes | Path, limits: LimitSettings, budget: Budget
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a video file and its first video stream; FFmpeg's errors inside become BadInput.

    Raises UnsupportedMedia (`unsupported_media`, `unsupported_codec`), BadInput (`corrupt_video`,
    `no_video_stream`), PayloadTooLarge (`too_complex`).
    """
    _bound_allocations()
    if next(_openings) % _DECODERS_KEPT == 0:
        gc.collect()
    demuxer = _demuxer(source)
    file = BytesIO(source) if isinstance(source, bytes) else str(source)
    try:
        with av.open(
            file,
            mode="r",
            format=demuxer,
            # Also for the decoder that looks for the frames' size before anyone can check it.
            options={"max_pixels": str(limits.video_pixels)},
            metadata_errors="replace",
            timeout=limits.decode_seconds,
        ) as container:
            if not container.streams:
                raise BadInput("the video's header is truncated or broken", code="corrupt_video")
            if not container.streams.video:
                raise BadInput("the file has no video stream", code="no_video_stream")
            stream = container.streams.video[0]
            _check_codec(stream)
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = _THREADS
            yield container, stream
    except FFmpegError as error:
        budget.check()  # the error may be that of the timeout
        raise BadInput(
            f"the video is truncated or broken: {error.strerror}", code="corrupt_video"
        ) from error


def packets(
    container: InputContainer, stream: VideoStream, budget: Budget
) -> Iterator[Packet[VideoStream]]:
    """Yield the packets of `stream`, and an empty one at the end, as long as the budget lasts."""
    demuxed = container.demux(stream)
    while True:
        budget.check()
        try:
            packet = next(demuxed, None)
        except IndexError as error:  # PyAV looks a stream up that was not there at the beginning.
            raise BadInput(
                "the video is broken: a stream begins in the middle", code="corrupt_video"
            ) from error
        if packet is None:
            return
        yield packet


def _demuxer(source: bytes | Path) -> str:
    if isinstance(source, bytes):
        head = source[:HEAD_BYTES]
    else:
        with source.open("rb") as file:
            head = file.read(HEAD_BYTES)
    known = sniff(head)
    if known is None or known[1] not in DEMUXERS:
        found = f"is {known[1]}" if known else "is no video"
        raise UnsupportedMedia(f"the upload {found}; videos are taken as {', '.join(DEMUXERS)}")
    return "mpegvideo" if head.startswith(b"\0\0\x01\xb3") else DEMUXERS[known[1]]


def _check_codec(stream: VideoStream) -> None:
    # FFmpeg has no decoder where the context is None.
    name = stream.codec_context.codec.canonical_name if stream.codec_context else "unknown"
    if name not in _CODECS:
        raise UnsupportedMedia(
            f"video codec {name!r} is not taken; taken are {', '.join(sorted(_CODECS))}",
            code="unsupported_codec",
        )


def check_pixels(width: int, height: int, limits: LimitSettings) -> None:
    """Raise PayloadTooLarge (`too_many_pixels`) for frames beyond the limit."""
    if width * height > limits.video_pixels:
        raise PayloadTooLarge(
            f"the video's frames have {width} x {height} = {width * height:,} pixels; "
            f"the limit is {limits.video_pixels:,}",
            code="too_many_pixels",
            limit={"name": "video_pixels", "pixels": limits.video_pixels},
        )


@cache
def _bound_allocations() -> None:
    """Let FFmpeg refuse to allocate more than _MAX_ALLOCATION at once, as its `-max_alloc` does.

    PyAV has no name for that function, but its wheels bring the library as a file of their own.
    """
    package = Path(av.__file__).parent
    for folder in (package.parent / "av.libs", package / ".dylibs"):
        for path in folder.glob("libavutil*"):
            ctypes.CDLL(str(path)).av_max_alloc(ctypes.c_size_t(_MAX_ALLOCATION))

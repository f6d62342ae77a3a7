"""Videos: what is in a file, and chosen frames of it without decoding the rest.

Every packet is looked at once without decoding: that gives the exact number of frames and their
times, for constant and variable frame rates alike, and the places where decoding can start. A
frame is then reached from the keyframe before it, and non-reference frames on the way are skipped.
At no time is more than one frame held, however long the clip.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from av.container import InputContainer
from av.error import InvalidDataError
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from service.errors import BadInput, PayloadTooLarge
from service.media.budget import Budget
from service.media.container import check_pixels, opened, packets
from service.settings import LimitSettings

# More frames a second than any camera's, times the seconds allowed, bounds the index.
_FASTEST = 240

_TURNS = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True, slots=True)
class VideoIndex:
    """What a video holds. `width` and `height` are upright; `timestamps` are those of the frames in
    order of presentation, in units of `time_base` seconds, or empty where the container has none."""

    width: int
    height: int
    rotation: int
    fps: float
    duration_s: float
    frames: int
    time_base: Fraction
    timestamps: array[int]
    keyframes: array[int]


@dataclass(frozen=True, slots=True)
class Frame:
    """A decoded frame: its number in the video, its own time in seconds from the first, upright RGB."""

    index: int
    time_s: float
    image: Image.Image


def probe(source: bytes | Path, limits: LimitSettings) -> VideoIndex:
    """Index a video and decode its first frame.

    Raises UnsupportedMedia (`unsupported_media`, `unsupported_codec`), BadInput (`corrupt_video`,
    `no_video_stream`, `no_frames`), PayloadTooLarge (`video_too_long`, `too_many_pixels`,
    `too_many_frames`, `too_complex`).
    """
    budget = Budget(limits.decode_seconds)
    with opened(source, limits, budget) as (container, stream):
        check_pixels(stream.codec_context.width, stream.codec_context.height, limits)
        _check_seconds(_announced_seconds(container, stream), limits)
        time_base = stream.time_base or Fraction(1, 90_000)
        most = int(limits.video_seconds * _FASTEST)
        timestamps, keyframes = array("q"), array("q")
        held, frames, last_duration, timed = 0, 0, 0, True
        for packet in packets(container, stream, budget):
            # The last packet only tells the end. An edit list's discarded ones come but are not shown.
            held += packet.dts is not None or packet.size > 0
            if packet.size == 0 or packet.is_discard:
                continue
            frames += 1
            if frames > most:
                raise PayloadTooLarge(
                    f"the video has more than {most:,} frames",
                    code="too_many_frames",
                    limit={"name": "video_seconds", "frames": most},
                )
            last_duration = packet.duration or last_duration
            if packet.pts is None:
                timed = False
                continue
            timestamps.append(packet.pts)
            if packet.is_keyframe:
                keyframes.append(packet.pts)
        if frames == 0:
            raise BadInput("the video has no frames", code="no_frames")
        if container.format.name.startswith("mov") and held < len(stream.index_entries):
            raise BadInput(
                f"the video is truncated: of {len(stream.index_entries)} frames it holds {held}",
                code="corrupt_video",
            )
        announced = float(stream.average_rate or stream.guessed_rate or 0)
        if timed:
            timestamps = array("q", sorted(set(timestamps)))
            keyframes = array("q", sorted(keyframes))
            span = float((timestamps[-1] - timestamps[0]) * time_base)
            steps = len(timestamps) - 1
            fps = steps / span if span else announced
            last = float(last_duration * time_base) or (1 / fps if fps else 0.0)
            duration = span + last
            frames = len(timestamps)
        else:
            timestamps, keyframes = array("q"), array("q")
            fps = announced or 25.0
            duration = frames / fps
        _check_seconds(duration, limits)
    first = next(_decoded(source, limits, budget), None)
    if first is None:
        raise BadInput("no frame of the video can be decoded", code="corrupt_video")
    rotation = first.rotation % 360
    width, height = first.width, first.height
    if rotation in (90, 270):
        width, height = height, width
    return VideoIndex(
        width, height, rotation, fps, duration, frames, time_base, timestamps, keyframes
    )


def linspace_indices(total: int, count: int) -> list[int]:
    """Return at most `count` frame numbers, evenly from the first to the last, truncated to integers.

    This is the sampling of the released GenConViT (300 frames, 15 wanted: 0, 21, 42, 64 ... 299); a
    video with fewer frames gives each of them once.
    """
    return sorted({int(i) for i in np.linspace(0, total - 1, count)})


def sampled_frames(
    source: bytes | Path, index: VideoIndex, wanted: Sequence[int], limits: LimitSettings
) -> Generator[Frame, None, None]:
    """Yield the frames with the numbers `wanted` (ascending) one by one.

    A frame that cannot be decoded gives way to the next one that can, or is left out at the end.
    Raises BadInput (`corrupt_video`) if none can, PayloadTooLarge (`too_many_pixels`, `too_complex`).
    """
    budget = Budget(limits.decode_seconds)
    if not index.timestamps:
        yield from _counted_frames(source, index, wanted, limits, budget)
        return
    found = False
    with opened(source, limits, budget) as (container, stream):
        targets = [index.timestamps[i] for i in wanted]
        decoder = _Decoder(container, stream, frozenset(targets), limits, budget)
        for target in targets:
            if decoder.position is not None and target <= decoder.position:
                continue
            frame = _reach(decoder, index, target)
            if frame is None or frame.pts is None:
                break
            found = True
            number = min(bisect_left(index.timestamps, frame.pts), index.frames - 1)
            time_s = float((frame.pts - index.timestamps[0]) * index.time_base)
            shown = Frame(number, time_s, _upright(frame))
            with budget.paused():
                yield shown
    if not found:
        raise BadInput("no frame of the video can be decoded", code="corrupt_video")


def _reach(decoder: _Decoder, index: VideoIndex, target: int) -> VideoFrame | None:
    """Return the frame at `target`, or the first one after it where that cannot be decoded."""
    place = bisect_right(index.keyframes, target) - 1
    if place > 0 and (decoder.position is None or index.keyframes[place] > decoder.position):
        decoder.seek(index.keyframes[place])
        frame = decoder.at_or_after(target)
        if frame is not None and frame.pts == target:
            return frame
        # The container's own index led past it; the only safe start is the beginning.
        decoder.seek(index.timestamps[0])
    return decoder.at_or_after(target)


class _Decoder:
    """Decodes forward; `position` is the time stamp of the last frame that came out."""

    def __init__(
        self,
        container: InputContainer,
        stream: VideoStream,
        wanted: frozenset[int],
        limits: LimitSettings,
        budget: Budget,
    ) -> None:
        self._container = container
        self._stream = stream
        self._wanted = wanted
        self._limits = limits
        self._budget = budget
        self._frames = self._decode()
        self.position: int | None = None

    def seek(self, timestamp: int) -> None:
        self._container.seek(timestamp, stream=self._stream)
        self._frames = self._decode()

    def at_or_after(self, target: int) -> VideoFrame | None:
        for frame in self._frames:
            if frame.pts is not None and frame.pts >= target:
                self.position = frame.pts
                return frame
        return None

    def _decode(self) -> Iterator[VideoFrame]:
        context = self._stream.codec_context
        for packet in packets(self._container, self._stream, self._budget):
            needed = packet.size == 0 or packet.pts in self._wanted
            context.skip_frame = "DEFAULT" if needed else "NONREF"
            try:
                frames = packet.decode()
            except InvalidDataError:
                continue
            for frame in frames:
                check_pixels(frame.width, frame.height, self._limits)
                yield frame


def _counted_frames(
    source: bytes | Path,
    index: VideoIndex,
    wanted: Sequence[int],
    limits: LimitSettings,
    budget: Budget,
) -> Generator[Frame, None, None]:
    """Yield frames of a container without time stamps: all are decoded and counted."""
    numbers, found = frozenset(wanted), False
    for number, frame in enumerate(_decoded(source, limits, budget)):
        if number in numbers:
            found = True
            shown = Frame(number, number / index.fps, _upright(frame))
            with budget.paused():
                yield shown
        if number >= wanted[-1]:
            break
    if not found:
        raise BadInput("no frame of the video can be decoded", code="corrupt_video")


def _decoded(source: bytes | Path, limits: LimitSettings, budget: Budget) -> Iterator[VideoFrame]:
    with opened(source, limits, budget) as (container, stream):
        for packet in packets(container, stream, budget):
            try:
                frames = packet.decode()
            except InvalidDataError:
                continue
            for frame in frames:
                check_pixels(frame.width, frame.height, limits)
                yield frame


def _announced_seconds(container: InputContainer, stream: VideoStream) -> float:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / 1_000_000


def _check_seconds(seconds: float, limits: LimitSettings) -> None:
    if seconds > limits.video_seconds:
        raise PayloadTooLarge(
            f"the video lasts {seconds:.1f} s; the limit is {limits.video_seconds:g} s",
            code="video_too_long",
            limit={"name": "video_seconds", "seconds": limits.video_seconds},
        )


def _upright(frame: VideoFrame) -> Image.Image:
    image = Image.fromarray(frame.to_ndarray(format="rgb24"))
    turn = _TURNS.get(frame.rotation % 360)
    return image if turn is None else image.transpose(turn)

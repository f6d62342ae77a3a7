"""Small videos made for the tests: each frame tells its own number by its grey."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from PIL import Image

STEP = 3
_MILLISECOND = Fraction(1, 1000)


def numbered(number: int, width: int, height: int) -> np.ndarray:
    """Return a frame whose grey is 20 + STEP * number, with a white mark in the top left corner."""
    pixels = np.full((height, width, 3), 20 + STEP * number, np.uint8)
    pixels[: height // 4, : width // 4] = 255
    return pixels


def number_of(image: Image.Image) -> int:
    """Return the number that the middle of a frame tells."""
    pixels = np.asarray(image.convert("L"), np.float32)
    h, w = pixels.shape
    middle = pixels[h * 3 // 8 : h * 5 // 8, w * 3 // 8 : w * 5 // 8].mean()
    return round((float(middle) - 20) / STEP)


def write_clip(
    path: Path,
    *,
    frames: int = 60,
    size: tuple[int, int] = (128, 96),
    fps: int = 30,
    codec: str = "libx264",
    times: Sequence[int] | None = None,
    rotation: int = 0,
    gop: int = 15,
    options: dict[str, str] | None = None,
    sound: bool = False,
    trimmed: int = 0,
    draw: Callable[[int, int, int], np.ndarray] = numbered,
) -> Path:
    """Write a clip; `times` are the frames' own times in milliseconds (variable frame rate).

    The first `trimmed` frames are in the file, but an edit list says not to show them. `draw` makes
    the pixels of a frame of its number, width and height.
    """
    muxing = {"movflags": "faststart"} if path.suffix == ".mp4" else {}
    if trimmed:
        muxing |= {"avoid_negative_ts": "disabled", "use_editlist": "1"}
    with av.open(str(path), "w", options=muxing) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.gop_size = gop
        defaults = {"crf": "10", "preset": "veryfast"} if codec == "libx264" else {"b": "2000000"}
        stream.options = options or defaults
        if rotation:
            stream.set_display_rotation(rotation)
        if times is not None:
            stream.codec_context.time_base = _MILLISECOND
        track = _sound_stream(container) if sound else None
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(draw(number, *size), format="rgb24")
            if trimmed:
                frame.pts, frame.time_base = number - trimmed, Fraction(1, fps)
            if times is not None:
                frame.pts, frame.time_base = times[number], _MILLISECOND
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if track is not None:
            _write_tone(container, track)
    return path


def write_sound(path: Path) -> Path:
    """Write a file with a sound track and no video."""
    with av.open(str(path), "w") as container:
        _write_tone(container, _sound_stream(container))
    return path


def _sound_stream(container: OutputContainer) -> AudioStream:
    return container.add_stream("aac", rate=16_000, layout="mono")


def _write_tone(container: OutputContainer, track: AudioStream) -> None:
    tone = np.sin(np.arange(16_000, dtype=np.float32) * 0.2)[None]
    for start in range(0, tone.shape[1] - 1023, 1024):
        frame = av.AudioFrame.from_ndarray(tone[:, start : start + 1024], "fltp", "mono")
        frame.sample_rate, frame.pts = 16_000, start
        container.mux(track.encode(frame))
    container.mux(track.encode())

"""Which frames of a video are looked at: the rules of the papers, as numbers of frames.

`dense` (UniFormer on Kinetics): a clip is `frames` out of `frames x stride` neighbouring ones, evenly
from the first to the last of them. One clip lies in the middle of the video; of several, each begins
as far after the one before, the first with the video's first frame.

`uniform` (UniFormer on Something-Something, UniFormerV2): the video is divided into `frames` equal
parts with one frame from each, the middle one; several clips take others of the parts' frames.
"""

from __future__ import annotations

from service.triton.cards import ClipInput


def clip_frames(total: int, contract: ClipInput, sampling: str, clips: int) -> list[list[int]]:
    """Return for each of `clips` clips the numbers of its frames, ascending, in a video of `total` frames.

    A video shorter than a clip has frames that stand for several.
    """
    if sampling == "dense":
        return dense(total, contract.frames, contract.stride, clips)
    return uniform(total, contract.frames, clips)


def dense(total: int, frames: int, stride: int, clips: int) -> list[list[int]]:
    span = frames * stride
    spare = max(total - span, 0)
    apart = spare // (clips - 1) if clips > 1 else 0
    first = spare // 2 if clips == 1 else 0
    # Whole numbers: fractions of float32 or float64 would now and then fall one frame short.
    steps = [k * (span - 1) // max(frames - 1, 1) for k in range(frames)]
    return [
        [min(first + clip * apart + step, total - 1) for step in steps] for clip in range(clips)
    ]


def uniform(total: int, frames: int, clips: int) -> list[list[int]]:
    part = (total - 1) / frames
    return [
        [
            # Python rounds half to even here, as NumPy does in the released code.
            min(round(part * k) + int(part / (clips + 1) * (clip + 1)), total - 1)
            for k in range(frames)
        ]
        for clip in range(clips)
    ]


def window_bounds(total: int, count: int) -> list[tuple[int, int]]:
    """Divide `total` frames into at most `count` windows of nearly equal length: first, and end (exclusive)."""
    count = max(1, min(count, total))
    return [(k * total // count, (k + 1) * total // count) for k in range(count)]

"""Which frames of a video are looked at: the papers' formulas, by hand and against their float arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.tasks.video_classification.sampling import (
    clip_frames,
    dense,
    uniform,
    window_bounds,
)
from service.triton.cards import ClipInput


def test_one_dense_clip_lies_in_the_middle() -> None:
    # 64 of 300 frames: (300 - 64) / 2 = 118 before it.
    assert dense(300, 8, 8, 1) == [[118, 127, 136, 145, 154, 163, 172, 181]]


def test_dense_clips_begin_equally_far_apart() -> None:
    # 236 // 3 = 78 between the beginnings; the steps are 63 / 15 = 4.2.
    first, *_, last = dense(300, 16, 4, 4)
    assert first == [0, 4, 8, 12, 16, 21, 25, 29, 33, 37, 42, 46, 50, 54, 58, 63]
    assert last == [234 + number for number in first]
    assert [clip[0] for clip in dense(300, 16, 4, 4)] == [0, 78, 156, 234]


def test_a_short_video_s_last_frame_stands_for_those_after_it() -> None:
    assert dense(20, 8, 8, 1) == [[0, 9, 18, 19, 19, 19, 19, 19]]
    assert dense(20, 8, 8, 4) == [[0, 9, 18, 19, 19, 19, 19, 19]] * 4


def test_uniform_frames_are_the_middle_ones_of_equal_parts() -> None:
    assert uniform(81, 8, 1) == [[5, 15, 25, 35, 45, 55, 65, 75]]
    # Parts of 2.5 frames begin at 0, 2.5, 5 ...: rounded to 0, 2 (half to even), 5, 8 ...
    assert uniform(21, 8, 1) == [[1, 3, 6, 9, 11, 13, 16, 19]]


def test_uniform_clips_take_other_frames_of_the_parts() -> None:
    # Of parts of 10 frames, a quarter, a half and three quarters.
    assert [clip[:3] for clip in uniform(81, 8, 3)] == [[2, 12, 22], [5, 15, 25], [7, 17, 27]]


@given(
    st.integers(1, 20_000),
    st.sampled_from([(8, 8), (16, 4), (16, 8), (32, 4)]),
    st.integers(1, 10),
)
def test_dense_clips_equal_the_released_arithmetic(
    total: int, shape: tuple[int, int], clips: int
) -> None:
    frames, stride = shape
    spare = max(total - frames * stride, 0)
    for number, clip in enumerate(dense(total, frames, stride, clips)):
        start = spare // 2 if clips == 1 else number * (spare // (clips - 1))
        exact = np.linspace(start, start + frames * stride - 1, frames)
        assert clip == np.clip(exact, 0, total - 1).astype(int).tolist()


@given(st.integers(1, 20_000), st.integers(1, 64), st.integers(1, 10))
def test_uniform_clips_equal_the_released_arithmetic(total: int, frames: int, clips: int) -> None:
    part = float(total - 1) / frames
    for number, clip in enumerate(uniform(total, frames, clips)):
        starts = np.round(part * np.arange(frames)).astype(int)
        expected = np.minimum(starts + int(part / (clips + 1) * (number + 1)), total - 1)
        assert clip == expected.tolist()
        assert clip == sorted(clip)
        assert clip[0] >= 0


def test_the_card_s_numbers_are_used() -> None:
    card = ClipInput(frames=4, sampling="dense", stride=2)
    assert clip_frames(20, card, "dense", 1) == [[6, 8, 10, 13]]
    assert clip_frames(20, card, "uniform", 1) == uniform(20, 4, 1)


@pytest.mark.parametrize(
    ("total", "count", "bounds"),
    [
        (100, 1, [(0, 100)]),
        (100, 3, [(0, 33), (33, 66), (66, 100)]),
        (2, 5, [(0, 1), (1, 2)]),
    ],
)
def test_windows_cover_the_video(total: int, count: int, bounds: list[tuple[int, int]]) -> None:
    assert window_bounds(total, count) == bounds

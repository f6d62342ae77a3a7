"""From scores to tracks, timeline, segments and a verdict."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.media.faces import Box
from service.tasks.deepfake.schemas import Moment
from service.tasks.deepfake.verdict import (
    TRACK_IOU,
    Face,
    ScoredFrame,
    member_scores,
    quality,
    segments,
    timeline,
    track_ids,
    tracks,
    verdict,
)

LEFT, RIGHT = Box(10, 10, 110, 110), Box(300, 20, 400, 120)

BOXES = st.builds(
    lambda left, top, side: Box(left, top, left + side, top + side),
    st.integers(0, 200),
    st.integers(0, 200),
    st.integers(5, 120),
)


def moved(box: Box, by: int) -> Box:
    return Box(box.left + by, box.top, box.right + by, box.bottom)


def frame(index: int, *faces: Face) -> ScoredFrame:
    return ScoredFrame(index, index / 10, faces)


# Tracks


def test_two_people_keep_their_numbers_in_whatever_order_they_are_found() -> None:
    frames = [[LEFT, RIGHT], [moved(RIGHT, 12), moved(LEFT, 9)], [moved(LEFT, 20)]]
    assert track_ids(frames) == [[0, 1], [1, 0], [0]]


def test_a_person_who_was_away_comes_back_under_the_same_number() -> None:
    assert track_ids([[LEFT], [], [moved(LEFT, 10)], [RIGHT]]) == [[0], [], [0], [1]]


def test_the_closer_of_two_boxes_continues_a_track() -> None:
    assert track_ids([[LEFT], [moved(LEFT, 40), moved(LEFT, 5)]]) == [[0], [1, 0]]


@given(st.lists(st.lists(BOXES, max_size=5), max_size=8))
def test_tracks_are_numbered_without_gaps_and_once_a_frame(frames: list[list[Box]]) -> None:
    numbered = track_ids(frames)
    assert [len(ids) for ids in numbered] == [len(boxes) for boxes in frames]
    assert all(len(set(ids)) == len(ids) for ids in numbered)
    appeared = list(dict.fromkeys(i for ids in numbered for i in sorted(ids)))
    assert appeared == list(range(len(appeared)))


@given(st.lists(st.lists(BOXES, max_size=5), max_size=8))
def test_a_track_goes_on_only_where_boxes_overlap(frames: list[list[Box]]) -> None:
    last: dict[int, Box] = {}
    for boxes, ids in zip(frames, track_ids(frames), strict=True):
        for id, box in zip(ids, boxes, strict=True):
            assert id not in last or last[id].iou(box) >= TRACK_IOU
        last |= dict(zip(ids, boxes, strict=True))


# Timeline and tracks


def test_timeline_and_tracks() -> None:
    moments = timeline(
        [
            frame(0, Face(LEFT, 0.2), Face(RIGHT, 0.8)),
            frame(5),
            frame(10, Face(moved(RIGHT, 4), 1.0)),
        ]
    )
    assert [(m.t, m.frame, m.score) for m in moments] == [
        (0.0, 0, 0.5),
        (0.5, 5, None),
        (1.0, 10, 1.0),
    ]
    assert moments[0].faces[1].box == (300, 20, 400, 120)
    one, other = tracks(moments)
    assert (one.track_id, one.first_s, one.last_s, one.score, one.frames) == (0, 0.0, 0.0, 0.2, 1)
    assert (other.first_s, other.last_s, other.frames) == (0.0, 1.0, 2)
    assert other.score == pytest.approx(0.9)


# Segments

SCORES = st.lists(st.none() | st.floats(0, 1), max_size=40)


def moments_of(scores: list[float | None]) -> list[Moment]:
    return [Moment(t=i / 2, frame=i, score=s, faces=[]) for i, s in enumerate(scores)]


def test_segments_are_runs_from_the_threshold_on() -> None:
    found = segments(moments_of([0.9, 0.1, 0.6, 0.8, None, 0.7, 0.59, 1.0]), 0.6)
    assert [(s.start_s, s.end_s) for s in found] == [(0, 0), (1, 1.5), (2.5, 2.5), (3.5, 3.5)]
    assert found[1].score == pytest.approx(0.7)


@given(SCORES, st.floats(0, 1))
def test_segments_cover_exactly_the_suspicious_frames(
    scores: list[float | None], threshold: float
) -> None:
    found = segments(moments_of(scores), threshold)
    covered = {i for s in found for i in range(int(s.start_s * 2), int(s.end_s * 2) + 1)}
    assert covered == {i for i, s in enumerate(scores) if s is not None and s >= threshold}
    for one, following in pairwise(found):
        assert following.start_s - one.end_s >= 1.0
    assert all(s.score >= threshold - 1e-9 for s in found)


# Verdict, members, quality


def test_verdict() -> None:
    assert verdict(None, 0.5) == "not_applicable"
    assert verdict(0.5, 0.5) == "fake"
    assert verdict(0.49, 0.5) == "real"


def test_member_scores_are_means_by_network() -> None:
    faces = [Face(LEFT, 0.5, (0.2, 0.8)), Face(LEFT, 0.7, (0.4, 1.0))]
    ed, vae = member_scores(("ed", "vae"), faces)
    assert (ed.name, vae.name) == ("ed", "vae")
    assert (ed.score, vae.score) == (pytest.approx(0.3), pytest.approx(0.9))
    assert member_scores(("ed", "vae"), []) == []


def test_quality_names_each_doubt() -> None:
    small, blurred = Box(0, 0, 40, 200), 3.0
    assert quality([frame(i, Face(LEFT, 0.5)) for i in range(5)], 2.0) == []
    assert quality([frame(i, Face(LEFT, 0.5)) for i in range(4)], 0.9) == [
        "few_frames",
        "too_short",
    ]
    assert quality([frame(0), frame(1)], 2.0) == ["no_face"]
    assert quality([frame(0, Face(LEFT, 0.5))], None) == []
    assert quality([frame(0, Face(small, 0.5, (), blurred))], None) == ["small_face", "blurry"]

"""From the scores of single faces to tracks, a timeline, segments and a verdict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from service.media.faces import Box
from service.tasks.deepfake.schemas import (
    FaceScore,
    FaceTrack,
    MemberScore,
    Moment,
    Quality,
    Segment,
    Verdict,
)

# Two boxes of neighbouring sampled frames are one person from this overlap on. Samples are often
# seconds apart, so heads have moved: half of what trackers at full frame rate ask for.
TRACK_IOU = 0.25

FEW_FRAMES = 5
SHORT_S = 1.0
SMALL_FACE = 64
BLURRY = 40.0


@dataclass(frozen=True, slots=True)
class Face:
    """One scored face. `members` are the scores of the ensemble's networks, in the card's order."""

    box: Box
    score: float
    members: tuple[float, ...] = ()
    sharpness: float = float("inf")


@dataclass(frozen=True, slots=True)
class ScoredFrame:
    """A sampled frame and its faces."""

    index: int
    time_s: float
    faces: tuple[Face, ...]


def verdict(score: float | None, threshold: float) -> Verdict:
    """Return the verdict of a mean score; without a face there is none to give."""
    if score is None:
        return "not_applicable"
    return "fake" if score >= threshold else "real"


def track_ids(frames: Sequence[Sequence[Box]]) -> list[list[int]]:
    """Give every box of every frame the number of its track, from 0 in order of appearance.

    Greedy: of all pairs (track, box) the one with the highest overlap is joined first, as long as it
    reaches TRACK_IOU; a track is compared by its last box, also across frames in which it is absent.
    """
    last: list[Box] = []
    numbered = []
    for boxes in frames:
        pairs = sorted(
            (
                (track.iou(box), t, b)
                for t, track in enumerate(last)
                for b, box in enumerate(boxes)
                if track.iou(box) >= TRACK_IOU
            ),
            key=lambda pair: (-pair[0], pair[1], pair[2]),
        )
        ids: dict[int, int] = {}
        taken: set[int] = set()
        for _, t, b in pairs:
            if t not in taken and b not in ids:
                ids[b] = t
                taken.add(t)
        for b, box in enumerate(boxes):
            if b in ids:
                last[ids[b]] = box
            else:
                ids[b] = len(last)
                last.append(box)
        numbered.append([ids[b] for b in range(len(boxes))])
    return numbered


def timeline(frames: Sequence[ScoredFrame]) -> list[Moment]:
    """Return the frames, in order of time, with the tracks of their faces."""
    ids = track_ids([[face.box for face in frame.faces] for frame in frames])
    return [
        Moment(
            t=round(frame.time_s, 3),
            frame=frame.index,
            score=fmean(face.score for face in frame.faces) if frame.faces else None,
            faces=[
                FaceScore(
                    track_id=id,
                    box=(face.box.left, face.box.top, face.box.right, face.box.bottom),
                    score=face.score,
                )
                for id, face in zip(numbers, frame.faces, strict=True)
            ],
        )
        for frame, numbers in zip(frames, ids, strict=True)
    ]


def tracks(moments: Iterable[Moment]) -> list[FaceTrack]:
    """Return every track with its own mean score."""
    seen: dict[int, list[tuple[float, float]]] = {}
    for moment in moments:
        for face in moment.faces:
            seen.setdefault(face.track_id, []).append((moment.t, face.score))
    return [
        FaceTrack(
            track_id=id,
            first_s=points[0][0],
            last_s=points[-1][0],
            score=fmean(score for _, score in points),
            frames=len(points),
        )
        for id, points in sorted(seen.items())
    ]


def segments(moments: Iterable[Moment], threshold: float) -> list[Segment]:
    """Return the runs of frames whose score reaches the threshold; a frame without a face ends one."""
    found = []
    run: list[tuple[float, float]] = []
    for moment in [*moments, None]:
        if moment is not None and moment.score is not None and moment.score >= threshold:
            run.append((moment.t, moment.score))
        elif run:
            mean = fmean(score for _, score in run)
            found.append(Segment(start_s=run[0][0], end_s=run[-1][0], score=mean))
            run = []
    return found


def member_scores(names: Sequence[str], faces: Sequence[Face]) -> list[MemberScore]:
    """Return the mean score of each network of the ensemble; none without a face."""
    if not faces:
        return []
    columns = zip(*(face.members for face in faces), strict=True)
    return [
        MemberScore(name=name, score=fmean(column))
        for name, column in zip(names, columns, strict=False)
    ]


def quality(frames: Sequence[ScoredFrame], duration_s: float | None) -> list[Quality]:
    """Return what makes the answer less sure; `duration_s` is None for a picture."""
    faces = [face for frame in frames for face in frame.faces]
    found: list[Quality] = []
    if not faces:
        found.append("no_face")
    if duration_s is not None:
        if faces and sum(bool(frame.faces) for frame in frames) < FEW_FRAMES:
            found.append("few_frames")
        if duration_s < SHORT_S:
            found.append("too_short")
    if faces and median(face.box.shorter_side for face in faces) < SMALL_FACE:
        found.append("small_face")
    if faces and median(face.sharpness for face in faces) < BLURRY:
        found.append("blurry")
    return found

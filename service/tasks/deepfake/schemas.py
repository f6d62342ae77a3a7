"""Parameters and answer of `POST /v1/deepfake`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from service.tasks.contract import TaskParameters
from service.tasks.schemas import Answer

Quality = Literal["no_face", "few_frames", "too_short", "small_face", "blurry"]

Verdict = Literal["fake", "real", "not_applicable"]

_Score = Field(description="Mean probability of manipulation, 0..1.", ge=0, le=1)


class DeepfakeParameters(TaskParameters):
    """What a caller may set."""

    model: str | None = Field(
        None, description="Id of a deepfake model; without it, the default one."
    )
    frames: int = Field(
        15,
        ge=1,
        description="How many frames of a video to look at, evenly from the first to the last; at "
        "most the limit `video_frames` (64 unless the operator set another). A picture is one frame.",
    )
    seed: int = Field(
        0,
        ge=0,
        le=2**63 - 1,
        description="Seed of the noise in the variational network. The same file, model, frames and "
        "seed give the same answer.",
    )


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class MemberScore(_Part):
    """What one network of an ensemble says."""

    name: str = Field(description="Name of the network.", examples=["ed", "vae"])
    score: float = _Score


class FaceTrack(_Part):
    """One person's face through the video: boxes that overlap from frame to frame."""

    track_id: int = Field(description="Number of the track, from 0 in order of appearance.")
    first_s: float = Field(description="Time of its first sampled frame, in seconds.")
    last_s: float = Field(description="Time of its last sampled frame, in seconds.")
    score: float = _Score
    frames: int = Field(description="Number of sampled frames in which it was found.", ge=1)


class FaceScore(_Part):
    """One face in one frame."""

    track_id: int = Field(description="Number of its track in `faces`.")
    box: tuple[int, int, int, int] = Field(
        description="Left, top, right, bottom in pixels of the upright full-size frame.",
        examples=[[412, 96, 655, 401]],
    )
    score: float = Field(description="Probability of manipulation, 0..1.", ge=0, le=1)


class Moment(_Part):
    """One sampled frame."""

    t: float = Field(description="The frame's own time in seconds from the first frame.")
    frame: int = Field(description="Number of the frame in the video, from 0.")
    score: float | None = Field(
        description="Mean probability over the frame's faces, 0..1; null without a face."
    )
    faces: list[FaceScore] = Field(description="The frame's faces; at most 16.")


class Segment(_Part):
    """Sampled frames in a row whose score reaches the threshold."""

    start_s: float = Field(description="Time of the first of them, in seconds.")
    end_s: float = Field(description="Time of the last of them, in seconds.")
    score: float = _Score


class Sampling(_Part):
    """Which frames were looked at."""

    frames_requested: int = Field(description="The parameter `frames`; 1 for a picture.")
    frames_decoded: int = Field(
        description="Frames looked at: fewer where the video has fewer, or some cannot be decoded."
    )
    duration_s: float | None = Field(
        description="Length of the video in seconds; null for a picture."
    )
    fps: float | None = Field(description="Mean frames per second; null for a picture.")
    width: int = Field(description="Width of the upright frames in pixels.")
    height: int = Field(description="Height of the upright frames in pixels.")
    method: Literal["linspace", "single"] = Field(
        description="`linspace`: evenly from the first frame to the last. `single`: a picture."
    )


class Deepfake(Answer):
    """Whether the faces in a video or picture were manipulated, when, and which of them."""

    verdict: Verdict = Field(
        description="`fake` if `score` is at least `threshold`; `not_applicable` if no face was found."
    )
    score: float | None = Field(
        description="Mean probability of manipulation over every face of every sampled frame, 0..1, "
        "as in the paper; null if no face was found. One manipulated face among several real ones "
        "raises it little: see the scores of `faces`."
    )
    threshold: float = Field(description="The score from which the verdict is `fake`.")
    models: list[MemberScore] = Field(description="The same mean for each network of an ensemble.")
    faces: list[FaceTrack] = Field(description="The people seen, in order of appearance.")
    timeline: list[Moment] = Field(description="The sampled frames in order of time.")
    segments: list[Segment] = Field(description="Stretches of time that look manipulated.")
    quality: list[Quality] = Field(
        description="What makes the answer less sure. `no_face`: none found. `few_frames`: a face in "
        "fewer than 5 frames of a video. `too_short`: a video under one second. `small_face`: the "
        "median face is under 64 pixels. `blurry`: the median face has little detail."
    )
    sampling: Sampling

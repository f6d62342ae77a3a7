"""Parameters and answer of `POST /v1/classify` for a video."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from service.tasks.classify.schemas import Prediction
from service.tasks.contract import TaskParameters
from service.tasks.schemas import Answer

Sampling = Literal["dense", "uniform"]


class VideoClassifyParameters(TaskParameters):
    """What a caller may set for a video."""

    model: str | None = Field(
        None,
        description="Id of a model that classifies what is sent: for a picture one of the task "
        "`classification`, for a video one of `video-classification`. Without it, the default one.",
    )
    top_k: int = Field(
        5,
        ge=1,
        le=100,
        description="How many labels to return; a model with fewer labels returns all of them.",
    )
    clips: int = Field(
        1,
        ge=1,
        le=10,
        description="Videos only: how many clips of the video, or of each window of it, are looked at; "
        "their scores are joined. The model's card says how many its published figures rest on.",
    )
    crops: int = Field(
        1,
        ge=1,
        le=3,
        description="Videos only: 1 looks at the centre of the frames, 3 at both ends and the centre of "
        "their longer side.",
    )
    sampling: Sampling | None = Field(
        None,
        description="Videos only: how the frames of a clip are chosen. `dense`: neighbouring frames at the "
        "model's stride. `uniform`: one from each of equal parts. Without it, as in the model's paper.",
    )
    window_s: float | None = Field(
        None,
        gt=0,
        le=3600,
        description="Videos only: length in seconds of the windows into which the video is divided, one "
        "entry of the timeline each. Without it, a video of up to 30 seconds is one window, and a "
        "longer one is divided into windows of 10 seconds or more, at most 12.",
    )


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Window(_Part):
    """A stretch of the video and what is seen in it."""

    start_s: float = Field(description="Where it begins, in seconds from the first frame.")
    end_s: float = Field(description="Where it ends, in seconds.")
    predictions: list[Prediction] = Field(description="Best first; `top_k` of them.")


class Views(_Part):
    """What was looked at: every window x clip x crop is one view, one pass through the network."""

    windows: int = Field(description="Windows of the video.", ge=1)
    clips: int = Field(description="Clips of each window.", ge=1)
    crops: int = Field(description="Crops of each clip.", ge=1)
    frames: int = Field(description="Frames of each clip.", ge=1)
    sampling: Sampling = Field(description="How the frames of a clip were chosen.")


class VideoSize(_Part):
    """The video sent."""

    width: int = Field(description="Width of the upright frames in pixels.")
    height: int = Field(description="Height of the upright frames in pixels.")
    frames: int = Field(description="Number of frames.")
    fps: float = Field(description="Mean frames per second.")
    duration_s: float = Field(description="Length in seconds.")


class VideoClassification(Answer):
    """The labels of a video, the most probable first, as a whole and over time."""

    activation: Literal["softmax", "sigmoid"] = Field(
        description="`softmax`: exactly one label applies and all scores sum to 1. `sigmoid`: each "
        "label applies or not on its own."
    )
    predictions: list[Prediction] = Field(
        description="Of the whole video: all views joined. Best first; `top_k` of them."
    )
    timeline: list[Window] = Field(description="The windows of the video in order of time.")
    views: Views
    video: VideoSize

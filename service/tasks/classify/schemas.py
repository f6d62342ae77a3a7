"""Parameters and answer of `POST /v1/classify`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from service.tasks.contract import TaskParameters
from service.tasks.evidence import Evidence
from service.tasks.schemas import Answer, Size


class ClassifyParameters(TaskParameters):
    """What a caller may set."""

    model: str | None = Field(
        None, description="Id of a classification model; without it, the default one."
    )
    top_k: int = Field(
        5,
        ge=1,
        le=100,
        description="How many labels to return; a model with fewer labels returns all of them.",
    )
    explain: bool = Field(
        False,
        description="Also tell where in the picture the evidence for the best label lies; the drawings "
        "of it, `heatmap.png` and `overlay.png`, are in `files`.",
    )


class Prediction(BaseModel):
    """One label and how sure the model is of it."""

    model_config = ConfigDict(frozen=True)

    label: str = Field(description="The label's name.", examples=["red circle"])
    index: int = Field(description="The label's number in the model's list, from 0.")
    score: float = Field(description="Probability, 0..1.", ge=0, le=1)


class Classification(Answer):
    """The labels of a picture, the most probable first."""

    activation: Literal["softmax", "sigmoid"] = Field(
        description="`softmax`: exactly one label applies and all scores sum to 1. `sigmoid`: each "
        "label applies or not on its own."
    )
    predictions: list[Prediction] = Field(description="Best first; `top_k` of them.")
    image: Size = Field(description="Size of the picture sent, after EXIF orientation.")
    evidence: Evidence | None = Field(
        None, description="Where the evidence for the best label lies, with `explain`; else null."
    )

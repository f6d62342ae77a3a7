"""Parameters and answers of `POST /v1/detect`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from service.tasks.contract import TaskParameters
from service.tasks.schemas import Answer, Size

MOST_CLASSES = 1000

_BY_MODEL = "Range and default are on the model's card (`GET /v1/models/{id}`, `parameters`)."


class DetectParameters(TaskParameters):
    """What a caller may set; the model's card says in which range."""

    model: str | None = Field(
        None, description="Id of a detection model; without it, the default one."
    )
    threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description=f"Score that a detection must exceed. {_BY_MODEL}",
        examples=[0.5],
    )
    max_detections: int | None = Field(
        None,
        ge=1,
        le=2**31 - 1,
        description=f"How many detections there are at most, the best ones. {_BY_MODEL}",
    )
    classes: tuple[str, ...] = Field(
        (),
        max_length=MOST_CLASSES,
        description="Labels of the model: nothing else is looked for. In a form or query separated by commas.",
        examples=[["person", "dog"]],
    )
    masks: bool = Field(
        True,
        description="Whether masks come with the boxes, of models that draw them.",
    )
    format: Literal["json", "coco"] = Field(
        "json",
        description="`json`: `detections`; `coco`: a document in the format of COCO's annotations, as "
        "annotation tools and pycocotools read it.",
    )
    overlay: bool = Field(
        False,
        description="Whether a drawing comes with the answer (`overlay.png`): boxes, labels and masks over the "
        "picture, its longer side 1024 pixels at most. It is the answer itself where `Accept` is `image/png`.",
    )

    @field_validator("classes", mode="before")
    @classmethod
    def _separated(cls, given: Any) -> Any:
        if isinstance(given, str):
            return tuple(label.strip() for label in given.split(",") if label.strip())
        return given


class RunLengths(BaseModel):
    """A mask as COCO's compressed run lengths; `pycocotools.mask.decode` makes an array of it."""

    model_config = ConfigDict(frozen=True)

    size: tuple[int, int] = Field(description="Height and width of the picture.")
    counts: str = Field(description="Run lengths, column by column, packed into letters.")


class Detection(BaseModel):
    """One object."""

    model_config = ConfigDict(frozen=True)

    label: str = Field(description="Name of its class.", examples=["dog"])
    index: int = Field(description="Number of its class in the model's list of labels, from 0.")
    score: float = Field(description="How sure the model is.", ge=0, le=1)
    box: tuple[float, float, float, float] = Field(
        description="Left, top, right and bottom edge in pixels of the picture, after EXIF orientation.",
        examples=[(12.5, 30.0, 220.25, 301.75)],
    )
    box_normalized: tuple[float, float, float, float] = Field(
        description="The same edges as shares of the picture's width and height."
    )
    area: float = Field(
        description="Pixels of its mask, or of its box where there is no mask.", ge=0
    )
    rle: RunLengths | None = Field(
        description="Its mask: where it is, pixel by pixel; null without masks."
    )


class Detections(Answer):
    """The objects in a picture, best first; none is an empty list."""

    threshold: float = Field(description="Score that every one of them exceeds.")
    detections: list[Detection] = Field(description="The best first; none in an empty scene.")
    image: Size = Field(description="Size of the picture sent, after EXIF orientation.")


class CocoImage(BaseModel):
    """The picture, as COCO describes it."""

    model_config = ConfigDict(frozen=True)

    id: int = Field(description="Always 1: there is one picture.")
    file_name: str = Field(description="Name of the file sent.")
    width: int = Field(description="Pixels from left to right.")
    height: int = Field(description="Pixels from top to bottom.")


class CocoAnnotation(BaseModel):
    """An object, as COCO describes it."""

    model_config = ConfigDict(frozen=True)

    id: int = Field(description="Number of the object, from 1.")
    image_id: int = Field(description="`id` of the picture.")
    category_id: int = Field(description="`id` of its class.")
    bbox: tuple[float, float, float, float] = Field(
        description="Left and top edge, width and height in pixels."
    )
    area: float = Field(description="Pixels of its mask, or of its box.", ge=0)
    score: float = Field(description="How sure the model is.", ge=0, le=1)
    iscrowd: Literal[0] = Field(0, description="Always 0: each is one object.")
    segmentation: RunLengths | None = Field(None, description="Its mask, where there is one.")


class CocoCategory(BaseModel):
    """A class, as COCO describes it."""

    model_config = ConfigDict(frozen=True)

    id: int = Field(description="Its number in the model's list of labels, from 0.")
    name: str = Field(description="Its label.")


class CocoDetections(Answer):
    """The objects in a picture in the format of COCO's annotations (`format=coco`)."""

    images: list[CocoImage] = Field(description="The one picture.")
    annotations: list[CocoAnnotation] = Field(description="Its objects, the best first.")
    categories: list[CocoCategory] = Field(description="All classes of the model.")

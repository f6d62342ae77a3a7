"""Evidence: where in a picture a classifier found what it answers, as numbers and as drawings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from service.errors import InvalidParameter, ModelFailed
from service.media.heatmap import draw, png, seen_region
from service.tasks.contract import Attachment
from service.tasks.schemas import probability
from service.triton.cards import Card, ImageInput
from service.triton.tensors import Array

Drawings = Literal["both", "heatmap", "overlay", "none"]

# Digits of a map's numbers: finer than any map is exact.
_DIGITS = 4


class SeenRegion(BaseModel):
    """The part of the picture that the model saw, in the picture's pixels."""

    model_config = ConfigDict(frozen=True)

    left: float = Field(description="Its left edge; negative where it reaches beyond the picture.")
    top: float = Field(description="Its upper edge.")
    width: float = Field(description="Pixels from left to right.")
    height: float = Field(description="Pixels from top to bottom.")


class Evidence(BaseModel):
    """Where in a picture the evidence for a class lies."""

    model_config = ConfigDict(frozen=True)

    method: str = Field(
        description="How it was found: `t-tame`, by a branch trained to explain its classifier; "
        "`hires-cam`, by activations times gradients.",
        examples=["hires-cam"],
    )
    label: str = Field(description="Name of the class that was looked for.")
    index: int = Field(description="Its number in the model's list of labels, from 0.")
    score: float = Field(description="The model's score for it, 0..1.", ge=0, le=1)
    heatmap: list[list[float]] = Field(
        description="Rows from top to bottom of values in 0..1, spread over `region`; 1 is the "
        "strongest evidence in this picture, which says nothing of its strength in another one."
    )
    region: SeenRegion


def request_for(class_index: int | None, card: Card) -> Array:
    """Return the tensor that asks for the evidence for a class; None is the most probable one.

    Raises InvalidParameter for a class that is not among the model's labels.
    """
    if class_index is not None and card.labels and class_index >= len(card.labels):
        raise InvalidParameter(
            f"class_index = {class_index}: model {card.id!r} has the classes 0 to "
            f"{len(card.labels) - 1}",
            param="class_index",
        )
    return np.array([[-1 if class_index is None else class_index]], np.int32)


def evidence(
    answer: Mapping[str, Array],
    class_index: int | None,
    card: Card,
    image: Image.Image,
    drawings: Drawings = "both",
) -> tuple[Evidence, tuple[Attachment, ...]]:
    """Return what a model's answer says of `image`, and the drawings of it as PNG files.

    Raises InvalidParameter if the model gives no evidence, ModelFailed if its numbers are none.
    """
    if "HEATMAP" not in answer:
        raise InvalidParameter(f"model {card.id!r} cannot tell what it goes by", param="model")
    values = answer["HEATMAP"][0]
    if not np.isfinite(values).all():
        raise ModelFailed(f"model {card.id!r} gave a map with values that are not numbers")
    scores = answer["SCORES"][0]
    index = int(scores.argmax()) if class_index is None else class_index
    region = seen_region(image.size, card.image or ImageInput())
    found = Evidence(
        method=answer["METHOD"].reshape(-1)[0].decode(),
        label=card.label(index),
        index=index,
        score=probability(scores[index], card),
        heatmap=np.round(values.astype(np.float64), _DIGITS).tolist(),
        region=SeenRegion(
            left=region.left, top=region.top, width=region.width, height=region.height
        ),
    )
    if drawings == "none":
        return found, ()
    grey, overlay = draw(image, values, region)
    return found, tuple(
        Attachment(f"{name}.png", "image/png", png(drawn))
        for name, drawn in (("heatmap", grey), ("overlay", overlay))
        if drawings in ("both", name)
    )

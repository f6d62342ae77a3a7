"""Parameters and answer of `POST /v1/segment`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.tasks.contract import TaskParameters
from service.tasks.schemas import Answer, Size

Format = Literal["png", "rle", "polygons", "panoptic"]
Kind = Literal["semantic", "panoptic", "instance", "binary"]


class SegmentParameters(TaskParameters):
    """What a caller may set."""

    model: str | None = Field(
        None, description="Id of a segmentation model; without it, the default one."
    )
    format: Format = Field(
        "png",
        description="The form of the masks: `png` (`mask.png`, the id of each pixel as its grey level, 8 or 16 bits), "
        "`rle` (each segment's, as COCO's compressed run lengths), `polygons` (each segment's outlines), "
        "`panoptic` (`panoptic.png` and `segments_info` as COCO has them: id = R + 256 G + 65536 B, 0 for nothing).",
    )
    overlay: bool = Field(
        False,
        description="Also draw the segments in colour over the picture (`overlay.png`, its longer side 1024 pixels at "
        "most).",
    )
    probability: bool = Field(
        False,
        description="Also give the probability of each pixel (`probability.png`, 0..255 for 0..1); of models with one "
        "kind of segment only.",
    )
    depth: int | Literal["auto"] | None = Field(
        None,
        description="How many layers of its encoder the model is to use, for models that can use fewer than they have; "
        "`auto`: as many as it finds the picture to need. Range and default are on the model's card.",
        examples=["auto"],
    )


class Segment(BaseModel):
    """One segment: an object, or all pixels of a class."""

    model_config = ConfigDict(frozen=True)

    id: int = Field(description="Its value in the mask.")
    label: str = Field(description="Name of its class.")
    index: int = Field(description="Number of its class in the model's list of labels, from 0.")
    thing: bool | None = Field(
        description="Whether its class is one of objects that can be counted; null where the model makes no difference."
    )
    score: float = Field(
        description="The model's confidence in the class, or the mean probability of the pixels.",
        ge=0,
        le=1,
    )
    area: int = Field(description="Its number of pixels.", ge=1)
    share: float = Field(description="Its share of the picture's pixels.", ge=0, le=1)
    box: tuple[int, int, int, int] = Field(
        description="What encloses it, in pixels: left, top, right, bottom, the last two exclusive."
    )
    rle: dict[str, Any] | None = Field(
        description="With `format=rle`: its mask as COCO's `size` (height, width) and `counts`, compressed.",
        examples=[{"size": [480, 640], "counts": "PPYo0"}],
    )
    polygons: list[list[list[tuple[float, float]]]] | None = Field(
        description="With `format=polygons`: its parts, each a list of closed rings of (x, y) in pixels, the outline "
        "first and then the holes, as in GeoJSON."
    )


class SegmentInfo(BaseModel):
    """A row of COCO's `segments_info`."""

    model_config = ConfigDict(frozen=True)

    id: int = Field(description="Its value in `panoptic.png`.")
    category_id: int = Field(
        description="Number of its class in the model's list of labels, from 0."
    )
    category_name: str = Field(description="Name of its class.")
    isthing: int | None = Field(
        description="1 for things, 0 for stuff; null where the model makes no difference."
    )
    area: int = Field(description="Its number of pixels.")
    bbox: tuple[int, int, int, int] = Field(description="Left, top, width and height in pixels.")
    iscrowd: int = Field(description="Always 0.")


class SegmentationAnswer(Answer):
    """What a picture consists of; masks and drawings are in `files`."""

    kind: Kind = Field(
        description="What the mask holds: the class of each pixel (`semantic`), numbers of segments with 0 for nothing "
        "(`panoptic`, `instance`), or 0 and 1 (`binary`)."
    )
    format: Format = Field(description="The form of the masks.")
    segments: list[Segment] = Field(description="Largest first; none in an empty scene.")
    segments_info: list[SegmentInfo] | None = Field(description="With `format=panoptic`: COCO's.")
    depth: int | None = Field(
        description="Layers of the encoder that were used; null for models that always use all."
    )
    image: Size = Field(
        description="Size of the picture sent, after EXIF orientation, and of the masks."
    )

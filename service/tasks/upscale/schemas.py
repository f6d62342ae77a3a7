"""Parameters and answer of `POST /v1/upscale`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from service.media.encoding import Format
from service.tasks.contract import TaskParameters
from service.tasks.schemas import Answer, Size

_BY_MODEL = "Range and default are on the model's card (`GET /v1/models/{id}`, `parameters`)."


class UpscaleParameters(TaskParameters):
    """What a caller may set; the model's card says in which range."""

    model: str | None = Field(
        None,
        description="Id of a super-resolution model, which decides how many times larger the picture becomes "
        "(`scale` on its card); without it, the default one.",
    )
    format: Format = Field(
        "png",
        description="File format; PNG is lossless. JPEG has no transparency: the picture is laid over white.",
    )
    tiling: Literal["context", "average"] | None = Field(
        None,
        description="How large pictures are put together from tiles: each computed with what is around it, "
        f"which is cut away (`context`), or overlapping, with the mean of both (`average`). {_BY_MODEL}",
    )
    tile: int | None = Field(
        None, description=f"Side of a tile, in pixels of the picture sent. {_BY_MODEL}"
    )
    overlap: int | None = Field(
        None,
        description=f"Pixels around a tile, or common to two tiles; less than `tile`. {_BY_MODEL}",
    )


class Upscaled(Answer):
    """What was made; the picture itself is the answer, or the result of the job, or in `files`."""

    scale: int = Field(description="How many times longer the sides are.")
    size: Size = Field(description="Size of the picture that was made.")
    image: Size = Field(description="Size of the picture that was sent, upright.")
    format: Format = Field(description="File format of the picture that was made.")
    channels: Literal["RGB", "L", "RGBA", "LA"] = Field(
        description="What its pixels hold: colours (RGB) or grey (L), and transparency (A), as in the picture sent."
    )
    profile: bool = Field(description="Whether it carries the colour profile (ICC) that was sent.")
    tiles: int = Field(description="In how many tiles it was computed.", ge=1)
    tiling: Literal["context", "average"] = Field(description="How they were put together.")
    tile: int = Field(description="The longest side of a tile.")
    overlap: int = Field(description="Pixels around a tile, or common to two.")

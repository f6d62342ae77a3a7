"""Parameters and answer of `POST /v1/reconstruct`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from service.tasks.contract import TaskParameters
from service.tasks.schemas import Answer, Size

_BY_MODEL = "Range and default are on the model's card (`GET /v1/models/{id}`, `parameters`)."


class ReconstructParameters(TaskParameters):
    """What a caller may set; the model's card says in which range."""

    model: str | None = Field(
        None, description="Id of a reconstruction model; without it, the default one."
    )
    share: float | None = Field(
        None,
        description=f"Share of the picture that is hidden from the model. {_BY_MODEL}",
        examples=[0.5],
    )
    seed: int | None = Field(
        None,
        ge=0,
        le=2**63 - 1,
        description="Decides which parts are hidden: equal seeds hide the same ones.",
    )
    pictures: Literal["both", "restored", "seen"] = Field(
        "both",
        description="Which pictures come with the answer: `restored` (`restored.png`), `seen` (`seen.png`: "
        "what the model was shown, the rest grey) or `both`. One alone is the answer itself where `Accept` "
        "is `image/png`.",
    )


class Reconstruction(Answer):
    """How well the hidden parts were predicted; the pictures are in `files`."""

    hidden: float = Field(description="Share of the pixels that was hidden.", ge=0, le=1)
    seed: int | None = Field(description="What decided which; null where the model hides nothing.")
    psnr: float | None = Field(
        description="Peak signal-to-noise ratio of the predicted pixels, in decibels; null for an exact "
        "prediction."
    )
    size: Size = Field(description="Size of the pictures in `files`, the model's own.")
    image: Size = Field(description="Size of the picture sent, after EXIF orientation.")

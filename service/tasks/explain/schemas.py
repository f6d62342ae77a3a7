"""Parameters and answer of `POST /v1/explain`."""

from __future__ import annotations

from pydantic import Field

from service.tasks.contract import TaskParameters
from service.tasks.evidence import Drawings, Evidence
from service.tasks.schemas import Answer, Size


class ExplainParameters(TaskParameters):
    """What a caller may set."""

    model: str | None = Field(
        None,
        description="Id of a model made to explain, or of any classification model; without it, the "
        "default one.",
    )
    class_index: int | None = Field(
        None,
        ge=0,
        lt=2**31,
        description="Number, in the model's list of labels, of the class to look for; without it, the "
        "most probable one.",
    )
    drawings: Drawings = Field(
        "both",
        description="Which pictures come with the numbers: `heatmap` (`heatmap.png`, grey), `overlay` "
        "(`overlay.png`, in colour over the picture), `both` or `none`. One alone is the answer itself "
        "where `Accept` is `image/png`.",
    )


class Explanation(Answer):
    """The evidence for one class; the drawings are in `files`."""

    evidence: Evidence
    image: Size = Field(description="Size of the picture sent, after EXIF orientation.")

"""Parameters and result of `POST /v1/generate/image`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from service.media.encoding import Format
from service.tasks.contract import TaskParameters
from service.tasks.schemas import Answer

_BY_MODEL = "Range and default are on the model's card (`GET /v1/models/{id}`, `parameters`)."


class GenerateImageParameters(TaskParameters):
    """What a caller may set; the model's card says in which range."""

    model: str | None = Field(
        None, description="Id of a text-to-image model; without it, the default one."
    )
    prompt: str = Field(
        min_length=1,
        description="What the picture shows.",
        examples=["a red circle left of a blue square"],
    )
    seed: int | None = Field(
        None,
        ge=0,
        le=2**63 - 1,
        description="Seed of the noise that the picture starts from: the same prompt, seed and "
        "settings give the same picture. Drawn at random if absent, and told in the result.",
    )
    steps: int | None = Field(None, description=f"Number of denoising steps. {_BY_MODEL}")
    guidance: float | None = Field(
        None, description=f"How closely to follow the prompt; 1 is no guidance. {_BY_MODEL}"
    )
    width: int | None = Field(None, description=f"Width in pixels. {_BY_MODEL}")
    height: int | None = Field(None, description=f"Height in pixels. {_BY_MODEL}")
    n: int | None = Field(
        None,
        ge=1,
        description=f"Number of pictures, with the seeds `seed`, `seed + 1` and so on. {_BY_MODEL}",
    )
    format: Format = Field(
        "png",
        description="File format; PNG is lossless. Each carries prompt, seed and settings: PNG as text "
        "chunks, the others as JSON in EXIF's UserComment.",
    )


class GeneratedImage(BaseModel):
    """One picture of the result."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(
        description="Name of the file in the result: `GET /v1/jobs/{id}/result/{name}`.",
        examples=["image-0.png"],
    )
    content_type: str = Field(description="Media type of the file.", examples=["image/png"])
    seed: int = Field(description="The seed that gives this picture again.")
    width: int = Field(description="Width in pixels.")
    height: int = Field(description="Height in pixels.")


class GeneratedImages(Answer):
    """The pictures, and everything needed to make them again."""

    prompt: str = Field(description="The prompt, as sent.")
    seed: int = Field(description="Seed of the first picture.")
    parameters: dict[str, int | float | str | bool | None] = Field(
        description="The settings used: steps, guidance and so on, defaults included.",
        examples=[{"steps": 30, "guidance": 5.0, "width": 512, "height": 512}],
    )
    images: list[GeneratedImage] = Field(description="The pictures, in the order of their seeds.")

"""Parameters and answer of `POST /v1/embed`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, field_validator

from service.tasks.contract import TaskParameters
from service.tasks.embed.examples import ExamplesName
from service.tasks.schemas import Answer

MOST_PICTURES = 64
# A map of features has thousands of times as many numbers as a vector.
MOST_MAPS = 8

# An array, or the base64 of one: millions of numbers are better not made Python's floats on their way out.
Numbers = Annotated[
    Any,
    WithJsonSchema({"oneOf": [{"type": "array", "items": {"type": "number"}}, {"type": "string"}]}),
]


class EmbedParameters(TaskParameters):
    """What a caller may set."""

    model: str | None = Field(
        None, description="Id of an embedding model; without it, the default one."
    )
    encoding_format: Literal["float", "base64"] = Field(
        "float",
        description="`float`: lists of numbers; `base64`: their bytes as little-endian float32.",
    )
    normalize: bool = Field(
        False, description="Scale vectors (not maps of features) to unit length."
    )
    dense: bool = Field(
        False,
        description="Return the map of features as well; for at most 8 embeddings in one call.",
    )
    picture: bool = Field(
        False,
        description="Make a PNG of each map of features: its three principal components, of all the "
        "call's maps together, as red, green and blue. For at most 8 embeddings in one call.",
    )
    order: bool = Field(
        False,
        description="Tell for each three embeddings in a row how probable it is that they are in order; "
        "for models of frames whose card has the parameter `order`.",
    )
    labels: tuple[str, ...] = Field(
        (),
        max_length=MOST_PICTURES,
        description="One for each embedding: the label of an example, or an empty string for a picture "
        "that shall be labelled. In a form or query separated by commas.",
        examples=[["cat", "dog", ""]],
    )
    keep: ExamplesName | None = Field(
        None,
        description="Keep the examples in `labels` under this name, in place of any that it had.",
    )
    examples: ExamplesName | None = Field(
        None,
        description="Label the pictures by the examples that were kept under this name, of the model that "
        "they were kept of.",
    )

    @field_validator("labels", mode="before")
    @classmethod
    def _separated(cls, given: Any) -> Any:
        if isinstance(given, str):
            return tuple(label.strip() for label in given.split(","))
        return given


class FeatureMap(BaseModel):
    """Features of the parts of a picture, in rows from the top left."""

    model_config = ConfigDict(frozen=True)

    height: int = Field(description="Number of rows.")
    width: int = Field(description="Number of columns.")
    dimensions: int = Field(description="Numbers for each place.")
    data: Numbers = Field(
        description="height x width x dimensions numbers, as `encoding_format` says."
    )


class LabelSimilarity(BaseModel):
    """How near a picture is to the examples of one label."""

    model_config = ConfigDict(frozen=True)

    label: str
    similarity: float = Field(
        description="Cosine between the picture's vector and the mean of the examples' vectors.",
        ge=-1,
        le=1,
    )


class Embedding(BaseModel):
    """One picture, or one stack of frames."""

    model_config = ConfigDict(frozen=True)

    index: int = Field(description="Its place in the call, from 0.")
    name: str = Field(description="Name of the (first) file.")
    embedding: Numbers = Field(description="The vector, as `encoding_format` says.")
    features: FeatureMap | None = Field(description="The map, where `dense` asked for it.")
    predictions: list[LabelSimilarity] | None = Field(
        description="Labels of the examples, sent or kept, the nearest first; null for examples and without any."
    )


class Order(BaseModel):
    """Three observations in a row, as they were sent."""

    model_config = ConfigDict(frozen=True)

    index: int = Field(description="Index of the first one in `data`.")
    in_order: float = Field(
        description="Probability that they follow each other in time.", ge=0, le=1
    )


class Embeddings(Answer):
    """The vectors of a call's pictures, in their order."""

    dimensions: int = Field(description="Numbers in each vector.")
    encoding_format: Literal["float", "base64"]
    normalized: bool = Field(description="Whether the vectors have unit length.")
    data: list[Embedding]
    order: list[Order] | None = Field(
        description="One for each three embeddings, where `order` asked for it."
    )

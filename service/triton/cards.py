"""The card: the whole contract between the networks in `models/` and the service in `service/`.

Every Triton model carries its card as JSON in `config.pbtxt` (`parameters { key: "card" }`). The
gateway knows no model by name; it reads cards and routes by task. This module imports neither
torch nor Triton, so both sides can use it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

# Id of the Triton model that tells the cards of entries which are not loaded (models/catalogue.py).
CATALOGUE = "vitrine-catalogue"


class Task(StrEnum):
    """What a model does; the tensors of each task are fixed in `models/signatures.py`."""

    CLASSIFICATION = "classification"
    VIDEO_CLASSIFICATION = "video-classification"
    DEEPFAKE = "deepfake"
    FACE_DETECTION = "face-detection"
    DETECTION = "detection"
    SEGMENTATION = "segmentation"
    SUPER_RESOLUTION = "super-resolution"
    EMBEDDING = "embedding"
    EXPLANATION = "explanation"
    TEXT_TO_IMAGE = "text-to-image"
    CLASS_TO_IMAGE = "class-to-image"
    SCENE_GRAPH_TO_IMAGE = "scene-graph-to-image"
    UNCONDITIONAL_IMAGE = "unconditional-image"
    TEXT_TO_VIDEO = "text-to-video"
    CLASS_TO_VIDEO = "class-to-video"
    VIEW_SYNTHESIS = "view-synthesis"
    ASK = "ask"
    RECONSTRUCTION = "reconstruction"
    IN_CONTEXT = "in-context"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Paper(_Frozen):
    """The paper a network comes from; `slug` is its row in the table of the 52 papers."""

    slug: str
    title: str
    year: int
    arxiv: str | None = None


class Licence(_Frozen):
    """Licences of the authors' code and of the weights; `commercial` is false where either forbids it."""

    code: str
    weights: str
    commercial: bool = True


class WeightsRecord(_Frozen):
    """Where the weights came from.

    `official`: published by the authors; `own`: brought by the user; `demo`: small weights trained
    on this project's procedural data; `random`: untrained, for benchmarks only.
    """

    kind: Literal["official", "own", "demo", "random"]
    source: str | None = None
    sha256: str | None = None


class ImageInput(_Frozen):
    """How a picture becomes the `uint8` pixels that the model takes (its own pre-processing, exactly).

    `resize`:
      * `squash`: to (height, width), aspect not kept;
      * `shorter-side`: shorter side to `resize_to`, then centre crop to (height, width);
      * `fit`: aspect kept, shorter side to `resize_to`, or the longer one to `max_side` where it would exceed
        that; sides are rounded half up. Whatever the network fills up, it fills up itself;
      * `none`: sent at its own size, within [min_side, max_side], its right and bottom edges
        repeated up to the next multiple of `multiple_of`.
    `interpolation` is Pillow's of that name; `linear` (with `squash` and `fit`) mixes the four nearest pixels
    also where a picture becomes smaller, as OpenCV does.
    `mean` and `std` (per channel, for pixels in 0..1) are applied inside the model; they are here
    so that a user can see and repeat the pre-processing.
    """

    height: int | None = None
    width: int | None = None
    colour: Literal["RGB", "L"] = "RGB"
    resize: Literal["squash", "shorter-side", "fit", "none"] = "squash"
    resize_to: int | None = None
    interpolation: Literal[
        "nearest", "box", "bilinear", "hamming", "bicubic", "lanczos", "linear"
    ] = "bilinear"
    min_side: int = 1
    max_side: int = 4096
    multiple_of: int = 1
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    @property
    def is_fixed(self) -> bool:
        """Whether all pictures are sent at one size."""
        return self.resize not in ("fit", "none")


class ClipInput(_Frozen):
    """How frames are drawn from a video: their number and the rule of the paper.

    `sampling`:
      * `dense`: `frames` out of `frames` x `stride` in a row, several clips spread over the video;
      * `uniform`: one frame from each of `frames` equal parts of the video, several clips shifted
        within the parts;
      * `linspace`: evenly from the first to the last.
    `clips` and `crops` are the views of the published figures, `merge` how the authors join them:
    the mean of the scores, or of the logits.
    """

    frames: int
    sampling: Literal["uniform", "dense", "linspace"] = "uniform"
    stride: int = 1
    clips: int = 1
    crops: int = 1
    merge: Literal["scores", "logits"] = "scores"


class Parameter(_Frozen):
    """A setting that a caller may give: its type, inclusive range, allowed values and default."""

    type: Literal["integer", "number", "string", "boolean"]
    default: int | float | str | bool | None = None
    minimum: float | None = None
    maximum: float | None = None
    multiple_of: int | None = None
    choices: tuple[int | float | str, ...] | None = None
    max_length: int | None = None
    description: str = ""


class Metric(_Frozen):
    """A figure of quality: `published` by the paper's authors or `measured` by this project."""

    name: str
    value: float
    dataset: str
    origin: Literal["published", "measured"]
    note: str = ""


class Acceleration(_Frozen):
    """How the runtime of an entry was chosen when it was built, beside eager float32 on the same inputs.

    `asked`: the runtime asked for. `error`: the largest difference of an output, over the largest magnitude of
    that output. `top1`: the share of inputs with the same best class, None where there are no classes.
    `reasons`: why nothing faster was taken. `source`: SHA-256 of the weights that were compared.
    """

    asked: Literal["auto", "torch", "compile", "openvino"] = "auto"
    inputs: int = 0
    error: float | None = None
    top1: float | None = None
    reasons: tuple[str, ...] = ()
    source: str | None = None


class Card(_Frozen):
    """Everything that the service and its users need to know about one served model.

    `segmentation`: what the MASK of a segmentation model holds (`models/signatures.py`). `things`: which labels
    are of objects that can be counted; the others are of stuff, as sky. Classes are indices of `labels`.
    `scale`: how many times longer the sides of a picture become; of super-resolution models only.
    """

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9._+-]{0,127}$")
    version: str = "1"
    task: Task
    title: str
    paper: Paper
    origin: Literal["library", "own", "after the paper"]
    architecture: str
    variant: str
    licence: Licence
    weights: WeightsRecord
    image: ImageInput | None = None
    clip: ClipInput | None = None
    scale: int | None = None
    labels: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    activation: Literal["softmax", "sigmoid"] = "softmax"
    segmentation: Literal["semantic", "panoptic", "instance", "binary"] | None = None
    things: tuple[int, ...] = ()
    thresholds: dict[str, float] = Field(default_factory=dict)
    default: bool = False
    cost: Literal["interactive", "batch"] = "interactive"
    parameters: dict[str, Parameter] = Field(default_factory=dict)
    parameter_count: int | None = None
    flops: int | None = None
    metrics: tuple[Metric, ...] = ()
    runtime: Literal["torch", "compile", "openvino"] = "torch"
    precision: Literal["float32", "bfloat16", "auto"] = "auto"
    acceleration: Acceleration | None = None
    notes: tuple[str, ...] = ()

    @property
    def unaccelerated(self) -> Card:
        """The card as it was before a runtime was chosen for it."""
        return self.model_copy(
            update={"runtime": "torch", "precision": "auto", "acceleration": None}
        )

    def label(self, index: int) -> str:
        """Return the name of class `index`, or its number where the card has no name for it."""
        return self.labels[index] if index < len(self.labels) else f"class {index}"

    @property
    def warning(self) -> str | None:
        """The sentence that every answer from weights not fit for real use carries."""
        if self.weights.kind == "demo":
            return (
                f"{self.id} runs on demo weights trained on this project's procedural pictures; "
                "its answers about real media mean nothing. Pull or add real weights for real use."
            )
        if self.weights.kind == "random":
            return f"{self.id} runs on random weights; its answers mean nothing."
        return None

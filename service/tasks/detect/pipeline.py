"""Detection: one picture in, the objects in it out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from time import perf_counter
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.errors import InvalidParameter, ModelFailed
from service.media.heatmap import png
from service.media.instances import Box, Instance, paste, run_lengths
from service.media.threads import in_thread
from service.tasks.contract import Attachment, Context, Outcome, Pipeline, Report, Upload
from service.tasks.detect.drawing import overlay
from service.tasks.detect.schemas import (
    CocoAnnotation,
    CocoCategory,
    CocoDetections,
    CocoImage,
    Detection,
    Detections,
    DetectParameters,
    RunLengths,
)
from service.tasks.parameters import complete
from service.tasks.pictures import decoded
from service.tasks.schemas import Size, origin, probability
from service.triton.cards import Card, Task
from service.triton.tensors import Array

# How the settings of a card become Triton's tensors.
_TENSORS: dict[str, type[np.generic]] = {"threshold": np.float32, "max_detections": np.int32}
# Digits of pixels and of shares of a picture.
_PIXEL_DIGITS, _SHARE_DIGITS = 2, 6


class Detect(Pipeline[DetectParameters]):
    """Decode, the card's own pre-processing, one request to Triton, boxes in the picture's pixels, masks pasted."""

    name: ClassVar[str] = "detect"
    parameters = DetectParameters

    async def check(self, parameters: DetectParameters, context: Context) -> DetectParameters:
        card = await context.triton.resolve(Task.DETECTION, parameters.model)
        _wanted(parameters.classes, card)
        return parameters.model_copy(update={"model": card.id, **_settings(parameters, card)})

    async def run(
        self,
        parameters: DetectParameters,
        upload: Upload | None,
        context: Context,
        report: Report,
    ) -> Outcome:
        card = await context.triton.resolve(Task.DETECTION, parameters.model)
        settings = _settings(parameters, card)
        wanted = _wanted(parameters.classes, card)
        if upload is None:
            raise InvalidParameter("a detection needs a picture", code="missing_input")
        started = perf_counter()
        image, pixels = await in_thread(decoded, upload, card, context.settings.limits)
        read = perf_counter()
        context.timings.add("decode", read - started)
        inputs: dict[str, Array] = {"IMAGE": pixels[None]}
        for name, value in settings.items():
            if name == "max_detections" and wanted:
                # The best of the classes asked for may come after many of others.
                value = card.parameters[name].maximum or value
            inputs[name.upper()] = np.array([[value]], _TENSORS[name])
        answer = await context.triton.infer(card.id, inputs)
        inferred = perf_counter()
        context.timings.add("infer", inferred - read)
        rows = _rows(answer, wanted, settings.get("max_detections"))
        found, files = await in_thread(_found, answer, rows, card, image, parameters)
        context.timings.add("encode", perf_counter() - inferred)
        document = _coco if parameters.format == "coco" else _plain
        return Outcome(document(found, card, context, image.size, upload.name, settings), files)


def _settings(parameters: DetectParameters, card: Card) -> Mapping[str, Any]:
    return complete(card, {name: getattr(parameters, name) for name in _TENSORS})


def _wanted(classes: Sequence[str], card: Card) -> frozenset[int]:
    """Return the numbers of the classes asked for; none means all. Raises InvalidParameter for an unknown one."""
    numbers = {label: number for number, label in enumerate(card.labels)}
    for label in classes:
        if label not in numbers:
            raise InvalidParameter(
                f"classes: model {card.id!r} has no label {label[:80]!r}; its {len(numbers)} are on its card "
                f"(GET /v1/models/{card.id})",
                param="classes",
            )
    return frozenset(numbers[label] for label in classes)


def _rows(answer: Mapping[str, Array], wanted: frozenset[int], most: int | None) -> list[int]:
    """Return which rows of the answer are detections that were asked for, the best first."""
    scores, classes = answer["SCORES"][0], answer["CLASSES"][0]
    rows = [
        row
        for row in range(len(scores))
        # Padding has the score 0; what is not a number is for `probability` to refuse.
        if not scores[row] <= 0 and (not wanted or int(classes[row]) in wanted)
    ]
    return rows[:most]


def _found(
    answer: Mapping[str, Array],
    rows: Sequence[int],
    card: Card,
    image: Image.Image,
    parameters: DetectParameters,
) -> tuple[list[Detection], tuple[Attachment, ...]]:
    """Return the rows as detections in pixels of `image`, and the drawing where one is asked for."""
    boxes = answer["BOXES"][0].astype(np.float64)
    if not np.isfinite(boxes[list(rows)]).all():
        raise ModelFailed(f"model {card.id!r} gave boxes that are not numbers")

    def mask_of(number: int, size: tuple[int, int]) -> Instance | None:
        if "MASKS" not in answer or not parameters.masks:
            return None
        row = rows[number]
        return paste(answer["MASKS"][0, row], _rounded(boxes[row] * [*size, *size]), size)

    found = [
        _detection(
            card,
            int(answer["CLASSES"][0, row]),
            probability(answer["SCORES"][0, row], card),
            boxes[row],
            mask_of(number, image.size),
            image.size,
        )
        for number, row in enumerate(rows)
    ]
    if not parameters.overlay:
        return found, ()
    return found, (Attachment("overlay.png", "image/png", png(overlay(image, found, mask_of))),)


def _detection(
    card: Card,
    index: int,
    score: float,
    share: NDArray[np.float64],
    mask: Instance | None,
    size: tuple[int, int],
) -> Detection:
    box = _rounded(share * [*size, *size], _PIXEL_DIGITS)
    left, top, right, bottom = box
    area = (right - left) * (bottom - top) if mask is None else mask.area
    lengths = None
    if mask is not None:
        lengths = RunLengths(size=(size[1], size[0]), counts=run_lengths(mask, size))
    return Detection(
        label=card.label(index),
        index=index,
        score=score,
        box=box,
        box_normalized=_rounded(share, _SHARE_DIGITS),
        area=round(area, _PIXEL_DIGITS),
        rle=lengths,
    )


def _rounded(box: Iterable[float], digits: int = 9) -> Box:
    left, top, right, bottom = (round(float(edge), digits) for edge in box)
    return left, top, right, bottom


def _plain(
    found: list[Detection],
    card: Card,
    context: Context,
    size: tuple[int, int],
    name: str,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    return Detections(
        **origin(card, context.timings),
        threshold=settings.get("threshold", 0.0),
        detections=found,
        image=Size(width=size[0], height=size[1]),
    ).model_dump()


def _coco(
    found: list[Detection],
    card: Card,
    context: Context,
    size: tuple[int, int],
    name: str,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    annotations = [
        CocoAnnotation(
            id=number,
            image_id=1,
            category_id=one.index,
            bbox=_rounded(
                (one.box[0], one.box[1], one.box[2] - one.box[0], one.box[3] - one.box[1]),
                _PIXEL_DIGITS,
            ),
            area=one.area,
            score=one.score,
            segmentation=one.rle,
        )
        for number, one in enumerate(found, 1)
    ]
    document = CocoDetections(
        **origin(card, context.timings),
        images=[CocoImage(id=1, file_name=name, width=size[0], height=size[1])],
        annotations=annotations,
        categories=[
            CocoCategory(id=number, name=label) for number, label in enumerate(card.labels)
        ],
    ).model_dump()
    for annotation in document["annotations"]:
        # COCO's readers take a key for a mask.
        if annotation["segmentation"] is None:
            del annotation["segmentation"]
    return document

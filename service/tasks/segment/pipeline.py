"""Segmentation: one picture in, what it consists of out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import ClassVar

import numpy as np
from PIL import Image

from service.errors import InvalidParameter, ModelFailed
from service.media import masks
from service.media.heatmap import png
from service.media.masks import Mask
from service.media.threads import in_thread
from service.tasks.contract import Attachment, Context, Outcome, Pipeline, Report, Upload
from service.tasks.parameters import complete
from service.tasks.pictures import decoded
from service.tasks.schemas import Size, origin, probability
from service.tasks.segment.schemas import (
    Kind,
    Segment,
    SegmentationAnswer,
    SegmentInfo,
    SegmentParameters,
)
from service.triton.cards import Card, Task
from service.triton.tensors import Array

# Masks of larger pictures are decided at this many pixels and enlarged: what a model can tell is coarser.
_MOST_PIXELS = 2**22


class SegmentPicture(Pipeline[SegmentParameters]):
    """Decode, the card's own pre-processing, one request to Triton, masks in the form that was asked for."""

    name: ClassVar[str] = "segment"
    parameters = SegmentParameters

    async def check(self, parameters: SegmentParameters, context: Context) -> SegmentParameters:
        card = await context.triton.resolve(Task.SEGMENTATION, parameters.model)
        _optional_inputs(parameters, card)
        return parameters.model_copy(update={"model": card.id})

    async def run(
        self,
        parameters: SegmentParameters,
        upload: Upload | None,
        context: Context,
        report: Report,
    ) -> Outcome:
        card = await context.triton.resolve(Task.SEGMENTATION, parameters.model)
        asked = _optional_inputs(parameters, card)
        if upload is None:
            raise InvalidParameter("a segmentation needs a picture", code="missing_input")
        started = perf_counter()
        image, pixels = await in_thread(decoded, upload, card, context.settings.limits)
        read = perf_counter()
        context.timings.add("decode", read - started)
        size = np.array([decided_size(image.height, image.width)], np.int32)
        answer = await context.triton.infer(card.id, {"IMAGE": pixels[None], "SIZE": size, **asked})
        inferred = perf_counter()
        context.timings.add("infer", inferred - read)
        found = await in_thread(_found, answer, parameters, card, image)
        context.timings.add("encode", perf_counter() - inferred)
        document = SegmentationAnswer(
            **origin(card, context.timings),
            kind=_kind(card),
            format=parameters.format,
            segments=found.segments,
            segments_info=found.info,
            depth=int(answer["DEPTH_USED"][0, 0]) if "DEPTH_USED" in answer else None,
            image=Size(width=image.width, height=image.height),
        )
        return Outcome(document.model_dump(), found.files)


def decided_size(height: int, width: int) -> tuple[int, int]:
    """Return the (height, width) at which the mask of a picture is decided."""
    scale = min(1.0, (_MOST_PIXELS / (height * width)) ** 0.5)
    if scale == 1.0:
        return height, width
    rows, columns = max(1, int(height * scale)), max(1, int(width * scale))
    # A picture one pixel wide keeps that pixel, and its long side must give way.
    if rows > columns:
        return min(rows, _MOST_PIXELS // columns), columns
    return rows, min(columns, _MOST_PIXELS // rows)


@dataclass(frozen=True, slots=True)
class _Found:
    segments: list[Segment]
    info: list[SegmentInfo] | None
    files: tuple[Attachment, ...]


def _optional_inputs(parameters: SegmentParameters, card: Card) -> dict[str, Array]:
    """Return the tensors that ask for more than a mask. Raises InvalidParameter if the model has no such thing."""
    asked: dict[str, Array] = {}
    if parameters.probability:
        if card.segmentation != "binary":
            raise InvalidParameter(
                f"model {card.id!r} tells more than two kinds of pixels apart: there is no one map of probabilities",
                param="probability",
            )
        asked["PROBABILITY"] = np.array([[1]], np.int32)
    chosen = None if parameters.depth == "auto" else parameters.depth
    if parameters.depth is not None and "depth" not in card.parameters:
        raise InvalidParameter(
            f"model {card.id!r} always uses its whole encoder: it has no parameter 'depth'",
            param="depth",
        )
    depth = complete(card, {"depth": chosen}).get("depth")
    if "depth" in card.parameters:
        asked["DEPTH"] = np.array([[0 if parameters.depth == "auto" else depth or 0]], np.int32)
    return asked


def _found(
    answer: Mapping[str, Array], parameters: SegmentParameters, card: Card, image: Image.Image
) -> _Found:
    size = (image.height, image.width)
    decided = masks.narrow(answer["MASK"][0])
    mask = masks.enlarged(decided, size)
    rows = {int(row[0]): (int(row[1]), row[2]) for row in answer["SEGMENTS"][0]}
    runs = masks.runs(mask, rows)
    outlines = {}
    if parameters.format == "polygons":
        scale = (size[1] / decided.shape[1], size[0] / decided.shape[0])
        outlines = {
            id: masks.polygons(decided, id, run.box, scale)
            for id, run in masks.runs(decided, rows).items()
        }
    segments = []
    for id, run in sorted(runs.items(), key=lambda item: -item[1].area):
        index, score = rows[id]
        segments.append(
            Segment(
                id=id,
                label=card.label(index),
                index=index,
                thing=index in card.things if card.things else None,
                score=probability(score, card),
                area=run.area,
                share=run.area / mask.size,
                box=run.box,
                rle=dict(run.rle) if parameters.format == "rle" else None,
                polygons=outlines.get(id),
            )
        )
    info = None
    if parameters.format == "panoptic":
        info = [_info(segment, _kind(card)) for segment in segments]
    files = tuple(
        Attachment(f"{name}.png", "image/png", png(drawn))
        for name, drawn in _pictures(answer, parameters, card, image, mask, list(runs))
    )
    return _Found(segments, info, files)


def _pictures(
    answer: Mapping[str, Array],
    parameters: SegmentParameters,
    card: Card,
    image: Image.Image,
    mask: Mask,
    ids: list[int],
) -> list[tuple[str, Image.Image]]:
    drawn = []
    if parameters.format == "png":
        drawn.append(("mask", masks.grey(mask)))
    if parameters.format == "panoptic":
        drawn.append(("panoptic", masks.panoptic(mask, _first_id(_kind(card)))))
    if parameters.overlay:
        drawn.append(("overlay", masks.overlay(image, mask, ids)))
    if parameters.probability:
        if "PROBABILITIES" not in answer:
            raise ModelFailed(f"model {card.id!r} gave no probabilities")
        levels = masks.levels(answer["PROBABILITIES"][0])
        drawn.append(("probability", levels.resize(image.size, Image.Resampling.BILINEAR)))
    return drawn


def _info(segment: Segment, kind: Kind) -> SegmentInfo:
    left, top, right, bottom = segment.box
    return SegmentInfo(
        id=segment.id + _first_id(kind),
        category_id=segment.index,
        category_name=segment.label,
        isthing=None if segment.thing is None else int(segment.thing),
        area=segment.area,
        bbox=(left, top, right - left, bottom - top),
        iscrowd=0,
    )


def _first_id(kind: Kind) -> int:
    """Return what ids must be raised by for 0 to stand for nothing, which in semantic masks is a class."""
    return 1 if kind == "semantic" else 0


def _kind(card: Card) -> Kind:
    """Return what the model's mask holds. Raises ModelFailed where the card does not say."""
    if card.segmentation is None:
        raise ModelFailed(f"the card of model {card.id!r} does not say what its mask holds")
    return card.segmentation

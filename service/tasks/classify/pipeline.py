"""Classification: one picture in, its most probable labels out."""

from __future__ import annotations

from contextlib import suppress
from time import perf_counter
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.errors import InvalidParameter, ModelNotFound, UnsupportedMedia
from service.media.sniff import HEAD_BYTES, sniff
from service.media.threads import in_thread
from service.settings import LimitSettings
from service.tasks.classify.schemas import Classification, ClassifyParameters, Prediction
from service.tasks.contract import Attachment, Context, Outcome, Pipeline, Report, Upload
from service.tasks.evidence import Evidence, evidence, request_for
from service.tasks.pictures import decoded
from service.tasks.schemas import Size, origin, probability
from service.triton.cards import Card, Task
from service.triton.client import Triton


class Classify(Pipeline[ClassifyParameters]):
    """Decode, the card's own pre-processing, one request to Triton, the best labels and their evidence."""

    name: ClassVar[str] = "classify"
    parameters = ClassifyParameters

    async def check(self, parameters: ClassifyParameters, context: Context) -> ClassifyParameters:
        card = await _classifier(context.triton, parameters.model)
        return parameters.model_copy(update={"model": card.id})

    async def run(
        self,
        parameters: ClassifyParameters,
        upload: Upload | None,
        context: Context,
        report: Report,
    ) -> Outcome:
        card = await _classifier(context.triton, parameters.model)
        if upload is None:
            raise InvalidParameter("classification needs a picture", code="missing_input")
        started = perf_counter()
        image, pixels = await in_thread(_model_input, upload, card, context.settings.limits)
        read = perf_counter()
        context.timings.add("decode", read - started)
        inputs = {"IMAGE": pixels[None]}
        if parameters.explain:
            inputs["CLASS"] = request_for(None, card)
        answer = await context.triton.infer(card.id, inputs)
        inferred = perf_counter()
        context.timings.add("infer", inferred - read)
        found: Evidence | None = None
        files: tuple[Attachment, ...] = ()
        if parameters.explain:
            found, files = await in_thread(evidence, answer, None, card, image)
            context.timings.add("encode", perf_counter() - inferred)
        classification = Classification(
            **origin(card, context.timings),
            activation=card.activation,
            predictions=best(answer["SCORES"][0], card, parameters.top_k),
            image=Size(width=image.width, height=image.height),
            evidence=found,
        )
        return Outcome(classification.model_dump(), files)


def best(scores: NDArray[np.float32], card: Card, count: int) -> list[Prediction]:
    """Return the `count` highest of `scores` [labels]; equal ones in the order of the labels."""
    order = np.argsort(-scores, kind="stable")[:count]
    return [
        Prediction(
            label=card.label(i),
            index=i,
            score=probability(scores[i], card),
        )
        for i in map(int, order)
    ]


async def _classifier(triton: Triton, model: str | None) -> Card:
    """Return the card of a classifier; a model made to explain classifies too, if it is asked for."""
    try:
        return await triton.resolve(Task.CLASSIFICATION, model)
    except ModelNotFound:
        if model is not None:
            with suppress(ModelNotFound):
                return await triton.resolve(Task.EXPLANATION, model)
        raise


def _model_input(
    upload: Upload, card: Card, limits: LimitSettings
) -> tuple[Image.Image, NDArray[np.uint8]]:
    known = sniff(upload.head(HEAD_BYTES))
    if known is not None and known[0] == "video":
        raise UnsupportedMedia("the upload is a video; this model classifies pictures")
    return decoded(upload, card, limits)

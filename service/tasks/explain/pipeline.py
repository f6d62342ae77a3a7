"""Explanation: one picture in, where in it the evidence for a class lies out."""

from __future__ import annotations

from time import perf_counter
from typing import ClassVar

from service.errors import InvalidParameter, ModelNotFound
from service.media.threads import in_thread
from service.tasks.contract import Context, Outcome, Pipeline, Report, Upload
from service.tasks.evidence import evidence, request_for
from service.tasks.explain.schemas import ExplainParameters, Explanation
from service.tasks.pictures import decoded
from service.tasks.schemas import Size, origin
from service.triton.cards import Card, Task
from service.triton.client import Triton


class Explain(Pipeline[ExplainParameters]):
    """Decode, the card's own pre-processing, one request to Triton, the drawings."""

    name: ClassVar[str] = "explain"
    parameters = ExplainParameters

    async def check(self, parameters: ExplainParameters, context: Context) -> ExplainParameters:
        card = await _explainer(context.triton, parameters.model)
        request_for(parameters.class_index, card)
        return parameters.model_copy(update={"model": card.id})

    async def run(
        self,
        parameters: ExplainParameters,
        upload: Upload | None,
        context: Context,
        report: Report,
    ) -> Outcome:
        card = await _explainer(context.triton, parameters.model)
        wanted = request_for(parameters.class_index, card)
        if upload is None:
            raise InvalidParameter("an explanation needs a picture", code="missing_input")
        started = perf_counter()
        image, pixels = await in_thread(decoded, upload, card, context.settings.limits)
        read = perf_counter()
        context.timings.add("decode", read - started)
        answer = await context.triton.infer(card.id, {"IMAGE": pixels[None], "CLASS": wanted})
        inferred = perf_counter()
        context.timings.add("infer", inferred - read)
        found, files = await in_thread(
            evidence, answer, parameters.class_index, card, image, parameters.drawings
        )
        context.timings.add("encode", perf_counter() - inferred)
        explanation = Explanation(
            **origin(card, context.timings),
            evidence=found,
            image=Size(width=image.width, height=image.height),
        )
        return Outcome(explanation.model_dump(), files)


async def _explainer(triton: Triton, model: str | None) -> Card:
    """Return the card of a model made to explain, or else of a classifier, which can be asked too."""
    try:
        return await triton.resolve(Task.EXPLANATION, model)
    except ModelNotFound:
        return await triton.resolve(Task.CLASSIFICATION, model)

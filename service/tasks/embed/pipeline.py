"""Embedding: pictures in, vectors out, side by side so that Triton batches them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidParameter, ModelFailed
from service.media.images import decode_image, to_model_input
from service.media.threads import in_thread
from service.settings import LimitSettings
from service.tasks.concurrency import together
from service.tasks.contract import Attachment, Context, Outcome, Pipeline, Report, Upload
from service.tasks.embed.examples import Examples, ExampleSet, example_set
from service.tasks.embed.schemas import (
    MOST_MAPS,
    Embedding,
    Embeddings,
    EmbedParameters,
    FeatureMap,
    LabelSimilarity,
    Order,
)
from service.tasks.embed.vectors import Vector, encoded, png, principal_colours, prototypes, unit
from service.tasks.parameters import complete
from service.tasks.schemas import origin, probability
from service.triton.cards import Card, ImageInput, Task
from service.triton.tensors import Array

IN_FLIGHT = 8
# Of so many observations the order is told.
_IN_A_ROW = 3

# Labels, and the directions [labels, D] that stand for them.
_Learnt = tuple[list[str], Vector]


class Embed(Pipeline[EmbedParameters]):
    """Decode, the card's own pre-processing, Triton, and what is asked for beside the vectors."""

    name: ClassVar[str] = "embed"
    parameters = EmbedParameters

    async def check(self, parameters: EmbedParameters, context: Context) -> EmbedParameters:
        kept = await _kept(parameters, context)
        model = kept.model if kept and parameters.model is None else parameters.model
        card = await context.triton.resolve(Task.EMBEDDING, model)
        if kept is not None:
            _check_kept(kept, parameters, card)
        if parameters.keep and not parameters.labels:
            raise InvalidParameter("keep: there are no labels of examples to keep.", param="keep")
        if parameters.labels and not any(parameters.labels):
            raise InvalidParameter("labels: no picture is an example of a label.", param="labels")
        if parameters.order:
            complete(card, {"order": True})
        return parameters.model_copy(update={"model": card.id})

    async def run(
        self,
        parameters: EmbedParameters,
        upload: Upload | None,
        context: Context,
        report: Report,
    ) -> Outcome:
        card = await context.triton.resolve(Task.EMBEDDING, parameters.model)
        if upload is None:
            raise InvalidParameter("an embedding needs a picture", code="missing_input")
        kept = await _kept(parameters, context)
        if kept is not None:
            _check_kept(kept, parameters, card)
        stacks = _stacks((upload, *upload.more), card)
        if parameters.labels and len(parameters.labels) != len(stacks):
            raise InvalidParameter(
                f"labels: there are {len(parameters.labels)} for {len(stacks)} embeddings.",
                param="labels",
            )
        dense = parameters.dense or parameters.picture
        if dense and len(stacks) > MOST_MAPS:
            raise InvalidParameter(
                f"maps of features are given for at most {MOST_MAPS} embeddings in one call; "
                f"asked for were {len(stacks)}.",
                param="dense" if parameters.dense else "picture",
            )
        if parameters.order and len(stacks) % _IN_A_ROW:
            raise InvalidParameter(
                f"order: it is told of each {_IN_A_ROW} embeddings in a row; given were {len(stacks)}.",
                param="order",
            )
        turns = asyncio.Semaphore(IN_FLIGHT)
        found = await together(_embedded(stack, card, dense, context, turns) for stack in stacks)
        order = None
        if parameters.order:
            starts = range(0, len(found), _IN_A_ROW)
            order = await together(_ordered(found, start, card, context, turns) for start in starts)
        started = perf_counter()
        learnt = _learnt(parameters, found, kept)
        data, pictures = await in_thread(_answered, parameters, stacks, found, learnt)
        context.timings.add("encode", perf_counter() - started)
        if parameters.keep and learnt is not None:
            names, directions = learnt
            made = example_set(parameters.keep, card, parameters.labels, names, directions)
            await Examples(context.store, context.tenant).keep(made)
        answer = Embeddings(
            **origin(card, context.timings),
            dimensions=len(found[0].vector),
            encoding_format=parameters.encoding_format,
            normalized=parameters.normalize,
            data=data,
            order=order,
        )
        return Outcome(answer.model_dump(), pictures)


@dataclass(frozen=True, slots=True)
class _Found:
    """What the network says of one stack of `pixels`: its vector [D] and, where asked for, its features [h, w, C]."""

    pixels: NDArray[np.uint8]
    vector: Vector
    features: Vector | None


def _stacks(uploads: Sequence[Upload], card: Card) -> list[Sequence[Upload]]:
    """Return what belongs together: single pictures, or as many frames as the model looks at at once."""
    frames = card.clip.frames if card.clip else 1
    if len(uploads) % frames:
        raise InvalidParameter(
            f"model {card.id!r} makes one embedding of {frames} frames, sent oldest first; "
            f"given were {len(uploads)} pictures.",
            code="missing_input",
        )
    return [uploads[start : start + frames] for start in range(0, len(uploads), frames)]


async def _embedded(
    stack: Sequence[Upload], card: Card, dense: bool, context: Context, turns: asyncio.Semaphore
) -> _Found:
    async with turns:
        started = perf_counter()
        pixels = await in_thread(
            _model_input, stack, card.image or ImageInput(), context.settings.limits
        )
        decoded = perf_counter()
        context.timings.add("decode", decoded - started)
        inputs: dict[str, Array] = {"IMAGE": pixels[None]}
        if dense:
            inputs["DENSE"] = np.ones((1, 1), np.int32)
        answer = await context.triton.infer(card.id, inputs)
        context.timings.add("infer", perf_counter() - decoded)
    found = _Found(pixels, answer["EMBEDDING"][0], answer["FEATURES"][0] if dense else None)
    if not (
        np.isfinite(found.vector).all()
        and (found.features is None or np.isfinite(found.features).all())
    ):
        raise ModelFailed(f"model {card.id!r} gave an embedding that is not numbers")
    return found


async def _ordered(
    found: Sequence[_Found], start: int, card: Card, context: Context, turns: asyncio.Semaphore
) -> Order:
    """Ask whether the three from `start` on are in order."""
    before, now, after = (each.pixels[None] for each in found[start : start + _IN_A_ROW])
    async with turns:
        started = perf_counter()
        answer = await context.triton.infer(
            card.id, {"IMAGE": now, "BEFORE": before, "AFTER": after}
        )
        context.timings.add("infer", perf_counter() - started)
    return Order(index=start, in_order=probability(answer["IN_ORDER"][0, 0], card))


def _model_input(
    stack: Sequence[Upload], contract: ImageInput, limits: LimitSettings
) -> NDArray[np.uint8]:
    """Return the pixels of all frames as the channels of one picture."""
    frames = [to_model_input(decode_image(frame.read(), limits), contract) for frame in stack]
    return np.concatenate(frames) if len(frames) > 1 else frames[0]


async def _kept(parameters: EmbedParameters, context: Context) -> ExampleSet | None:
    """Return the examples that the caller kept and names."""
    if parameters.examples is None:
        return None
    if parameters.labels:
        raise InvalidParameter(
            "examples are either sent with `labels` or named by `examples`, not both.",
            param="examples",
        )
    return await Examples(context.store, context.tenant).get(parameters.examples)


def _check_kept(kept: ExampleSet, parameters: EmbedParameters, card: Card) -> None:
    if not kept.fits(card):
        other = f"model {kept.model!r}" if kept.model != card.id else "its former weights"
        raise InvalidParameter(
            f"examples = {parameters.examples!r}: they are vectors of {other}, which those of "
            f"{card.id!r} cannot be compared with",
            param="examples",
        )


def _learnt(
    parameters: EmbedParameters, found: Sequence[_Found], kept: ExampleSet | None
) -> _Learnt | None:
    """Return the labels and the directions [labels, D] that stand for them, sent or kept."""
    if kept is not None:
        return [each.label for each in kept.labels], kept.vectors()
    if parameters.labels:
        return prototypes(np.stack([each.vector for each in found]), parameters.labels)
    return None


def _answered(
    parameters: EmbedParameters,
    stacks: Sequence[Sequence[Upload]],
    found: Sequence[_Found],
    learnt: _Learnt | None,
) -> tuple[list[Embedding], tuple[Attachment, ...]]:
    vectors = np.stack([each.vector for each in found])
    predictions = _predictions(vectors, parameters.labels, learnt)
    shown = unit(vectors) if parameters.normalize else vectors
    format_ = parameters.encoding_format
    data = [
        Embedding(
            index=index,
            name=stack[0].name,
            embedding=encoded(shown[index], format_),
            features=_feature_map(each.features, format_) if parameters.dense else None,
            predictions=predictions[index],
        )
        for index, (stack, each) in enumerate(zip(stacks, found, strict=True))
    ]
    if not parameters.picture:
        return data, ()
    maps = [each.features for each in found if each.features is not None]
    pictures = tuple(
        Attachment(f"features-{index}.png", "image/png", png(pixels))
        for index, pixels in enumerate(principal_colours(maps))
    )
    return data, pictures


def _predictions(
    vectors: Vector, labels: Sequence[str], learnt: _Learnt | None
) -> list[list[LabelSimilarity] | None]:
    """Label the pictures that are not examples themselves by what was learnt; None for the latter."""
    if learnt is None:
        return [None] * len(vectors)
    names, means = learnt
    cosines = np.clip(unit(vectors) @ means.T, -1.0, 1.0)
    return [
        None
        if label
        else [
            LabelSimilarity(label=names[i], similarity=float(row[i]))
            for i in np.argsort(-row, kind="stable")
        ]
        for label, row in zip(labels or [""] * len(vectors), cosines, strict=True)
    ]


def _feature_map(features: Vector | None, format_: str) -> FeatureMap:
    assert features is not None
    height, width, dimensions = features.shape
    return FeatureMap(
        height=height, width=width, dimensions=dimensions, data=encoded(features, format_)
    )

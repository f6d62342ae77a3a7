"""Deepfake detection: a video or picture in, a verdict with its evidence out.

GenConViT's pipeline (arXiv 2307.07036 and the released code): frames evenly from the first to the
last, every face of them cropped exactly at its box, the mean fake probability over all crops.
Deliberate deviations: a clip without a face is `not_applicable` and not fake, the verdict compares
that mean with the card's threshold, the noise of the variational network comes from a seed, and
faces are not cut off after the first N of the clip (but at FACES_PER_FRAME in one frame).

Frames are worked on as they come, a few at a time, each dropped once its faces are cut out: memory
does not grow with the clip, and Triton batches the faces of several frames and callers.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from statistics import fmean
from time import perf_counter
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.errors import InvalidParameter, ModelFailed, UnsupportedMedia
from service.media.faces import Box, crop_face, detect_faces, detection_input, sharpness
from service.media.images import decode_image
from service.media.sniff import HEAD_BYTES, sniff
from service.media.threads import in_thread, stream_in_thread
from service.media.video import Frame, VideoIndex, linspace_indices, probe, sampled_frames
from service.settings import LimitSettings
from service.tasks.concurrency import abandon, together
from service.tasks.contract import Context, Outcome, Pipeline, Progress, Report, Upload
from service.tasks.deepfake.schemas import Deepfake, DeepfakeParameters, Sampling
from service.tasks.deepfake.verdict import (
    Face,
    ScoredFrame,
    member_scores,
    quality,
    segments,
    timeline,
    tracks,
    verdict,
)
from service.tasks.schemas import origin, probability
from service.triton.cards import Card, Task
from service.triton.tensors import Array

FRAMES_IN_FLIGHT = 8
FACES_PER_FRAME = 16
THRESHOLD = 0.5


class DetectDeepfake(Pipeline[DeepfakeParameters]):
    """Sampled frames, their faces, one score a face, and what follows from the scores."""

    name: ClassVar[str] = "deepfake"
    parameters = DeepfakeParameters

    async def check(self, parameters: DeepfakeParameters, context: Context) -> DeepfakeParameters:
        most = context.settings.limits.video_frames
        if parameters.frames > most:
            raise InvalidParameter(
                f"frames = {parameters.frames}: takes integers from 1 to {most}", param="frames"
            )
        card = await context.triton.resolve(Task.DEEPFAKE, parameters.model)
        return parameters.model_copy(update={"model": card.id})

    async def run(
        self,
        parameters: DeepfakeParameters,
        upload: Upload | None,
        context: Context,
        report: Report,
    ) -> Outcome:
        if upload is None:
            raise InvalidParameter(
                "deepfake detection needs a video or a picture", code="missing_input"
            )
        card, detector = await together(
            (
                context.triton.resolve(Task.DEEPFAKE, parameters.model),
                context.triton.resolve(Task.FACE_DETECTION, None),
            )
        )
        started = perf_counter()
        clip = await in_thread(_open, upload, parameters.frames, context.settings.limits)
        context.timings.add("decode", perf_counter() - started)
        analysis = _Analysis(card, detector, parameters.seed, context)
        frames = await analysis.run(clip, report)
        return Outcome(_answer(parameters, card, clip, frames, context).model_dump())


@dataclass(frozen=True, slots=True)
class _Clip:
    """A video that is indexed, or a picture (a clip of one frame), and the frames to look at."""

    index: VideoIndex | None
    size: tuple[int, int]
    wanted: list[int]
    frames: Generator[Frame, None, None]


def _open(upload: Upload, frames: int, limits: LimitSettings) -> _Clip:
    """Index the upload's video, or decode its picture; its first bytes tell which it is."""
    known = sniff(upload.head(HEAD_BYTES))
    if known is None:
        raise UnsupportedMedia("the upload is neither a picture nor a video of a known format")
    if known[0] == "image":
        image = decode_image(upload.read(), limits)
        return _Clip(None, image.size, [0], (frame for frame in [Frame(0, 0.0, image)]))
    index = probe(upload.data, limits)
    wanted = linspace_indices(index.frames, frames)
    decoder = sampled_frames(upload.data, index, wanted, limits)
    return _Clip(index, (index.width, index.height), wanted, decoder)


class _Analysis:
    """One clip on its way through face detection and the deepfake networks."""

    def __init__(self, card: Card, detector: Card, seed: int, context: Context) -> None:
        self._card = card
        self._detector = detector
        self._seed = seed
        self._triton = context.triton
        self._timings = context.timings

    async def run(self, clip: _Clip, report: Report) -> list[ScoredFrame]:
        """Return the sampled frames with their scored faces, in order of time."""
        scored: list[ScoredFrame] = []
        running: deque[asyncio.Task[ScoredFrame]] = deque()

        async def finish_oldest() -> None:
            scored.append(await running[0])
            running.popleft()
            await report(Progress(len(scored), len(clip.wanted), "frames"))

        try:
            async with aclosing(stream_in_thread(clip.frames)) as frames:
                started = perf_counter()
                async for frame in frames:
                    self._timings.add("decode", perf_counter() - started)
                    running.append(asyncio.create_task(self._score(frame)))
                    if len(running) == FRAMES_IN_FLIGHT:
                        await finish_oldest()
                    started = perf_counter()
            while running:
                await finish_oldest()
        finally:
            await abandon(running)
        return scored

    async def _score(self, frame: Frame) -> ScoredFrame:
        started = perf_counter()
        pixels = await in_thread(detection_input, frame.image)
        boxes = await detect_faces(
            self._triton, self._detector, pixels, frame.image.size, FACES_PER_FRAME
        )
        detected = perf_counter()
        self._timings.add("detect", detected - started)
        crops = await in_thread(self._crops, frame.image, boxes)
        first = frame.index * FACES_PER_FRAME
        faces = await together(
            self._face(box, crop, self._seed + first + place)
            for place, (box, crop) in enumerate(zip(boxes, crops, strict=True))
        )
        self._timings.add("infer", perf_counter() - detected)
        return ScoredFrame(frame.index, frame.time_s, tuple(faces))

    def _crops(self, image: Image.Image, boxes: Sequence[Box]) -> list[NDArray[np.uint8]]:
        contract = self._card.image
        if contract is None or contract.height is None or contract.width is None:
            raise ModelFailed(f"the card of model {self._card.id!r} states no size of its faces")
        return [crop_face(image, box, contract.height, contract.width) for box in boxes]

    async def _face(self, box: Box, crop: NDArray[np.uint8], seed: int) -> Face:
        """Score one face. Its noise has a seed of its own, so that the noise of many averages out."""
        inputs: dict[str, Array] = {
            "FACES": crop[None],
            "SEED": np.array([[seed % 2**63]], np.int64),
        }
        answer = await self._triton.infer(self._card.id, inputs)
        return Face(
            box,
            score=probability(answer["SCORES"][0, 1], self._card),
            members=tuple(probability(p, self._card) for p in answer["MEMBERS"][0, :, 1]),
            sharpness=sharpness(crop),
        )


def _answer(
    parameters: DeepfakeParameters,
    card: Card,
    clip: _Clip,
    frames: Sequence[ScoredFrame],
    context: Context,
) -> Deepfake:
    faces = [face for frame in frames for face in frame.faces]
    threshold = card.thresholds.get("fake", THRESHOLD)
    score = fmean(face.score for face in faces) if faces else None
    moments = timeline(frames)
    duration_s = clip.index.duration_s if clip.index else None
    return Deepfake(
        **origin(card, context.timings),
        verdict=verdict(score, threshold),
        score=score,
        threshold=threshold,
        models=member_scores(card.members, faces),
        faces=tracks(moments),
        timeline=moments,
        segments=segments(moments, threshold),
        quality=quality(frames, duration_s),
        sampling=Sampling(
            frames_requested=parameters.frames if clip.index else 1,
            frames_decoded=len(frames),
            duration_s=duration_s,
            fps=clip.index.fps if clip.index else None,
            width=clip.size[0],
            height=clip.size[1],
            method="linspace" if clip.index else "single",
        ),
    )

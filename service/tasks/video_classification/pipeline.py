"""Classification of videos: clips of a video in, its most probable labels out, as a whole and over time.

The frames are drawn, scaled, cut and joined as the model's card says its authors did. A video is
decoded once, from its first to its last wanted frame, and only those; a clip leaves for Triton as
soon as its last frame is there, so that Triton batches the views of one video and of several callers.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from time import perf_counter
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidParameter, ModelFailed
from service.media.clips import CROPS, cut_frame
from service.media.threads import in_thread, stream_in_thread
from service.media.video import Frame, VideoIndex, probe, sampled_frames
from service.settings import LimitSettings
from service.tasks.classify.pipeline import best
from service.tasks.concurrency import abandon
from service.tasks.contract import Context, Outcome, Pipeline, Progress, Report, Upload
from service.tasks.schemas import origin
from service.tasks.video_classification.sampling import clip_frames, window_bounds
from service.tasks.video_classification.schemas import (
    Sampling,
    VideoClassification,
    VideoClassifyParameters,
    VideoSize,
    Views,
    Window,
)
from service.triton.cards import Card, ClipInput, ImageInput, Task

VIEWS_IN_FLIGHT = 8
# What papers measure on lasts ten seconds and less; for longer videos none of them has a rule.
LONG_S, WINDOW_S, MOST_WINDOWS = 30.0, 10.0, 12


class ClassifyVideo(Pipeline[VideoClassifyParameters]):
    """Sampled clips, the card's own pre-processing, one request to Triton a view, scores joined."""

    name: ClassVar[str] = "classify-video"
    parameters = VideoClassifyParameters

    async def check(
        self, parameters: VideoClassifyParameters, context: Context
    ) -> VideoClassifyParameters:
        if parameters.crops not in CROPS:
            raise InvalidParameter(f"crops = {parameters.crops}: takes 1 or 3", param="crops")
        card = await context.triton.resolve(Task.VIDEO_CLASSIFICATION, parameters.model)
        return parameters.model_copy(update={"model": card.id})

    async def run(
        self,
        parameters: VideoClassifyParameters,
        upload: Upload | None,
        context: Context,
        report: Report,
    ) -> Outcome:
        card = await context.triton.resolve(Task.VIDEO_CLASSIFICATION, parameters.model)
        if upload is None:
            raise InvalidParameter("classification of videos needs a video", code="missing_input")
        started = perf_counter()
        limits = context.settings.limits
        index = await in_thread(probe, upload.data, limits)
        context.timings.add("decode", perf_counter() - started)
        plan = _plan(card, parameters, index, limits)
        wanted = sorted({number for clip in plan.clips for number in clip.numbers})
        frames = sampled_frames(upload.data, index, wanted, limits)
        views = await _Analysis(card, plan, context).run(frames, report)
        return Outcome(_answer(parameters, card, plan, index, views, context).model_dump())


@dataclass(slots=True)
class _Clip:
    """One clip on its way: its window, the numbers of its frames, and the crops of those that are there.

    `crops` is by the frame's place in the clip, then by crop: uint8 [3, height, width].
    """

    window: int
    numbers: list[int]
    crops: dict[int, list[NDArray[np.uint8]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is looked at: windows as (first frame, end), and the clips of all of them."""

    image: ImageInput
    contract: ClipInput
    sampling: Sampling
    crops: int
    clips_each: int
    windows: list[tuple[int, int]]
    clips: list[_Clip]


# The scores of one view, [labels], and the window that it is of.
_View = tuple[int, NDArray[np.float32]]


def _plan(
    card: Card, parameters: VideoClassifyParameters, index: VideoIndex, limits: LimitSettings
) -> _Plan:
    """Choose windows, clips and frames. Raises InvalidParameter for more views than a request may have."""
    if card.clip is None or card.image is None:
        raise ModelFailed(f"the card of model {card.id!r} does not say which frames it takes")
    sampling = parameters.sampling or ("dense" if card.clip.sampling == "dense" else "uniform")
    views_each = parameters.clips * parameters.crops
    most = limits.video_views // views_each
    if parameters.window_s is not None:
        count = max(1, round(index.duration_s / parameters.window_s))
    elif index.duration_s <= LONG_S:
        count = 1
    else:
        count = max(1, min(int(index.duration_s / WINDOW_S), MOST_WINDOWS, most))
    windows = window_bounds(index.frames, count)
    if len(windows) > most:
        raise InvalidParameter(
            f"{len(windows)} windows x {parameters.clips} clips x {parameters.crops} crops are "
            f"{len(windows) * views_each} views; the limit video_views is {limits.video_views}",
            param="clips" if parameters.window_s is None else "window_s",
        )
    clips = [
        _Clip(window, [first + number for number in numbers])
        for window, (first, end) in enumerate(windows)
        for numbers in clip_frames(end - first, card.clip, sampling, parameters.clips)
    ]
    return _Plan(
        card.image, card.clip, sampling, parameters.crops, parameters.clips, windows, clips
    )


class _Analysis:
    """One video on its way through the network."""

    def __init__(self, card: Card, plan: _Plan, context: Context) -> None:
        self._card = card
        self._plan = plan
        self._triton = context.triton
        self._timings = context.timings
        self._total = len(plan.clips) * plan.crops

    async def run(self, frames: Generator[Frame, None, None], report: Report) -> list[_View]:
        """Return the scores of every view, in the order of the clips."""
        views: list[_View] = []
        running: deque[asyncio.Task[_View]] = deque()

        async def finish_oldest() -> None:
            views.append(await running[0])
            running.popleft()
            await report(Progress(len(views), self._total, "views"))

        try:
            async with aclosing(stream_in_thread(self._clips(frames))) as clips:
                started = perf_counter()
                async for clip in clips:
                    self._timings.add("decode", perf_counter() - started)
                    for pixels in _views(clip, self._plan.crops):
                        running.append(asyncio.create_task(self._score(clip.window, pixels)))
                        while len(running) >= VIEWS_IN_FLIGHT:
                            await finish_oldest()
                    clip.crops.clear()
                    started = perf_counter()
            while running:
                await finish_oldest()
        finally:
            await abandon(running)
        return views

    def _clips(self, frames: Generator[Frame, None, None]) -> Generator[_Clip, None, None]:
        """Decode, cut and hand out each clip once it is whole.

        A frame stands for all that were wanted up to it and could not be decoded; the last one also for those
        after it.
        """
        wanted: dict[int, list[tuple[_Clip, int]]] = defaultdict(list)
        for clip in self._plan.clips:
            for place, number in enumerate(clip.numbers):
                wanted[number].append((clip, place))
        waiting = deque(sorted(wanted))
        last: list[NDArray[np.uint8]] = []
        with closing(frames):
            for frame in frames:
                last = cut_frame(frame.image, self._plan.image, self._plan.crops)
                while waiting and waiting[0] <= frame.index:
                    yield from _filled(wanted[waiting.popleft()], last)
        while waiting:
            yield from _filled(wanted[waiting.popleft()], last)

    async def _score(self, window: int, pixels: NDArray[np.uint8]) -> _View:
        started = perf_counter()
        answer = await self._triton.infer(self._card.id, {"FRAMES": pixels[None]})
        self._timings.add("infer", perf_counter() - started)
        return window, np.asarray(answer["SCORES"][0], np.float32)


def _filled(places: Sequence[tuple[_Clip, int]], crops: list[NDArray[np.uint8]]) -> Iterator[_Clip]:
    """Put a frame where it is wanted and yield the clips that are whole by it."""
    for clip, place in places:
        clip.crops[place] = crops
        if len(clip.crops) == len(clip.numbers):
            yield clip


def _views(clip: _Clip, crops: int) -> list[NDArray[np.uint8]]:
    """Return the clip's views, each uint8 [frames, 3, height, width]."""
    places = range(len(clip.numbers))
    return [np.stack([clip.crops[place][crop] for place in places]) for crop in range(crops)]


def joined(scores: Sequence[NDArray[np.float32]], card: Card) -> NDArray[np.float32]:
    """Join the scores of several views [labels] as the card says: the mean of scores, or of logits.

    Logits are known from their softmax up to a constant, which the softmax of their mean does not see.
    """
    stacked = np.stack(scores).astype(np.float64)
    if card.clip is None or card.clip.merge == "scores" or card.activation == "sigmoid":
        mean: NDArray[np.float32] = stacked.mean(0).astype(np.float32)
        return mean
    logits = np.log(np.maximum(stacked, np.finfo(np.float32).tiny)).mean(0)
    shares = np.exp(logits - logits.max())
    result: NDArray[np.float32] = (shares / shares.sum()).astype(np.float32)
    return result


def _answer(
    parameters: VideoClassifyParameters,
    card: Card,
    plan: _Plan,
    index: VideoIndex,
    views: Sequence[_View],
    context: Context,
) -> VideoClassification:
    timeline = [
        Window(
            start_s=round(_time(index, first), 3),
            end_s=round(index.duration_s if end == index.frames else _time(index, end), 3),
            predictions=best(
                joined([scores for of, scores in views if of == window], card),
                card,
                parameters.top_k,
            ),
        )
        for window, (first, end) in enumerate(plan.windows)
    ]
    return VideoClassification(
        **origin(card, context.timings),
        activation=card.activation,
        predictions=best(joined([scores for _, scores in views], card), card, parameters.top_k),
        timeline=timeline,
        views=Views(
            windows=len(plan.windows),
            clips=plan.clips_each,
            crops=plan.crops,
            frames=plan.contract.frames,
            sampling=plan.sampling,
        ),
        video=VideoSize(
            width=index.width,
            height=index.height,
            frames=index.frames,
            fps=index.fps,
            duration_s=index.duration_s,
        ),
    )


def _time(index: VideoIndex, number: int) -> float:
    """Return when a frame is shown, in seconds from the first."""
    if index.timestamps:
        return float((index.timestamps[number] - index.timestamps[0]) * index.time_base)
    return number / index.fps

"""Classification of videos: which frames reach the model, how views are joined, what the answer tells."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from service.errors import BadInput, InvalidParameter, ModelFailed, ModelNotFound
from service.media.video import VideoIndex
from service.tasks.contract import Progress, Upload, unreported
from service.tasks.video_classification import pipeline
from service.tasks.video_classification.pipeline import ClassifyVideo, joined
from service.tasks.video_classification.schemas import (
    VideoClassification,
    VideoClassifyParameters,
)
from service.triton.cards import Card, ClipInput, ImageInput, Task
from service.triton.tensors import Array
from tests.media.clips import STEP, write_clip
from tests.tasks.scripted import ScriptedTriton, Watcher, card, context

WATCHING = card(
    "watching",
    Task.VIDEO_CLASSIFICATION,
    image=ImageInput(height=16, width=16, resize="shorter-side", resize_to=20),
    clip=ClipInput(frames=4, sampling="uniform", stride=3),
    labels=("early", "middle", "late"),
    default=True,
)


class Script:
    """Keeps the number of every frame that it is shown, and scores a clip by its first one of 60."""

    def __init__(self, card: Card = WATCHING) -> None:
        self.card = card
        self.clips: list[list[int]] = []
        self.running = 0
        self.most_running = 0

    async def watch(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        frames = inputs["FRAMES"]
        assert (frames.dtype, frames.shape) == (np.uint8, (1, 4, 3, 16, 16))
        # The bottom right is clear of the mark that frames bear in the top left.
        greys = frames[0, :, :, 12:, 6:10].mean((1, 2, 3))
        numbers = [round((float(grey) - 20) / STEP) for grey in greys]
        self.clips.append(numbers)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(0.005)
        finally:
            self.running -= 1
        third = min(2, numbers[0] // 20)
        return {"SCORES": np.roll(np.array([[0.7, 0.2, 0.1]], np.float32), third, axis=1)}

    @property
    def triton(self) -> ScriptedTriton:
        return ScriptedTriton({self.card.id: self.watch}, self.card)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Upload:
    path = tmp_path_factory.mktemp("clips") / "a.mp4"
    return Upload("video/mp4", write_clip(path, frames=60, size=(128, 96), fps=10))


async def answered(script: Script, upload: Upload, **parameters: object) -> VideoClassification:
    outcome = await ClassifyVideo().run(
        VideoClassifyParameters.model_validate(parameters),
        upload,
        context(script.triton),
        unreported,
    )
    return VideoClassification.model_validate(outcome.document)


async def test_one_view_as_the_card_says(clip: Upload) -> None:
    script = Script()
    answer = await answered(script, clip, top_k=2)
    # Parts of 14.75 frames begin at 0, 15, 30 (29.5 to even) and 44; 7 frames on is their middle.
    assert script.clips == [[7, 22, 37, 51]]
    assert [(p.label, round(p.score, 4)) for p in answer.predictions] == [
        ("early", 0.7),
        ("middle", 0.2),
    ]
    (window,) = answer.timeline
    assert (window.start_s, window.end_s) == (0.0, pytest.approx(6.0))
    assert window.predictions == answer.predictions
    assert answer.views.model_dump() == {
        "windows": 1,
        "clips": 1,
        "crops": 1,
        "frames": 4,
        "sampling": "uniform",
    }
    assert (answer.video.width, answer.video.height, answer.video.frames) == (128, 96, 60)
    assert answer.video.duration_s == pytest.approx(6.0)
    assert set(answer.timings) == {"decode", "infer"}
    assert (answer.model, answer.weights, answer.activation) == ("watching", "own", "softmax")


async def test_clips_and_crops_are_joined(clip: Upload) -> None:
    script = Script()
    answer = await answered(script, clip, clips=2, crops=3, sampling="dense")
    # 12 of 60 frames: 48 between the two beginnings; the steps are 11 / 3.
    assert sorted(script.clips) == [[0, 3, 7, 11]] * 3 + [[48, 51, 55, 59]] * 3
    scores = {p.label: round(p.score, 4) for p in answer.predictions}
    # (0.7 + 0.2) / 2, (0.2 + 0.1) / 2, (0.1 + 0.7) / 2.
    assert scores == {"early": 0.45, "middle": 0.15, "late": 0.4}
    assert (answer.views.clips, answer.views.crops, answer.views.sampling) == (2, 3, "dense")


async def test_a_timeline_of_windows(clip: Upload) -> None:
    script = Script()
    answer = await answered(script, clip, window_s=2, top_k=1)
    assert [clip[0] // 20 for clip in script.clips] == [0, 1, 2]
    assert [(w.start_s, w.end_s) for w in answer.timeline] == [(0, 2), (2, 4), (4, 6)]
    assert [w.predictions[0].label for w in answer.timeline] == ["early", "middle", "late"]
    assert answer.predictions[0].score == pytest.approx(1 / 3)


def index(seconds: float, fps: float = 10.0) -> VideoIndex:
    times = array("q")  # none, as in a container without time stamps
    frames = int(seconds * fps)
    return VideoIndex(128, 96, 0, fps, seconds, frames, Fraction(1, 10), times, times)


@pytest.mark.parametrize(
    ("seconds", "parameters", "windows"),
    [
        (30.0, {}, 1),
        (31.0, {}, 3),
        (600.0, {}, 12),
        (600.0, {"clips": 4, "crops": 3}, 5),
        (6.0, {"window_s": 100}, 1),
        (60.0, {"window_s": 7}, 9),
    ],
)
def test_long_videos_are_divided(seconds: float, parameters: dict[str, int], windows: int) -> None:
    limits = context(Script().triton).settings.limits
    chosen = VideoClassifyParameters.model_validate(parameters)
    plan = pipeline._plan(WATCHING, chosen, index(seconds), limits)
    assert len(plan.windows) == windows
    assert len(plan.clips) == windows * chosen.clips
    assert plan.windows[-1][1] == int(seconds * 10)


async def test_more_views_than_allowed_are_refused(clip: Upload) -> None:
    with pytest.raises(InvalidParameter, match="60 windows x 2 clips x 1 crops are 120 views"):
        await answered(Script(), clip, window_s=0.1, clips=2)
    with pytest.raises(InvalidParameter, match="the limit video_views is 2"):
        await ClassifyVideo().run(
            VideoClassifyParameters(clips=3),
            clip,
            context(Script().triton, video_views=2),
            unreported,
        )


async def test_check_names_the_model_and_refuses_two_crops(clip: Upload) -> None:
    checked = await ClassifyVideo().check(VideoClassifyParameters(), context(Script().triton))
    assert checked.model == "watching"
    with pytest.raises(InvalidParameter, match="takes 1 or 3"):
        await ClassifyVideo().check(VideoClassifyParameters(crops=2), context(Script().triton))
    with pytest.raises(ModelNotFound):
        await ClassifyVideo().check(VideoClassifyParameters(), context(ScriptedTriton({})))


async def test_progress_goes_view_by_view_and_few_are_held_at_once(clip: Upload) -> None:
    script, watcher = Script(), Watcher()
    parameters = VideoClassifyParameters(clips=5, crops=3)
    await ClassifyVideo().run(parameters, clip, context(script.triton), watcher)
    assert watcher.seen == [Progress(number, 15, "views") for number in range(1, 16)]
    assert 1 < script.most_running <= pipeline.VIEWS_IN_FLIGHT


async def test_a_cancelled_report_stops_the_work(clip: Upload) -> None:
    script = Script()

    async def stop(progress: Progress) -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await ClassifyVideo().run(
            VideoClassifyParameters(window_s=0.2), clip, context(script.triton), stop
        )
    shown = len(script.clips)
    await asyncio.sleep(0.05)
    assert len(script.clips) == shown < 30
    assert script.running == 0


async def test_a_video_of_one_frame(tmp_path: Path) -> None:
    script = Script()
    still = Upload("video/mp4", write_clip(tmp_path / "a.mp4", frames=1))
    answer = await answered(script, still, clips=3, sampling="dense")
    assert script.clips == [[0, 0, 0, 0]] * 3
    assert len(answer.timeline) == 1


async def test_a_truncated_video_is_refused(clip: Upload) -> None:
    with pytest.raises(BadInput):
        await answered(Script(), Upload("video/mp4", clip.read()[:3000]))


async def test_a_card_without_clips_is_the_model_s_fault(clip: Upload) -> None:
    bare = WATCHING.model_copy(update={"clip": None})
    with pytest.raises(ModelFailed, match="which frames"):
        await answered(Script(bare), clip)


def test_scores_and_logits_are_joined_as_the_card_says() -> None:
    views = [np.array([0.5, 0.4, 0.1], np.float32), np.array([0.1, 0.4, 0.5], np.float32)]
    assert joined(views, WATCHING).tolist() == pytest.approx([0.3, 0.4, 0.3])
    assert WATCHING.clip is not None
    logits = WATCHING.model_copy(
        update={"clip": WATCHING.clip.model_copy(update={"merge": "logits"})}
    )
    # The softmax of the mean of two logits is the geometric mean, made to sum to one.
    product = np.sqrt(views[0] * views[1])
    np.testing.assert_allclose(joined(views, logits), product / product.sum(), rtol=1e-6)
    certain = [np.array([1.0, 0.0, 0.0], np.float32)] * 2
    assert joined(certain, logits).tolist() == pytest.approx([1, 0, 0])
    several = logits.model_copy(update={"activation": "sigmoid"})
    assert joined(views, several).tolist() == pytest.approx([0.3, 0.4, 0.3])

"""Deepfake detection: frames and faces on their way to a verdict, by scripted scores."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from service.errors import BadInput, InvalidParameter, ModelFailed, UnsupportedMedia
from service.tasks.contract import Progress, Upload, unreported
from service.tasks.deepfake.pipeline import FRAMES_IN_FLIGHT, DetectDeepfake
from service.tasks.deepfake.schemas import Deepfake, DeepfakeParameters
from service.triton.tensors import Array
from tests.media.clips import write_clip
from tests.tasks.scripted import DETECTOR, JUDGE, ScriptedTriton, Watcher, context

# The clip's frame is 640 x 480: one face left, one right, as the detector tells them (0..1).
LEFT, RIGHT = (0.1, 0.25, 0.35, 0.75), (0.6, 0.25, 0.85, 0.75)


class Script:
    """Finds `boxes` in every frame; a face is as fake as its left or right place says."""

    def __init__(self, *boxes: tuple[float, ...], fake: float = 0.9) -> None:
        self.boxes = boxes
        self.fake = fake
        self.running = 0
        self.most_running = 0
        self.seeds: list[int] = []

    async def detect(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(0.005)
        finally:
            self.running -= 1
        rows = len(self.boxes)
        boxes, scores = np.zeros((1, rows + 2, 4), np.float32), np.zeros((1, rows + 2), np.float32)
        boxes[0, :rows], scores[0, :rows] = np.array(self.boxes).reshape(rows, 4), 0.99
        return {"BOXES": boxes, "SCORES": scores}

    async def judge(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        assert inputs["FACES"].shape == (1, 3, 16, 16)
        self.seeds.append(int(inputs["SEED"][0, 0]))
        fake = self.fake
        return {
            "SCORES": np.array([[1 - fake, fake]], np.float32),
            "MEMBERS": np.array([[[0.5, fake - 0.1], [0.5, fake + 0.1]]], np.float32),
        }

    @property
    def triton(self) -> ScriptedTriton:
        return ScriptedTriton({"faces": self.detect, "judge": self.judge}, DETECTOR, JUDGE)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Upload:
    path = tmp_path_factory.mktemp("clips") / "a.mp4"
    return Upload("video/mp4", write_clip(path, frames=60, size=(640, 480)))


async def analysed(script: Script, upload: Upload, **parameters: int) -> Deepfake:
    outcome = await DetectDeepfake().run(
        DeepfakeParameters(**parameters), upload, context(script.triton), unreported
    )
    return Deepfake.model_validate(outcome.document)


async def test_a_clip_with_a_face(clip: Upload) -> None:
    answer = await analysed(Script(LEFT), clip)
    assert (answer.verdict, answer.threshold) == ("fake", 0.6)
    assert answer.score == pytest.approx(0.9)
    assert [(m.name, round(m.score, 4)) for m in answer.models] == [("ed", 0.8), ("vae", 1.0)]
    assert [moment.frame for moment in answer.timeline] == [
        0, 4, 8, 12, 16, 21, 25, 29, 33, 37, 42, 46, 50, 54, 59,
    ]  # fmt: skip
    assert answer.timeline[1].t == pytest.approx(4 / 30, abs=1e-3)
    assert answer.timeline[1].faces[0].box == (64, 120, 224, 360)
    (track,) = answer.faces
    assert (track.track_id, track.first_s, track.frames) == (0, 0.0, 15)
    (segment,) = answer.segments
    assert (segment.start_s, segment.end_s) == (0.0, pytest.approx(59 / 30, abs=1e-3))
    sampling = answer.sampling
    assert (sampling.frames_requested, sampling.frames_decoded, sampling.method) == (
        15,
        15,
        "linspace",
    )
    assert (sampling.width, sampling.height, sampling.fps) == (640, 480, pytest.approx(30))
    assert sampling.duration_s == pytest.approx(2.0)
    assert set(answer.timings) == {"decode", "detect", "infer"}


async def test_real_faces_have_no_segments(clip: Upload) -> None:
    answer = await analysed(Script(LEFT, RIGHT, fake=0.2), clip, frames=6)
    assert (answer.verdict, answer.segments) == ("real", [])
    assert [track.frames for track in answer.faces] == [6, 6]
    assert all(len(moment.faces) == 2 for moment in answer.timeline)


async def test_no_face_is_never_fake(clip: Upload) -> None:
    answer = await analysed(Script(), clip)
    assert (answer.verdict, answer.score) == ("not_applicable", None)
    assert (answer.models, answer.faces, answer.segments, answer.quality) == (
        [],
        [],
        [],
        ["no_face"],
    )
    assert [moment.score for moment in answer.timeline] == [None] * 15


async def test_a_picture_is_one_frame() -> None:
    file = BytesIO()
    Image.effect_noise((400, 300), 60).convert("RGB").save(file, "JPEG")
    answer = await analysed(Script(RIGHT, fake=0.1), Upload("image/jpeg", file.getvalue()))
    assert (answer.verdict, answer.quality) == ("real", [])
    assert answer.sampling.model_dump() == {
        "frames_requested": 1,
        "frames_decoded": 1,
        "duration_s": None,
        "fps": None,
        "width": 400,
        "height": 300,
        "method": "single",
    }


async def test_noise_depends_on_the_seed_the_frame_and_the_face_only(clip: Upload) -> None:
    first, second, other = Script(LEFT, RIGHT), Script(LEFT, RIGHT), Script(LEFT, RIGHT)
    await analysed(first, clip, frames=5)
    await analysed(second, clip, frames=5)
    await analysed(other, clip, frames=5, seed=2**63 - 1)
    assert sorted(first.seeds) == sorted(second.seeds)
    assert len(set(first.seeds)) == 10
    assert all(0 <= seed < 2**63 for seed in other.seeds)
    assert not set(first.seeds[1:]) & {2**63 - 1}


async def test_progress_goes_frame_by_frame_and_few_are_held_at_once(clip: Upload) -> None:
    script, watcher = Script(LEFT), Watcher()
    await DetectDeepfake().run(DeepfakeParameters(frames=20), clip, context(script.triton), watcher)
    assert watcher.seen == [Progress(i, 20, "frames") for i in range(1, 21)]
    assert 1 < script.most_running <= FRAMES_IN_FLIGHT


async def test_a_cancelled_report_stops_the_work(clip: Upload) -> None:
    script = Script(LEFT)

    async def stop(progress: Progress) -> None:
        if progress.step == 2:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await DetectDeepfake().run(
            DeepfakeParameters(frames=60), clip, context(script.triton), stop
        )
    judged = len(script.seeds)
    await asyncio.sleep(0.05)
    assert len(script.seeds) == judged < 60
    assert script.running == 0


async def test_a_failing_model_ends_the_run_with_its_error(clip: Upload) -> None:
    class Failing(Script):
        async def judge(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
            raise ModelFailed("out of memory")

    with pytest.raises(ModelFailed, match="out of memory"):
        await analysed(Failing(LEFT), clip)


async def test_frames_are_limited_by_the_settings() -> None:
    script = Script()
    checked = await DetectDeepfake().check(DeepfakeParameters(frames=64), context(script.triton))
    assert checked.model == "judge"
    with pytest.raises(InvalidParameter, match="takes integers from 1 to 10"):
        await DetectDeepfake().check(
            DeepfakeParameters(frames=11), context(script.triton, video_frames=10)
        )


async def test_what_is_neither_picture_nor_video_is_refused() -> None:
    with pytest.raises(UnsupportedMedia, match="neither a picture nor a video"):
        await analysed(Script(), Upload("video/mp4", b"plain text"))


async def test_a_truncated_video_is_refused(clip: Upload) -> None:
    with pytest.raises(BadInput) as caught:
        await analysed(Script(), Upload("video/mp4", clip.read()[:3000]))
    assert caught.value.stable_code == "corrupt_video"

"""Classification: which labels, in which order, from which pixels."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.errors import BadInput, ModelFailed, ModelNotFound, UnsupportedMedia
from service.tasks.classify.pipeline import Classify, best
from service.tasks.classify.schemas import Classification, ClassifyParameters
from service.tasks.contract import Upload, unreported
from service.triton.cards import WeightsRecord
from tests.media.clips import write_clip
from tests.tasks.scripted import CLASSIFIER, ScriptedTriton, context


def picture(colour: str = "red", size: tuple[int, int] = (40, 30)) -> Upload:
    file = BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return Upload("image/png", file.getvalue())


def scoring(*scores: float) -> ScriptedTriton:
    async def answer(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert inputs["IMAGE"].shape == (1, 3, 8, 8)
        assert inputs["IMAGE"].dtype == np.uint8
        assert (inputs["IMAGE"][0, 0] == 255).all()
        return {"SCORES": np.array([scores], np.float32)}

    return ScriptedTriton({"shapes": answer}, CLASSIFIER)


async def test_the_best_labels_come_first() -> None:
    triton = context(scoring(0.2, 0.7, 0.1))
    outcome = await Classify().run(ClassifyParameters(top_k=2), picture(), triton, unreported)
    answer = Classification.model_validate(outcome.document)
    assert [(p.label, p.index) for p in answer.predictions] == [("square", 1), ("circle", 0)]
    assert answer.predictions[0].score == pytest.approx(0.7)
    assert (answer.image.width, answer.image.height) == (40, 30)
    assert (answer.model, answer.weights, answer.warning) == ("shapes", "own", None)
    assert set(answer.timings) == {"decode", "infer"}
    assert outcome.attachments == ()


async def test_more_than_there_are_labels_gives_all() -> None:
    triton = context(scoring(0.2, 0.7, 0.1))
    outcome = await Classify().run(ClassifyParameters(top_k=100), picture(), triton, unreported)
    assert len(outcome.document["predictions"]) == 3


async def test_check_names_the_model_that_will_answer() -> None:
    checked = await Classify().check(ClassifyParameters(), context(scoring(1.0)))
    assert checked.model == "shapes"
    with pytest.raises(ModelNotFound):
        await Classify().check(ClassifyParameters(model="other"), context(scoring(1.0)))


async def test_demo_weights_are_warned_of() -> None:
    demo = CLASSIFIER.model_copy(update={"weights": WeightsRecord(kind="demo")})
    triton = ScriptedTriton(scoring(0.2, 0.7, 0.1)._answers, demo)
    outcome = await Classify().run(ClassifyParameters(), picture(), context(triton), unreported)
    assert outcome.document["weights"] == "demo"
    assert "mean nothing" in outcome.document["warning"]


async def test_a_video_is_told_that_no_model_takes_it(tmp_path: Path) -> None:
    clip = Upload("video/mp4", write_clip(tmp_path / "a.mp4", frames=2))
    with pytest.raises(UnsupportedMedia, match="this model classifies pictures"):
        await Classify().run(ClassifyParameters(), clip, context(scoring(1.0)), unreported)


async def test_a_broken_picture_is_refused_before_triton_is_asked() -> None:
    broken = Upload("image/png", picture().read()[:40])
    with pytest.raises(BadInput) as caught:
        await Classify().run(
            ClassifyParameters(), broken, context(ScriptedTriton({}, CLASSIFIER)), unreported
        )
    assert caught.value.stable_code == "corrupt_image"


def test_equal_scores_keep_the_order_of_the_labels() -> None:
    scores = np.array([0.3, 0.4, 0.3], np.float32)
    assert [p.index for p in best(scores, CLASSIFIER, 3)] == [1, 0, 2]


def test_a_score_that_is_no_number_is_the_model_s_fault() -> None:
    with pytest.raises(ModelFailed, match="'shapes'"):
        best(np.array([np.nan, 0.5, 0.5], np.float32), CLASSIFIER, 3)


def test_labels_that_are_not_known_are_numbered() -> None:
    bare = CLASSIFIER.model_copy(update={"labels": ()})
    assert best(np.array([0.1, 0.9], np.float32), bare, 1)[0].label == "class 1"

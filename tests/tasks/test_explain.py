"""Explanation: which model is asked, for which class, and what its map becomes."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from service.errors import InvalidParameter, ModelFailed, ModelNotFound, UnsupportedMedia
from service.tasks.classify.pipeline import Classify
from service.tasks.classify.schemas import Classification, ClassifyParameters
from service.tasks.contract import Outcome, Upload, unreported
from service.tasks.explain.pipeline import Explain
from service.tasks.explain.schemas import ExplainParameters, Explanation
from service.triton.cards import ImageInput, Task
from service.triton.tensors import Array
from tests.tasks.scripted import CLASSIFIER, PAINTER, ScriptedTriton, card, context

EXPLAINER = card(
    "explainer",
    Task.EXPLANATION,
    image=ImageInput(height=8, width=8, resize="shorter-side", resize_to=8),
    labels=("circle", "square", "star"),
)
MAP = np.array([[0.0, 0.25], [1.0, 0.123456]], np.float32)


def picture() -> Upload:
    file = BytesIO()
    Image.new("RGB", (40, 20), "red").save(file, "PNG")
    return Upload("image/png", file.getvalue())


def scripted(*cards: object, values: np.ndarray = MAP, silent: bool = False) -> ScriptedTriton:
    """Every card's model scores 0.2, 0.7, 0.1, and shows `values` to who asks."""
    triton = ScriptedTriton({}, *cards)  # type: ignore[arg-type]
    asked: list[tuple[str, int | None]] = []

    def answering(method: str):
        async def answer(inputs: Mapping[str, Array]) -> dict[str, Array]:
            assert inputs["IMAGE"].shape == (1, 3, 8, 8)
            wanted = inputs.get("CLASS")
            asked.append((method, None if wanted is None else int(wanted[0, 0])))
            scores = {"SCORES": np.array([[0.2, 0.7, 0.1]], np.float32)}
            if wanted is None or silent:
                return scores
            return scores | {
                "HEATMAP": values[None],
                "METHOD": np.array([[method.encode()]], object),
            }

        return answer

    triton._answers = {
        "shapes": answering("hires-cam"),
        "explainer": answering("t-tame"),
    }
    triton.asked = asked  # type: ignore[attr-defined]
    return triton


async def explained(triton: ScriptedTriton, **parameters: object) -> Outcome:
    return await Explain().run(
        ExplainParameters(**parameters),  # type: ignore[arg-type]
        picture(),
        context(triton),
        unreported,
    )


async def test_the_evidence_for_the_best_class() -> None:
    triton = scripted(CLASSIFIER)
    outcome = await explained(triton)
    answer = Explanation.model_validate(outcome.document)
    evidence = answer.evidence
    assert triton.asked == [("hires-cam", -1)]
    assert (evidence.method, evidence.label, evidence.index) == ("hires-cam", "square", 1)
    assert evidence.score == pytest.approx(0.7)
    assert evidence.heatmap == [[0.0, 0.25], [1.0, 0.1235]]
    assert evidence.region.model_dump() == {"left": 0, "top": 0, "width": 40, "height": 20}
    assert set(answer.timings) == {"decode", "infer", "encode"}
    assert [a.name for a in outcome.attachments] == ["heatmap.png", "overlay.png"]
    for attachment in outcome.attachments:
        assert attachment.content_type == "image/png"
        assert Image.open(BytesIO(attachment.data)).size == (40, 20)


async def test_another_class_may_be_asked_for() -> None:
    triton = scripted(CLASSIFIER)
    outcome = await explained(triton, class_index=2)
    assert triton.asked == [("hires-cam", 2)]
    assert outcome.document["evidence"]["label"] == "star"
    assert outcome.document["evidence"]["score"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("drawings", "names"),
    [("none", []), ("heatmap", ["heatmap.png"]), ("overlay", ["overlay.png"])],
)
async def test_only_the_drawings_that_are_wanted(drawings: str, names: list[str]) -> None:
    outcome = await explained(scripted(CLASSIFIER), drawings=drawings)
    assert [a.name for a in outcome.attachments] == names


async def test_a_model_made_to_explain_comes_first() -> None:
    triton = scripted(CLASSIFIER, EXPLAINER)
    assert (await Explain().check(ExplainParameters(), context(triton))).model == "explainer"
    outcome = await explained(triton)
    assert outcome.document["evidence"]["method"] == "t-tame"
    # Its picture is the middle of this one.
    assert outcome.document["evidence"]["region"]["left"] == pytest.approx(10)
    assert outcome.document["evidence"]["region"]["width"] == pytest.approx(20)
    outcome = await explained(triton, model="shapes")
    assert outcome.document["evidence"]["method"] == "hires-cam"


async def test_what_check_refuses() -> None:
    triton = context(scripted(CLASSIFIER, PAINTER))
    with pytest.raises(InvalidParameter, match="has the classes 0 to 2") as wrong:
        await Explain().check(ExplainParameters(class_index=3), triton)
    assert wrong.value.param == "class_index"
    for model in ("painter", "nothing"):
        with pytest.raises(ModelNotFound):
            await Explain().check(ExplainParameters(model=model), triton)


async def test_a_model_that_has_no_map_is_named() -> None:
    with pytest.raises(InvalidParameter, match="'shapes' cannot tell what it goes by"):
        await explained(scripted(CLASSIFIER, silent=True))


async def test_a_map_of_no_numbers_is_the_models_fault() -> None:
    with pytest.raises(ModelFailed, match="not numbers"):
        await explained(scripted(CLASSIFIER, values=MAP * np.nan))


async def test_a_video_is_refused() -> None:
    clip = Upload("video/mp4", b"\0\0\0\x18ftypmp42" + bytes(64))
    with pytest.raises(UnsupportedMedia):
        await Explain().run(ExplainParameters(), clip, context(scripted(CLASSIFIER)), unreported)


async def test_classification_explains_when_asked() -> None:
    triton = scripted(CLASSIFIER)
    plain = await Classify().run(ClassifyParameters(), picture(), context(triton), unreported)
    assert plain.document["evidence"] is None
    assert plain.attachments == ()
    outcome = await Classify().run(
        ClassifyParameters(explain=True), picture(), context(triton), unreported
    )
    assert triton.asked == [("hires-cam", None), ("hires-cam", -1)]
    answer = Classification.model_validate(outcome.document)
    assert answer.evidence is not None
    assert answer.evidence.label == answer.predictions[0].label == "square"
    assert [a.name for a in outcome.attachments] == ["heatmap.png", "overlay.png"]


async def test_a_model_made_to_explain_classifies_when_it_is_named() -> None:
    triton = scripted(CLASSIFIER, EXPLAINER)
    checked = await Classify().check(ClassifyParameters(model="explainer"), context(triton))
    assert checked.model == "explainer"
    outcome = await Classify().run(
        ClassifyParameters(model="explainer", explain=True), picture(), context(triton), unreported
    )
    assert outcome.document["predictions"][0]["label"] == "square"
    assert outcome.document["evidence"]["method"] == "t-tame"
    with pytest.raises(ModelNotFound):
        await Classify().check(ClassifyParameters(), context(scripted(EXPLAINER)))

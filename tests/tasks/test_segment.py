"""Segmentation: what is asked of the model, and what becomes of its answer."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from service.errors import InvalidParameter, ModelFailed, ModelNotFound
from service.tasks.contract import Outcome, Upload, unreported
from service.tasks.segment.pipeline import SegmentPicture, decided_size
from service.tasks.segment.schemas import SegmentationAnswer, SegmentParameters
from service.triton.cards import Card, ImageInput, Parameter, Task
from service.triton.tensors import Array
from tests.tasks.scripted import CLASSIFIER, ScriptedTriton, card, context


def segmenter(kind: str, **fields: Any) -> Card:
    return card(
        "segmenter",
        Task.SEGMENTATION,
        image=ImageInput(height=8, width=8),
        segmentation=kind,
        labels=fields.pop("labels", ("sky", "cat", "dog")),
        **fields,
    )


PANOPTIC = segmenter("panoptic", things=(1, 2))
SEMANTIC = segmenter("semantic")
BINARY = segmenter("binary", labels=("lesion",))
GATED = segmenter("panoptic", parameters={"depth": Parameter(type="integer", minimum=2, maximum=6)})


def picture(width: int = 40, height: int = 20, mode: str = "RGB") -> Upload:
    file = BytesIO()
    Image.new(mode, (width, height)).save(file, "PNG")
    return Upload("image/png", file.getvalue())


def halves(height: int, width: int) -> np.ndarray:
    """Left half 0, right half 1, but for the lowest row of the right half, which is 2."""
    mask = np.zeros((1, height, width), np.int32)
    mask[:, :, width // 2 :] = 1
    mask[:, -1, width // 2 :] = 2
    return mask


async def segmented(
    card: Card,
    rows: list[tuple[int, int, float]],
    upload: Upload | None = None,
    asked: list[Mapping[str, Array]] | None = None,
    **given: Any,
) -> Outcome:
    async def answer(inputs: Mapping[str, Array]) -> dict[str, Array]:
        if asked is not None:
            asked.append(inputs)
        assert inputs["IMAGE"].shape == (1, 3, 8, 8)
        assert inputs["SIZE"].dtype == np.int32
        height, width = inputs["SIZE"][0].tolist()
        found: dict[str, Array] = {
            "MASK": halves(height, width) if rows else np.zeros((1, height, width), np.int32),
            "SEGMENTS": np.array(rows, np.float32).reshape(1, -1, 3),
        }
        if "PROBABILITY" in inputs:
            found["PROBABILITIES"] = np.full((1, height, width), 0.25, np.float32)
        if "DEPTH" in inputs:
            found["DEPTH_USED"] = np.array([[int(inputs["DEPTH"][0, 0]) or 3]], np.int32)
        return found

    return await SegmentPicture().run(
        SegmentParameters(**given),
        upload or picture(),
        context(ScriptedTriton({card.id: answer}, card)),
        unreported,
    )


def files(outcome: Outcome) -> dict[str, np.ndarray]:
    return {file.name: np.asarray(Image.open(BytesIO(file.data))) for file in outcome.attachments}


async def test_segments_are_listed_with_what_follows_from_their_masks() -> None:
    outcome = await segmented(PANOPTIC, [(2, 2, 0.5), (1, 1, 0.75)])
    found = SegmentationAnswer.model_validate(outcome.document)
    assert (found.kind, found.format, found.depth) == ("panoptic", "png", None)
    first, second = found.segments
    assert (first.id, first.label, first.index, first.thing, first.score) == (
        1,
        "cat",
        1,
        True,
        0.75,
    )
    assert (first.area, first.share, first.box) == (380, 380 / 800, (20, 0, 40, 19))
    assert (second.label, second.area, second.box) == ("dog", 20, (20, 19, 40, 20))
    assert first.rle is first.polygons is found.segments_info is None
    assert (files(outcome)["mask.png"] == halves(20, 40)[0]).all()


async def test_run_lengths_and_polygons() -> None:
    rows = [(1, 1, 0.75), (2, 2, 0.5)]
    document = (await segmented(PANOPTIC, rows, format="rle")).document
    for segment in document["segments"]:
        assert (coco.decode(segment["rle"]) == (halves(20, 40)[0] == segment["id"])).all()
    outcome = await segmented(PANOPTIC, rows, format="polygons")
    assert outcome.attachments == ()
    outline = outcome.document["segments"][0]["polygons"][0][0]
    assert (20.0, 0.5) in outline


async def test_coco_s_panoptic_form_has_zero_for_nothing() -> None:
    outcome = await segmented(PANOPTIC, [(1, 1, 0.75), (2, 2, 0.5)], format="panoptic")
    assert outcome.document["segments_info"][1] == {
        "id": 2,
        "category_id": 2,
        "category_name": "dog",
        "isthing": 1,
        "area": 20,
        "bbox": (20, 19, 20, 1),
        "iscrowd": 0,
    }
    assert files(outcome)["panoptic.png"][-1, [0, -1]].tolist() == [[0, 0, 0], [2, 0, 0]]
    classes = [(0, 0, 0.9), (1, 1, 0.8), (2, 2, 0.7)]
    outcome = await segmented(SEMANTIC, classes, format="panoptic")
    # In semantic masks 0 is a class.
    assert [row["id"] for row in outcome.document["segments_info"]] == [1, 2, 3]
    assert outcome.document["segments_info"][0]["isthing"] is None
    assert files(outcome)["panoptic.png"][0, 0].tolist() == [1, 0, 0]


async def test_overlay_and_probability() -> None:
    outcome = await segmented(BINARY, [(1, 0, 0.9)], overlay=True, probability=True)
    drawn = files(outcome)
    assert drawn.keys() == {"mask.png", "overlay.png", "probability.png"}
    assert (drawn["probability.png"] == 64).all()
    assert drawn["overlay.png"].shape == (20, 40, 3)
    with pytest.raises(InvalidParameter, match="no one map"):
        await SegmentPicture().check(
            SegmentParameters(probability=True), context(ScriptedTriton({}, PANOPTIC))
        )


async def test_an_empty_scene_is_an_empty_list() -> None:
    for form in ("png", "rle", "polygons", "panoptic"):
        outcome = await segmented(PANOPTIC, [], format=form, overlay=True)
        assert outcome.document["segments"] == []


@pytest.mark.parametrize(
    ("given", "sent", "used"), [(None, 0, 3), ("auto", 0, 3), (2, 2, 2), ("6", 6, 6)]
)
async def test_the_depth_of_the_encoder(given: Any, sent: int, used: int) -> None:
    asked: list[Mapping[str, Array]] = []
    outcome = await segmented(GATED, [(1, 1, 0.7)], asked=asked, depth=given)
    assert asked[0]["DEPTH"].tolist() == [[sent]]
    assert outcome.document["depth"] == used


@pytest.mark.parametrize(("card", "depth"), [(GATED, 1), (GATED, 7), (PANOPTIC, 3)])
async def test_depths_the_model_does_not_have(card: Card, depth: int) -> None:
    with pytest.raises(InvalidParameter, match="depth"):
        await SegmentPicture().check(
            SegmentParameters(depth=depth), context(ScriptedTriton({}, card))
        )


@pytest.mark.parametrize(
    ("width", "height", "mode"), [(1, 1, "RGB"), (3000, 2, "L"), (2, 3000, "RGBA"), (9, 9, "LA")]
)
async def test_pictures_of_every_kind_and_form(width: int, height: int, mode: str) -> None:
    outcome = await segmented(PANOPTIC, [(1, 1, 0.7)], picture(width, height, mode), overlay=True)
    assert outcome.document["image"] == {"width": width, "height": height}
    assert files(outcome)["mask.png"].shape == (height, width)


@pytest.mark.parametrize(
    ("size", "decided"),
    [
        ((20, 40), (20, 40)),
        ((2048, 2048), (2048, 2048)),
        ((4096, 4096), (2048, 2048)),
        ((1, 60_000_000), (1, 4_194_304)),
        ((60_000_000, 1), (4_194_304, 1)),
    ],
)
def test_masks_of_large_pictures_are_decided_smaller(
    size: tuple[int, int], decided: tuple[int, int]
) -> None:
    assert decided_size(*size) == decided


async def test_a_large_picture_has_a_mask_of_its_own_size() -> None:
    asked: list[Mapping[str, Array]] = []
    outcome = await segmented(PANOPTIC, [(1, 1, 0.7)], picture(3000, 2000), asked)
    height, width = asked[0]["SIZE"][0].tolist()
    assert 4_190_000 < height * width <= 4_194_304
    assert files(outcome)["mask.png"].shape == (2000, 3000)
    outcome = await segmented(PANOPTIC, [(1, 1, 0.7)], picture(3000, 2000), format="polygons")
    corners = np.array(outcome.document["segments"][0]["polygons"][0][0])
    assert corners.min(0).tolist() == pytest.approx([1500, 0], abs=2)
    assert corners.max(0).tolist() == pytest.approx([3000, 2000], abs=2)


async def test_without_a_model_for_it_or_one_that_answers_otherwise() -> None:
    with pytest.raises(ModelNotFound):
        await SegmentPicture().check(SegmentParameters(), context(ScriptedTriton({}, CLASSIFIER)))
    with pytest.raises(ModelFailed, match="not a number"):
        await segmented(PANOPTIC, [(1, 1, float("nan"))])
    with pytest.raises(ModelFailed, match="does not say"):
        await segmented(PANOPTIC.model_copy(update={"segmentation": None}), [(1, 1, 0.5)])

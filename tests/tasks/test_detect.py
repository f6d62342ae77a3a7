"""Detection: what is asked of the model, and what becomes of its answer."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO

from models.layers.detector import parameters
from service.errors import BadInput, InvalidParameter, ModelFailed, ModelNotFound
from service.tasks.contract import Outcome, Upload, unreported
from service.tasks.detect.pipeline import Detect
from service.tasks.detect.schemas import CocoDetections, Detections, DetectParameters
from service.triton.cards import ImageInput, Task
from service.triton.tensors import Array
from tests.tasks.scripted import CLASSIFIER, ScriptedTriton, card, context

DETECTOR = card(
    "detector",
    Task.DETECTION,
    image=ImageInput(resize="fit", resize_to=32, max_side=64, interpolation="linear"),
    labels=("cat", "dog", "bird"),
    parameters=parameters(1000),
    default=True,
)


def upload(image: Image.Image | None = None, **options: Any) -> Upload:
    file = BytesIO()
    (image or Image.new("RGB", (40, 20), "white")).save(file, "PNG", **options)
    return Upload("image/png", file.getvalue(), "street.png")


class Scripted(ScriptedTriton):
    """Answers with given rows and a row of padding, and remembers what was asked."""

    def __init__(self, *rows: tuple[int, float, tuple[float, ...]], masks: bool = False) -> None:
        super().__init__({"detector": self._answer}, DETECTOR)
        self._rows, self._masks = rows, masks
        self.asked: list[Mapping[str, Array]] = []

    async def _answer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.asked.append(inputs)
        rows = (*self._rows, (0, 0.0, (0, 0, 0, 0)))
        answer: dict[str, Array] = {
            "BOXES": np.array([[box for _, _, box in rows]], np.float32),
            "SCORES": np.array([[score for _, score, _ in rows]], np.float32),
            "CLASSES": np.array([[index for index, _, _ in rows]], np.int32),
        }
        if self._masks:
            # The left half of each box.
            grid = np.zeros((1, len(rows), 28, 28), np.uint8)
            grid[..., :14] = 255
            answer["MASKS"] = grid
        return answer


CAT = (0, 0.9, (0.25, 0.0, 0.75, 0.5))
DOG = (1, 0.6, (0.0, 0.5, 0.5, 1.0))


async def detected(triton: ScriptedTriton, sent: Upload | None = None, **given: Any) -> Outcome:
    checked = await Detect().check(DetectParameters(**given), context(triton))
    return await Detect().run(checked, sent or upload(), context(triton), unreported)


async def test_boxes_are_in_pixels_of_the_picture_sent() -> None:
    triton = Scripted(CAT, DOG)
    answer = Detections.model_validate((await detected(triton)).document)
    assert [(d.label, d.index, d.box) for d in answer.detections] == [
        ("cat", 0, (10.0, 0.0, 30.0, 10.0)),
        ("dog", 1, (0.0, 10.0, 20.0, 20.0)),
    ]
    assert answer.detections[0].box_normalized == CAT[2]
    assert answer.detections[0].area == 200
    assert answer.detections[0].rle is None
    assert (answer.model, answer.threshold, answer.image.width) == ("detector", 0.3, 40)
    (asked,) = triton.asked
    # The longer side fits first.
    assert asked["IMAGE"].shape == (1, 3, 32, 64)
    assert asked["THRESHOLD"].tolist() == [[np.float32(0.3)]]
    assert asked["MAX_DETECTIONS"].tolist() == [[100]]


async def test_masks_are_run_lengths_of_the_whole_picture() -> None:
    outcome = await detected(Scripted(CAT, masks=True))
    (found,) = outcome.document["detections"]
    mask = coco.decode(found["rle"])
    assert mask.shape == (20, 40)
    rows, columns = np.nonzero(mask)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 9, 10, 19)
    assert found["area"] == mask.sum() == 100
    without = await detected(Scripted(CAT, masks=True), masks=False)
    assert without.document["detections"][0]["rle"] is None


async def test_other_classes_do_not_use_up_the_number_asked_for() -> None:
    triton = Scripted(CAT, CAT, DOG, (2, 0.5, DOG[2]), (1, 0.4, CAT[2]))
    outcome = await detected(triton, classes="dog, bird", max_detections=2)
    assert [d["label"] for d in outcome.document["detections"]] == ["dog", "bird"]
    assert triton.asked[0]["MAX_DETECTIONS"].tolist() == [[1000]]
    with pytest.raises(InvalidParameter, match="no label 'fish'"):
        await detected(triton, classes=["fish"])


async def test_a_document_that_coco_s_own_tools_read() -> None:
    document = (await detected(Scripted(CAT, DOG, masks=True), format="coco")).document
    answer = CocoDetections.model_validate(document)
    assert answer.images[0].file_name == "street.png"
    read = COCO()
    read.dataset = document
    read.createIndex()
    (first, second) = read.loadAnns(read.getAnnIds(imgIds=1))
    assert (first["bbox"], read.cats[first["category_id"]]["name"]) == ((10, 0, 20, 10), "cat")
    assert read.annToMask(second).sum() == second["area"] == 100
    plain = (await detected(Scripted(CAT), format="coco")).document
    assert "segmentation" not in plain["annotations"][0]


async def test_an_empty_scene_is_an_empty_list() -> None:
    outcome = await detected(Scripted(masks=True), overlay=True)
    assert outcome.document["detections"] == []
    drawn = Image.open(BytesIO(outcome.attachments[0].data))
    assert np.asarray(drawn).min() == 255


async def test_the_drawing_shows_boxes_masks_and_labels() -> None:
    white = Image.new("RGB", (1600, 800), "white")
    outcome = await detected(Scripted(CAT, masks=True), upload(white), overlay=True)
    (file,) = outcome.attachments
    assert (file.name, file.content_type) == ("overlay.png", "image/png")
    drawn = np.asarray(Image.open(BytesIO(file.data)).convert("RGB"), int)
    assert drawn.shape == (512, 1024, 3)
    coloured = (drawn != 255).any(2)
    assert coloured[100, 300]  # in the mask
    assert not coloured[100, 700]  # in the box, beside the mask
    assert coloured[100, 766:770].any()  # the box's edge
    assert not coloured[:, :255].any()


async def test_a_thousand_objects_at_threshold_zero() -> None:
    rows = [(k % 3, 1.0 - k / 1001, (0.1, 0.1, 0.2 + k / 2000, 0.9)) for k in range(1000)]
    triton = Scripted(*rows, masks=True)
    outcome = await detected(triton, threshold=0, max_detections=1000, overlay=True)
    assert len(outcome.document["detections"]) == 1000
    assert triton.asked[0]["THRESHOLD"].tolist() == [[0.0]]


@pytest.mark.parametrize("size", [(2000, 3), (1, 900)])
async def test_extreme_forms_are_scaled_to_fit(size: tuple[int, int]) -> None:
    triton = Scripted(CAT)
    outcome = await detected(triton, upload(Image.new("RGB", size)))
    shape = triton.asked[0]["IMAGE"].shape
    assert max(shape[2:]) == 64
    assert min(shape[2:]) == 1
    left, _, right, _ = outcome.document["detections"][0]["box"]
    assert right - left == pytest.approx(size[0] / 2)


@pytest.mark.parametrize(
    ("mode", "colour"), [("L", 90), ("RGBA", (255, 0, 0, 0)), ("LA", (10, 128)), ("P", 3)]
)
async def test_grey_and_transparent_pictures(mode: str, colour: Any) -> None:
    triton = Scripted(CAT)
    await detected(triton, upload(Image.new(mode, (40, 20), colour)))
    pixels = triton.asked[0]["IMAGE"]
    assert pixels.shape[1] == 3
    if mode == "RGBA":  # Transparent is white.
        assert pixels.min() == 255


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"threshold": 1.5}, "less than or equal to 1"),
        ({"max_detections": 0}, "greater than or equal to 1"),
        ({"max_detections": 1001}, "max_detections = 1001: model 'detector' takes integers from 1"),
    ],
)
async def test_what_the_card_does_not_allow(given: dict[str, Any], message: str) -> None:
    with pytest.raises((InvalidParameter, ValueError), match=message):
        await detected(Scripted(CAT), **given)


async def test_without_a_model_or_a_whole_picture_or_numbers() -> None:
    with pytest.raises(ModelNotFound):
        await Detect().check(DetectParameters(), context(ScriptedTriton({}, CLASSIFIER)))
    with pytest.raises(BadInput):
        await detected(Scripted(CAT), Upload("image/png", upload().read()[:40]))
    for bad in ((0, np.nan, CAT[2]), (0, 0.5, (np.nan, 0, 1, 1))):
        with pytest.raises(ModelFailed):
            await detected(Scripted(bad))

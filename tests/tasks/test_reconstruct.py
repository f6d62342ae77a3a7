"""Reconstruction: what is asked of the model, and what becomes of its answer."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from models.layers.restorer import parameters
from service.errors import BadInput, InvalidParameter, ModelNotFound
from service.tasks.contract import Outcome, Upload, unreported
from service.tasks.reconstruct.pipeline import Reconstruct, psnr
from service.tasks.reconstruct.schemas import Reconstruction, ReconstructParameters
from service.triton.cards import ImageInput, Task
from service.triton.tensors import Array
from tests.tasks.scripted import CLASSIFIER, ScriptedTriton, card, context

RESTORER = card(
    "restorer",
    Task.RECONSTRUCTION,
    image=ImageInput(height=8, width=8),
    parameters=parameters(0.75),
)


def picture() -> Upload:
    file = BytesIO()
    Image.new("RGB", (40, 20), (255, 0, 0)).save(file, "PNG")
    return Upload("image/png", file.getvalue())


def scripted(*, exact: bool = False) -> ScriptedTriton:
    """Hides the left half and predicts it 51 levels too dark, or exactly."""
    triton = ScriptedTriton({}, RESTORER)
    asked: list[tuple[float, int]] = []

    async def answer(inputs: Mapping[str, Array]) -> dict[str, Array]:
        assert inputs["IMAGE"].shape == (1, 3, 8, 8)
        assert (inputs["SHARE"].dtype, inputs["SEED"].dtype) == (np.float32, np.int64)
        assert inputs["SHARE"].shape == inputs["SEED"].shape == (1, 1)
        asked.append((round(float(inputs["SHARE"][0, 0]), 6), int(inputs["SEED"][0, 0])))
        hidden = np.zeros((1, 8, 8), np.uint8)
        hidden[..., :4] = 1
        restored = inputs["IMAGE"].copy()
        if not exact:
            restored[0, 0, :, :4] -= 51
        return {"RESTORED": restored, "HIDDEN": hidden}

    triton._answers = {"restorer": answer}
    triton.asked = asked  # type: ignore[attr-defined]
    return triton


async def reconstructed(triton: ScriptedTriton, **given: object) -> Outcome:
    return await Reconstruct().run(
        ReconstructParameters(**given),  # type: ignore[arg-type]
        picture(),
        context(triton),
        unreported,
    )


async def test_both_pictures_and_how_near_the_prediction_is() -> None:
    triton = scripted()
    outcome = await reconstructed(triton, share=0.5, seed=9)
    assert triton.asked == [(0.5, 9)]  # type: ignore[attr-defined]
    answer = Reconstruction.model_validate(outcome.document)
    assert (answer.model, answer.hidden, answer.seed) == ("restorer", 0.5, 9)
    # One channel of three is off by a fifth of the range.
    assert answer.psnr == pytest.approx(10 * np.log10(3 * 25))
    assert (answer.size.width, answer.size.height) == (8, 8)
    assert (answer.image.width, answer.image.height) == (40, 20)
    assert [file.name for file in outcome.attachments] == ["restored.png", "seen.png"]
    restored, seen = (np.asarray(Image.open(BytesIO(file.data))) for file in outcome.attachments)
    assert restored[0, 0].tolist() == [204, 0, 0]
    assert restored[0, 7].tolist() == seen[0, 7].tolist() == [255, 0, 0]
    assert seen[0, 0].tolist() == [128, 128, 128]


async def test_the_card_says_what_is_hidden_by_default() -> None:
    triton = scripted(exact=True)
    outcome = await reconstructed(triton)
    assert triton.asked == [(0.75, 0)]  # type: ignore[attr-defined]
    assert outcome.document["psnr"] is None
    checked = await Reconstruct().check(ReconstructParameters(), context(triton))
    assert (checked.model, checked.share, checked.seed) == ("restorer", 0.75, 0)


@pytest.mark.parametrize("share", [0.0, 1.0, 0.96])
async def test_shares_outside_of_the_card_s_range_are_refused(share: float) -> None:
    with pytest.raises(InvalidParameter, match=r"share = .*takes numbers from 0\.05"):
        await Reconstruct().check(ReconstructParameters(share=share), context(scripted()))


@pytest.mark.parametrize(("pictures", "name"), [("restored", "restored.png"), ("seen", "seen.png")])
async def test_one_picture_alone(pictures: str, name: str) -> None:
    outcome = await reconstructed(scripted(), pictures=pictures)
    assert [file.name for file in outcome.attachments] == [name]


async def test_without_a_model_for_it_or_with_no_picture() -> None:
    with pytest.raises(ModelNotFound):
        await Reconstruct().check(ReconstructParameters(), context(ScriptedTriton({}, CLASSIFIER)))
    broken = Upload("image/png", picture().read()[:40])
    with pytest.raises(BadInput):
        await Reconstruct().run(ReconstructParameters(), broken, context(scripted()), unreported)


def test_psnr_by_hand() -> None:
    assert psnr(np.array([0], np.uint8), np.array([255], np.uint8)) == 0.0
    assert psnr(np.array([3], np.uint8), np.array([3], np.uint8)) is None
    assert psnr(np.zeros((3, 0), np.uint8), np.zeros((3, 0), np.uint8)) is None

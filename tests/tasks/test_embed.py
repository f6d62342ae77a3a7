"""Embeddings: vectors, maps, labels by examples and pictures of features, by scripted networks."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from service.errors import (
    Conflict,
    ExamplesNotFound,
    InvalidParameter,
    ModelFailed,
    ModelNotFound,
)
from service.settings import Settings, StorageSettings
from service.storage.store import Store
from service.tasks.contract import Context, Outcome, Upload, unreported
from service.tasks.embed.examples import MOST_SETS, Examples
from service.tasks.embed.pipeline import Embed
from service.tasks.embed.schemas import MOST_MAPS, EmbedParameters
from service.tasks.embed.vectors import principal_colours, prototypes, unit
from service.triton.cards import Card, ClipInput, ImageInput, Parameter, Task, WeightsRecord
from service.triton.tensors import Array
from tests.tasks.scripted import ScriptedTriton, card, context

ENCODER = card("encoder", Task.EMBEDDING, image=ImageInput(height=4, width=4), default=True)
FRAMES = card(
    "frames",
    Task.EMBEDDING,
    image=ImageInput(height=4, width=4, colour="L"),
    clip=ClipInput(frames=3, sampling="dense"),
)


def pictures(*colours: Any) -> Upload:
    """Return an upload of one picture a colour."""
    sent = []
    for number, colour in enumerate(colours):
        file = BytesIO()
        Image.new("RGB", (8, 6), colour).save(file, "PNG")
        sent.append(Upload("image/png", file.getvalue(), f"{number}.png"))
    return Upload("image/png", sent[0].data, sent[0].name, tuple(sent[1:]))


async def mean_colour(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Embed a picture as its mean colour; its features are the pixels."""
    image = inputs["IMAGE"].astype(np.float32)
    answer = {"EMBEDDING": image.mean((2, 3))}
    if "DENSE" in inputs:
        assert inputs["DENSE"].tolist() == [[1]]
        answer["FEATURES"] = image.transpose(0, 2, 3, 1)
    return answer


async def embedded(upload: Upload, used: Card = ENCODER, **parameters: Any) -> Outcome:
    triton = ScriptedTriton({"encoder": mean_colour, "frames": mean_colour}, ENCODER, FRAMES)
    chosen = EmbedParameters(model=used.id, **parameters)
    return await Embed().run(chosen, upload, context(triton), unreported)


async def test_vectors_come_in_the_order_of_the_pictures() -> None:
    outcome = await embedded(pictures("red", "lime", (3, 4, 0)))
    document = outcome.document
    assert [row["embedding"].tolist() for row in document["data"]] == [
        [255.0, 0.0, 0.0],
        [0.0, 255.0, 0.0],
        [3.0, 4.0, 0.0],
    ]
    assert [row["name"] for row in document["data"]] == ["0.png", "1.png", "2.png"]
    assert [row["index"] for row in document["data"]] == [0, 1, 2]
    assert (document["model"], document["dimensions"], document["normalized"]) == (
        "encoder",
        3,
        False,
    )
    assert all(row["features"] is row["predictions"] is None for row in document["data"])
    assert outcome.attachments == ()
    assert set(document["timings"]) == {"decode", "infer", "encode"}


async def test_base64_holds_the_same_numbers() -> None:
    upload = pictures((3, 4, 0))
    plain = (await embedded(upload)).document["data"][0]["embedding"]
    outcome = await embedded(upload, encoding_format="base64", dense=True)
    (row,) = outcome.document["data"]
    assert np.frombuffer(base64.b64decode(row["embedding"]), "<f4").tolist() == plain.tolist()
    features = row["features"]
    assert (features["height"], features["width"], features["dimensions"]) == (4, 4, 3)
    data = np.frombuffer(base64.b64decode(features["data"]), "<f4").reshape(4, 4, 3)
    assert (data == [3, 4, 0]).all()


async def test_unit_length() -> None:
    outcome = await embedded(pictures((3, 4, 0), "black"), normalize=True)
    first, second = (row["embedding"] for row in outcome.document["data"])
    np.testing.assert_allclose(first, [0.6, 0.8, 0.0], atol=1e-6)
    assert second.tolist() == [0.0, 0.0, 0.0]


async def test_pictures_are_labelled_by_the_nearest_examples() -> None:
    upload = pictures("red", (200, 100, 0), (0, 0, 250), (100, 10, 0), (10, 0, 90))
    outcome = await embedded(upload, labels="warm,warm, cold,,")
    rows = [row["predictions"] for row in outcome.document["data"]]
    assert rows[:3] == [None, None, None]
    assert [[p["label"] for p in row] for row in rows[3:]] == [["warm", "cold"], ["cold", "warm"]]
    # Both warm examples count alike, however bright: the mean of (1, 0, 0) and (2, 1, 0) / sqrt(5).
    mean = np.array([1 + 2 / 5**0.5, 1 / 5**0.5, 0])
    cosine = mean @ [100, 10, 0] / np.linalg.norm(mean) / np.linalg.norm([100, 10, 0])
    assert rows[3][0]["similarity"] == pytest.approx(cosine, abs=1e-6)
    assert rows[4][0]["similarity"] == pytest.approx(90 / np.hypot(10, 90), abs=1e-6)


@pytest.mark.parametrize("labels", [("a", "b"), ("a",) * 4])
async def test_there_is_one_label_for_each_picture(labels: tuple[str, ...]) -> None:
    with pytest.raises(InvalidParameter, match=rf"{len(labels)} for 3 embeddings"):
        await embedded(pictures("red", "blue", "lime"), labels=labels)


async def test_labels_without_an_example_are_refused_before_anything_is_done() -> None:
    with pytest.raises(InvalidParameter, match="no picture is an example"):
        await Embed().check(EmbedParameters(labels=("", "")), context(ScriptedTriton({}, ENCODER)))


async def test_check_names_the_model_that_will_answer() -> None:
    triton = context(ScriptedTriton({}, ENCODER))
    assert (await Embed().check(EmbedParameters(), triton)).model == "encoder"
    with pytest.raises(ModelNotFound):
        await Embed().check(EmbedParameters(model="other"), triton)


async def test_frames_are_the_channels_of_one_picture() -> None:
    grey = [(level,) * 3 for level in (10, 20, 30, 40, 50, 60)]
    outcome = await embedded(pictures(*grey), FRAMES)
    assert [row["embedding"].tolist() for row in outcome.document["data"]] == [
        [10.0, 20.0, 30.0],
        [40.0, 50.0, 60.0],
    ]
    assert [row["name"] for row in outcome.document["data"]] == ["0.png", "3.png"]


async def test_a_stack_that_is_not_whole_is_refused() -> None:
    with pytest.raises(InvalidParameter, match=r"3 frames, sent oldest first; given were 4"):
        await embedded(pictures("red", "red", "red", "red"), FRAMES)


async def test_maps_are_given_for_a_few_pictures_only() -> None:
    many = pictures(*["red"] * (MOST_MAPS + 1))
    assert len((await embedded(many)).document["data"]) == MOST_MAPS + 1
    for asked in ("dense", "picture"):
        with pytest.raises(InvalidParameter, match=f"at most {MOST_MAPS}"):
            await embedded(many, **{asked: True})


async def test_pictures_of_features_are_large_enough_to_be_seen() -> None:
    outcome = await embedded(pictures("red", "blue"), picture=True)
    assert [a.name for a in outcome.attachments] == ["features-0.png", "features-1.png"]
    shown = [Image.open(BytesIO(a.data)) for a in outcome.attachments]
    assert [image.size for image in shown] == [(256, 256), (256, 256)]
    assert shown[0].getpixel((9, 9)) != shown[1].getpixel((9, 9))
    assert all(row["features"] is None for row in outcome.document["data"])


async def test_numbers_that_are_none_are_the_model_s_fault() -> None:
    async def broken(inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"EMBEDDING": np.full((1, 3), np.nan, np.float32)}

    triton = context(ScriptedTriton({"encoder": broken}, ENCODER))
    with pytest.raises(ModelFailed, match="'encoder'"):
        await Embed().run(EmbedParameters(), pictures("red"), triton, unreported)


def test_prototypes_keep_the_order_in_which_labels_come() -> None:
    vectors = np.array([[0, 2], [3, 0], [1, 1], [0, 9]], np.float32)
    names, means = prototypes(vectors, ("up", "right", "", "up"))
    assert names == ["up", "right"]
    np.testing.assert_allclose(means, [[0, 1], [1, 0]], atol=1e-7)


def test_zeros_have_no_direction() -> None:
    assert unit(np.zeros((2, 3), np.float32)).tolist() == [[0.0] * 3] * 2


def test_the_strongest_component_is_red() -> None:
    generator = np.random.default_rng(0)
    strong, middle, weak = generator.normal(size=(3, 10, 12))
    features = np.zeros((10, 12, 7), np.float32)
    features[..., 2], features[..., 0], features[..., 5] = 9 * strong, 3 * middle, weak
    (pixels,) = principal_colours([features])
    for channel, wanted in enumerate((strong, middle, weak)):
        shown = pixels[..., channel].ravel().astype(float)
        assert np.corrcoef(shown, wanted.ravel())[0, 1] > 0.9
    assert pixels.min() == 0
    assert pixels.max() == 255


def test_a_colour_means_the_same_in_every_picture_of_a_call() -> None:
    features = np.random.default_rng(0).normal(size=(6, 4, 5)).astype(np.float32)
    together = principal_colours([features[:2], features[2:]])
    (whole,) = principal_colours([features])
    np.testing.assert_array_equal(np.concatenate(together), whole)


def test_maps_without_any_difference_are_black() -> None:
    (pixels,) = principal_colours([np.ones((2, 3, 2), np.float32)])
    assert pixels.shape == (2, 3, 3)
    assert not pixels.any()


JUDGE = FRAMES.model_copy(
    update={"id": "judge", "parameters": {"order": Parameter(type="boolean", default=False)}}
)


async def rising(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Embed frames as their mean levels; in order are those that grow brighter."""
    answer = await mean_colour(inputs)
    if "BEFORE" in inputs:
        before, now, after = (inputs[n].mean() for n in ("BEFORE", "IMAGE", "AFTER"))
        answer["IN_ORDER"] = np.array([[0.9 if before < now < after else 0.2]], np.float32)
    return answer


async def ordered(*levels: int, used: Card = JUDGE) -> Outcome:
    """Send one observation of three equal frames for each level of grey."""
    triton = ScriptedTriton({"judge": rising, "frames": rising}, JUDGE, FRAMES)
    grey = [(level,) * 3 for level in levels for _ in range(3)]
    parameters = EmbedParameters(model=used.id, order=True)
    await Embed().check(parameters, context(triton))
    return await Embed().run(parameters, pictures(*grey), context(triton), unreported)


async def test_each_three_observations_are_judged_as_before_now_after() -> None:
    document = (await ordered(10, 20, 30, 60, 50, 40)).document
    assert [row["embedding"][0] for row in document["data"]] == [10, 20, 30, 60, 50, 40]
    assert [(row["index"], round(row["in_order"], 6)) for row in document["order"]] == [
        (0, 0.9),
        (3, 0.2),
    ]
    assert (await embedded(pictures("red"))).document["order"] is None


async def test_an_order_needs_three_observations_and_a_model_that_can_tell() -> None:
    with pytest.raises(InvalidParameter, match=r"each 3 embeddings in a row; given were 2"):
        await ordered(10, 20)
    with pytest.raises(InvalidParameter, match=r"'frames' has no parameter 'order'"):
        await ordered(10, 20, 30, used=FRAMES)


def storing(tmp_path: Path, used: Card = ENCODER, tenant: str = "me") -> Context:
    """Return a context with a storage; every network embeds pictures as their mean colour."""
    settings = Settings(data_dir=tmp_path, storage=StorageSettings(min_free_bytes=1))
    triton = ScriptedTriton({used.id: mean_colour}, used)
    return Context(settings, triton, store=Store(settings), tenant=tenant)


async def run(upload: Upload, place: Context, **given: Any) -> list[list[str] | None]:
    """Check and run; return each picture's labels, the nearest first."""
    checked = await Embed().check(EmbedParameters(**given), place)
    outcome = await Embed().run(checked, upload, place, unreported)
    return [
        row["predictions"] and [p["label"] for p in row["predictions"]]
        for row in outcome.document["data"]
    ]


async def test_kept_examples_label_later_pictures(tmp_path: Path) -> None:
    place = storing(tmp_path)
    upload = pictures("red", (200, 100, 0), (0, 0, 250))
    assert await run(upload, place, labels="warm,warm,cold", keep="tones") == [None] * 3
    later = pictures((90, 10, 0), (10, 0, 90))
    assert await run(later, place, examples="tones") == [["warm", "cold"], ["cold", "warm"]]
    (kept,) = await Examples(place.store, "me").all()
    assert (kept.name, kept.model, kept.dimensions) == ("tones", "encoder", 3)
    assert [(each.label, each.count) for each in kept.labels] == [("warm", 2), ("cold", 1)]
    np.testing.assert_allclose(kept.vectors()[1], [0, 0, 1], atol=1e-6)
    # The same name again: the new examples count.
    await run(pictures("lime"), place, labels="green", keep="tones")
    assert await run(pictures("blue"), place, examples="tones") == [["green"]]
    await Examples(place.store, "me").delete("tones")
    assert await Examples(place.store, "me").all() == []


async def test_kept_examples_are_one_tenant_s_and_one_model_s(tmp_path: Path) -> None:
    place = storing(tmp_path)
    await run(pictures("red"), place, labels="warm", keep="tones")
    with pytest.raises(ExamplesNotFound, match="'tones'"):
        await run(pictures("red"), storing(tmp_path, tenant="you"), examples="tones")
    with pytest.raises(ExamplesNotFound):
        await Examples(place.store, "you").delete("tones")
    trained = ENCODER.model_copy(update={"weights": WeightsRecord(kind="own", sha256=64 * "a")})
    with pytest.raises(InvalidParameter, match="vectors of its former weights"):
        await run(pictures("red"), storing(tmp_path, trained), examples="tones")
    other = ENCODER.model_copy(update={"id": "other"})
    with pytest.raises(InvalidParameter, match="vectors of model 'encoder'"):
        await run(pictures("red"), storing(tmp_path, other), examples="tones", model="other")


async def test_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    place = storing(tmp_path)
    with pytest.raises(InvalidParameter, match="no labels of examples to keep"):
        await run(pictures("red"), place, keep="tones")
    with pytest.raises(InvalidParameter, match="not both"):
        await run(pictures("red"), place, labels="warm", examples="tones")
    for name in ("../x", "Upper", "", "a" * 65):
        with pytest.raises(ValidationError):
            EmbedParameters(keep=name)
    sets = Examples(place.store, "me")
    await run(pictures("red"), place, labels="warm", keep="set-0")
    first = await sets.get("set-0")
    for number in range(1, MOST_SETS):
        await sets.keep(first.model_copy(update={"name": f"set-{number}"}))
    await run(pictures("red"), place, labels="warm", keep="set-0")
    with pytest.raises(Conflict, match=f"{MOST_SETS} sets of examples are kept"):
        await run(pictures("red"), place, labels="warm", keep="another")

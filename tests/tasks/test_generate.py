"""Pictures from prompts: settings, seeds, progress, files and an end that reaches Triton."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from service.errors import BadInput, InvalidParameter, ModelFailed
from service.tasks.contract import Progress, unreported
from service.tasks.generate.pipeline import GenerateImage, encode
from service.tasks.generate.schemas import Format, GeneratedImages, GenerateImageParameters
from service.triton.tensors import Array
from tests.tasks.scripted import PAINTER, ScriptedTriton, Watcher, context


async def paint(inputs: Mapping[str, Array]) -> AsyncIterator[dict[str, Array]]:
    """Paint a plain picture whose grey is the seed's last two digits."""
    assert inputs["PROMPT"].tolist() == ["a red circle"]
    assert inputs["GUIDANCE"].dtype == np.float32
    assert all(array.shape == (1,) for array in inputs.values())
    steps, seed = int(inputs["STEPS"][0]), int(inputs["SEED"][0])
    for step in range(1, steps + 1):
        await asyncio.sleep(0)
        yield {"PROGRESS": np.array([step, steps], np.float32)}
    size = int(inputs["HEIGHT"][0]), int(inputs["WIDTH"][0]), 3
    yield {"IMAGE": np.full(size, seed % 100, np.uint8)}


def painter(answer: Any = paint) -> ScriptedTriton:
    return ScriptedTriton({"painter": answer}, PAINTER)


def request(**parameters: Any) -> GenerateImageParameters:
    return GenerateImageParameters(prompt="a red circle", **parameters)


async def test_n_pictures_with_seeds_in_a_row() -> None:
    watcher = Watcher()
    outcome = await GenerateImage().run(
        request(seed=7, n=3, width=16, guidance=3), None, context(painter()), watcher
    )
    document = GeneratedImages.model_validate(outcome.document)
    assert document.seed == 7
    assert document.parameters == {
        "steps": 4,
        "guidance": 3,
        "width": 16,
        "height": 8,
        "n": 3,
        "format": "png",
    }
    assert [(i.name, i.seed, i.width, i.height) for i in document.images] == [
        ("image-0.png", 7, 16, 8),
        ("image-1.png", 8, 16, 8),
        ("image-2.png", 9, 16, 8),
    ]
    for place, attachment in enumerate(outcome.attachments):
        assert (attachment.name, attachment.content_type) == (f"image-{place}.png", "image/png")
        assert (np.asarray(Image.open(BytesIO(attachment.data))) == 7 + place).all()
    steps = [p.step for p in watcher.seen]
    assert steps == sorted(steps)
    assert watcher.seen[0] == Progress(1, 12, "denoising")
    assert watcher.seen[-2:] == [Progress(12, 12, "denoising"), Progress(12, 12, "encoding")]


async def test_a_png_tells_how_it_was_made() -> None:
    outcome = await GenerateImage().run(request(seed=5), None, context(painter()), unreported)
    text = Image.open(BytesIO(outcome.attachments[0].data)).text
    assert text["prompt"] == "a red circle"
    assert (text["model"], text["seed"], text["steps"]) == ("painter", "5", "4")
    assert text["Software"] == "Vitrine"


@pytest.mark.parametrize(("format", "named"), [("png", "PNG"), ("webp", "WEBP"), ("jpeg", "JPEG")])
async def test_formats(format: str, named: str) -> None:
    outcome = await GenerateImage().run(
        request(seed=50, format=format), None, context(painter()), unreported
    )
    (attachment,) = outcome.attachments
    image = Image.open(BytesIO(attachment.data))
    assert (image.format, attachment.content_type) == (named, f"image/{format}")
    assert np.abs(np.asarray(image).astype(int) - 50).max() <= 2


@pytest.mark.parametrize("format", ["webp", "jpeg"])
def test_other_formats_tell_it_in_exif(format: Format) -> None:
    pixels = np.full((8, 8, 3), 99, np.uint8)
    described = {"prompt": "ein grüner Kreis", "steps": 4, "seed": 7}
    exif = Image.open(BytesIO(encode(pixels, format, described))).getexif()
    assert exif[ExifTags.Base.Software] == "Vitrine"
    comment = exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    assert comment[:8] == b"ASCII\0\0\0"
    assert json.loads(comment[8:]) == {"Software": "Vitrine"} | described
    for prompt in ("x" * 64_900, "x" * 70_000):  # what EXIF just can hold, and what it cannot
        file = Image.open(BytesIO(encode(pixels, format, {"prompt": prompt})))
        assert file.getexif()[ExifTags.Base.Software] == "Vitrine"


async def test_a_seed_is_drawn_where_none_is_given_and_gives_the_picture_again() -> None:
    drawn = {}
    for _ in range(2):
        outcome = await GenerateImage().run(request(), None, context(painter()), unreported)
        drawn[outcome.document["seed"]] = outcome.attachments[0].data
    assert len(drawn) == 2
    for seed, data in drawn.items():
        again = await GenerateImage().run(request(seed=seed), None, context(painter()), unreported)
        assert again.attachments[0].data == data


async def test_the_last_seed_is_followed_by_the_first() -> None:
    outcome = await GenerateImage().run(
        request(seed=2**63 - 1, n=2), None, context(painter()), unreported
    )
    assert [image["seed"] for image in outcome.document["images"]] == [2**63 - 1, 0]


async def test_check_completes_the_settings_but_draws_no_seed() -> None:
    checked = await GenerateImage().check(request(steps=9), context(painter()))
    assert checked == request(model="painter", steps=9, guidance=5.0, width=8, height=8, n=1)


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"steps": 51}, "integers from 1 to 50"),
        ({"width": 12}, "one of 8, 16"),
        ({"n": 5}, "integers from 1 to 4"),
        ({"guidance": -1}, "numbers from 0 to 20"),
    ],
)
async def test_check_names_the_range(wrong: dict[str, Any], rule: str) -> None:
    with pytest.raises(InvalidParameter, match=rule):
        await GenerateImage().check(request(**wrong), context(painter()))


async def test_a_prompt_that_is_too_long() -> None:
    with pytest.raises(InvalidParameter, match="at most 40 characters; given were 41"):
        await GenerateImage().check(GenerateImageParameters(prompt="x" * 41), context(painter()))


async def test_one_failure_ends_the_other_pictures() -> None:
    async def second_fails(inputs: Mapping[str, Array]) -> AsyncIterator[dict[str, Array]]:
        if inputs["SEED"][0] == 1:
            raise BadInput("the prompt has too many tokens", code="invalid_input")
        while True:
            await asyncio.sleep(0)
            yield {"PROGRESS": np.array([1, 4], np.float32)}

    triton = painter(second_fails)
    with pytest.raises(BadInput, match="too many tokens"):
        await GenerateImage().run(request(seed=0, n=3), None, context(triton), unreported)
    assert triton.open_streams == 0


async def test_a_cancelled_report_closes_every_stream() -> None:
    triton = painter()

    async def stop(progress: Progress) -> None:
        if progress.step == 3:
            assert triton.open_streams == 3
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await GenerateImage().run(request(seed=0, n=3), None, context(triton), stop)
    assert triton.open_streams == 0


async def test_a_stream_without_a_picture_is_the_model_s_fault() -> None:
    async def empty(inputs: Mapping[str, Array]) -> AsyncIterator[dict[str, Array]]:
        yield {"PROGRESS": np.array([1, 1], np.float32)}

    with pytest.raises(ModelFailed, match="without a picture"):
        await GenerateImage().run(request(), None, context(painter(empty)), unreported)

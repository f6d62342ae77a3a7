"""Upscaling: what tiles become, what is kept of a picture, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from models.layers.upscaler import parameters
from service.errors import BadInput, InvalidParameter, ModelNotFound, PayloadTooLarge
from service.settings import LimitSettings
from service.tasks.contract import Outcome, Upload, unreported
from service.tasks.upscale.pipeline import Upscale, largest
from service.tasks.upscale.schemas import Upscaled, UpscaleParameters
from service.tasks.upscale.tiles import Mosaic, mirrored, overlapping, with_context
from service.triton.cards import Task
from service.triton.tensors import Array
from tests.tasks.scripted import CLASSIFIER, ScriptedTriton, Watcher, card, context

LARGER = card("larger", Task.SUPER_RESOLUTION, scale=2, parameters=parameters(8))
Network = Callable[[Array], Array]


def repeated(levels: Array) -> Array:
    return levels.repeat(2, -2).repeat(2, -1)


def blurred(levels: Array) -> Array:
    """Mean of 3 x 3 pixels, edges repeated: a network that sees one pixel far."""
    height, width = levels.shape[-2:]
    around = np.pad(levels, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    nine = [around[..., y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return repeated(np.mean(nine, axis=0))


class Larger(ScriptedTriton):
    """A model that makes pictures twice as large; counts how many tiles were under way at a time."""

    def __init__(self, network: Network = repeated) -> None:
        super().__init__({"larger": self._answer}, LARGER)
        self._network = network
        self.sizes: list[tuple[int, ...]] = []
        self.under_way = self.most_under_way = 0

    async def _answer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        assert inputs["IMAGE"].dtype == np.uint8
        self.sizes.append(inputs["IMAGE"].shape)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        levels = self._network(inputs["IMAGE"].astype(np.float32))
        answer = {"IMAGE": np.rint(levels.clip(0, 255)).astype(np.uint8)}
        return answer | ({"LEVELS": levels} if "UNROUNDED" in inputs else {})


def pixels(height: int, width: int) -> Array:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


def upload(picture: Image.Image | Array, format: str = "PNG", **options: object) -> Upload:
    file = BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(file, format, **options)
    return Upload(f"image/{format.lower()}", file.getvalue())


async def upscaled(
    given: Upload, triton: ScriptedTriton | None = None, report: object = unreported, **more: object
) -> Outcome:
    parameters = UpscaleParameters(**more)  # type: ignore[arg-type]
    return await Upscale().run(parameters, given, context(triton or Larger()), report)  # type: ignore[arg-type]


def opened(outcome: Outcome) -> Image.Image:
    (file,) = outcome.attachments
    return Image.open(BytesIO(file.data))


# Tiles


@pytest.mark.parametrize("tiling", ["context", "average"])
@pytest.mark.parametrize("size", [(50, 37), (16, 16), (3, 90), (1, 1)])
async def test_no_pixel_is_lost_or_moved_at_tile_borders(
    tiling: str, size: tuple[int, int]
) -> None:
    picture = pixels(*size)
    outcome = await upscaled(upload(picture), tiling=tiling, tile=16, overlap=8)
    expected = picture.repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(np.asarray(opened(outcome)), expected)


async def test_tiles_with_context_equal_the_whole_picture() -> None:
    picture, triton = pixels(70, 45), Larger(blurred)
    outcome = await upscaled(upload(picture), triton, tile=16, overlap=8)
    whole = blurred(picture.transpose(2, 0, 1)[None].astype(np.float32))[0]
    np.testing.assert_array_equal(opened(outcome), np.rint(whole).transpose(1, 2, 0))
    assert outcome.document["tiles"] == len(triton.sizes) == 15
    # A tile of 16 pixels with 8 on every side, fewer at the picture's edges.
    assert {size[2] for size in triton.sizes} == {24, 32, 30, 14}
    assert {size[3] for size in triton.sizes} == {24, 32, 21}


async def test_overlapping_tiles_are_averaged_before_they_are_rounded() -> None:
    """Bounded or rounded one by one, two tiles of these levels would have another mean."""
    levels = iter([250.4, 260.0])
    triton = Larger(lambda seen: repeated(seen * 0) + next(levels))
    outcome = await upscaled(upload(pixels(15, 23)), triton, tiling="average", tile=16, overlap=8)
    # 16 x 24 pixels with the mirror image: two tiles, of which 8 columns are common.
    assert triton.sizes == [(1, 3, 16, 16)] * 2
    row = np.asarray(opened(outcome))[0, :, 0].tolist()
    assert row == [250] * 16 + [255] * 16 + [255] * 14


def test_the_mirror_image_repeats_the_edge_and_adds_a_whole_window_where_none_lacks() -> None:
    planes = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
    assert mirrored(planes, 4)[0].tolist() == [
        [0, 1, 2, 2],
        [3, 4, 5, 5],
        [3, 4, 5, 5],
        [0, 1, 2, 2],
    ]
    assert mirrored(np.zeros((3, 8, 16), np.uint8), 8).shape == (3, 16, 24)


@settings(deadline=None)
@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    tile=st.sampled_from([8, 16, 24]),
    overlap=st.sampled_from([0, 3, 8, 16]),
    average=st.booleans(),
)
def test_tiles_of_any_cut_make_the_picture_whole(
    size: tuple[int, int], tile: int, overlap: int, average: bool
) -> None:
    overlap = min(overlap, tile - 1)
    planes = pixels(*size).transpose(2, 0, 1)
    seen = mirrored(planes, 8) if average else planes
    tiles = (overlapping if average else with_context)(*seen.shape[1:], tile, overlap)
    mosaic, rows = Mosaic(*size), []
    for part in tiles:
        kept = part.kept(part.cut(seen), 1)
        rows.append(mosaic.add(part.rows.first, part.columns.first, kept))
    np.testing.assert_array_equal(np.concatenate([*rows, mosaic.rest()], axis=1), planes)


async def test_progress_by_tiles_of_which_a_few_are_under_way() -> None:
    triton, watcher = Larger(), Watcher()
    await upscaled(upload(pixels(48, 48)), triton, watcher, tile=16, overlap=0)
    steps = [(p.step, p.steps) for p in watcher.seen if p.stage == "upscaling"]
    assert steps == [(0, 9), (4, 9), (8, 9), (9, 9)]
    assert watcher.seen[-1].stage == "encoding"
    assert triton.most_under_way == 4


async def test_a_refused_tile_ends_the_others() -> None:
    async def refused(inputs: Mapping[str, Array]) -> dict[str, Array]:
        raise BadInput("no")

    with pytest.raises(BadInput):
        await upscaled(upload(pixels(48, 48)), ScriptedTriton({"larger": refused}, LARGER), tile=16)


# What is kept


async def test_the_answer_tells_sizes_and_model() -> None:
    outcome = await upscaled(upload(pixels(6, 10)), format="webp")
    answer = Upscaled.model_validate(outcome.document)
    assert (answer.model, answer.scale, answer.format, answer.channels) == (
        *("larger", 2),
        *("webp", "RGB"),
    )
    assert (answer.size.width, answer.size.height) == (20, 12)
    assert (answer.image.width, answer.image.height) == (10, 6)
    assert outcome.headers == {
        "Image-Size": "20x12",
        "Source-Size": "10x6",
        "Model": "larger",
        "Model-Weights": "own",
    }
    assert outcome.attachments[0].content_type == "image/webp"
    assert opened(outcome).format == "WEBP"


async def test_grey_stays_grey_and_transparency_beside_the_colours() -> None:
    grey = Image.fromarray(pixels(6, 10)[..., 0])
    made = opened(await upscaled(upload(grey)))
    assert made.mode == "L"
    np.testing.assert_array_equal(made, np.asarray(grey).repeat(2, 0).repeat(2, 1))

    colour = pixels(6, 10)
    alpha = Image.linear_gradient("L").resize((10, 6))
    for kind, picture in (
        ("RGBA", Image.merge("RGBA", (*Image.fromarray(colour).split(), alpha))),
        ("LA", Image.merge("LA", (grey, alpha))),
    ):
        outcome = await upscaled(upload(picture))
        made = opened(outcome)
        assert made.mode == outcome.document["channels"] == kind
        larger = alpha.resize((20, 12), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(made.getchannel("A"), larger)
    # Also where nothing can be seen the colours are the picture's own.
    clear = Image.merge("RGBA", (*Image.fromarray(colour).split(), Image.new("L", (10, 6))))
    made = opened(await upscaled(upload(clear)))
    np.testing.assert_array_equal(np.asarray(made)[..., :3], colour.repeat(2, 0).repeat(2, 1))
    # JPEG has no transparency.
    made = opened(await upscaled(upload(clear), format="jpeg"))
    assert np.asarray(made).min() >= 254


async def test_orientation_is_applied_and_the_profile_kept() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    stored = pixels(6, 10)
    given = upload(stored, exif=exif, icc_profile=profile)
    for format in ("png", "webp", "jpeg"):
        outcome = await upscaled(given, format=format)
        made = opened(outcome)
        assert made.size == (12, 20)
        assert made.info["icc_profile"] == profile
        assert outcome.document["profile"]
        assert 0x0112 not in made.getexif()
    made = opened(await upscaled(given))
    np.testing.assert_array_equal(made, np.rot90(stored, -1).repeat(2, 0).repeat(2, 1))
    # One for other colours than the pixels' would be wrong.
    grey = upload(Image.fromarray(stored[..., 0]), "TIFF", icc_profile=profile)
    assert "icc_profile" not in opened(await upscaled(grey)).info


# What is refused


async def test_a_result_beyond_the_limit_names_the_largest_picture() -> None:
    triton, given = Larger(), upload(pixels(40, 80))
    small = context(triton, upscaled_pixels=5_000)
    with pytest.raises(PayloadTooLarge, match=r"160 x 80 = 12,800; .*5,000: .*50 x 25 is") as error:
        await Upscale().look(UpscaleParameters(), given, small)
    assert error.value.stable_code == "result_too_large"
    assert error.value.extra["limit"] == {
        "name": "upscaled_pixels",
        "pixels": 5_000,
        "width": 50,
        "height": 25,
    }
    with pytest.raises(PayloadTooLarge):
        await Upscale().run(UpscaleParameters(), given, small, unreported)
    assert triton.sizes == []


async def test_a_format_has_a_longest_side() -> None:
    strip = upload(Image.new("L", (9_000, 1)))
    with pytest.raises(PayloadTooLarge, match=r"WEBP have at most 16,383: .*8191 x 1 is"):
        await upscaled(strip, format="webp")
    assert opened(await upscaled(strip)).size == (18_000, 2)


@settings(deadline=None)
@given(
    size=st.tuples(st.integers(1, 3_000), st.integers(1, 3_000)),
    scale=st.sampled_from([2, 3, 4]),
    most=st.integers(16, 1_000_000),
)
def test_the_largest_picture_is_within_the_limit_and_has_the_shape(
    size: tuple[int, int], scale: int, most: int
) -> None:
    limits = LimitSettings(upscaled_pixels=most)
    width, height = largest(size, scale, "webp", limits)
    assert width * height * scale**2 <= most
    assert max(width, height) * scale <= 16_383
    assert width <= size[0]
    assert height <= size[1]
    if min(width, height) > 1:
        # Rounding costs less than a pixel of each side.
        assert abs(width * size[1] - height * size[0]) <= max(size)


async def test_large_pictures_are_work_for_a_job() -> None:
    limits = context(Larger(), upscaled_at_once_pixels=60)
    look = Upscale().look
    assert await look(UpscaleParameters(), upload(pixels(6, 10)), limits) is None
    reason = await look(UpscaleParameters(), upload(pixels(6, 11)), limits)
    assert "more than 60 pixels (limit upscaled_at_once_pixels)" in (reason or "")


async def test_settings_are_the_card_s() -> None:
    check = Upscale().check
    checked = await check(UpscaleParameters(), context(Larger()))
    assert (checked.model, checked.tiling, checked.tile, checked.overlap) == (
        *("larger", "context"),
        *(256, 32),
    )
    narrow = await check(UpscaleParameters(tile=24), context(Larger()))
    assert (narrow.tile, narrow.overlap) == (24, 8)
    for wrong, words in (
        ({"tile": 20}, "multiples of 8"),
        ({"tile": 1024}, "from 16 to 512"),
        ({"tile": 16, "overlap": 16}, "less than tile, which is 16"),
    ):
        with pytest.raises(InvalidParameter, match=words):
            await check(UpscaleParameters(**wrong), context(Larger()))
    with pytest.raises(ModelNotFound):
        await check(UpscaleParameters(), context(ScriptedTriton({}, CLASSIFIER)))
    with pytest.raises(BadInput):
        await upscaled(Upload("image/png", upload(pixels(6, 10)).read()[:60]))

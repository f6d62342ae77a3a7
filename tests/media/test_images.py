"""Pictures of every kind become upright RGB, and exactly the pixels that a card asks for."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data
from torchvision.transforms import InterpolationMode, v2

from service.errors import BadInput, PayloadTooLarge, UnsupportedMedia
from service.media.images import (
    FORMATS,
    centre,
    decode_image,
    shorter_side_size,
    to_model_input,
    upright_size,
)
from service.settings import LimitSettings
from service.triton.cards import ImageInput

LIMITS = LimitSettings()


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def decoded(data: bytes) -> np.ndarray:
    image = decode_image(data, LIMITS)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    return Image.fromarray(data.astronaut())


@pytest.mark.parametrize("format", FORMATS.values())
def test_every_format_is_decoded(photograph: Image.Image, format: str) -> None:
    small = photograph.resize((96, 64))
    assert decoded(encoded(small, format)).shape == (64, 96, 3)


def test_lossless_formats_keep_every_pixel(photograph: Image.Image) -> None:
    for format, options in (("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        assert np.array_equal(decoded(encoded(photograph, format, **options)), photograph)


# Kinds of pictures


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(format: str, orientation: int) -> None:
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :24], upright[:16, 24:], upright[16:, :24] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    # What a camera stores so that applying the orientation gives the upright picture.
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = (
        {"lossless": True} if format == "WEBP" else {"quality": 95} if format == "JPEG" else {}
    )
    file = encoded(Image.fromarray(np.ascontiguousarray(stored)), format, exif=exif, **options)
    assert upright_size(file, LIMITS) == (48, 32)
    got = decoded(file).astype(int)
    assert got.shape == upright.shape
    for y, x in ((6, 9), (6, 38), (26, 9), (26, 38)):
        assert np.abs(got[y, x] - upright[y, x]).max() < 12


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning:PIL.*")
def test_broken_exif_is_ignored(photograph: Image.Image) -> None:
    file = encoded(photograph.resize((40, 30)), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff junk")
    assert decoded(file).shape == (30, 40, 3)


def test_cmyk_jpeg_becomes_rgb() -> None:
    file = encoded(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG", quality=95)
    assert np.abs(decoded(file)[16, 16].astype(int) - (255, 0, 0)).max() < 6


def test_sixteen_bit_grey_keeps_the_high_byte() -> None:
    samples = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    got = decoded(encoded(Image.fromarray(samples), "PNG"))
    assert np.array_equal(got[..., 0], samples >> 8)
    assert np.array_equal(got[..., 0], got[..., 2])


def test_sixteen_bit_rgb_keeps_the_high_byte() -> None:
    samples = np.random.default_rng(0).integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    file = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in (
            (b"IHDR", struct.pack(">IIBBBBB", 7, 5, 16, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(rows)),
            (b"IEND", b""),
        )
    )
    assert np.array_equal(decoded(file), samples >> 8)


def test_thirty_two_bit_samples_are_refused() -> None:
    with pytest.raises(UnsupportedMedia, match="32-bit"):
        decode_image(encoded(Image.new("F", (8, 8), 0.5), "TIFF"), LIMITS)


def test_palette_and_bilevel_and_grey(photograph: Image.Image) -> None:
    palette = photograph.quantize(64)
    assert np.array_equal(decoded(encoded(palette, "PNG")), palette.convert("RGB"))
    grey = photograph.convert("L")
    assert np.array_equal(decoded(encoded(grey, "PNG")), grey.convert("RGB"))
    bilevel = photograph.convert("1")
    assert np.array_equal(decoded(encoded(bilevel, "PNG")), bilevel.convert("RGB"))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_over_white(mode: str) -> None:
    image = Image.new("RGBA", (4, 4), (200, 200, 200, 0))
    image.putpixel((1, 1), (10, 10, 10, 255))
    got = decoded(encoded(image.convert(mode), "PNG"))
    assert tuple(got[0, 0]) == (255, 255, 255)
    assert np.abs(got[1, 1].astype(int) - 10).max() <= 1


@pytest.mark.parametrize(("format", "options"), [("GIF", {}), ("WEBP", {"lossless": True})])
def test_the_first_frame_of_an_animation(format: str, options: dict[str, object]) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    file = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert tuple(decoded(file)[5, 5]) == (255, 0, 0)


def test_a_single_pixel() -> None:
    picture = decode_image(encoded(Image.new("RGB", (1, 1), "red"), "PNG"), LIMITS)
    for resize in ("squash", "shorter-side"):
        contract = ImageInput(height=8, width=8, resize=resize, interpolation="bicubic")
        assert (to_model_input(picture, contract) == np.array([255, 0, 0])[:, None, None]).all()


# What is refused


@pytest.mark.parametrize("format", FORMATS.values())
def test_a_truncated_picture_is_corrupt(photograph: Image.Image, format: str) -> None:
    file = encoded(photograph, format)
    with pytest.raises(BadInput) as caught:
        decode_image(file[: len(file) // 2], LIMITS)
    assert caught.value.stable_code == "corrupt_image"


@pytest.mark.parametrize("format", FORMATS.values())
def test_a_header_alone_is_corrupt(photograph: Image.Image, format: str) -> None:
    with pytest.raises(BadInput) as caught:
        decode_image(encoded(photograph, format)[:24], LIMITS)
    assert caught.value.stable_code == "corrupt_image"


@pytest.mark.parametrize("data", [b"", b"hello, world", b"%PDF-1.7 ...", b"\0" * 4096])
def test_what_is_no_picture_is_unsupported(data: bytes) -> None:
    with pytest.raises(UnsupportedMedia) as caught:
        decode_image(data, LIMITS)
    assert (caught.value.status, caught.value.stable_code) == (415, "unsupported_media")


def test_too_many_pixels_are_refused_by_the_header() -> None:
    # 20,000 x 20,000 zeros: a few kilobytes of header and compressed rows that nobody inflates.
    body = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part))
        for kind, part in ((b"IHDR", body), (b"IDAT", zlib.compress(bytes(100_000))))
    )
    with pytest.raises(PayloadTooLarge) as caught:
        decode_image(file, LIMITS)
    assert (caught.value.status, caught.value.stable_code) == (413, "too_many_pixels")
    assert caught.value.problem()["limit"] == {
        "name": "image_pixels",
        "pixels": LIMITS.image_pixels,
    }
    assert "64,000,000" in caught.value.message


@pytest.mark.filterwarnings("ignore::UserWarning:PIL.*")
@given(st.binary(max_size=300), st.sampled_from(list(FORMATS.values())), st.integers(0, 200))
@settings(max_examples=200, deadline=None)
def test_garbage_in_a_file_is_a_clear_refusal_or_a_picture(
    junk: bytes, format: str, at: int
) -> None:
    file = bytearray(encoded(Image.linear_gradient("L").convert("RGB").resize((40, 30)), format))
    file[at : at + len(junk)] = junk
    try:
        image = decode_image(bytes(file), LimitSettings(image_pixels=1_000_000))
    except (BadInput, UnsupportedMedia, PayloadTooLarge):
        return
    assert image.mode == "RGB"
    assert image.width * image.height <= 1_000_000


# The card's pixels

MODES = {
    "nearest": InterpolationMode.NEAREST,
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "lanczos": InterpolationMode.LANCZOS,
    "box": InterpolationMode.BOX,
    "hamming": InterpolationMode.HAMMING,
}


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "rocket"])
@pytest.mark.parametrize("interpolation", MODES)
def test_resize_and_crop_equal_torchvision(name: str, interpolation: str) -> None:
    picture = Image.fromarray(getattr(data, name)())
    for resize_to, size in ((256, 224), (232, 224), (224, 224), (96, 128), (64, 64)):
        contract = ImageInput(
            height=size,
            width=size,
            resize="shorter-side",
            resize_to=resize_to,
            interpolation=interpolation,
        )
        reference = v2.Compose([v2.Resize(resize_to, MODES[interpolation]), v2.CenterCrop(size)])
        expected = np.asarray(reference(picture)).transpose(2, 0, 1)
        assert np.array_equal(to_model_input(picture, contract), expected), (resize_to, size)


@pytest.mark.parametrize("interpolation", MODES)
def test_squash_equals_torchvision(photograph: Image.Image, interpolation: str) -> None:
    contract = ImageInput(height=112, width=90, interpolation=interpolation)
    expected = v2.Resize((112, 90), MODES[interpolation])(photograph)
    got = to_model_input(photograph, contract)
    assert got.dtype == np.uint8
    assert got.flags.c_contiguous
    assert np.array_equal(got, np.asarray(expected).transpose(2, 0, 1))


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 120), st.integers(1, 120))
@settings(max_examples=150, deadline=None)
def test_any_size_gives_the_card_s_size_as_torchvision_does(
    width: int, height: int, resize_to: int, crop: int
) -> None:
    pixels = np.random.default_rng(width * 301 + height).integers(
        0, 256, (height, width, 3), np.uint8
    )
    picture = Image.fromarray(pixels)
    contract = ImageInput(height=crop, width=crop, resize="shorter-side", resize_to=resize_to)
    got = to_model_input(picture, contract)
    assert got.shape == (3, crop, crop)
    if max(shorter_side_size(width, height, resize_to)) <= 32 * max(crop, resize_to):
        reference = v2.Compose([v2.Resize(resize_to), v2.CenterCrop(crop)])
        assert np.array_equal(got, np.asarray(reference(picture)).transpose(2, 0, 1))


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_a_centred_window_has_equal_borders(size: int, crop: int) -> None:
    start = centre(size, crop)
    assert abs(start - (size - crop - start)) <= 1


def test_a_long_thin_picture_costs_only_its_middle() -> None:
    column = np.zeros((300_000, 1, 3), np.uint8)
    column[149_900:150_100] = 255
    contract = ImageInput(height=224, width=224, resize="shorter-side", resize_to=256)
    got = to_model_input(Image.fromarray(column), contract)
    assert got.shape == (3, 224, 224)
    assert (got == 255).all()


def test_grey_models_get_one_channel(photograph: Image.Image) -> None:
    got = to_model_input(photograph, ImageInput(height=32, width=32, colour="L"))
    assert got.shape == (1, 32, 32)


def test_a_picture_at_its_own_size_stays_within_the_card_s_sides(photograph: Image.Image) -> None:
    own = ImageInput(resize="none", min_side=16, max_side=512)
    assert np.array_equal(
        to_model_input(photograph, own), np.asarray(photograph).transpose(2, 0, 1)
    )
    with pytest.raises(BadInput, match="16 and more") as small:
        to_model_input(photograph.resize((15, 40)), own)
    assert small.value.stable_code == "image_too_small"
    with pytest.raises(PayloadTooLarge, match="512 and less"):
        to_model_input(photograph.resize((513, 40)), own)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 480), (1067, 800)),
        ((480, 640), (800, 1067)),
        ((2000, 500), (1333, 333)),
        ((1, 4000), (1, 1333)),
        ((1, 1), (800, 800)),
    ],
)
def test_a_picture_is_fitted_by_its_shorter_side_or_by_its_longer_one(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    contract = ImageInput(resize="fit", resize_to=800, max_side=1333)
    planes = to_model_input(Image.new("RGB", size, "red"), contract)
    assert planes.shape == (3, expected[1], expected[0])


def test_sides_are_filled_up_to_multiples(photograph: Image.Image) -> None:
    picture = photograph.crop((0, 0, 30, 17))
    contract = ImageInput(resize="none", multiple_of=16)
    got = to_model_input(picture, contract)
    assert got.shape == (3, 32, 32)
    assert got.flags.c_contiguous
    planes = np.asarray(picture).transpose(2, 0, 1)
    assert np.array_equal(got[:, :17, :30], planes)
    assert (got[:, :17, 30:] == planes[:, :, -1:]).all()
    assert (got[:, 17:] == got[:, 16:17]).all()
    assert to_model_input(photograph.crop((0, 0, 32, 16)), contract).shape == (3, 16, 32)

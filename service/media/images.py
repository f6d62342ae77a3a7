"""Pictures: from the bytes of a caller to the exact pixels that a model's card asks for.

The header is read before anything is decoded, so that a picture over the limit costs nothing.
Every format ends as upright 8-bit RGB: EXIF orientation applied, the first frame of an animation,
alpha over white, the high byte of 16-bit samples, CMYK converted.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from service.errors import BadInput, PayloadTooLarge, UnsupportedMedia
from service.media.budget import Budget, MeteredBytes
from service.media.jpeg import check_scans
from service.media.resampling import scaled_window
from service.media.room import Room
from service.media.sniff import HEAD_BYTES, sniff
from service.settings import LimitSettings
from service.triton.cards import ImageInput

# Beyond `Image.MAX_IMAGE_PIXELS` Pillow warns, and raises only beyond twice as many.
_BOMB = (Image.DecompressionBombWarning, Image.DecompressionBombError)
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)

# What Pillow finds odd in an upload is its sender's concern and nothing for the log.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

# Pillow's names of the formats that are taken.
FORMATS = {
    "image/jpeg": "JPEG",
    "image/png": "PNG",
    "image/webp": "WEBP",
    "image/gif": "GIF",
    "image/bmp": "BMP",
    "image/tiff": "TIFF",
    "image/avif": "AVIF",
}

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

_ROOM = Room()

# What the EXIF orientation asks for.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_LYING = (5, 6, 7, 8)

# A picture whose longer side would grow beyond this many times the crop is cut before it is resized.
_LONGEST_RESIZED = 32


def decode_image(data: bytes, limits: LimitSettings) -> Image.Image:
    """Return the picture in `data`, upright, in mode RGB.

    Raises UnsupportedMedia (`unsupported_media`: no picture, or a format not taken), BadInput
    (`corrupt_image`: truncated or broken), PayloadTooLarge (`too_many_pixels`; `too_complex`: takes
    too long to decode).
    """
    with loaded(data, limits) as (image, turn):
        rgb = to_rgb(image)
        return rgb if turn is None else rgb.transpose(turn)


def upright_size(data: bytes, limits: LimitSettings) -> tuple[int, int]:
    """Return width and height of the picture in `data` from its header. Raises as `decode_image`."""
    with _opened(data, limits) as (image, _):
        width, height = image.size
        # Of a TIFF that must be turned Pillow tells the upright size.
        lies = image.format != "TIFF" and _orientation(image) in _LYING
        return (height, width) if lies else (width, height)


@contextmanager
def loaded(
    data: bytes, limits: LimitSettings
) -> Iterator[tuple[Image.Image, Image.Transpose | None]]:
    """Decode the picture in `data` as it is, and tell what turns it upright; there is room for it in this block.

    Raises as `decode_image`, also for what the block raises.
    """
    with _opened(data, limits) as (image, budget), ExitStack() as held:
        with budget.paused():
            held.enter_context(_ROOM.hold(image.width * image.height, limits.decoding_pixels))
        image.load()
        # TIFF turns itself while loading and then no longer says that it must be turned.
        yield image, _TURNS.get(_orientation(image))


@contextmanager
def _opened(data: bytes, limits: LimitSettings) -> Iterator[tuple[Image.Image, Budget]]:
    """Read the header; errors of the block become the service's own."""
    name = _format(data)
    if name == "JPEG":
        check_scans(data)
    # Pillow makes room for the first frame of a GIF while it opens the file, so it must know the
    # limit itself. It is the process' own, as the settings are.
    Image.MAX_IMAGE_PIXELS = limits.image_pixels
    try:
        budget = Budget(limits.decode_seconds)
        image: Image.Image = Image.open(MeteredBytes(data, budget), formats=(name,))
        _check_size(image.size, limits.image_pixels)
        yield image, budget
    except (BadInput, PayloadTooLarge, UnsupportedMedia, MemoryError):
        raise
    except _BOMB as error:
        raise _too_many_pixels(
            f"a frame of the picture has more than {limits.image_pixels:,} pixels, the limit",
            limits.image_pixels,
        ) from error
    except Exception as error:  # Pillow's parsers raise whatever a broken file makes them hit.
        raise BadInput(
            f"the {name} picture is truncated or broken: {error}", code="corrupt_image"
        ) from error


def to_model_input(image: Image.Image, contract: ImageInput) -> NDArray[np.uint8]:
    """Return `image` as the card's pre-processing makes it: uint8 [channels, height, width].

    Sizes are rounded as torchvision's transforms round them, and Pillow resizes, so the pixels
    equal those of `Resize` and `CenterCrop` on a Pillow picture.
    A picture sent at its own size keeps its place at the top left where `multiple_of` makes it larger.
    Raises BadInput or PayloadTooLarge if the contract takes pictures at their own size and this
    one is outside [min_side, max_side].
    """
    if contract.colour == "L":
        image = image.convert("L")
    if contract.resize == "none":
        _check_sides(image.size, contract)
        return _filled_up(to_planes(image), contract.multiple_of)
    if contract.resize == "fit":
        return _resized(image, _fitted(image.size, contract), contract)
    if contract.height is None or contract.width is None:
        raise ValueError(f"resize {contract.resize!r} needs a height and a width")
    size = (contract.width, contract.height)
    if contract.resize == "squash":
        return _resized(image, size, contract)
    filter_ = _RESAMPLING[contract.interpolation]
    resize_to = contract.resize_to or min(size)
    return to_planes(_resized_and_cropped(image, resize_to, size, filter_))


def to_planes(image: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels of a picture in mode RGB or L as contiguous uint8 [channels, height, width]."""
    pixels = np.asarray(image, np.uint8)
    if pixels.ndim == 2:
        return pixels[None].copy()
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def shorter_side_size(width: int, height: int, resize_to: int) -> tuple[int, int]:
    """Return (width, height) with the shorter side at `resize_to`, the longer one truncated."""
    if width <= height:
        return resize_to, int(resize_to * height / width)
    return int(resize_to * width / height), resize_to


def _fitted(size: tuple[int, int], contract: ImageInput) -> tuple[int, int]:
    """Return (width, height) with the shorter side at `resize_to`, the longer one at `max_side` at most."""
    scale = (contract.resize_to or contract.max_side) / min(size)
    scale = min(scale, contract.max_side / max(size))
    width, height = (max(1, int(side * scale + 0.5)) for side in size)
    return width, height


def centre(size: int, crop: int) -> int:
    """Return where a centred window of `crop` pixels starts on a side of `size` (negative: padding)."""
    return round((size - crop) / 2) if size >= crop else -((crop - size) // 2)


def _resized(image: Image.Image, size: tuple[int, int], contract: ImageInput) -> NDArray[np.uint8]:
    if contract.interpolation == "linear":
        return scaled_window(np.atleast_3d(np.asarray(image, np.uint8)), size, (0, 0), size)
    return to_planes(image.resize(size, _RESAMPLING[contract.interpolation]))


def _filled_up(planes: NDArray[np.uint8], multiple_of: int) -> NDArray[np.uint8]:
    """Repeat the last column and row until both sides are multiples."""
    missing = [-side % multiple_of for side in planes.shape[1:]]
    if not any(missing):
        return planes
    return np.pad(planes, ((0, 0), (0, missing[0]), (0, missing[1])), mode="edge")


def _resized_and_cropped(
    image: Image.Image, resize_to: int, crop: tuple[int, int], filter_: Image.Resampling
) -> Image.Image:
    width, height = shorter_side_size(*image.size, resize_to)
    left, top = centre(width, crop[0]), centre(height, crop[1])
    if max(width, height) <= _LONGEST_RESIZED * max(*crop, resize_to):
        resized = image.resize((width, height), filter_)
        return resized.crop((left, top, left + crop[0], top + crop[1]))
    # A picture of 1 x 1,000,000 pixels must not become one of 256 x 256,000,000: resize only the
    # window that the crop keeps.
    across, down = image.width / width, image.height / height
    inner = (max(left, 0), max(top, 0), min(left + crop[0], width), min(top + crop[1], height))
    window = (inner[0] * across, inner[1] * down, inner[2] * across, inner[3] * down)
    part = image.resize((inner[2] - inner[0], inner[3] - inner[1]), filter_, box=window)
    whole = Image.new(image.mode, crop)
    whole.paste(part, (inner[0] - left, inner[1] - top))
    return whole


def _format(data: bytes) -> str:
    known = sniff(data[:HEAD_BYTES])
    if known is None or known[1] not in FORMATS:
        found = f"is {known[1]}" if known else "is no picture"
        raise UnsupportedMedia(
            f"the upload {found}; pictures are taken as {', '.join(FORMATS.values())}"
        )
    return FORMATS[known[1]]


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise _too_many_pixels(
            f"the picture has {width} x {height} = {width * height:,} pixels; "
            f"the limit is {max_pixels:,}",
            max_pixels,
        )
    if width < 1 or height < 1:
        raise BadInput("the picture has no pixels", code="corrupt_image")


def _too_many_pixels(message: str, most: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        message, code="too_many_pixels", limit={"name": "image_pixels", "pixels": most}
    )


def _check_sides(size: tuple[int, int], contract: ImageInput) -> None:
    if min(size) < contract.min_side:
        raise BadInput(
            f"the picture is {size[0]} x {size[1]} pixels; this model takes sides of "
            f"{contract.min_side} and more",
            code="image_too_small",
            limit={"name": "min_side", "pixels": contract.min_side},
        )
    if max(size) > contract.max_side:
        raise PayloadTooLarge(
            f"the picture is {size[0]} x {size[1]} pixels; this model takes sides of "
            f"{contract.max_side} and less",
            code="too_many_pixels",
            limit={"name": "max_side", "pixels": contract.max_side},
        )


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # A broken EXIF block is no reason to refuse the picture.
        return 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a decoded picture in mode RGB, transparency over white. Raises UnsupportedMedia."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise UnsupportedMedia(
            f"{image.format} pictures with 32-bit samples are not taken: there is no agreed white"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, (0, 0), image)
        return white
    return image.convert("RGB")

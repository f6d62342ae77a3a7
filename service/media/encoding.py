"""How pictures are written into files."""

from __future__ import annotations

from io import BytesIO
from typing import Any, Literal

from PIL import Image

Format = Literal["png", "webp", "jpeg"]

_OPTIONS: dict[Format, dict[str, Any]] = {
    "png": {"compress_level": 4},
    "webp": {"quality": 90},
    "jpeg": {"quality": 92, "subsampling": 0},
}

LONGEST_SIDE: dict[Format, int] = {"png": 2**31 - 1, "webp": 16_383, "jpeg": 65_500}
"""How many pixels a side may have; Pillow's limit for JPEG, the formats' own for the others."""


def encoded(picture: Image.Image, format: Format, **more: Any) -> bytes:
    """Return the picture as a file; `more` are options of Pillow's for what goes into it beside the pixels."""
    file = BytesIO()
    picture.save(file, format, **_OPTIONS[format], **more)
    return file.getvalue()

"""Drawing detections over their picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from service.media.instances import Instance
from service.media.masks import colour
from service.tasks.detect.schemas import Detection

# Drawings need not be larger than a screen.
_LONGEST_SIDE = 1024
# Share of a mask's colour over the picture.
_TINT = 0.4


def overlay(
    image: Image.Image,
    found: Sequence[Detection],
    mask_of: Callable[[int, tuple[int, int]], Instance | None],
) -> Image.Image:
    """Return `image`, its longer side 1024 pixels at most, with the objects' masks, boxes, labels and scores.

    `mask_of` gives the mask of an object by its number, in a picture of the size (width, height) that is drawn on;
    one after the other, since together those of many objects would fill the memory. The best objects come
    last, over the others.
    """
    scale = min(1.0, _LONGEST_SIDE / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    pixels = np.array(image.resize(size, Image.Resampling.BOX) if scale < 1 else image)
    for number in range(len(found) - 1, -1, -1):
        mask = mask_of(number, size)
        if mask is None:
            continue
        height, width = mask.pixels.shape
        part = pixels[mask.top : mask.top + height, mask.left : mask.left + width]
        tint = np.array(colour(found[number].index), np.float32)
        part[mask.pixels] = np.rint((1 - _TINT) * part[mask.pixels] + _TINT * tint)
    drawn = Image.fromarray(pixels)
    brush = ImageDraw.Draw(drawn)
    line = max(1, round(min(size) / 250))
    font = ImageFont.load_default(size=max(10, round(min(size) / 40)))
    for one in reversed(found):
        red, green, blue = (round(level) for level in colour(one.index))
        left, top, right, bottom = (
            edge * side for edge, side in zip(one.box_normalized, (*size, *size), strict=True)
        )
        # The last pixels are those inside of the edges.
        corner = (max(left, min(right, size[0] - 1)), max(top, min(bottom, size[1] - 1)))
        brush.rectangle((left, top, *corner), outline=(red, green, blue), width=line)
        text = f"{one.label} {one.score:.2f}"
        room = brush.textbbox((0, 0), text, font=font)[3] + line
        # Above the box, or inside it where there is no room.
        place = (left, top - room if top >= room else top)
        brush.rectangle(brush.textbbox(place, text, font=font), fill=(red, green, blue))
        is_dark = 0.299 * red + 0.587 * green + 0.114 * blue < 140
        brush.text(place, text, font=font, fill="white" if is_dark else "black")
    return drawn

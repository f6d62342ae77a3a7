"""Pictures of which all is kept: grey as grey, transparency beside the colours, and the colour profile."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from service.media.images import loaded, to_rgb
from service.settings import LimitSettings

_GREY = ("1", "L", "LA", "La")
# By mode: what the header of a profile, bytes 16 to 20, says of the colours that it is for.
_PROFILES = {"RGB": b"RGB ", "L": b"GRAY"}


@dataclass(frozen=True, slots=True)
class Layers:
    """An upright picture. `colour` is in mode RGB or L, `alpha` in mode L; `profile` is an ICC profile for `colour`."""

    colour: Image.Image
    alpha: Image.Image | None = None
    profile: bytes | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.colour.size

    def merged(self) -> Image.Image:
        """Return the layers as one picture, in mode RGB, L, RGBA or LA."""
        if self.alpha is None:
            return self.colour
        mode = "RGBA" if self.colour.mode == "RGB" else "LA"
        return Image.merge(mode, (*self.colour.split(), self.alpha))


def decode_layers(data: bytes, limits: LimitSettings) -> Layers:
    """Return the picture in `data`: the first frame, the high byte of 16-bit samples, CMYK as RGB.

    Colours of transparent pixels are kept as they are. A profile for other colours than those returned is left
    out. Raises as `decode_image`.
    """
    with loaded(data, limits) as (image, turn):
        grey = image.mode in _GREY or image.mode.startswith("I;16")
        profile = image.info.get("icc_profile")
        alpha: Image.Image | None = None
        if image.has_transparency_data and not image.mode.startswith("I;16"):
            image = image.convert("RGBA")
            alpha = image.getchannel("A")
            colour = image.convert("RGB")
        else:
            colour = to_rgb(image)
        if grey:
            colour = colour.convert("L")
        if turn is not None:
            colour = colour.transpose(turn)
            alpha = None if alpha is None else alpha.transpose(turn)
    fits = isinstance(profile, bytes) and profile[16:20] == _PROFILES[colour.mode]
    return Layers(colour, alpha, profile if fits else None)

"""The picture in an upload, and what of it the chosen model takes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.media.images import decode_image, to_model_input
from service.settings import LimitSettings
from service.tasks.contract import Upload
from service.triton.cards import Card, ImageInput


def decoded(
    upload: Upload, card: Card, limits: LimitSettings
) -> tuple[Image.Image, NDArray[np.uint8]]:
    """Read and decode `upload`; return the upright picture and the model's `uint8` planes [C, H, W].

    Blocks on the disk and the decoder, so it belongs into a thread. Raises as `decode_image` and `to_model_input`.
    """
    image = decode_image(upload.read(), limits)
    return image, to_model_input(image, card.image or ImageInput())

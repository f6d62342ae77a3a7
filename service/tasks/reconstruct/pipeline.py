"""Reconstruction: one picture in, of which parts are hidden from the network and predicted by it."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from math import log10
from time import perf_counter
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.errors import InvalidParameter
from service.media.threads import in_thread
from service.tasks.contract import Attachment, Context, Outcome, Pipeline, Report, Upload
from service.tasks.parameters import complete
from service.tasks.pictures import decoded
from service.tasks.reconstruct.schemas import Reconstruction, ReconstructParameters
from service.tasks.schemas import Size, origin
from service.triton.cards import Card, Task
from service.triton.tensors import Array

Pixels = NDArray[np.uint8]

# How the settings of a card become Triton's tensors.
_TENSORS: dict[str, type[np.generic]] = {"share": np.float32, "seed": np.int64}
# What is drawn in place of the hidden parts.
_GREY = 128


class Reconstruct(Pipeline[ReconstructParameters]):
    """Decode, the card's own pre-processing, one request to Triton, the pictures."""

    name: ClassVar[str] = "reconstruct"
    parameters = ReconstructParameters

    async def check(
        self, parameters: ReconstructParameters, context: Context
    ) -> ReconstructParameters:
        card = await context.triton.resolve(Task.RECONSTRUCTION, parameters.model)
        return parameters.model_copy(update={"model": card.id, **_settings(parameters, card)})

    async def run(
        self,
        parameters: ReconstructParameters,
        upload: Upload | None,
        context: Context,
        report: Report,
    ) -> Outcome:
        card = await context.triton.resolve(Task.RECONSTRUCTION, parameters.model)
        settings = _settings(parameters, card)
        if upload is None:
            raise InvalidParameter("a reconstruction needs a picture", code="missing_input")
        started = perf_counter()
        image, pixels = await in_thread(decoded, upload, card, context.settings.limits)
        read = perf_counter()
        context.timings.add("decode", read - started)
        inputs: dict[str, Array] = {"IMAGE": pixels[None]}
        for name, value in settings.items():
            inputs[name.upper()] = np.array([[value]], _TENSORS[name])
        answer = await context.triton.infer(card.id, inputs)
        inferred = perf_counter()
        context.timings.add("infer", inferred - read)
        hidden = answer["HIDDEN"][0].astype(bool)
        restored = answer["RESTORED"][0]
        files = await in_thread(_pictures, parameters.pictures, pixels, restored, hidden)
        context.timings.add("encode", perf_counter() - inferred)
        reconstruction = Reconstruction(
            **origin(card, context.timings),
            hidden=float(hidden.mean()),
            seed=settings.get("seed"),
            psnr=psnr(pixels[:, hidden], restored[:, hidden]),
            size=Size(width=pixels.shape[2], height=pixels.shape[1]),
            image=Size(width=image.width, height=image.height),
        )
        return Outcome(reconstruction.model_dump(), files)


def psnr(pixels: Pixels, predicted: Pixels) -> float | None:
    """Return the peak signal-to-noise ratio in dB of 8-bit values; None if there is no difference."""
    if not pixels.size:
        return None
    error = float(np.square(pixels.astype(np.float64) - predicted).mean())
    return 10 * log10(255**2 / error) if error else None


def _settings(parameters: ReconstructParameters, card: Card) -> Mapping[str, Any]:
    given = {name: getattr(parameters, name) for name in _TENSORS}
    return complete(card, given)


def _pictures(
    wanted: str, pixels: Pixels, restored: Pixels, hidden: NDArray[np.bool_]
) -> tuple[Attachment, ...]:
    seen = np.where(hidden, np.uint8(_GREY), pixels)
    return tuple(
        Attachment(f"{name}.png", "image/png", _png(drawn))
        for name, drawn in (("restored", restored), ("seen", seen))
        if wanted in ("both", name)
    )


def _png(planes: Pixels) -> bytes:
    file = BytesIO()
    Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0))).save(file, "png")
    return file.getvalue()

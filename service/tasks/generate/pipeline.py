"""Pictures from a prompt: one streamed request to Triton for each, side by side so that it batches them."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from time import perf_counter
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from service.errors import ModelFailed
from service.media.encoding import Format, encoded
from service.media.threads import in_thread
from service.tasks.concurrency import together
from service.tasks.contract import Attachment, Context, Outcome, Pipeline, Progress, Report, Upload
from service.tasks.generate.schemas import (
    GeneratedImage,
    GeneratedImages,
    GenerateImageParameters,
)
from service.tasks.parameters import complete
from service.tasks.schemas import origin
from service.triton.cards import Card, Task
from service.triton.client import Triton
from service.triton.tensors import Array

SEEDS = 2**63
_SOFTWARE = "Vitrine"

# A JPEG's EXIF is one segment of at most 65,533 bytes; the other fields need less than the rest.
_COMMENT_BYTES = 65_000

# How the settings of a card become Triton's tensors.
_TENSORS: dict[str, type[np.generic]] = {
    "steps": np.int32,
    "guidance": np.float32,
    "width": np.int32,
    "height": np.int32,
}


class GenerateImage(Pipeline[GenerateImageParameters]):
    """Check against the card, denoise with progress, encode."""

    name: ClassVar[str] = "generate-image"
    parameters = GenerateImageParameters
    takes_upload: ClassVar[bool] = False

    async def check(
        self, parameters: GenerateImageParameters, context: Context
    ) -> GenerateImageParameters:
        card = await context.triton.resolve(Task.TEXT_TO_IMAGE, parameters.model)
        settings = _settings(parameters, card)
        # The seed is drawn when the job runs: a request that is sent twice with one
        # Idempotency-Key must stay the same request.
        completed = {name: settings[name] for name in (*_TENSORS, "n") if name in card.parameters}
        return parameters.model_copy(update={"model": card.id, **completed})

    async def run(
        self,
        parameters: GenerateImageParameters,
        upload: Upload | None,
        context: Context,
        report: Report,
    ) -> Outcome:
        card = await context.triton.resolve(Task.TEXT_TO_IMAGE, parameters.model)
        settings = _settings(parameters, card)
        first = secrets.randbelow(SEEDS) if parameters.seed is None else parameters.seed
        seeds = [(first + i) % SEEDS for i in range(settings["n"])]
        started = perf_counter()
        progress = _Progress(report, [settings["steps"]] * len(seeds))
        pictures = await together(
            _generate(context.triton, card, parameters.prompt, settings, seed, progress.part(i))
            for i, seed in enumerate(seeds)
        )
        denoised = perf_counter()
        context.timings.add("infer", denoised - started)
        await progress.stage("encoding")
        described = {"prompt": parameters.prompt, "model": card.id, "weights": card.weights.kind}
        used = {name: settings[name] for name in _TENSORS}
        files = await together(
            in_thread(encode, pixels, parameters.format, described | used | {"seed": seed})
            for pixels, seed in zip(pictures, seeds, strict=True)
        )
        context.timings.add("encode", perf_counter() - denoised)
        kind = f"image/{parameters.format}"
        attachments = tuple(
            Attachment(f"image-{i}.{parameters.format}", kind, data) for i, data in enumerate(files)
        )
        result = GeneratedImages(
            **origin(card, context.timings),
            prompt=parameters.prompt,
            seed=first,
            parameters=used | {"n": len(seeds), "format": parameters.format},
            images=[
                GeneratedImage(
                    name=attachment.name,
                    content_type=kind,
                    seed=seed,
                    width=pixels.shape[1],
                    height=pixels.shape[0],
                )
                for attachment, seed, pixels in zip(attachments, seeds, pictures, strict=True)
            ],
        )
        return Outcome(result.model_dump(), attachments)


def encode(pixels: NDArray[np.uint8], format: Format, described: Mapping[str, Any]) -> bytes:
    """Return a picture [H, W, 3] as a file that carries `described`.

    A PNG has it as text chunks, the other formats as JSON in EXIF's UserComment; a JPEG whose
    description is longer than its EXIF can be (64 kB) goes without.
    """
    described = {"Software": _SOFTWARE} | dict(described)
    picture = Image.fromarray(pixels)
    if format == "png":
        return encoded(picture, format, pnginfo=_text_chunks(described))
    return encoded(picture, format, exif=_exif(described))


def _text_chunks(described: Mapping[str, Any]) -> PngInfo:
    info = PngInfo()
    for name, value in described.items():
        info.add_itxt(name, str(value))
    return info


def _exif(described: Mapping[str, Any]) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = _SOFTWARE
    comment = b"ASCII\0\0\0" + json.dumps(described).encode("ascii")
    if len(comment) <= _COMMENT_BYTES:
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    return exif


def _settings(parameters: GenerateImageParameters, card: Card) -> dict[str, Any]:
    """Return what the picture is made with: the caller's settings, else the card's defaults.

    Raises InvalidParameter as `complete` does, ModelFailed if the card leaves one open.
    """
    given = {name: getattr(parameters, name) for name in (*_TENSORS, "n")}
    for name in ("prompt", "seed"):
        if name in card.parameters:
            given[name] = getattr(parameters, name)
    settings = complete(card, given)
    missing = [name for name in _TENSORS if settings.get(name) is None]
    if missing:
        raise ModelFailed(f"the card of model {card.id!r} has no default for {', '.join(missing)}")
    return settings | {"n": settings.get("n") or 1}


async def _generate(
    triton: Triton,
    card: Card,
    prompt: str,
    settings: Mapping[str, Any],
    seed: int,
    report: Callable[[int, int], Awaitable[None]],
) -> NDArray[np.uint8]:
    """Return one picture [H, W, 3]. Whoever cancels this cancels the request in Triton."""
    inputs: dict[str, Array] = {
        "PROMPT": np.array([prompt], object),
        "SEED": np.array([seed], np.int64),
        **{name.upper(): np.array([settings[name]], kind) for name, kind in _TENSORS.items()},
    }
    responses = cast(AsyncGenerator[dict[str, Array], None], triton.stream(card.id, inputs))
    picture: NDArray[np.uint8] | None = None
    async with aclosing(responses):
        async for response in responses:
            if "PROGRESS" in response:
                step, steps = response["PROGRESS"]
                await report(int(step), int(steps))
            picture = response.get("IMAGE", picture)
    if picture is None:
        raise ModelFailed(f"model {card.id!r} ended without a picture")
    return picture


class _Progress:
    """The steps of several pictures as those of one task."""

    def __init__(self, report: Report, steps: list[int]) -> None:
        self._report = report
        self._done = [0] * len(steps)
        self._steps = steps
        self._order = asyncio.Lock()

    def part(self, number: int) -> Callable[[int, int], Awaitable[None]]:
        """Return what picture `number` calls with (step, steps)."""

        async def advance(step: int, steps: int) -> None:
            self._done[number], self._steps[number] = step, steps
            await self.stage("denoising")

        return advance

    async def stage(self, name: str) -> None:
        # One report at a time, so that the last one to arrive is the furthest.
        async with self._order:
            await self._report(Progress(sum(self._done), sum(self._steps), name))

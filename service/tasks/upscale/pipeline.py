"""Super-resolution: a picture in, the same several times larger out, computed tile by tile.

Tiles are cut here and not inside the model: each is a request of its own, which Triton batches with
those of other callers, so that nobody waits behind a whole large picture. Progress, cancelling and the
model's memory, which a tile bounds, follow by themselves.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from math import floor, sqrt
from time import perf_counter
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from service.errors import InvalidParameter, ModelFailed, PayloadTooLarge
from service.media.encoding import LONGEST_SIDE, Format, encoded
from service.media.images import to_planes, upright_size
from service.media.layers import Layers, decode_layers
from service.media.threads import in_thread
from service.settings import LimitSettings
from service.tasks.concurrency import together
from service.tasks.contract import Attachment, Context, Outcome, Pipeline, Progress, Report, Upload
from service.tasks.parameters import complete
from service.tasks.schemas import Size, origin
from service.tasks.upscale.schemas import Upscaled, UpscaleParameters
from service.tasks.upscale.tiles import (
    Cut,
    Mosaic,
    Pixels,
    Tile,
    mirrored,
    overlapping,
    rounded,
    with_context,
)
from service.triton.cards import Card, Task
from service.triton.tensors import Array

_SETTINGS = ("tiling", "tile", "overlap")
# How many tiles of one picture are asked for at a time, so that Triton has some to batch.
_AT_ONCE = 4


class Upscale(Pipeline[UpscaleParameters]):
    """Decode all layers, colours through the network in tiles, transparency by interpolation, encode."""

    name: ClassVar[str] = "upscale"
    parameters = UpscaleParameters
    answers_with_medium: ClassVar[bool] = True

    async def check(self, parameters: UpscaleParameters, context: Context) -> UpscaleParameters:
        card = await context.triton.resolve(Task.SUPER_RESOLUTION, parameters.model)
        return parameters.model_copy(update={"model": card.id, **_settings(parameters, card)})

    async def look(
        self, parameters: UpscaleParameters, upload: Upload | None, context: Context
    ) -> str | None:
        card = await context.triton.resolve(Task.SUPER_RESOLUTION, parameters.model)
        limits = context.settings.limits
        width, height = await in_thread(upright_size, _given(upload).read(), limits)
        _check_result((width, height), _scale(card), parameters.format, limits)
        if width * height <= limits.upscaled_at_once_pixels:
            return None
        return (
            f"pictures of more than {limits.upscaled_at_once_pixels:,} pixels "
            "(limit upscaled_at_once_pixels) are upscaled by a job"
        )

    async def run(
        self,
        parameters: UpscaleParameters,
        upload: Upload | None,
        context: Context,
        report: Report,
    ) -> Outcome:
        card = await context.triton.resolve(Task.SUPER_RESOLUTION, parameters.model)
        settings, scale = _settings(parameters, card), _scale(card)
        limits = context.settings.limits
        started = perf_counter()
        layers = await in_thread(decode_layers, _given(upload).read(), limits)
        _check_result(layers.size, scale, parameters.format, limits)
        planes, tiles = await in_thread(_tiled, layers, card, settings)
        decoded = perf_counter()
        context.timings.add("decode", decoded - started)
        width, height = layers.size
        made = np.empty((height * scale, width * scale, 3), np.uint8)
        unrounded = settings["tiling"] == "average"
        mosaic, row = Mosaic(*made.shape[:2]), 0
        async for tile, result in _results(context, card, planes, tiles, unrounded, report):
            row = await in_thread(_lay, mosaic, tile, result, scale, made, row)
        await in_thread(_finish, mosaic, made, row)
        inferred = perf_counter()
        context.timings.add("infer", inferred - decoded)
        await report(Progress(0, 0, "encoding"))
        picture, file = await in_thread(_encoded, made, layers, parameters.format)
        context.timings.add("encode", perf_counter() - inferred)
        upscaled = Upscaled(
            **origin(card, context.timings),
            scale=scale,
            size=Size(width=width * scale, height=height * scale),
            image=Size(width=width, height=height),
            format=parameters.format,
            channels=picture.mode,
            profile=layers.profile is not None,
            tiles=len(tiles),
            **settings,
        )
        kind = f"image/{parameters.format}"
        return Outcome(
            upscaled.model_dump(),
            (Attachment(f"upscaled.{parameters.format}", kind, file),),
            {
                "Image-Size": f"{width * scale}x{height * scale}",
                "Source-Size": f"{width}x{height}",
                "Model": card.id,
                "Model-Weights": card.weights.kind,
            },
        )


def largest(
    size: tuple[int, int], scale: int, format: Format, limits: LimitSettings
) -> tuple[int, int]:
    """Return the largest width and height of the shape of `size` whose result is within the limits."""
    most, side = limits.upscaled_pixels // scale**2, LONGEST_SIDE[format] // scale
    long, short = max(size), min(size)
    factor = min(1.0, sqrt(most / (long * short)), side / long)
    narrow = max(1, floor(short * factor))
    length = min(side, most // narrow, max(1, floor(long * factor)))
    return (length, narrow) if size[0] >= size[1] else (narrow, length)


def _check_result(size: tuple[int, int], scale: int, format: Format, limits: LimitSettings) -> None:
    """Raises PayloadTooLarge (`result_too_large`) that says how large a picture of this shape may be."""
    width, height = size[0] * scale, size[1] * scale
    longest = LONGEST_SIDE[format]
    if width * height <= limits.upscaled_pixels and max(width, height) <= longest:
        return
    if max(width, height) > longest:
        limit = {"name": f"side of {format}", "pixels": longest}
        broken = f"sides of {format.upper()} have at most {longest:,}"
    else:
        limit = {"name": "upscaled_pixels", "pixels": limits.upscaled_pixels}
        broken = f"the limit upscaled_pixels is {limits.upscaled_pixels:,}"
    allowed = largest(size, scale, format, limits)
    raise PayloadTooLarge(
        f"a picture of {size[0]} x {size[1]} pixels becomes one of {width} x {height} = "
        f"{width * height:,}; {broken}: of this shape, {allowed[0]} x {allowed[1]} is the largest to send",
        code="result_too_large",
        limit=limit | {"width": allowed[0], "height": allowed[1]},
    )


def _given(upload: Upload | None) -> Upload:
    if upload is None:
        raise InvalidParameter("an upscaled picture needs a picture", code="missing_input")
    return upload


def _scale(card: Card) -> int:
    if card.scale is None:
        raise ModelFailed(f"the card of model {card.id!r} does not tell its scale")
    return card.scale


def _settings(parameters: UpscaleParameters, card: Card) -> dict[str, Any]:
    settings = complete(card, {name: getattr(parameters, name) for name in _SETTINGS})
    missing = [name for name in _SETTINGS if settings.get(name) is None]
    if missing:
        raise ModelFailed(f"the card of model {card.id!r} has no default for {', '.join(missing)}")
    if parameters.overlap is None:
        # The default is meant for tiles of the default size.
        step = card.parameters["overlap"].multiple_of or 1
        settings["overlap"] = min(settings["overlap"], settings["tile"] // 2 // step * step)
    if settings["overlap"] >= settings["tile"]:
        raise InvalidParameter(
            f"overlap = {settings['overlap']}: it must be less than tile, which is {settings['tile']}",
            param="overlap",
        )
    return {name: settings[name] for name in _SETTINGS}


def _tiled(layers: Layers, card: Card, settings: dict[str, Any]) -> tuple[Pixels, list[Tile]]:
    """Return the colours [3, H, W] as the tiles count their pixels, and the tiles."""
    planes = to_planes(layers.colour.convert("RGB"))
    average = settings["tiling"] == "average"
    if average:
        planes = mirrored(planes, card.parameters["tile"].multiple_of or 1)
    _, height, width = planes.shape
    cut: Cut = overlapping if average else with_context
    return planes, cut(height, width, settings["tile"], settings["overlap"])


async def _results(
    context: Context,
    card: Card,
    planes: Pixels,
    tiles: list[Tile],
    unrounded: bool,
    report: Report,
) -> AsyncIterator[tuple[Tile, Array]]:
    """Yield the model's results [3, sh, sw] in the order of the tiles, a few of which are under way at a time."""
    name = "LEVELS" if unrounded else "IMAGE"

    async def result(tile: Tile) -> Array:
        inputs: dict[str, Array] = {"IMAGE": tile.cut(planes)[None]}
        if unrounded:
            inputs["UNROUNDED"] = np.ones((1, 1), np.int32)
        answer = await context.triton.infer(card.id, inputs)
        found: Array = answer[name][0]
        return found

    await report(Progress(0, len(tiles), "upscaling"))
    for start in range(0, len(tiles), _AT_ONCE):
        some = tiles[start : start + _AT_ONCE]
        for tile, made in zip(some, await together(map(result, some)), strict=True):
            yield tile, made
        await report(Progress(start + len(some), len(tiles), "upscaling"))


def _lay(mosaic: Mosaic, tile: Tile, result: Array, scale: int, made: Pixels, row: int) -> int:
    """Lay a tile's result, and copy the rows that it finishes from `row` on; return the next row."""
    kept = tile.kept(result, scale)
    finished = mosaic.add(tile.rows.first * scale, tile.columns.first * scale, kept)
    made[row : row + finished.shape[1]] = rounded(finished)
    return row + finished.shape[1]


def _finish(mosaic: Mosaic, made: Pixels, row: int) -> None:
    made[row:] = rounded(mosaic.rest())


def _encoded(made: Pixels, layers: Layers, format: Format) -> tuple[Image.Image, bytes]:
    colour = Image.fromarray(made).convert(layers.colour.mode)
    alpha = layers.alpha
    if alpha is not None:
        alpha = alpha.resize(colour.size, Image.Resampling.BICUBIC)
    picture = Layers(colour, alpha).merged()
    if format == "jpeg" and alpha is not None:
        picture = Image.new(colour.mode, colour.size, "white")
        picture.paste(colour, (0, 0), alpha)
    more = {} if layers.profile is None else {"icc_profile": layers.profile}
    return picture, encoded(picture, format, **more)

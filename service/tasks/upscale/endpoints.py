"""`POST /v1/upscale`."""

from __future__ import annotations

from typing import Any, get_args

from fastapi import APIRouter, Request, Response

from service.auth.access import INFER
from service.http.dispatch import dispatch
from service.http.inputs import Kind
from service.http.openapi import problems, request_body
from service.jobs.schemas import AS_JOB
from service.media.encoding import Format
from service.tasks.upscale.pipeline import Upscale
from service.tasks.upscale.schemas import Upscaled, UpscaleParameters

_KINDS: tuple[Kind, ...] = ("image",)
_HEADERS = {
    "Image-Size": ("Width and height of the picture that was made.", "1024x768"),
    "Source-Size": ("Width and height of the picture that was sent, upright.", "256x192"),
    "Model": ("Id of the model.", "drct-demo"),
    "Model-Weights": ("Where its weights come from; `demo`: not fit for real use.", "demo"),
}
_PICTURE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The picture; its document, with the picture in `files`, where `Accept` names "
        "`application/json`.",
        "content": {
            f"image/{format}": {"schema": {"type": "string", "format": "binary"}}
            for format in get_args(Format)
        },
        "headers": {
            name: {"description": about, "schema": {"type": "string"}, "example": example}
            for name, (about, example) in _HEADERS.items()
        },
    }
}

router = APIRouter(prefix="/v1", tags=["understand"], dependencies=[INFER])


@router.post(
    "/upscale",
    summary="Make a picture larger",
    response_model=Upscaled,
    responses=_PICTURE | AS_JOB | problems(400, 404, 409, 413, 415, 422, 429, 500, 503, 504, 507),
    openapi_extra=request_body(
        UpscaleParameters,
        kinds=_KINDS,
        example={"url": "https://example.org/photo.jpg", "format": "webp"},
    ),
)
async def upscale(request: Request) -> Response:
    """Return a picture several times larger, with the detail that a super-resolution network adds.

    The answer is the picture; headers tell sizes and model, `Server-Timing` the time. Greyscale stays greyscale,
    transparency and the colour profile are kept, and EXIF orientation is applied. Pictures of more pixels than
    the limit `upscaled_at_once_pixels` make a job, as `mode=async` does for any.
    """
    return await dispatch(request, Upscale(), kinds=_KINDS)

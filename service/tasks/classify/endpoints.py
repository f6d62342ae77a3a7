"""`POST /v1/classify`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from service.auth.access import INFER
from service.http.dispatch import dispatch
from service.http.openapi import problems, request_body
from service.jobs.schemas import AS_JOB
from service.media.sniff import HEAD_BYTES, sniff
from service.tasks.classify.pipeline import Classify
from service.tasks.classify.schemas import Classification, ClassifyParameters
from service.tasks.contract import Pipeline, Upload
from service.tasks.video_classification.pipeline import ClassifyVideo
from service.tasks.video_classification.schemas import (
    VideoClassification,
    VideoClassifyParameters,
)

router = APIRouter(prefix="/v1", tags=["understand"], dependencies=[INFER])


class _Parameters(VideoClassifyParameters, ClassifyParameters):
    """What may be set for a picture or for a video; the reference describes both together."""


@router.post(
    "/classify",
    summary="Label a picture or a video",
    response_model=Classification | VideoClassification,
    responses=AS_JOB | problems(400, 404, 409, 413, 415, 422, 429, 500, 503, 504, 507),
    openapi_extra=request_body(
        _Parameters,
        kinds=("image", "video"),
        example={"url": "https://example.org/photo.jpg", "top_k": 3},
    ),
)
async def classify(request: Request) -> Response:
    """Return the most probable labels of a picture, or of a video as a whole and over time.

    Takes JPEG, PNG, WebP, GIF, BMP, TIFF and AVIF: EXIF orientation is applied, of an animation the
    first frame is used, transparency is laid over white. The pixels are prepared exactly as in the
    model's paper. With `mode=async` the answer is a job.

    Of videos, clips of frames are looked at, drawn, cut and joined as in the model's paper; a long
    one is divided into windows, each with its own labels. Only the frames that are wanted are decoded.
    """
    return await dispatch(request, _by_medium, kinds=("image", "video"))


def _by_medium(upload: Upload | None) -> Pipeline[Any]:
    """Pictures and videos are classified by models of different tasks; the first bytes tell them apart."""
    known = sniff(upload.head(HEAD_BYTES)) if upload is not None else None
    return ClassifyVideo() if known is not None and known[0] == "video" else Classify()

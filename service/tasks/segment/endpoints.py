"""`POST /v1/segment`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.auth.access import INFER
from service.http.dispatch import dispatch
from service.http.inputs import Kind
from service.http.openapi import problems, request_body
from service.jobs.schemas import AS_JOB
from service.tasks.segment.pipeline import SegmentPicture
from service.tasks.segment.schemas import SegmentationAnswer, SegmentParameters

_KINDS: tuple[Kind, ...] = ("image",)

router = APIRouter(prefix="/v1", tags=["understand"], dependencies=[INFER])


@router.post(
    "/segment",
    summary="Divide a picture into segments",
    response_model=SegmentationAnswer,
    responses=AS_JOB | problems(400, 404, 409, 413, 415, 422, 429, 500, 503, 504, 507),
    openapi_extra=request_body(
        SegmentParameters,
        kinds=_KINDS,
        example={"url": "https://example.org/photo.jpg", "format": "rle", "overlay": True},
    ),
)
async def segment(request: Request) -> Response:
    """Return what a picture consists of: classes, objects, or the pixels of one kind of thing.

    Masks have the picture's own size and come as a PNG, as COCO's run lengths, as polygons, or in COCO's
    panoptic form. With `mode=async` the answer is a job.
    """
    return await dispatch(request, SegmentPicture(), kinds=_KINDS)

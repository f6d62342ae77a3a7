"""`POST /v1/detect`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.auth.access import INFER
from service.http.dispatch import dispatch
from service.http.inputs import Kind
from service.http.openapi import problems, request_body
from service.jobs.schemas import AS_JOB
from service.tasks.detect.pipeline import Detect
from service.tasks.detect.schemas import CocoDetections, Detections, DetectParameters

_KINDS: tuple[Kind, ...] = ("image",)

router = APIRouter(prefix="/v1", tags=["understand"], dependencies=[INFER])


@router.post(
    "/detect",
    summary="Find the objects in a picture",
    response_model=Detections | CocoDetections,
    responses=AS_JOB | problems(400, 404, 409, 413, 415, 422, 429, 500, 503, 504, 507),
    openapi_extra=request_body(
        DetectParameters,
        kinds=_KINDS,
        example={"url": "https://example.org/photo.jpg", "threshold": 0.5, "classes": ["dog"]},
    ),
)
async def detect(request: Request) -> Response:
    """Return the objects in a picture: boxes, labels, scores and, of models that draw them, masks.

    A picture without any is answered with an empty list. With `mode=async` the answer is a job.
    """
    return await dispatch(request, Detect(), kinds=_KINDS)

"""`POST /v1/classify`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.auth.access import INFER
from service.http.dispatch import dispatch
from service.http.openapi import problems, request_body
from service.jobs.schemas import AS_JOB
from service.tasks.classify.pipeline import Classify
from service.tasks.classify.schemas import Classification, ClassifyParameters

router = APIRouter(prefix="/v1", tags=["understand"], dependencies=[INFER])


@router.post(
    "/classify",
    summary="Label a picture",
    response_model=Classification,
    responses=AS_JOB | problems(400, 404, 409, 413, 415, 422, 429, 500, 503, 504, 507),
    openapi_extra=request_body(
        ClassifyParameters,
        kinds=("image", "video"),
        example={"url": "https://example.org/photo.jpg", "top_k": 3},
    ),
)
async def classify(request: Request) -> Response:
    """Return the most probable labels of a picture.

    Takes JPEG, PNG, WebP, GIF, BMP, TIFF and AVIF: EXIF orientation is applied, of an animation the
    first frame is used, transparency is laid over white. The pixels are prepared exactly as in the
    model's paper. With `mode=async` the answer is a job.
    """
    return await dispatch(request, Classify(), kinds=("image", "video"))

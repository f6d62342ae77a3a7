"""`POST /v1/deepfake`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.auth.access import INFER
from service.http.dispatch import dispatch
from service.http.openapi import problems, request_body
from service.jobs.schemas import AS_JOB
from service.tasks.deepfake.pipeline import DetectDeepfake
from service.tasks.deepfake.schemas import Deepfake, DeepfakeParameters

router = APIRouter(prefix="/v1", tags=["understand"], dependencies=[INFER])


@router.post(
    "/deepfake",
    summary="Tell whether faces in a video or picture were manipulated",
    response_model=Deepfake,
    responses=AS_JOB | problems(400, 404, 409, 413, 415, 422, 429, 500, 503, 504, 507),
    openapi_extra=request_body(
        DeepfakeParameters,
        kinds=("image", "video"),
        example={"url": "https://example.org/interview.mp4", "frames": 30},
    ),
)
async def deepfake(request: Request) -> Response:
    """Return a verdict with its evidence: people, timeline, segments and doubts.

    Frames are taken evenly from the first to the last, their faces found and scored one by one.
    A clip without a face is `not_applicable`, never `fake`. Long videos are better sent with
    `mode=async`: the answer is then a job that reports its progress frame by frame.
    """
    return await dispatch(request, DetectDeepfake(), kinds=("image", "video"))

"""`POST /v1/generate/image`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.auth.access import INFER
from service.http.dispatch import dispatch
from service.http.openapi import problems, request_body
from service.jobs.schemas import WAITED_FOR, JobView
from service.tasks.generate.pipeline import GenerateImage
from service.tasks.generate.schemas import GenerateImageParameters

router = APIRouter(prefix="/v1/generate", tags=["generate"], dependencies=[INFER])


@router.post(
    "/image",
    summary="Make pictures from a prompt",
    status_code=202,
    response_model=JobView,
    responses=WAITED_FOR | problems(400, 404, 409, 413, 415, 422, 429, 500, 503, 507),
    openapi_extra=request_body(
        GenerateImageParameters,
        example={"prompt": "a red circle left of a blue square", "seed": 7, "n": 2},
        always_job=True,
    ),
)
async def generate_image(request: Request) -> Response:
    """Start a job that makes `n` pictures.

    The answer is the job; follow `GET /v1/jobs/{id}/events` for its steps and fetch
    `GET /v1/jobs/{id}/result`. With `Prefer: wait=N` the answer waits up to N seconds for the job.
    `DELETE /v1/jobs/{id}` stops it before the next denoising step. The result tells the seed, and
    the same prompt, seed and settings give the same picture.
    """
    return await dispatch(request, GenerateImage(), always_job=True)

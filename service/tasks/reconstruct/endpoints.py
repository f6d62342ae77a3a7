"""`POST /v1/reconstruct`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.auth.access import INFER
from service.http.dispatch import dispatch
from service.http.inputs import Kind
from service.http.openapi import problems, request_body
from service.jobs.schemas import AS_JOB
from service.tasks.reconstruct.pipeline import Reconstruct
from service.tasks.reconstruct.schemas import Reconstruction, ReconstructParameters

_KINDS: tuple[Kind, ...] = ("image",)

router = APIRouter(prefix="/v1", tags=["understand"], dependencies=[INFER])


@router.post(
    "/reconstruct",
    summary="Complete a picture of which parts are hidden",
    response_model=Reconstruction,
    responses=AS_JOB | problems(400, 404, 409, 413, 415, 422, 429, 500, 503, 504, 507),
    openapi_extra=request_body(
        ReconstructParameters,
        kinds=_KINDS,
        example={"url": "https://example.org/photo.jpg", "share": 0.5, "pictures": "restored"},
    ),
)
async def reconstruct(request: Request) -> Response:
    """Hide parts of a picture from a self-supervised model and return what it predicts there.

    Which parts depends on the seed, how much on the share. With `mode=async` the answer is a job.
    """
    return await dispatch(request, Reconstruct(), kinds=_KINDS)

"""`POST /v1/explain`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.auth.access import INFER
from service.http.dispatch import dispatch
from service.http.inputs import Kind
from service.http.openapi import problems, request_body
from service.jobs.schemas import AS_JOB
from service.tasks.explain.pipeline import Explain
from service.tasks.explain.schemas import ExplainParameters, Explanation

_KINDS: tuple[Kind, ...] = ("image",)

router = APIRouter(prefix="/v1", tags=["understand"], dependencies=[INFER])


@router.post(
    "/explain",
    summary="Show what a classifier went by",
    response_model=Explanation,
    responses=AS_JOB | problems(400, 404, 409, 413, 415, 422, 429, 500, 503, 504, 507),
    openapi_extra=request_body(
        ExplainParameters,
        kinds=_KINDS,
        example={"url": "https://example.org/photo.jpg", "drawings": "overlay"},
    ),
)
async def explain(request: Request) -> Response:
    """Return where in a picture the evidence for a class lies: as numbers, in grey, and over the picture.

    Models made to explain (`GET /v1/models?task=explanation`) do it by their own method, any
    classification model by its gradients; the answer names the method. With `mode=async` the answer
    is a job.
    """
    return await dispatch(request, Explain(), kinds=_KINDS)

"""`POST /v1/embed`."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.auth.access import INFER
from service.http.dispatch import dispatch
from service.http.inputs import Kind
from service.http.openapi import problems, request_body
from service.jobs.schemas import AS_JOB
from service.tasks.embed.pipeline import Embed
from service.tasks.embed.schemas import MOST_PICTURES, Embeddings, EmbedParameters

_KINDS: tuple[Kind, ...] = ("image",)

router = APIRouter(prefix="/v1", tags=["understand"], dependencies=[INFER])


@router.post(
    "/embed",
    summary="Turn pictures into vectors",
    response_model=Embeddings,
    responses=AS_JOB | problems(400, 404, 409, 413, 415, 422, 429, 500, 503, 504, 507),
    openapi_extra=request_body(
        EmbedParameters,
        kinds=_KINDS,
        most=MOST_PICTURES,
        example={"input": ["https://example.org/a.jpg", "https://example.org/b.jpg"]},
    ),
)
async def embed(request: Request) -> Response:
    """Return one vector for each picture, and on request the map of features that lies behind it.

    Up to 64 pictures go in one call: a form's parts named `file`, or a list in `input`. Models of
    frames take several pictures for one vector, the oldest first. With `labels` some of the pictures
    are examples: each of the others gets the labels by its cosine similarity to the examples' means.
    """
    return await dispatch(request, Embed(), kinds=_KINDS, most=MOST_PICTURES)

"""The examples that a caller keeps for `POST /v1/embed`: list, look at, delete."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel

from service.auth.access import INFER, CallerDep
from service.deps import GatewayDep
from service.http.openapi import problems
from service.tasks.embed.examples import Examples, ExampleSet, ExamplesName

router = APIRouter(prefix="/v1/examples", tags=["understand"], dependencies=[INFER])

Name = Annotated[ExamplesName, Path(description="The name that they were kept under.")]


class ExampleSets(BaseModel):
    """All sets of the caller, by name."""

    data: list[ExampleSet]


@router.get("", summary="List kept examples", response_model=ExampleSets, responses=problems(503))
async def list_examples(gateway: GatewayDep, caller: CallerDep) -> ExampleSets:
    """List the examples that `POST /v1/embed` kept by `keep`."""
    return ExampleSets(data=await Examples(gateway.store, caller.tenant).all())


@router.get(
    "/{name}",
    summary="Get kept examples",
    response_model=ExampleSet,
    responses=problems(404, 422, 503),
)
async def get_examples(gateway: GatewayDep, caller: CallerDep, name: Name) -> ExampleSet:
    """Get one set: its labels, how many examples each has, and the directions that stand for them."""
    return await Examples(gateway.store, caller.tenant).get(name)


@router.delete(
    "/{name}",
    summary="Delete kept examples",
    status_code=204,
    response_class=Response,
    responses=problems(404, 422, 503),
)
async def delete_examples(gateway: GatewayDep, caller: CallerDep, name: Name) -> None:
    """Delete one set. Pictures that it labelled keep their answers."""
    await Examples(gateway.store, caller.tenant).delete(name)

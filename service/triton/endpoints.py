"""The models that Triton serves, in the shape of OpenAI's list with the cards' fields beside it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal, Self

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from service.auth.access import ADMIN, ANY_KEY
from service.deps import Gateway, GatewayDep
from service.errors import ModelNotFound
from service.http.openapi import problems
from service.triton.cards import Card, Task
from service.triton.client import ModelState

router = APIRouter(prefix="/v1/models", tags=["models"])

ModelId = Annotated[str, Path(description="The model's id, as in the list.", max_length=128)]


class ModelView(BaseModel):
    """A model: OpenAI's fields, its state, and its card (paper, licence, inputs, metrics…)."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Unix seconds: the first day of the paper's year.")
    owned_by: str = Field(description="Whose weights: `official`, `own`, `demo` or `random`.")
    state: str = Field(description="`ready`, `loading`, `unloaded` or `failed`.")
    reason: str = Field(description="Why it failed; empty otherwise.")
    warning: str | None = Field(description="What to know before trusting its answers.")
    label_count: int

    @classmethod
    def of(cls, model: ModelState, *, labels: bool) -> Self:
        """Return the model as shown; a list leaves out `labels`, which may be 20,000."""
        card: Card = model.card
        fields = card.model_dump(mode="json", exclude=None if labels else {"labels"})
        return cls(
            **fields,
            created=round(datetime(card.paper.year, 1, 1, tzinfo=UTC).timestamp()),
            owned_by=card.weights.kind,
            state=model.state,
            reason=model.reason,
            warning=card.warning,
            label_count=len(card.labels),
        )


class ModelList(BaseModel):
    """All models (of a task)."""

    object: Literal["list"] = "list"
    data: list[ModelView]


@router.get(
    "",
    summary="List models",
    response_model=ModelList,
    responses=problems(422, 503),
    dependencies=[ANY_KEY],
)
async def list_models(
    gateway: GatewayDep,
    task: Annotated[Task | None, Query(description="Only models of this task.")] = None,
) -> ModelList:
    """List the models, loaded or not."""
    models = await gateway.triton.models(task)
    return ModelList(data=[ModelView.of(model, labels=False) for model in models])


@router.get(
    "/{model_id}",
    summary="Get a model",
    response_model=ModelView,
    responses=problems(404, 503),
    dependencies=[ANY_KEY],
)
async def get_model(gateway: GatewayDep, model_id: ModelId) -> ModelView:
    """Get one model with its whole card."""
    return ModelView.of(await _find(gateway, model_id), labels=True)


@router.post(
    "/{model_id}/load",
    summary="Load a model",
    response_model=ModelView,
    responses=problems(404, 503, 507),
    dependencies=[ADMIN],
)
async def load_model(gateway: GatewayDep, model_id: ModelId) -> ModelView:
    """Load a model now, or again from its entry, instead of on its first use."""
    await _find(gateway, model_id)
    await gateway.triton.load(model_id)
    return ModelView.of(await _find(gateway, model_id), labels=True)


@router.post(
    "/{model_id}/unload",
    summary="Unload a model",
    response_model=ModelView,
    responses=problems(404, 503),
    dependencies=[ADMIN],
)
async def unload_model(gateway: GatewayDep, model_id: ModelId) -> ModelView:
    """Unload a model. It is loaded again on its next use."""
    await _find(gateway, model_id)
    await gateway.triton.unload(model_id)
    return ModelView.of(await _find(gateway, model_id), labels=True)


async def _find(gateway: Gateway, model_id: str) -> ModelState:
    for model in await gateway.triton.models():
        if model.card.id == model_id:
            return model
    raise ModelNotFound(f"There is no model {model_id!r}; GET /v1/models lists them.")

"""What keeps the gateway from serving, part by part."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence

from pydantic import BaseModel, Field

from service.deps import Gateway
from service.errors import VitrineError
from service.triton.client import ModelState

_TIMEOUT_S = 1.5


class Readiness(BaseModel):
    """Whether requests should be sent here, and what is missing if not."""

    ready: bool
    triton: bool = Field(description="Triton answers.")
    redis: bool = Field(description="The job queue answers and takes writes.")
    models: dict[str, str] = Field(
        description="The state of the required models, or else of the default model of each task, "
        "where one that serves is enough a task."
    )
    missing: list[str] = Field(description="What is not ready, in words.")


async def readiness(gateway: Gateway) -> Readiness:
    """Look at Triton, the required models and Redis, all at once and never longer than 1.5 s."""
    (triton, models), redis = await asyncio.gather(_triton(gateway), _redis(gateway))
    missing: list[str] = []
    if not triton:
        missing.append("Triton does not answer")
    elif not models:
        missing.append("no model is known")
    missing += [
        f"the model {name} is {state}" for name, state in models.items() if state != "ready"
    ]
    if not redis:
        missing.append("Redis does not answer")
    if gateway.leaving.is_set():
        missing.append("this gateway is shutting down")
    return Readiness(ready=not missing, triton=triton, redis=redis, models=models, missing=missing)


async def _triton(gateway: Gateway) -> tuple[bool, dict[str, str]]:
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            if not await gateway.triton.ready():
                return False, {}
            models = await gateway.triton.models()
            required = gateway.settings.triton.required_models
            return True, _states(models, required) if required else _defaults(models)
    except (VitrineError, TimeoutError):
        return False, {}


def _states(models: list[ModelState], required: Sequence[str]) -> dict[str, str]:
    states = {model.card.id: model.state for model in models}
    return {name: states.get(name, "unknown") for name in required}


def _defaults(models: list[ModelState]) -> dict[str, str]:
    """Return the state of one default model a task: of a ready one where there is one."""
    by_task: dict[str, list[ModelState]] = defaultdict(list)
    for model in models:
        if model.card.default:
            by_task[model.card.task].append(model)
    chosen = (min(found, key=lambda model: model.state != "ready") for found in by_task.values())
    return {model.card.id: model.state for model in chosen}


async def _redis(gateway: Gateway) -> bool:
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            await gateway.queue.ping()
    except (VitrineError, TimeoutError):
        return False
    return True

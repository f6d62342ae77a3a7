"""What the answers of all tasks have in common."""

from __future__ import annotations

from math import isfinite
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from service.errors import ModelFailed
from service.tasks.contract import Timings
from service.triton.cards import Card


class Answer(BaseModel):
    """An answer says which model gave it and how far it can be trusted."""

    model_config = ConfigDict(frozen=True)

    model: str = Field(description="Id of the model that answered.")
    weights: Literal["official", "own", "demo", "random"] = Field(
        description="Where its weights come from: published by the paper's authors, brought by the "
        "operator, small demo weights, or none at all (random)."
    )
    warning: str | None = Field(
        description="Why the answer must not be relied on; null for weights fit for use."
    )
    timings: dict[str, float] = Field(
        description="Milliseconds by stage, e.g. `decode` and `infer`; stages may overlap.",
        examples=[{"decode": 4.1, "infer": 12.7}],
    )


def origin(card: Card, timings: Timings) -> dict[str, Any]:
    """Return the fields of `Answer` for an answer of the model with this card."""
    return {
        "model": card.id,
        "weights": card.weights.kind,
        "warning": card.warning,
        "timings": {stage: round(ms, 3) for stage, ms in timings.stages.items()},
    }


def probability(value: float | np.floating[Any], card: Card) -> float:
    """Return a model's score as a float in 0..1. Raises ModelFailed if it is not a number."""
    score = float(value)
    if not isfinite(score):
        raise ModelFailed(f"model {card.id!r} gave a score that is not a number")
    return min(max(score, 0.0), 1.0)


class Size(BaseModel):
    """Width and height in pixels, upright."""

    model_config = ConfigDict(frozen=True)

    width: int = Field(description="Pixels from left to right.")
    height: int = Field(description="Pixels from top to bottom.")

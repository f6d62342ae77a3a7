"""The gateway's and the worker's way to Triton: gRPC, asynchronous, cancellable.

Cards come from Triton only: `GetModelConfig` for the models that are loaded, the repository's
`catalogue` model (models/catalogue.py) for those that are not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from service.triton.cards import Card, Task
from service.triton.tensors import Array


@dataclass(frozen=True, slots=True)
class ModelState:
    """A model as the repository index shows it. `state`: ready, loading, unloaded, failed."""

    card: Card
    state: str
    reason: str = ""


class Triton(Protocol):
    """What pipelines may ask of Triton."""

    async def models(self, task: Task | None = None) -> list[ModelState]: ...

    async def resolve(self, task: Task, model: str | None) -> Card:
        """Return the card of `model`, or of the task's default. Loads it if it is not loaded.

        Raises ModelNotFound (unknown id, or a model of another task), TritonUnavailable.
        """
        ...

    async def load(self, model: str) -> None: ...

    async def unload(self, model: str) -> None: ...

    async def infer(self, model: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one request; arrays have the batch as first dimension. Raises BadInput, ModelFailed, TritonUnavailable."""
        ...

    def stream(self, model: str, inputs: Mapping[str, Array]) -> AsyncIterator[dict[str, Array]]:
        """Yield the responses of a streamed request (arrays without batch dimension); closing the iterator cancels it."""
        ...

    async def ready(self) -> bool: ...

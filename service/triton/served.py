"""What Triton serves: a short-lived snapshot of its models, their cards and states."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Coroutine
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from service.errors import ModelNotFound, TritonUnavailable, VitrineError
from service.triton.cards import CATALOGUE, Card, Task
from service.triton.client import ModelState
from service.triton.connection import Connection
from service.triton.tensors import request

# Weights that were brought on purpose outrank demo weights where a task has several defaults.
_RANK = {"own": 0, "official": 1, "demo": 2, "random": 3}


class Served:
    """The models behind `connection`; what is asked within `period_s` of a snapshot is answered by it."""

    def __init__(self, connection: Connection, period_s: float) -> None:
        self._connection = connection
        self._period_s = period_s
        self._snapshot: dict[str, ModelState] = {}
        # Whether the server has a model that lists the others and can be told things.
        self.has_catalogue = False
        self._starting = False
        self._taken_at = float("-inf")
        self._refreshing: asyncio.Task[None] | None = None
        self._quiet: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """End a refresh that is under way."""
        tasks = [task for task in (self._quiet, self._refreshing) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def __contains__(self, model: str) -> bool:
        return model in self._snapshot

    def get(self, model: str) -> ModelState | None:
        """Return what the latest snapshot says of `model`."""
        return self._snapshot.get(model)

    async def list(self, task: Task | None = None) -> list[ModelState]:
        """Return every model that has a card (of `task`), by id, as it is now. Raises TritonUnavailable."""
        await self.refresh()
        return [m for _, m in sorted(self._snapshot.items()) if task is None or m.card.task == task]

    async def find(self, task: Task, model: str | None) -> ModelState:
        """Return `model`, or the task's default.

        Raises ModelNotFound (unknown, of another task, or none for the task), TritonUnavailable (Triton
        is down or does not tell its models yet).
        """
        if time.monotonic() - self._taken_at > self._period_s:
            # A snapshot that is a little old still serves; only the first one is waited for.
            if self._snapshot:
                # The reference keeps the task from being collected.
                self._quiet = asyncio.ensure_future(self._quietly(self.refresh()))
            else:
                await self.refresh()
        found = self._known(task, model)
        if found is None:
            await self.refresh()
            found = self._known(task, model)
        if found is None:
            raise self._not_found(task, model)
        return found

    def expire(self) -> None:
        """Have the next question be answered by a new snapshot."""
        self._taken_at = float("-inf")

    async def refresh(self) -> None:
        """Take a new snapshot; callers at the same time share one. Raises TritonUnavailable."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.ensure_future(self._take_snapshot())
        await asyncio.shield(self._refreshing)

    async def _quietly(self, refresh: Coroutine[Any, Any, None]) -> None:
        try:
            await refresh
        except VitrineError:
            self.expire()

    def _known(self, task: Task, model: str | None) -> ModelState | None:
        if model is not None:
            found = self._snapshot.get(model)
            return found if found is not None and found.card.task == task else None
        candidates = [m for m in self._snapshot.values() if m.card.task == task]
        return min(
            candidates,
            key=lambda m: (
                not m.card.default,
                _RANK[m.card.weights.kind],
                m.state != "ready",
                m.card.id,
            ),
            default=None,
        )

    def _not_found(self, task: Task, model: str | None) -> VitrineError:
        if self._starting and model not in self._snapshot:
            return TritonUnavailable(
                "the inference server is starting and does not tell its models yet", begun=False
            )
        names = sorted(m.card.id for m in self._snapshot.values() if m.card.task == task)
        known = f"models for {task}: {', '.join(names)}" if names else f"no model serves {task}"
        if model is None:
            return ModelNotFound(f"no model serves {task}", code="no_model_for_task")
        if model in self._snapshot:
            other = self._snapshot[model].card.task
            return ModelNotFound(
                f"model {model!r} serves {other}, not {task}; {known}",
                code="model_of_another_task",
                param="model",
            )
        return ModelNotFound(f"unknown model {model!r}; {known}", param="model")

    async def _take_snapshot(self) -> None:
        connection = self._connection
        index = await connection.call(
            connection.replicas.index, pb.RepositoryIndexRequest(), model="", seconds=2.0
        )
        states = {m.name: (_state(m.state), m.reason) for m in index.models}
        cards: dict[str, Card] = {}
        catalogue = states.get(CATALOGUE, ("", ""))[0]
        self.has_catalogue = catalogue == "ready"
        self._starting = catalogue in ("loading", "unloaded")
        if not self.has_catalogue:
            # A server that has just started does not tell what it has not loaded yet.
            cards = {name: m.card for name, m in self._snapshot.items() if name in states}
        else:
            everything = request(CATALOGUE, {"TASK": np.array([""], dtype=object)})
            answer = await connection.infer(CATALOGUE, everything, 5.0)
            cards = {
                name: Card.model_validate(card)
                for name, card in (json.loads(row) for row in answer["CARDS"])
            }
        for name, (state, _) in states.items():
            # A Triton whose repository this project did not write has no catalogue.
            if state == "ready" and name != CATALOGUE and name not in cards:
                config = await connection.call(
                    connection.stub.ModelConfig,
                    pb.ModelConfigRequest(name=name),
                    model=name,
                    seconds=2.0,
                )
                text = config.config.parameters["card"].string_value
                if text:
                    cards[name] = Card.model_validate_json(text)
        self._snapshot = {
            name: ModelState(card, *states.get(name, ("unloaded", "")))
            for name, card in cards.items()
        }
        self._taken_at = time.monotonic()


def _state(state: str) -> str:
    return {"READY": "ready", "LOADING": "loading", "UNAVAILABLE": "failed"}.get(state, "unloaded")

"""The Triton client: models found and loaded, requests and streams of them, over gRPC."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from math import isfinite
from types import TracebackType
from typing import Any, Self

import grpc
import structlog
from tritonclient.grpc import service_pb2 as pb

from service.errors import TritonUnavailable, VitrineError
from service.observability.tracing import client_span
from service.settings import TritonSettings
from service.triton import faults
from service.triton.breaker import Breaker, State
from service.triton.call import current
from service.triton.cards import Card, Task
from service.triton.client import ModelState
from service.triton.connection import GRACE_S, Connection, limit
from service.triton.loading import Loading
from service.triton.metrics import TritonMetrics
from service.triton.served import Served
from service.triton.tensors import Array, outputs, request
from service.triton.withdrawal import Withdrawals

_LOG = structlog.stdlib.get_logger("vitrine.triton")


class TritonClient:
    """A connection to one Triton; see `service.triton.client.Triton` for the contract."""

    def __init__(self, settings: TritonSettings, metrics: TritonMetrics | None = None) -> None:
        self.settings = settings
        self._metrics = metrics
        self._withdrawals = Withdrawals(self._tell_withdrawn)
        self._connection = Connection(settings, self._react, self._withdrawals)
        self._served = Served(self._connection, settings.index_period_s)
        self._loading = Loading(self._connection, self._served, settings.load_timeout_s)
        self._breakers: dict[str, Breaker] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._loading.close()
        await self._served.close()
        await self._withdrawals.close()
        await self._connection.close()

    def _react(self, model: str, error: VitrineError) -> None:
        if error.stable_code == "model_restarting":
            # Triton leaves a model whose process died as it is until it is loaded anew.
            self._loading.start(model, dead=True)
        elif isinstance(error, TritonUnavailable):
            self._served.expire()

    # Models

    async def ready(self) -> bool:
        """Tell whether Triton answers that it is ready, within a second."""
        return await self._connection.ready()

    async def models(self, task: Task | None = None) -> list[ModelState]:
        """Return every model that has a card (of `task`), by id. Raises TritonUnavailable."""
        return await self._served.list(task)

    async def resolve(self, task: Task, model: str | None) -> Card:
        """Return the card of `model`, or of the task's default, loaded.

        Raises ModelNotFound (unknown, of another task, or none for the task), TritonUnavailable
        (Triton is down or does not tell its models yet, or the model is still loading).
        """
        found = await self._served.find(task, model)
        id = found.card.id
        if found.state == "loading" and id not in self._loading:
            # Triton is starting, or somebody else loads it: nothing to wait on here.
            self._served.expire()
            raise TritonUnavailable(
                f"model {id!r} is being loaded", code="model_loading", begun=False
            )
        if found.state != "ready":
            await self.load(id)
        return found.card

    async def load(self, model: str) -> None:
        """Load `model` and wait for it; see `Loading.load` for the errors."""
        await self._loading.load(model)

    async def reload(self, model: str) -> None:
        """Load `model` anew, whose process has died; once for all clients that notice."""
        await self._loading.start(model, dead=True)

    async def unload(self, model: str) -> None:
        """Unload `model`; running requests finish first. Raises TritonUnavailable."""
        await self._loading.unload(model)

    # Inference

    async def infer(self, model: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one request of a batch and return its outputs (batch first).

        Raises BadInput (the model refuses the input), ModelFailed, ModelNotFound, TritonUnavailable,
        DeadlineExceeded. Once the deadline has passed Triton drops the request if it still waits.
        """
        message = request(model, inputs)
        try:
            return await self._scheduled(model, message)
        except TritonUnavailable as error:
            if error.stable_code != "model_not_loaded":
                raise
            # It was unloaded to make room for another one, since it was resolved.
            await self.load(model)
            return await self._scheduled(model, message)

    async def _scheduled(self, model: str, message: pb.ModelInferRequest) -> dict[str, Array]:
        seconds = min(self._limit_s(model), current().remaining_s)
        if seconds <= 0:
            raise faults.late(model)
        with self._breaker(model).watch(seconds):
            return await self._connection.infer(model, message, seconds)

    def _limit_s(self, model: str) -> float:
        """Return how long one request to `model` may take, by the cost on its card."""
        known = self._served.get(model)
        if known is not None and known.card.cost == "batch":
            return self.settings.batch_timeout_s
        return self.settings.timeout_s

    def _breaker(self, model: str) -> Breaker:
        if model not in self._breakers:
            self._breakers[model] = Breaker(model, self._observe)
        return self._breakers[model]

    def _observe(self, model: str, state: State) -> None:
        _LOG.warning("circuit breaker", model=model, state=state.name.lower())
        if self._metrics is not None:
            self._metrics.breaker(model, state)

    async def stream(
        self, model: str, inputs: Mapping[str, Array]
    ) -> AsyncIterator[dict[str, Array]]:
        """Yield the responses to one streamed request as they come, without the batch dimension.

        Closing the iterator, or cancelling the task that iterates, has the model stop at its next
        step. Raises as `infer`.
        """
        message = request(model, {name: array[None] for name, array in inputs.items()})
        message.id = uuid.uuid4().hex
        message.parameters["triton_enable_empty_final_response"].bool_param = True

        async def once() -> AsyncIterator[pb.ModelInferRequest]:
            yield message

        seconds = current().remaining_s
        if seconds <= 0:
            raise faults.late(model)
        connection = self._connection
        with (
            self._breaker(model).watch(seconds),
            client_span(f"infer {model}", {"vitrine.model": model}) as trace,
        ):
            connection.pulse.check()
            limit(message, seconds)
            call = connection.stub.ModelStreamInfer(
                once(), timeout=seconds + GRACE_S if isfinite(seconds) else None, metadata=trace
            )
            async with aclosing(self._responses(message, call, seconds)) as responses:
                async for response in responses:
                    yield response

    async def _responses(
        self, message: pb.ModelInferRequest, call: Any, seconds: float
    ) -> AsyncGenerator[dict[str, Array], None]:
        connection = self._connection
        model, until = message.model_name, time.monotonic() + seconds
        finished = False
        reading: asyncio.Task[Any] | None = None
        try:
            while True:
                reading = asyncio.ensure_future(call.read())
                async with connection.pulse.watch(), asyncio.timeout(_left(until)):
                    response = await asyncio.shield(reading)
                if response is grpc.aio.EOF:
                    finished = True
                    raise TritonUnavailable(f"the stream of model {model!r} broke off")
                if response.error_message:
                    finished = True
                    raise connection.reacted(model, faults.of_text(model, response.error_message))
                answer = response.infer_response
                finished = answer.parameters["triton_final_response"].bool_param
                if answer.outputs:
                    yield {name: array[0] for name, array in outputs(answer).items()}
                if finished:
                    return
        except TimeoutError:
            raise faults.late(model) from None
        except grpc.aio.AioRpcError as error:
            finished = True
            raise connection.fault(model, error) from None
        finally:
            if not finished:
                pending = reading if reading is not None and not reading.done() else None
                self._withdrawals.withdraw(message.id, call, pending)

    async def _tell_withdrawn(self, id: str) -> bool:
        """Have every server end the streamed request `id`; False if this Triton has no catalogue for that.

        Raises AioRpcError, TritonUnavailable.
        """
        if not self._served.has_catalogue:
            await self._served.refresh()
        if self._served.has_catalogue:
            await self._connection.ask_catalogues("WITHDRAW", id)
        return self._served.has_catalogue


def _left(until: float) -> float | None:
    return max(0.0, until - time.monotonic()) if isfinite(until) else None

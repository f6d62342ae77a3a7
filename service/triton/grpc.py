"""The Triton client: gRPC on one asynchronous channel, with a short-lived snapshot of what is served.

The generated stubs of `tritonclient` are used without its wrapper, which copies every tensor once
more and does not pass channel options that matter here (fast reconnection after Triton restarts).
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from math import isfinite
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
import structlog
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as stubs

from service.errors import (
    BadInput,
    DeadlineExceeded,
    ModelFailed,
    ModelNotFound,
    ModelTooLarge,
    TritonUnavailable,
    VitrineError,
)
from service.observability.tracing import client_span
from service.settings import TritonSettings
from service.triton.breaker import Breaker, State
from service.triton.call import current
from service.triton.cards import CATALOGUE, Card, Task
from service.triton.client import ModelState
from service.triton.metrics import TritonMetrics
from service.triton.pulse import Pulse
from service.triton.replicas import Replicas, is_down
from service.triton.tensors import Array, outputs, request
from service.triton.withdrawal import Withdrawals

# Weights that were brought on purpose outrank demo weights where a task has several defaults.
_RANK = {"own": 0, "official": 1, "demo": 2, "random": 3}


# A call that is given up goes on in Triton (service/triton/withdrawal.py), but not for ever.
_GRACE_S = 60.0
# What gRPC says when no connection came about: the request has not left.
_NOT_CONNECTED = "failed to connect"
# How long to wait for memory: a model that is unloaded needs some seconds to end.
_ROOM_S = 25.0
_ROOM_POLL_S = 0.25
_LOG = structlog.stdlib.get_logger("vitrine.triton")


class TritonClient:
    """A connection to one Triton; see `service.triton.client.Triton` for the contract."""

    def __init__(self, settings: TritonSettings, metrics: TritonMetrics | None = None) -> None:
        self._settings = settings
        self._metrics = metrics
        options = [
            ("grpc.max_send_message_length", settings.max_message_bytes),
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.keepalive_time_ms", 30_000),
            # Where the address has several servers, requests go to them in turn.
            ("grpc.lb_policy_name", "round_robin"),
            # A server that ages its connections makes the name be looked up anew: new ones are seen.
            ("grpc.dns_min_time_between_resolutions_ms", 1000),
        ]
        self._channel = grpc.aio.insecure_channel(settings.url, options=options)
        self._stub = stubs.GRPCInferenceServiceStub(self._channel)
        self._replicas = Replicas(settings.url, options, self._stub)
        self._pulse = Pulse(self._alive, settings.stall_s)
        self._withdrawals = Withdrawals(self._tell_withdrawn)
        self._breakers: dict[str, Breaker] = {}
        self._snapshot: dict[str, ModelState] = {}
        self._has_catalogue = False
        self._starting = False
        self._taken_at = float("-inf")
        self._refreshing: asyncio.Task[None] | None = None
        self._loading: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        tasks = [*self._loading.values(), *([self._refreshing] if self._refreshing else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._withdrawals.close()
        await self._pulse.close()
        await self._replicas.close()
        await self._channel.close()

    # What is served

    async def ready(self) -> bool:
        """Tell whether Triton answers that it is ready, within a second."""
        try:
            answer = await self._stub.ServerReady(pb.ServerReadyRequest(), timeout=1.0)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.ready)

    async def models(self, task: Task | None = None) -> list[ModelState]:
        """Return every model that has a card (of `task`), by id. Raises TritonUnavailable."""
        await self._refresh()
        return [m for _, m in sorted(self._snapshot.items()) if task is None or m.card.task == task]

    async def resolve(self, task: Task, model: str | None) -> Card:
        """Return the card of `model`, or of the task's default, loaded.

        Raises ModelNotFound (unknown, of another task, or none for the task), TritonUnavailable
        (Triton is down or does not tell its models yet, or the model is still loading).
        """
        if time.monotonic() - self._taken_at > self._settings.index_period_s:
            # A snapshot that is a little old still serves; only the first one is waited for.
            refresh = self._refresh()
            if self._snapshot:
                self._background(refresh)
            else:
                await refresh
        found = self._find(task, model)
        if found is None:
            await self._refresh()
            found = self._find(task, model)
        if found is None:
            raise self._not_found(task, model)
        if found.state == "loading" and found.card.id not in self._loading:
            # Triton is starting, or somebody else loads it: nothing to wait on here.
            self._taken_at = float("-inf")
            raise TritonUnavailable(
                f"model {found.card.id!r} is being loaded", code="model_loading", begun=False
            )
        if found.state != "ready":
            await self.load(found.card.id)
        return found.card

    def _find(self, task: Task, model: str | None) -> ModelState | None:
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

    def _background(self, refresh: Any) -> None:
        async def quietly() -> None:
            try:
                await refresh
            except VitrineError:
                self._taken_at = float("-inf")

        task = asyncio.ensure_future(quietly())
        # The refresh itself is single-flight; this reference only keeps the task from being collected.
        self._quiet = task

    async def _refresh(self) -> None:
        """Take a new snapshot; callers at the same time share one."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.ensure_future(self._take_snapshot())
        await asyncio.shield(self._refreshing)

    async def _take_snapshot(self) -> None:
        index = await self._call(
            self._replicas.index, pb.RepositoryIndexRequest(), model="", seconds=2.0
        )
        states = {m.name: (_state(m.state), m.reason) for m in index.models}
        cards: dict[str, Card] = {}
        catalogue = states.get(CATALOGUE, ("", ""))[0]
        self._has_catalogue = catalogue == "ready"
        self._starting = catalogue in ("loading", "unloaded")
        if not self._has_catalogue:
            # A server that has just started does not tell what it has not loaded yet.
            cards = {name: m.card for name, m in self._snapshot.items() if name in states}
        else:
            everything = request(CATALOGUE, {"TASK": np.array([""], dtype=object)})
            answer = await self._infer(CATALOGUE, everything, 5.0)
            cards = {
                name: Card.model_validate(card)
                for name, card in (json.loads(row) for row in answer["CARDS"])
            }
        for name, (state, _) in states.items():
            # A Triton whose repository this project did not write has no catalogue.
            if state == "ready" and name != CATALOGUE and name not in cards:
                config = await self._call(
                    self._stub.ModelConfig,
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

    # Loading

    async def load(self, model: str) -> None:
        """Load `model` and wait for it. Raises TritonUnavailable if it takes too long or fails."""
        loading = self._start_loading(model)
        try:
            await asyncio.wait_for(asyncio.shield(loading), self._settings.load_timeout_s)
        except TimeoutError:
            raise TritonUnavailable(
                f"model {model!r} is still being loaded",
                code="model_loading",
                retry_after=5.0,
                begun=False,
            ) from None

    def _start_loading(self, model: str, *, dead: bool = False) -> asyncio.Task[None]:
        """Start to load `model`, unless that is under way, and return the task that does it."""
        loading = self._loading.get(model)
        if loading is None:
            loading = asyncio.ensure_future(self._load(model, dead))
            self._loading[model] = loading
            loading.add_done_callback(lambda task: self._loaded(model, task))
        return loading

    def _loaded(self, model: str, task: asyncio.Task[None]) -> None:
        self._loading.pop(model, None)
        if not task.cancelled():
            task.exception()  # whoever waits gets it; nobody need wait

    async def _load(self, model: str, dead: bool) -> None:
        message = pb.RepositoryModelLoadRequest(model_name=model)
        try:
            if dead:
                await self._bury(model)
            await self._make_room(model)
            await self._replicas.load(message, timeout=600.0)
        except grpc.aio.AioRpcError as error:
            if is_down(error):
                raise self._down(model) from None
            await self._refresh()
            if model not in self._snapshot:
                raise ModelNotFound(f"unknown model {model!r}", param="model") from None
            raise TritonUnavailable(
                f"model {model!r} cannot be loaded: {error.details()}",
                code="model_load_failed",
                retry_after=30.0,
            ) from None
        await self._refresh()

    async def _bury(self, model: str) -> None:
        """Unload `model` where its process has died: to load what counts as loaded does nothing.

        Many callers meet one death at about the same time. The catalogue tells which of them is the
        first: the others must not unload again what that one has loaded anew.
        """
        if self._has_catalogue:
            await self._ask_catalogues("LOST", model)
            return
        unload = pb.RepositoryModelUnloadRequest(model_name=model)
        await self._replicas.unload(unload, timeout=60.0)

    async def _make_room(self, model: str) -> None:
        """Wait until every server has memory for `model`. Raises ModelTooLarge, TritonUnavailable."""
        if not self._has_catalogue:
            return
        deadline = time.monotonic() + _ROOM_S
        while True:
            answers = await self._ask_catalogues("LOAD", model)
            rooms = [json.loads(outputs(answer)["ROOM"][0]) for answer in answers]
            verdicts = {room["verdict"] for room in rooms}
            if verdicts == {"granted"}:
                return
            if "too_large" in verdicts:
                raise ModelTooLarge(
                    f"model {model!r} does not fit into the memory for models, even alone",
                    needed=rooms[0]["needed"],
                    limit={"name": "memory_bytes", "bytes": rooms[0]["budget"]},
                )
            if time.monotonic() > deadline:
                raise TritonUnavailable(
                    f"there is no memory for model {model!r}: the models that hold it are in use",
                    code="memory_exhausted",
                    retry_after=5.0,
                    begun=False,
                )
            await asyncio.sleep(_ROOM_POLL_S)

    async def _ask_catalogues(self, name: str, text: str) -> list[pb.ModelInferResponse]:
        """Send the input `name` to the catalogue of every server. Raises AioRpcError."""
        message = request(
            CATALOGUE,
            {"TASK": np.array([""], dtype=object), name: np.array([text], dtype=object)},
        )
        return await self._replicas.ask(lambda stub: stub.ModelInfer(message, timeout=10.0))

    async def unload(self, model: str) -> None:
        """Unload `model`; running requests finish first. Raises TritonUnavailable."""
        message = pb.RepositoryModelUnloadRequest(model_name=model)
        await self._call(self._replicas.unload, message, model=model, seconds=60.0)
        await self._refresh()

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
            raise _late(model)
        with self._breaker(model).watch(seconds):
            return await self._infer(model, message, seconds)

    async def _infer(
        self, model: str, message: pb.ModelInferRequest, seconds: float
    ) -> dict[str, Array]:
        self._pulse.check()
        _limit(message, seconds)
        with client_span(f"infer {model}", {"vitrine.model": model}) as trace:
            call = self._stub.ModelInfer(message, timeout=seconds + _GRACE_S, metadata=trace)
            answer = asyncio.ensure_future(_awaited(call))
            try:
                async with self._pulse.watch(), asyncio.timeout(seconds):
                    return outputs(await asyncio.shield(answer))
            except TimeoutError:
                raise _late(model) from None
            except grpc.aio.AioRpcError as error:
                raise self._translated(model, error) from None
            finally:
                if not answer.done():
                    self._withdrawals.forget(answer)

    def _limit_s(self, model: str) -> float:
        """Return how long one request to `model` may take, by the cost on its card."""
        known = self._snapshot.get(model)
        if known is not None and known.card.cost == "batch":
            return self._settings.batch_timeout_s
        return self._settings.timeout_s

    def _breaker(self, model: str) -> Breaker:
        if model not in self._breakers:
            self._breakers[model] = Breaker(model, self._observe)
        return self._breakers[model]

    def _observe(self, model: str, state: State) -> None:
        _LOG.warning("circuit breaker", model=model, state=state.name.lower())
        if self._metrics is not None:
            self._metrics.breaker(model, state)

    async def _alive(self, seconds: float) -> bool:
        """Tell whether Triton answers anything within `seconds`, and be it that it is not there."""
        try:
            await self._stub.ServerLive(pb.ServerLiveRequest(), timeout=seconds)
        except grpc.aio.AioRpcError as error:
            return error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
        return True

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
            raise _late(model)
        with (
            self._breaker(model).watch(seconds),
            client_span(f"infer {model}", {"vitrine.model": model}) as trace,
        ):
            self._pulse.check()
            _limit(message, seconds)
            call = self._stub.ModelStreamInfer(
                once(), timeout=seconds + _GRACE_S if isfinite(seconds) else None, metadata=trace
            )
            async with aclosing(self._responses(message, call, seconds)) as responses:
                async for response in responses:
                    yield response

    async def _responses(
        self, message: pb.ModelInferRequest, call: Any, seconds: float
    ) -> AsyncGenerator[dict[str, Array], None]:
        model, until = message.model_name, time.monotonic() + seconds
        finished = False
        reading: asyncio.Task[Any] | None = None
        try:
            while True:
                reading = asyncio.ensure_future(call.read())
                async with self._pulse.watch(), asyncio.timeout(_left(until)):
                    response = await asyncio.shield(reading)
                if response is grpc.aio.EOF:
                    finished = True
                    raise TritonUnavailable(f"the stream of model {model!r} broke off")
                if response.error_message:
                    finished = True
                    raise self._failed(model, response.error_message)
                answer = response.infer_response
                finished = answer.parameters["triton_final_response"].bool_param
                if answer.outputs:
                    yield {name: array[0] for name, array in outputs(answer).items()}
                if finished:
                    return
        except TimeoutError:
            raise _late(model) from None
        except grpc.aio.AioRpcError as error:
            finished = True
            raise self._translated(model, error) from None
        finally:
            if not finished:
                pending = reading if reading is not None and not reading.done() else None
                self._withdrawals.withdraw(message.id, call, pending)

    async def _tell_withdrawn(self, id: str) -> bool:
        """Have every server end the streamed request `id`; False if this Triton has no catalogue for that.

        Raises AioRpcError, TritonUnavailable.
        """
        if not self._snapshot:
            await self._refresh()
        if not self._has_catalogue:
            return False
        await self._ask_catalogues("WITHDRAW", id)
        return True

    # Errors

    async def _call(self, method: Any, message: Any, *, model: str, seconds: float) -> Any:
        try:
            self._pulse.check()
            return await method(message, timeout=seconds)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise self._down(model) from None
            raise self._translated(model, error) from None

    def _translated(self, model: str, error: grpc.aio.AioRpcError) -> VitrineError:
        details = error.details() or ""
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return _late(model)
        if is_down(error):
            return self._down(model, begun=not details.startswith(_NOT_CONNECTED))
        if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
            return BadInput(details.removeprefix("InvalidInput: "), code="invalid_input")
        return self._failed(model, details)

    def _failed(self, model: str, details: str) -> VitrineError:
        """Sort an error text of Triton: streams carry no status codes."""
        if details.startswith("InvalidInput: "):
            return BadInput(details.removeprefix("InvalidInput: "), code="invalid_input")
        # The Python process behind a model died. Triton leaves it so until the model is loaded anew.
        if "Stub process" in details or "is not healthy" in details:
            self._start_loading(model, dead=True)
            return TritonUnavailable(f"model {model!r} is restarting", code="model_restarting")
        if details.startswith("given up"):
            return _late(model)
        if "unknown model" in details or "is not ready" in details or "is not found" in details:
            self._taken_at = float("-inf")
            return TritonUnavailable(
                f"model {model!r} is not loaded", code="model_not_loaded", begun=False
            )
        return ModelFailed(f"model {model!r} failed: {details}")

    def _down(self, model: str, *, begun: bool = True) -> TritonUnavailable:
        self._taken_at = float("-inf")
        about = f" (model {model!r})" if model else ""
        return TritonUnavailable(f"the inference server does not answer{about}", begun=begun)


def _limit(message: pb.ModelInferRequest, seconds: float) -> None:
    """Tell the model until when the answer is of use, in ms since the epoch."""
    if isfinite(seconds):
        message.parameters["deadline"].int64_param = round(1000 * (time.time() + seconds))


def _left(until: float) -> float | None:
    return max(0.0, until - time.monotonic()) if isfinite(until) else None


async def _awaited(call: Any) -> pb.ModelInferResponse:
    return await call


def _late(model: str) -> DeadlineExceeded:
    return DeadlineExceeded(f"model {model!r} did not answer in time", retry_after=2.0)


def _state(state: str) -> str:
    return {"READY": "ready", "LOADING": "loading", "UNAVAILABLE": "failed"}.get(state, "unloaded")

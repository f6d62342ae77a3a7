"""Loads models on first use and after the death of their process, once for all who wait, where there is memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time

import grpc
import structlog
from tritonclient.grpc import service_pb2 as pb

from service.errors import ModelNotFound, ModelTooLarge, TritonUnavailable, VitrineError
from service.triton import faults
from service.triton.connection import Connection
from service.triton.replicas import is_down
from service.triton.served import Served
from service.triton.tensors import outputs

# How long to wait for memory: a model that is unloaded needs some seconds to end.
_ROOM_S = 25.0
_ROOM_POLL_S = 0.25
# How often to look at a load under way: the catalogue ends processes that Triton does not take up.
_LOOK_S = 2.0
_LOG = structlog.stdlib.get_logger("vitrine.triton")


class Loading:
    """The loads under way on the servers behind `connection`; a caller waits `patience_s` for one."""

    def __init__(self, connection: Connection, served: Served, patience_s: float) -> None:
        self._connection = connection
        self._served = served
        self._patience_s = patience_s
        self._loads: dict[str, asyncio.Task[None]] = {}

    async def close(self) -> None:
        """Wait for no load any more; Triton goes on with it."""
        loads = list(self._loads.values())
        for load in loads:
            load.cancel()
        await asyncio.gather(*loads, return_exceptions=True)

    def __contains__(self, model: str) -> bool:
        return model in self._loads

    async def load(self, model: str) -> None:
        """Load `model` and wait for it.

        Raises ModelNotFound, ModelTooLarge, TritonUnavailable: `model_loading` (it takes longer than a
        caller waits), `memory_exhausted`, `model_load_failed`.
        """
        try:
            await asyncio.wait_for(asyncio.shield(self.start(model)), self._patience_s)
        except TimeoutError:
            raise TritonUnavailable(
                f"model {model!r} is still being loaded",
                code="model_loading",
                retry_after=5.0,
                begun=False,
            ) from None

    def start(self, model: str, *, dead: bool = False) -> asyncio.Task[None]:
        """Start to load `model`, unless that is under way, and return the task that does it.

        `dead`: its process has died, which Triton does not see.
        """
        load = self._loads.get(model)
        if load is None:
            load = asyncio.ensure_future(self._load(model, dead))
            self._loads[model] = load
            load.add_done_callback(lambda task: self._ended(model, task))
        return load

    def _ended(self, model: str, task: asyncio.Task[None]) -> None:
        self._loads.pop(model, None)
        if not task.cancelled():
            task.exception()  # whoever waits gets it; nobody need wait

    async def _load(self, model: str, dead: bool) -> None:
        looking = asyncio.ensure_future(self._look())
        try:
            if dead:
                await self._bury(model)
            await self._make_room(model)
            await self._load_alive(model)
        except grpc.aio.AioRpcError as error:
            if is_down(error):
                raise self._connection.reacted(model, faults.down(model)) from None
            await self._served.refresh()
            if model not in self._served:
                raise ModelNotFound(f"unknown model {model!r}", param="model") from None
            raise TritonUnavailable(
                f"model {model!r} cannot be loaded: {error.details()}",
                code="model_load_failed",
                retry_after=30.0,
            ) from None
        finally:
            looking.cancel()
        await self._served.refresh()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            with contextlib.suppress(VitrineError):
                await self._served.refresh()

    async def _load_alive(self, model: str) -> None:
        """Load `model`, and again where Triton took its process for dead while that was busy starting."""
        message = pb.RepositoryModelLoadRequest(model_name=model)
        for attempt in range(1, faults.LOADS + 1):
            try:
                await self._connection.replicas.load(message, timeout=600.0)
            except grpc.aio.AioRpcError as error:
                details = error.details() or ""
                if is_down(error) or not faults.is_dead(details) or attempt == faults.LOADS:
                    raise
                _LOG.warning("loading again", model=model, attempt=attempt, reason=details)
            else:
                return

    async def _bury(self, model: str) -> None:
        """Unload `model` where its process has died: to load what counts as loaded does nothing.

        Many callers meet one death at about the same time. The catalogue tells which of them is the
        first: the others must not unload again what that one has loaded anew.
        """
        if self._served.has_catalogue:
            await self._connection.ask_catalogues("LOST", model)
            return
        unload = pb.RepositoryModelUnloadRequest(model_name=model)
        await self._connection.replicas.unload(unload, timeout=60.0)

    async def _make_room(self, model: str) -> None:
        """Wait until every server has memory for `model`. Raises ModelTooLarge, TritonUnavailable."""
        if not self._served.has_catalogue:
            return
        deadline = time.monotonic() + _ROOM_S
        while True:
            answers = await self._connection.ask_catalogues("LOAD", model)
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

    async def unload(self, model: str) -> None:
        """Unload `model`; running requests finish first. Raises TritonUnavailable."""
        message = pb.RepositoryModelUnloadRequest(model_name=model)
        unload = self._connection.replicas.unload
        await self._connection.call(unload, message, model=model, seconds=60.0)
        await self._served.refresh()

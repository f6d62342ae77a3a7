"""One Triton over gRPC: an asynchronous channel, calls with deadlines that never hang, errors sorted.

The generated stubs of `tritonclient` are used without its wrapper, which copies every tensor once
more and does not pass channel options that matter here (fast reconnection after Triton restarts).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from math import isfinite
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as stubs

from service.errors import VitrineError
from service.observability.tracing import client_span
from service.settings import TritonSettings
from service.triton import faults
from service.triton.cards import CATALOGUE
from service.triton.pulse import Pulse
from service.triton.replicas import Replicas
from service.triton.tensors import Array, outputs, request
from service.triton.withdrawal import Withdrawals

# A call that is given up goes on in Triton (service/triton/withdrawal.py), but not for ever.
GRACE_S = 60.0


class Connection:
    """The channel to the servers at one address, and what is known of their health.

    `react` gets every error that Triton answers with, and the model that it is about; `withdrawals` the calls
    that nobody waits for any more.
    """

    def __init__(
        self,
        settings: TritonSettings,
        react: Callable[[str, VitrineError], None],
        withdrawals: Withdrawals,
    ) -> None:
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
        self._react = react
        self._withdrawals = withdrawals
        self._channel = grpc.aio.insecure_channel(settings.url, options=options)
        self.stub = stubs.GRPCInferenceServiceStub(self._channel)
        self.replicas = Replicas(settings.url, options, self.stub)
        self.pulse = Pulse(self._alive, settings.stall_s)

    async def close(self) -> None:
        """End the channels."""
        await self.pulse.close()
        await self.replicas.close()
        await self._channel.close()

    async def ready(self) -> bool:
        """Tell whether Triton answers that it is ready, within a second."""
        try:
            answer = await self.stub.ServerReady(pb.ServerReadyRequest(), timeout=1.0)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.ready)

    async def _alive(self, seconds: float) -> bool:
        """Tell whether Triton answers anything within `seconds`, and be it that it is not there."""
        try:
            await self.stub.ServerLive(pb.ServerLiveRequest(), timeout=seconds)
        except grpc.aio.AioRpcError as error:
            return error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
        return True

    def fault(self, model: str, error: grpc.aio.AioRpcError) -> VitrineError:
        """Return what a failed call about `model` means."""
        return self.reacted(model, faults.of_call(model, error))

    def reacted(self, model: str, error: VitrineError) -> VitrineError:
        """Return `error`, once what follows from it has been begun."""
        self._react(model, error)
        return error

    async def call(self, method: Any, message: Any, *, model: str, seconds: float) -> Any:
        """Ask about `model` (or none: ""). Raises what `faults.of_call` makes of an error."""
        try:
            self.pulse.check()
            return await method(message, timeout=seconds)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise self.reacted(model, faults.down(model)) from None
            raise self.fault(model, error) from None

    async def infer(
        self, model: str, message: pb.ModelInferRequest, seconds: float
    ) -> dict[str, Array]:
        """Run one request and return its outputs. Raises as `call`, and DeadlineExceeded."""
        self.pulse.check()
        limit(message, seconds)
        with client_span(f"infer {model}", {"vitrine.model": model}) as trace:
            call = self.stub.ModelInfer(message, timeout=seconds + GRACE_S, metadata=trace)
            answer = asyncio.ensure_future(_awaited(call))
            try:
                async with self.pulse.watch(), asyncio.timeout(seconds):
                    return outputs(await asyncio.shield(answer))
            except TimeoutError:
                raise faults.late(model) from None
            except grpc.aio.AioRpcError as error:
                raise self.fault(model, error) from None
            finally:
                if not answer.done():
                    self._withdrawals.forget(answer)

    async def ask_catalogues(self, name: str, text: str) -> list[pb.ModelInferResponse]:
        """Send the input `name` to the catalogue of every server. Raises AioRpcError."""
        message = request(
            CATALOGUE,
            {"TASK": np.array([""], dtype=object), name: np.array([text], dtype=object)},
        )
        return await self.replicas.ask(lambda stub: stub.ModelInfer(message, timeout=10.0))


def limit(message: pb.ModelInferRequest, seconds: float) -> None:
    """Tell the model until when the answer is of use, in ms since the epoch."""
    if isfinite(seconds):
        message.parameters["deadline"].int64_param = round(1000 * (time.time() + seconds))


async def _awaited(call: Any) -> pb.ModelInferResponse:
    return await call

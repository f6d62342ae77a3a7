"""Several Triton servers behind one address: what concerns all of them is asked of each.

Inference goes over one channel that takes the servers in turn. To list, load or unload models that
would not do: it would reach one server and leave the others as they are. A model serves once every
server that answers has it.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as stubs

# A name is resolved anew for each call: records of a headless service live for seconds.
_NAME = re.compile(r"dns:(?://[^/]*/)?(?P<host>[^/]+):(?P<port>\d+)")
_LIST = re.compile(r"(?:ipv4|ipv6):(?P<addresses>.+)")
_LAST_CALLS_S = 60.0
# What gRPC itself says, now and then, of a call whose server died while it began.
_BROKEN_OFF = "Internal error from Core"
_WORST_FIRST = ("UNAVAILABLE", "", "UNLOADING", "LOADING", "READY")


class Replicas:
    """The servers at `url`, each with a channel of its own.

    `dns:///name:port` stands for every address of the name, `ipv4:a:p,b:p` (or `ipv6:`) for those
    listed; any other address is one server, reached over `shared`. The methods are called as those
    of Triton's stub, raise `grpc.aio.AioRpcError` as they do, and leave out servers that are down
    as long as one is up: the channel for inference leaves them out, too.
    """

    def __init__(
        self, url: str, options: Sequence[tuple[str, Any]], shared: stubs.GRPCInferenceServiceStub
    ) -> None:
        self._url = url
        self._options = options
        self._shared = shared
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._closing: set[asyncio.Future[None]] = set()

    async def close(self) -> None:
        """Close the channels; the shared one is its owner's."""
        for closing in self._closing:
            closing.cancel()
        await asyncio.gather(
            *self._closing,
            *(channel.close() for channel in self._channels.values()),
            return_exceptions=True,
        )
        self._channels.clear()

    async def index(
        self,
        message: pb.RepositoryIndexRequest,
        timeout: float,  # noqa: ASYNC109 - as the stub has it
    ) -> pb.RepositoryIndexResponse:
        """Return one index: a model's state is the worst that it has on any server."""
        answers = await self.ask(
            lambda stub: stub.RepositoryIndex(message, timeout=timeout), leave_out=_is_silent
        )
        known = [{model.name: model for model in answer.models} for answer in answers]
        names = {name: None for models in known for name in models}
        return pb.RepositoryIndexResponse(
            models=[
                min((models.get(name, _absent(name)) for models in known), key=_rank)
                for name in names
            ]
        )

    async def load(
        self,
        message: pb.RepositoryModelLoadRequest,
        timeout: float,  # noqa: ASYNC109 - as the stub has it
    ) -> pb.RepositoryModelLoadResponse:
        """Load a model on every server at once."""
        answers = await self.ask(lambda stub: stub.RepositoryModelLoad(message, timeout=timeout))
        return answers[0]

    async def unload(
        self,
        message: pb.RepositoryModelUnloadRequest,
        timeout: float,  # noqa: ASYNC109 - as the stub has it
    ) -> pb.RepositoryModelUnloadResponse:
        """Unload a model on every server at once."""
        answers = await self.ask(lambda stub: stub.RepositoryModelUnload(message, timeout=timeout))
        return answers[0]

    async def ask(
        self,
        question: Callable[[stubs.GRPCInferenceServiceStub], Awaitable[Any]],
        leave_out: Callable[[BaseException], bool] | None = None,
    ) -> list[Any]:
        """Return the answers of the servers, but for those that are down.

        Raises the first error that `leave_out` (by default `is_down`) does not excuse, and the first
        one where no server answered.
        """
        excused = leave_out or is_down
        answers = await asyncio.gather(
            *(question(stub) for stub in await self._stubs()), return_exceptions=True
        )
        for answer in answers:
            if isinstance(answer, BaseException) and not excused(answer):
                raise answer
        up = [answer for answer in answers if not isinstance(answer, BaseException)]
        if not up:
            raise answers[0]
        return up

    async def _stubs(self) -> list[stubs.GRPCInferenceServiceStub]:
        addresses = await self._addresses()
        if len(addresses) < 2:
            return [self._shared]
        for gone in self._channels.keys() - set(addresses):
            closing = asyncio.ensure_future(self._channels.pop(gone).close(_LAST_CALLS_S))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        for new in set(addresses) - self._channels.keys():
            self._channels[new] = grpc.aio.insecure_channel(new, options=list(self._options))
        return [stubs.GRPCInferenceServiceStub(self._channels[each]) for each in addresses]

    async def _addresses(self) -> list[str]:
        if listed := _LIST.fullmatch(self._url):
            return listed["addresses"].split(",")
        if (named := _NAME.fullmatch(self._url)) is None:
            return [self._url]
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                named["host"], int(named["port"]), type=socket.SOCK_STREAM
            )
        except OSError:
            # The channel for inference keeps the addresses that it has.
            return [self._url]
        return sorted({_address(*where[:2]) for *_, where in found})


def is_down(error: BaseException) -> bool:
    """Tell whether no server answered, rather than Triton with an error of its own."""
    if not isinstance(error, grpc.aio.AioRpcError):
        return False
    details = error.details() or ""
    if error.code() is grpc.StatusCode.INTERNAL:
        return details == _BROKEN_OFF
    from_triton = "model" in details or "Request for" in details
    return error.code() is grpc.StatusCode.UNAVAILABLE and not from_triton


def _is_silent(error: BaseException) -> bool:
    """Tell whether nothing came in time: one server that hangs must not hide the others."""
    late = grpc.StatusCode.DEADLINE_EXCEEDED
    return is_down(error) or (isinstance(error, grpc.aio.AioRpcError) and error.code() is late)


def _absent(name: str) -> pb.RepositoryIndexResponse.ModelIndex:
    return pb.RepositoryIndexResponse.ModelIndex(name=name)


def _rank(model: pb.RepositoryIndexResponse.ModelIndex) -> int:
    return _WORST_FIRST.index(model.state) if model.state in _WORST_FIRST else 0


def _address(host: str | int, port: str | int) -> str:
    return f"ipv6:[{host}]:{port}" if ":" in str(host) else f"ipv4:{host}:{port}"

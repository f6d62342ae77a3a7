"""Questions to the parts of a starting service: are you there, have you loaded that?"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import httpx2
from redis.asyncio import Redis
from redis.exceptions import RedisError
from tritonclient.grpc import aio as triton_grpc
from tritonclient.utils import InferenceServerException

_TIMEOUT_S = 2.0


class LoadFailed(Exception):
    """Triton could not load a model; the message is Triton's reason."""


class TritonProbe:
    """Talks to a starting Triton server by gRPC."""

    def __init__(self, url: str) -> None:
        self._client = triton_grpc.InferenceServerClient(url)

    async def answers(self) -> bool:
        """Tell whether the server takes requests."""
        try:
            return bool(await self._client.is_server_live(client_timeout=_TIMEOUT_S))
        except InferenceServerException:
            return False

    async def wait(self) -> None:
        """Return once the server takes requests."""
        while not await self.answers():  # noqa: ASYNC110 - another process, no event to wait for
            await asyncio.sleep(0.1)

    async def load(self, model: str, timeout_s: float) -> None:
        """Have the server load `model`; returns when it is ready. Raises LoadFailed."""
        try:
            await self._client.load_model(model, client_timeout=timeout_s)
        except InferenceServerException as error:
            raise LoadFailed(str(error.message())) from error

    async def device(self, model: str) -> str:
        """Return where a loaded model's instances run: cpu, cuda or cuda x N."""
        try:
            answer = await self._client.get_model_config(model, client_timeout=_TIMEOUT_S)
        except InferenceServerException:
            return ""
        groups = answer.config.instance_group
        gpus = {gpu for group in groups for gpu in group.gpus}
        if not any(group.kind == group.KIND_GPU for group in groups):
            return "cpu"
        return f"cuda x {len(gpus)}" if len(gpus) > 1 else "cuda"

    async def close(self) -> None:
        await self._client.close()


@dataclass(frozen=True, slots=True)
class GatewayState:
    """What the gateway says: `ready`, `serving` (Triton and Redis answer it), and what is missing."""

    ready: bool = False
    serving: bool = False
    missing: str = "starting"


class RedisProbe:
    """Asks a Redis whether it is there."""

    def __init__(self, url: str) -> None:
        self._client = Redis.from_url(
            url, socket_connect_timeout=_TIMEOUT_S, socket_timeout=_TIMEOUT_S, retry=None
        )

    async def answers(self) -> bool:
        """Tell whether it answers PING; it does not while it reads its append-only file."""
        try:
            return bool(await self._client.ping())
        except (RedisError, OSError):
            return False

    async def close(self) -> None:
        await self._client.aclose()


class HttpProbe:
    """Asks the worker and the gateway how they are."""

    def __init__(self, gateway_url: str, worker_port: int) -> None:
        self._gateway = f"{gateway_url}/readyz"
        self._worker = f"http://127.0.0.1:{worker_port}/metrics"
        self._client = httpx2.AsyncClient(timeout=_TIMEOUT_S, trust_env=False)

    async def worker_answers(self) -> bool:
        """Tell whether the worker serves its metrics, which it does once it has begun to work."""
        try:
            return (await self._client.get(self._worker)).is_success
        except httpx2.HTTPError:
            return False

    async def gateway(self) -> GatewayState:
        """Ask the gateway for its readiness."""
        try:
            found = (await self._client.get(self._gateway)).json()
            return GatewayState(
                ready=bool(found["ready"]),
                serving=bool(found["triton"] and found["redis"]),
                missing=", ".join(found["missing"]),
            )
        except (httpx2.HTTPError, ValueError, KeyError, TypeError):
            return GatewayState()

    async def close(self) -> None:
        await self._client.aclose()

"""The gateway: `create_app(settings)`, or `python -m service.app`."""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI
from sse_starlette.sse import AppStatus

from service import processes
from service.auth.exposure import Exposed, refuse_exposure
from service.deps import Gateway, open_gateway
from service.errors import RedisUnavailable
from service.http import problems
from service.http.middleware import BodyLimit, Faults, Leaving, RequestId, SecurityHeaders
from service.http.openapi import complete
from service.http.origin import cross_origin
from service.jobs.endpoints import router as jobs
from service.limits.headers import RateHeaders
from service.observability.access import AccessLog
from service.observability.endpoints import router as operations
from service.observability.logs import configure_logging
from service.observability.metrics import Metrics
from service.observability.tracing import Tracing, tracing
from service.settings import Settings
from service.tasks.classify.endpoints import router as classify
from service.tasks.deepfake.endpoints import router as deepfake
from service.tasks.detect.endpoints import router as detect
from service.tasks.embed.endpoints import router as embed
from service.tasks.embed.examples_endpoints import router as examples
from service.tasks.explain.endpoints import router as explain
from service.tasks.generate.endpoints import router as generate
from service.tasks.reconstruct.endpoints import router as reconstruct
from service.tasks.segment.endpoints import router as segment
from service.tasks.upscale.endpoints import router as upscale
from service.triton.endpoints import router as models
from service.web.endpoints import mount_pages

_log = structlog.stdlib.get_logger("vitrine.gateway")

_DESCRIPTION = """
The networks of 52 vision papers behind one API.

**Media** are sent as the raw body (`curl --data-binary @photo.jpg`), as a form's file
(`curl -F file=@photo.jpg`), or named in JSON by a URL, a data URL or base64. Parameters go beside
them: in the query, in the form, or in the JSON.

**Jobs.** Any task can run as a job (`mode=async`): `202` and a job, whose progress comes as
server-sent events. `Idempotency-Key` makes sending again safe.

**Keys.** `Authorization: Bearer KEY` or `x-api-key: KEY`; none on a machine of your own. A key sees
its own jobs only; an answer's `RateLimit-*` headers tell how its rate stands.

**Errors** are RFC 9457 problems with a stable `code`. Every answer carries `x-request-id` and
`Server-Timing`.
"""

_TAGS = [
    {"name": "understand", "description": "Answers about pictures and videos."},
    {"name": "generate", "description": "New pictures; always jobs."},
    {"name": "jobs", "description": "Work that takes its time: state, progress, result, cancel."},
    {"name": "models", "description": "What is served: cards with paper, licence and figures."},
    {"name": "operations", "description": "Probes and metrics."},
]


def create_app(settings: Settings) -> FastAPI:
    """Return the gateway as an ASGI application. Nothing is connected before its lifespan starts."""
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with tracing(settings.tracing, "gateway"):
            async with open_gateway(settings, metrics) as gateway:
                app.state.gateway = gateway
                # What is there now stays: collections need not look at it again.
                gc.freeze()
                yield
                gc.unfreeze()

    app = FastAPI(
        title="Vitrine",
        version="0.1.0",
        description=_DESCRIPTION,
        openapi_tags=_TAGS,
        # Generated clients name their methods by it.
        generate_unique_id_function=lambda route: route.name,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        # Tracing (below) does it, also for what FastAPI does not see: the queue and Triton.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    problems.register(app)
    understand = (classify, deepfake, detect, embed, examples, explain, reconstruct, segment)
    tasks = (*understand, generate, upscale)
    for router in (*tasks, jobs, models, operations):
        app.include_router(router)
    mount_pages(app)
    # The last one added is the outermost.
    app.add_middleware(BodyLimit, limit=settings.limits.body_bytes)
    app.add_middleware(Faults)
    app.add_middleware(cross_origin, settings=settings)
    app.add_middleware(RateHeaders)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(Leaving)
    app.add_middleware(AccessLog, metrics=metrics)
    app.add_middleware(Tracing)
    app.add_middleware(RequestId)
    _describe(app)
    return app


def _describe(app: FastAPI) -> None:
    """Make the OpenAPI document speak of problems, not of FastAPI's own error."""
    generate_document = app.openapi

    def openapi() -> dict[str, Any]:
        return app.openapi_schema or complete(generate_document())

    app.openapi = openapi  # type: ignore[method-assign]


class Server(uvicorn.Server):
    """uvicorn that ends in two steps, and tells the gateway of each.

    Told to end, it first goes on for `delay_s`, with the gateway `leaving`: a balancer learns from
    `/readyz` to send its requests elsewhere. Then it stops accepting, with the gateway `draining`,
    so that streams end by themselves. A second signal skips the rest of the delay.
    """

    def __init__(self, config: uvicorn.Config, delay_s: float) -> None:
        super().__init__(config)
        self._delay_s = delay_s
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        loop, self._loop = self._loop, None
        if loop is None:
            super().handle_exit(sig, frame)
        else:  # as a signal's handler it may run in the middle of anything
            loop.call_soon_threadsafe(self._leave, loop, sig)

    def _leave(self, loop: asyncio.AbstractEventLoop, sig: int) -> None:
        self._gateway.leaving.set()
        loop.call_later(self._delay_s, super().handle_exit, sig, None)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._gateway.leaving.set()
        self._gateway.draining.set()
        await super().shutdown(sockets)

    @property
    def _gateway(self) -> Gateway:
        app: Any = self.config.app
        found: Gateway = app.state.gateway
        return found


def server(settings: Settings) -> Server:
    """Return the HTTP server. SIGTERM makes it leave as `LimitSettings` says."""
    # Streams are ended by the gateway's own draining; the library's watcher would cut them.
    AppStatus.enable_automatic_graceful_drain = False
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=round(settings.limits.drain_seconds),
    )
    return Server(config, settings.limits.drain_delay_seconds)


def serve(settings: Settings, listener: socket.socket) -> None:
    """Run the HTTP server on a bound socket until SIGTERM."""
    server(settings).run([listener])


def _positive(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of processes")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m service.app",
        description="The gateway. Its settings come from the environment (VITRINE_...).",
    )
    parser.add_argument(
        "--workers",
        type=_positive,
        metavar="N",
        help="processes that answer on the one port (default: VITRINE_GATEWAY_WORKERS, or 1)",
    )
    workers = parser.parse_args().workers
    settings = Settings() if workers is None else Settings(gateway_workers=workers)
    configure_logging(settings, "gateway")
    try:
        asyncio.run(refuse_exposure(settings))
    except Exposed as refusal:
        sys.exit(f"error: {refusal}")
    except RedisUnavailable:
        # No danger: every call needs a key, and none can be looked up yet.
        _log.warning("whether there are API keys is not known yet: Redis does not answer")
    if settings.gateway_workers == 1:
        server(settings).run()
    else:
        # By its module's name: as part of `__main__` it could not be found by a new process.
        processes.run(settings, importlib.import_module("service.app").serve)


if __name__ == "__main__":
    main()

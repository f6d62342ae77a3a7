"""Probes and metrics, for machines."""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from service.auth.access import METRICS
from service.deps import GatewayDep
from service.observability.readiness import Readiness, readiness
from service.observability.surroundings import look_around

router = APIRouter(tags=["operations"])


@router.get("/livez", summary="Liveness")
async def livez() -> dict[str, str]:
    """Tell whether the process answers."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    summary="Readiness",
    response_model=Readiness,
    responses={503: {"model": Readiness, "description": "Something is missing; it says what."}},
)
async def readyz(gateway: GatewayDep, response: Response) -> Readiness:
    """Tell whether Triton, Redis and the default models are ready."""
    found = await readiness(gateway)
    response.status_code = 200 if found.ready else 503
    return found


@router.get(
    "/metrics",
    summary="Metrics",
    dependencies=[METRICS],
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(gateway: GatewayDep) -> Response:
    """Give the metrics in Prometheus' text format."""
    return Response(
        gateway.metrics.render(await look_around(gateway)), media_type=CONTENT_TYPE_LATEST
    )

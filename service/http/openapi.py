"""What the OpenAPI document says about bodies that FastAPI does not parse, and about errors."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from service.http.inputs import Kind
from service.tasks.contract import TaskParameters


def request_body(
    parameters: type[TaskParameters],
    kinds: Collection[Kind] = (),
    example: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the `openapi_extra` of an endpoint that calls `dispatch`: raw, multipart, JSON, query."""
    raise NotImplementedError


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of an endpoint: each status as `application/problem+json` with its codes."""
    raise NotImplementedError

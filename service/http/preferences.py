"""How the caller wants the answer: at once or as a job, and in which form."""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from service.errors import InvalidParameter
from service.http.parameters import validate
from service.jobs.record import Lane

SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


class DispatchParameters(BaseModel):
    """Parameters that every task takes beside its own."""

    model_config = ConfigDict(frozen=True)

    mode: Literal["sync", "async"] | None = Field(
        None,
        description="`sync`: the answer itself; `async`: a job. Without it, the answer itself, where the work is "
        "not so much that only a job does it.",
    )
    priority: Lane = Field(
        Lane.NORMAL, description="Which of the caller's jobs go first; of no use without one."
    )


@dataclass(frozen=True, slots=True)
class Preferences:
    """`job`: answer with a job; `wait_s`: wait so long for it; `applied`: what `Prefer` asked for."""

    job: bool
    lane: Lane
    wait_s: float
    applied: str


def taken(sent: MutableMapping[str, Any]) -> DispatchParameters:
    """Take `mode` and `priority` out of the parameters. Raises InvalidParameter."""
    own = {name: sent.pop(name) for name in DispatchParameters.model_fields if name in sent}
    return validate(DispatchParameters, own)


def preferences(
    request: Request, chosen: DispatchParameters, job_only: str | None = None
) -> Preferences:
    """Decide by what was `chosen` and by `Prefer` (RFC 7240). `job_only` says why nothing but a job will do.

    An explicit `mode` outranks `Prefer: respond-async`; `wait` matters for jobs only. Raises
    InvalidParameter.
    """
    prefer = _prefer(request)
    if job_only and chosen.mode == "sync":
        raise InvalidParameter(
            f"mode: {job_only}; send Prefer: wait=N to wait for it.", param="mode"
        )
    asked = "respond-async" in prefer
    job = bool(job_only) or (asked if chosen.mode is None else chosen.mode == "async")
    wait_s = _wait(prefer) if job else 0.0
    applied = [name for name in ("respond-async", "wait") if job and name in prefer]
    return Preferences(job, chosen.priority, wait_s, ", ".join(applied))


def allowed_seconds(request: Request, most: float) -> float:
    """Return how long the answer may take: what `Request-Timeout` grants, but not over `most`.

    Raises InvalidParameter.
    """
    value = request.headers.get("request-timeout")
    if value is None:
        return most
    if not SECONDS.fullmatch(value) or not float(value):
        raise InvalidParameter(
            "Request-Timeout must be a number of seconds above 0, such as 2.5.",
            param="Request-Timeout",
        )
    return min(most, float(value))


def wants(request: Request, content_type: str) -> bool:
    """Whether `Accept` names this media type, or its whole family, rather than just anything."""
    family = content_type.partition("/")[0] + "/*"
    named = (part.partition(";")[0].strip().lower() for part in _parts(request, "accept"))
    return any(name in (content_type, family) for name in named)


def _prefer(request: Request) -> dict[str, str]:
    preferred: dict[str, str] = {}
    for part in _parts(request, "prefer"):
        name, _, value = part.partition(";")[0].partition("=")
        preferred.setdefault(name.strip().lower(), value.strip().strip('"'))
    return preferred


def _wait(prefer: dict[str, str]) -> float:
    value = prefer.get("wait", "0")
    if not (value.isascii() and value.isdecimal() and len(value) < 10):
        raise InvalidParameter("Prefer: wait must be a whole number of seconds.", param="Prefer")
    return float(value)


def _parts(request: Request, header: str) -> list[str]:
    return [part.strip() for line in request.headers.getlist(header) for part in line.split(",")]

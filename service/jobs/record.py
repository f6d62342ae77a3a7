"""The job as users see it, and as it is kept in Redis."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class State(StrEnum):
    """Where a job is; see the diagram in the package's docstring."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"

    @property
    def final(self) -> bool:
        return self not in (State.QUEUED, State.RUNNING)


class Lane(StrEnum):
    """Priority lanes, served in this order (with a share for the lower ones)."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


class JobProgress(_Model):
    """How far the running attempt is. `eta_s` is an estimate from the pace so far."""

    percent: float = 0.0
    step: int = 0
    steps: int = 0
    stage: str = ""
    eta_s: float | None = None


class JobError(_Model):
    """Why a job failed: a stable code and a sentence."""

    code: str
    message: str


class ResultFile(_Model):
    """One medium of a result, fetched by `GET /v1/jobs/{id}/result/{name}`."""

    name: str
    content_type: str
    bytes: int


class JobResult(_Model):
    """The result's JSON document and the media that belong to it."""

    document: dict[str, Any]
    files: tuple[ResultFile, ...] = ()


class Job(_Model):
    """A job. Times are Unix seconds by Redis' clock."""

    id: str
    state: State
    task: str
    model: str | None
    lane: Lane = Lane.NORMAL
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    expires_at: float | None = None
    progress: JobProgress = Field(default_factory=JobProgress)
    queue_position: int | None = None
    attempt: int = 0
    cancel_requested: bool = False
    error: JobError | None = None
    result: JobResult | None = None


class Submission(_Model):
    """What a client hands in: a pipeline's name, its checked parameters, and where the upload lies."""

    task: str
    model: str | None
    parameters: dict[str, Any]
    upload_key: str | None = None
    upload_type: str | None = None
    upload_name: str | None = None
    lane: Lane = Lane.NORMAL
    tenant: str = "local"
    idempotency_key: str | None = None
    request_hash: str = ""
    request_id: str = ""

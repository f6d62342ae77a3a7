"""The job as users see it, and what a client hands in to make one."""

from __future__ import annotations

import secrets
import time
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

JOB_ID = r"job_[0-9a-hjkmnp-tv-z]{26}"
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_job_id() -> str:
    """Return a fresh id: `job_` and a ULID (48 bits of Unix milliseconds, 80 random bits) in base 32.

    Ids sort by the time they were made, which is the order of `Queue.list`.
    """
    number = time.time_ns() // 1_000_000 << 80 | secrets.randbits(80)
    return "job_" + "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


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
    """A tenant's priority lanes, served in this order (with a share for the lowest)."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


class JobProgress(_Model):
    """How far the newest attempt is: `percent` 0..100, of a job that succeeded 100.

    `eta_s` is an estimate from the pace so far.
    """

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
    """Where a result lies in object storage: `<prefix>/document.json`, `<prefix>/files/<name>`."""

    prefix: str
    files: tuple[ResultFile, ...] = ()


class Job(_Model):
    """A job. Times are Unix seconds by Redis' clock.

    `attempt` counts the starts and is the fencing token; `failures` those that ended badly (the
    worker was lost, or a part of the system was down). `started_at` is of the newest attempt.
    `expires_at` is when the result is deleted. `queue_position` is 1 for the next job to start.
    """

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
    failures: int = 0
    cancel_requested: bool = False
    error: JobError | None = None
    result: JobResult | None = None


class Submission(_Model):
    """What a client hands in: a pipeline's name, its checked parameters, and where the upload lies.

    The id is made before the job is, because the upload is stored first, at `uploads/<id>`.
    `request_hash` covers all that makes the request what it is (task, parameters, upload), and is
    what an idempotency key is held against. `traceparent` is the trace that handed it in.
    """

    id: str = Field(default_factory=new_job_id)
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
    traceparent: str = ""


class Event(_Model):
    """One entry of a job's event stream; `id` is what `Last-Event-ID` resumes from.

    `kind` is `state` (data: state, attempt, error where there is one) or `progress` (data: JobProgress).
    """

    id: str
    kind: str
    data: dict[str, Any]


class Page(_Model):
    """Jobs of a listing, newest first; `cursor` asks for the next page, None when there is none."""

    jobs: tuple[Job, ...]
    cursor: str | None = None


class Depth(_Model):
    """How many jobs wait in each lane, how many of them are parked, and how many run.

    `oldest_s` is how long the oldest of a lane's waiting jobs has waited; 0 where none waits.
    A parked job waits for another one of its tenant to end, which has `max_running_per_tenant`
    started jobs.
    """

    waiting: dict[Lane, int]
    oldest_s: dict[Lane, float]
    parked: int = 0
    running: int

    @property
    def demand(self) -> int:
        """How many jobs run or could run now, were there workers enough."""
        return sum(self.waiting.values()) - self.parked + self.running

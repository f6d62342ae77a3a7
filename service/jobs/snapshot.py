"""From a record in Redis to a `Job`: what the scripts' `snapshot` function returns, parsed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from service.jobs.record import Job, JobError, JobProgress, JobResult, Lane, State

Snapshot = tuple[Sequence[str], int]
"""The record's fields and values, alternating, without the submission; and the queue position (0: it does not wait)."""


def parse_job(snapshot: Snapshot) -> Job:
    """Return the job of a snapshot."""
    fields, position = _fields(snapshot[0]), snapshot[1]
    return Job(
        id=fields["id"],
        state=State(fields["state"]),
        task=fields["task"],
        model=fields["model"] or None,
        lane=Lane(fields["lane"]),
        created_at=int(fields["created"]) / 1000,
        started_at=_seconds(fields.get("started")),
        finished_at=_seconds(fields.get("finished")),
        expires_at=_seconds(fields.get("expires")),
        progress=_progress(fields),
        queue_position=position or None,
        attempt=int(fields["attempt"]),
        failures=int(fields["failures"]),
        cancel_requested=fields.get("cancel") == "1",
        error=_model(JobError, fields.get("error")),
        result=_model(JobResult, fields.get("result")),
    )


def _fields(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _progress(fields: dict[str, str]) -> JobProgress:
    progress: JobProgress = _model(JobProgress, fields.get("progress")) or JobProgress()
    if fields["state"] == State.SUCCEEDED:  # tasks of one step report none
        return progress.model_copy(update={"percent": 100.0, "eta_s": None})
    return progress


def _seconds(milliseconds: str | None) -> float | None:
    return int(milliseconds) / 1000 if milliseconds else None


def _model(model: Any, document: str | None) -> Any:
    return model.model_validate(orjson.loads(document)) if document else None

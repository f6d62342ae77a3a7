"""Jobs as the API shows them."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, Field

from service.jobs.record import Job, JobError, JobProgress, JobResult, Lane, State


class FileView(BaseModel):
    """One medium of a result."""

    name: str
    content_type: str
    bytes: int
    url: str = Field(description="Path to fetch it from.")


class ResultView(BaseModel):
    """What the job gave: the task's document, as a synchronous answer holds it, and the media."""

    document: dict[str, Any] | None = Field(
        description="Null in listings; there are only the files' names."
    )
    files: list[FileView]

    @classmethod
    def of(cls, job_id: str, result: JobResult, document: dict[str, Any] | None) -> Self:
        return cls(
            document=document,
            files=[
                FileView(**file.model_dump(), url=f"/v1/jobs/{job_id}/result/{file.name}")
                for file in result.files
            ],
        )


class JobLinks(BaseModel):
    """Paths that belong to the job."""

    self: str
    events: str
    result: str


class JobView(BaseModel):
    """A job. Times are Unix seconds."""

    id: str
    object: Literal["job"] = "job"
    state: State
    task: str
    model: str | None = Field(description="The model that does it.")
    priority: Lane
    created_at: float
    started_at: float | None = Field(description="When the newest attempt began.")
    finished_at: float | None
    expires_at: float | None = Field(description="When the result is deleted.")
    progress: JobProgress
    queue_position: int | None = Field(description="1 for the next to start; null once started.")
    attempt: int = Field(description="How often it was started.")
    cancel_requested: bool
    error: JobError | None = Field(
        description="Why it failed: a code as a synchronous answer has it, or `worker_lost`, "
        "`run_timeout`, `task_not_served`."
    )
    result: ResultView | None
    links: JobLinks

    @classmethod
    def of(cls, job: Job, document: dict[str, Any] | None = None) -> Self:
        """Return the job as shown, with the result's document where it was read."""
        path = f"/v1/jobs/{job.id}"
        return cls(
            id=job.id,
            state=job.state,
            task=job.task,
            model=job.model,
            priority=job.lane,
            created_at=job.created_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
            expires_at=job.expires_at,
            progress=job.progress,
            queue_position=job.queue_position,
            attempt=job.attempt,
            cancel_requested=job.cancel_requested,
            error=job.error,
            result=ResultView.of(job.id, job.result, document) if job.result else None,
            links=JobLinks(self=path, events=f"{path}/events", result=f"{path}/result"),
        )


class JobList(BaseModel):
    """A page of jobs, newest first."""

    object: Literal["list"] = "list"
    data: list[JobView]
    has_more: bool
    next: str | None = Field(description="`after` of the next page; null on the last.")


AS_JOB: dict[int | str, dict[str, Any]] = {
    202: {"model": JobView, "description": "The job, where one was asked for (`mode=async`)."}
}
"""The further answer of endpoints that answer at once or by a job."""

WAITED_FOR: dict[int | str, dict[str, Any]] = {
    200: {
        "model": JobView,
        "description": "The job, where it ended within `Prefer: wait=N`; its one medium, where "
        "`Accept` names that medium's type.",
        "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
    },
    202: {"description": "The job."},
}
"""The answers of endpoints that always make a job."""

"""Jobs: look at them, follow them, fetch what they gave, cancel them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Header, Path, Query, Request, Response
from sse_starlette import EventSourceResponse, ServerSentEvent

from service.auth.access import JOBS, CallerDep
from service.deps import Gateway, GatewayDep
from service.errors import NotFound, RedisUnavailable
from service.http.openapi import problems
from service.http.preferences import wants
from service.jobs.record import JOB_ID, Event, State
from service.jobs.responses import (
    job_response,
    media_response,
    result_response,
    succeeded,
)
from service.jobs.schemas import JobList, JobView, ResultView

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], dependencies=[JOBS])

JobId = Annotated[str, Path(description="The job's id, as `job_01j…`.", max_length=64)]

_EVENT_ID = r"^[0-9]{1,20}(-[0-9]{1,20})?$"
_PING_S = 15
_RETRY_MS = 2000
# Within this time a follower's key has been looked at again.
_LONGEST_STREAM_S = 300.0

_Documented = dict[int | str, dict[str, Any]]
_CANCELING: _Documented = {
    202: {"model": JobView, "description": "It runs; its worker stops soon."}
}
_EVENTS: _Documented = {
    200: {
        "description": "Events `state` and `progress`; the last is that of a final state.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}
_MEDIUM: _Documented = {
    200: {
        "description": "The medium.",
        "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.get("", summary="List jobs", response_model=JobList, responses=problems(422, 503))
async def list_jobs(
    gateway: GatewayDep,
    caller: CallerDep,
    state: Annotated[State | None, Query(description="Only jobs in this state.")] = None,
    task: Annotated[str | None, Query(description="Only jobs of this task.", max_length=64)] = None,
    after: Annotated[
        str | None,
        Query(
            description="`next` of the page before.", json_schema_extra={"pattern": f"^{JOB_ID}$"}
        ),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Jobs a page.")] = 20,
) -> JobList:
    """List jobs, newest first."""
    page = await gateway.queue.list(caller.sees, state=state, task=task, limit=limit, cursor=after)
    return JobList(
        data=[JobView.of(job) for job in page.jobs],
        has_more=page.cursor is not None,
        next=page.cursor,
    )


@router.get("/{job_id}", summary="Get a job", response_model=JobView, responses=problems(404, 503))
async def get_job(gateway: GatewayDep, caller: CallerDep, job_id: JobId) -> Response:
    """Get one job, with its result's document once it succeeded."""
    return await job_response(gateway, await gateway.queue.get(job_id, caller.sees))


@router.delete(
    "/{job_id}",
    summary="Cancel a job",
    response_model=JobView,
    responses=_CANCELING | problems(404, 503),
)
async def cancel_job(gateway: GatewayDep, caller: CallerDep, job_id: JobId) -> Response:
    """Cancel a job. A job that has ended stays as it is; asking twice is no error."""
    job = await gateway.queue.cancel(job_id, caller.sees)
    return await job_response(gateway, job, 200 if job.state.final else 202)


@router.get(
    "/{job_id}/events",
    summary="Follow a job",
    response_class=EventSourceResponse,
    responses=_EVENTS | problems(404, 422, 503),
)
async def follow_job(
    gateway: GatewayDep,
    caller: CallerDep,
    job_id: JobId,
    last_event_id: Annotated[
        str | None,
        Header(description="Resume behind this event.", json_schema_extra={"pattern": _EVENT_ID}),
    ] = None,
) -> EventSourceResponse:
    """Follow a job by server-sent events, from its first event or from `Last-Event-ID`."""
    events = await gateway.queue.events(job_id, caller.sees, last_event_id)
    return EventSourceResponse(_stream(gateway, events), ping=_PING_S, sep="\n")


@router.get(
    "/{job_id}/result",
    summary="Get the result",
    response_model=ResultView,
    responses=_MEDIUM | problems(404, 409, 503),
)
async def get_result(
    request: Request, gateway: GatewayDep, caller: CallerDep, job_id: JobId
) -> Response:
    """Get the result: the medium itself where there is exactly one, else (or where `Accept` names
    JSON) the document and links to the media."""
    job, result = succeeded(await gateway.queue.get(job_id, caller.sees))
    if len(result.files) == 1 and not wants(request, "application/json"):
        return await media_response(request, gateway, job, result.files[0])
    return await result_response(gateway, job)


@router.get(
    "/{job_id}/result/{name}",
    summary="Get one medium of the result",
    response_class=Response,
    responses=_MEDIUM | problems(404, 409, 503),
)
async def get_result_file(
    request: Request,
    gateway: GatewayDep,
    caller: CallerDep,
    job_id: JobId,
    name: Annotated[str, Path(description="The file's name.")],
) -> Response:
    """Get one medium of a result; byte ranges are served."""
    job, result = succeeded(await gateway.queue.get(job_id, caller.sees))
    for file in result.files:
        if file.name == name:
            return await media_response(request, gateway, job, file)
    raise NotFound(f"The job {job_id} has no file {name!r}.", code="file_not_found")


async def _stream(gateway: Gateway, events: AsyncIterator[Event]) -> AsyncIterator[ServerSentEvent]:
    """Yield the events until the last one.

    When the gateway drains, and after `_LONGEST_STREAM_S`, it ends before: the client then resumes,
    at the gateway that the balancer chooses and with a key that is still good.
    """
    draining = asyncio.ensure_future(gateway.draining.wait())
    until = time.monotonic() + _LONGEST_STREAM_S
    try:
        while True:
            following = asyncio.ensure_future(_next(events))
            try:
                await asyncio.wait(
                    {following, draining},
                    timeout=max(0.0, until - time.monotonic()),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                event = following.result() if following.done() else None
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
            if event is None:
                return
            yield ServerSentEvent(
                id=event.id,
                event=event.kind,
                data=orjson.dumps(event.data).decode(),
                retry=_RETRY_MS,
            )
    except RedisUnavailable:
        return  # the stream just ends, which every client answers by resuming
    finally:
        draining.cancel()


async def _next(events: AsyncIterator[Event]) -> Event | None:
    return await anext(events, None)

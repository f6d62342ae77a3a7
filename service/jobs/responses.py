"""A job, its result's document and its media as HTTP responses."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from service.deps import Gateway
from service.errors import NotFound, ResultNotReady
from service.jobs.record import Job, JobResult, ResultFile, State
from service.jobs.schemas import JobView, ResultView


async def job_response(
    gateway: Gateway, job: Job, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """Return the job, with its document where it succeeded."""
    document: dict[str, Any] | None = None
    if job.state is State.SUCCEEDED:
        with suppress(NotFound):  # the record outlives the result
            document = await gateway.results.document(job)
    return _json(JobView.of(job, document), status, headers)


async def result_response(gateway: Gateway, job: Job) -> Response:
    """Return the result's document and links to its media."""
    assert job.result is not None
    return _json(ResultView.of(job.id, job.result, await gateway.results.document(job)))


async def media_response(
    request: Request,
    gateway: Gateway,
    job: Job,
    file: ResultFile,
    headers: dict[str, str] | None = None,
) -> Response:
    """Return one medium, whole or the range of bytes that was asked for (RFC 9110, 14.2)."""
    answer = {
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=3600",
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(file.name)}",
        "ETag": f'"{job.id}-{job.attempt}-{quote(file.name)}"',
    } | (headers or {})
    start, end = 0, file.bytes
    status = 200
    if_range = request.headers.get("if-range", answer["ETag"])
    wanted = _range(request.headers.get("range", ""), file.bytes)
    if wanted is not None and if_range == answer["ETag"]:
        start, end = wanted
        if start >= end:
            return Response(
                status_code=416, headers=answer | {"Content-Range": f"bytes */{file.bytes}"}
            )
        status = 206
        answer["Content-Range"] = f"bytes {start}-{end - 1}/{file.bytes}"
    answer["Content-Length"] = str(end - start)
    chunks = await gateway.results.open(job, file.name, start, end)
    return StreamingResponse(chunks, status, answer, media_type=file.content_type)


def succeeded(job: Job) -> tuple[Job, JobResult]:
    """Return the job and its result. Raises ResultNotReady where it has none (yet)."""
    if job.state is not State.SUCCEEDED or job.result is None:
        extra: dict[str, Any] = {"state": job.state}
        if job.error is not None:
            extra["error"] = job.error.model_dump()
        raise ResultNotReady(
            f"The job is {job.state} and has no result.",
            retry_after=None if job.state.final else 1.0,
            **extra,
        )
    return job, job.result


def _range(header: str, size: int) -> tuple[int, int] | None:
    """Return start and end (behind the last byte) of a single range; None where all is wanted."""
    found = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", header.strip())
    if found is None or found.group() == "bytes=-":
        return None
    first, last = found.groups()
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(size, int(last) + 1 if last else size)


def _json(
    view: JobView | ResultView, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    body = orjson.dumps(view.model_dump(mode="json"))
    return Response(body, status, headers, media_type="application/json")

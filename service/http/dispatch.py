"""From a request to its answer: read, check, run now or hand to the queue."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from service.http.inputs import Kind
from service.tasks.contract import Pipeline


async def dispatch(
    request: Request,
    pipeline: Pipeline[Any],
    *,
    kinds: Collection[Kind] = (),
    always_job: bool = False,
) -> Response:
    """Run `pipeline` for the request.

    `kinds` are the media that the endpoint takes; none for pipelines without upload. Beside the
    pipeline's own parameters the caller may send `mode` (`sync` or `async`) and, for jobs,
    `priority` (`high`, `normal`, `low`); both are taken out before the parameters are validated.
    With `always_job` the answer is always a job, and `Prefer: wait=N` waits for it.

    Sync: 200 and the outcome's document; the medium itself where there is exactly one attachment
    and `Accept` names its type. Async: 202, `Location` and the job. Raises VitrineError.
    """
    raise NotImplementedError

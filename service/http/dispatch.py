"""From a request to its answer: read, check, run now or hand to the queue."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Collection
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from service.auth.access import Caller
from service.auth.keys import Scope
from service.deps import Gateway
from service.errors import (
    IdempotencyConflict,
    InvalidParameter,
    ModelFailed,
    TooManyRequests,
    TritonUnavailable,
)
from service.http.attendance import attended
from service.http.idempotency import idempotency_key, request_hash
from service.http.inputs import Kind, read_input
from service.http.parameters import validate
from service.http.preferences import Preferences, allowed_seconds, preferences, taken, wants
from service.jobs.record import Job, State, Submission
from service.jobs.responses import job_response, media_response
from service.jobs.results import upload_key
from service.observability.tracing import traceparent
from service.tasks.contract import (
    Context,
    Outcome,
    Pipeline,
    TaskParameters,
    Upload,
    unreported,
)
from service.triton.call import Call, calling

_JSON = "application/json"
_ALWAYS_JOB = "this endpoint answers with a job"


async def dispatch(
    request: Request,
    pipeline: Pipeline[Any] | Callable[[Upload | None], Pipeline[Any]],
    *,
    kinds: Collection[Kind] = (),
    most: int = 1,
    always_job: bool = False,
) -> Response:
    """Run `pipeline`, or the one that it chooses for what was sent, for the request.

    `kinds` are the media that the endpoint takes; none for pipelines without upload. A request may
    hold `most` of them, for a job only one. Beside the pipeline's own parameters the caller may send
    `mode` (`sync` or `async`) and, for jobs, `priority` (`high`, `normal`, `low`); both are taken out
    before the parameters are validated.
    With `always_job` the answer is always a job, and `Prefer: wait=N` waits for it; so it is where the
    pipeline has a look at the upload and says so, unless the caller insists on `sync`, which is refused.

    Sync: 200 and the outcome's document; the medium itself where there is exactly one attachment
    and `Accept` names its type (or the pipeline answers with it), else attachments are in the
    document's `files` as data URLs.
    Async: 202, `Location` and the job; 200 and the job (or its one medium, by `Accept`) where it
    ended within `Prefer: wait`. Raises VitrineError.
    """
    gateway: Gateway = request.app.state.gateway
    async with read_input(request, gateway.settings, kinds, most) as (upload, sent):
        wanted = taken(sent)
        how = preferences(request, wanted, _ALWAYS_JOB if always_job else None)
        chosen = pipeline if isinstance(pipeline, Pipeline) else pipeline(upload)
        call = _Call(request, gateway, chosen, upload)
        parameters, job_only = await call.check(sent)
        if job_only and not how.job:
            how = preferences(request, wanted, job_only)
        if not how.job:
            return await call.answer(parameters)
        job, replayed = await call.submit(parameters, how)
        request.state.job = job.id
    # The upload is stored by now; its temporary file is not kept while the caller waits.
    return await _respond(request, gateway, job, how, replayed)


class _Call:
    """One request to one pipeline."""

    def __init__(
        self, request: Request, gateway: Gateway, pipeline: Pipeline[Any], upload: Upload | None
    ) -> None:
        self._request = request
        self._gateway = gateway
        self._pipeline = pipeline
        self._upload = upload
        self._caller: Caller = request.state.caller
        self._key = idempotency_key(request)
        self._seconds = allowed_seconds(request, gateway.settings.limits.request_seconds)
        self._context = Context(
            gateway.settings, gateway.triton, store=gateway.store, tenant=self._caller.tenant
        )
        self._given: TaskParameters = TaskParameters()
        request.state.timings = self._context.timings

    async def check(self, sent: dict[str, Any]) -> tuple[TaskParameters, str | None]:
        """Return the parameters, valid for the pipeline and for the model's card, and complete; and
        why the upload is work for a job only, if it is."""
        self._given = validate(self._pipeline.parameters, sent)
        checked, job_only = await self._watched(self._checked())
        self._request.state.model = checked.model
        return checked, job_only

    async def _checked(self) -> tuple[TaskParameters, str | None]:
        parameters = await self._pipeline.check(self._given, self._context)
        return parameters, await self._pipeline.look(parameters, self._upload, self._context)

    async def answer(self, parameters: TaskParameters) -> Response:
        """Run now. An answer to a request with an Idempotency-Key is kept, and replayed, as JSON."""
        if self._key is None:
            return self._render(await self._run(parameters))
        answers, tenant = self._gateway.answers, self._caller.tenant
        fingerprint = await self._fingerprint()
        kept = await answers.claim(tenant, self._key, fingerprint)
        if kept is not None:
            return _json(kept, {"Idempotency-Replayed": "true"})
        try:
            response = self._render(await self._run(parameters))
        except BaseException:
            await asyncio.shield(answers.free(tenant, self._key))
            raise
        if response.media_type == _JSON:
            await answers.keep(tenant, self._key, fingerprint, bytes(response.body))
        else:
            await answers.free(tenant, self._key)
        return response

    async def submit(self, parameters: TaskParameters, how: Preferences) -> tuple[Job, bool]:
        """Store the upload, hand the job in, and tell whether it is a replay."""
        self._caller.require(Scope.JOBS)
        if self._upload is not None and self._upload.more:
            raise InvalidParameter(
                "mode: a job takes one medium; several in one request are answered at once only.",
                param="mode",
            )
        submission = Submission(
            task=self._pipeline.name,
            model=parameters.model,
            parameters=parameters.model_dump(mode="json"),
            lane=how.lane,
            tenant=self._caller.tenant,
            idempotency_key=self._key,
            request_hash=await self._fingerprint() if self._key else "",
            request_id=self._request.state.request_id,
            traceparent=traceparent(),
        )
        queue, store, upload = self._gateway.queue, self._gateway.store, self._upload
        most = self._caller.limits.queued_jobs
        if upload is None:
            job = await queue.submit(submission, most_queued=most)
            return job, job.id != submission.id
        await queue.ping()  # no upload is stored for a queue that cannot take its job
        key = upload_key(submission.id)
        submission = submission.model_copy(
            update={
                "upload_key": key,
                "upload_type": upload.content_type,
                "upload_name": upload.name,
            }
        )
        await store.put(key, upload.data, upload.content_type)
        try:
            job = await queue.submit(submission, most_queued=most)
        except (IdempotencyConflict, TooManyRequests):
            # Only a refusal says that there is no job; after a lost connection there may be one.
            await store.delete(key)
            raise
        if job.id != submission.id:
            await store.delete(key)
        return job, job.id != submission.id

    async def _run(self, parameters: TaskParameters) -> Outcome:
        call = Call.within(self._seconds)
        with (
            self._gateway.shedding.admit(parameters.model or self._pipeline.name, call),
            calling(call),
        ):
            outcome: Outcome = await self._watched(
                self._pipeline.run(parameters, self._upload, self._context, unreported)
            )
        model = parameters.model or ""
        for stage, milliseconds in self._context.timings.stages.items():
            self._gateway.metrics.stage_duration.labels(stage, model).observe(milliseconds / 1000)
        return outcome

    async def _watched(self, work: Any) -> Any:
        try:
            return await attended(self._request, work, self._seconds)
        except (TritonUnavailable, ModelFailed) as error:
            model = getattr(self._request.state, "model", None) or ""
            self._gateway.metrics.triton_errors.labels(error.stable_code, model).inc()
            raise

    async def _fingerprint(self) -> str:
        # Of what was sent: what the check adds may be drawn anew each time (a seed).
        given = self._given.model_dump(mode="json")
        return await request_hash(self._pipeline.name, given, self._upload)

    def _render(self, outcome: Outcome) -> Response:
        headers = dict(outcome.headers)
        if len(outcome.attachments) == 1:
            (attachment,) = outcome.attachments
            medium = wants(self._request, attachment.content_type) or (
                self._pipeline.answers_with_medium and not wants(self._request, _JSON)
            )
            if medium:
                return Response(
                    attachment.data, headers=headers, media_type=attachment.content_type
                )
        document = dict(outcome.document)
        if outcome.attachments:
            document["files"] = [
                {
                    "name": attachment.name,
                    "content_type": attachment.content_type,
                    "data": f"data:{attachment.content_type};base64,"
                    + base64.b64encode(attachment.data).decode(),
                }
                for attachment in outcome.attachments
            ]
        return _json(orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY), headers)


async def _respond(
    request: Request, gateway: Gateway, job: Job, how: Preferences, replayed: bool
) -> Response:
    seconds = min(how.wait_s, gateway.settings.limits.request_seconds)
    if seconds and not job.state.final:
        job = await attended(request, _wait(gateway, job, seconds), seconds + 5)
    headers = {"Location": f"/v1/jobs/{job.id}"}
    if how.applied:
        headers["Preference-Applied"] = how.applied
    if replayed:
        headers["Idempotency-Replayed"] = "true"
    if job.state is State.SUCCEEDED and job.result and len(job.result.files) == 1:
        (file,) = job.result.files
        if how.wait_s and wants(request, file.content_type):
            return await media_response(request, gateway, job, file, headers)
    status = 200 if how.wait_s and job.state.final else 202
    return await job_response(gateway, job, status, headers)


async def _wait(gateway: Gateway, job: Job, seconds: float) -> Job:
    """Return the job once it is final, the time is over, or the gateway drains."""
    waiting = asyncio.ensure_future(gateway.queue.wait(job.id, timeout_s=seconds))
    draining = asyncio.ensure_future(gateway.draining.wait())
    try:
        await asyncio.wait({waiting, draining}, return_when=asyncio.FIRST_COMPLETED)
        return waiting.result() if waiting.done() else job
    finally:
        for task in (waiting, draining):
            task.cancel()
        await asyncio.gather(waiting, draining, return_exceptions=True)


def _json(body: bytes, headers: dict[str, str] | None = None) -> Response:
    return Response(body, media_type=_JSON, headers=headers)

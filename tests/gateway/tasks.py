"""Pipelines that need no network, behind endpoints like those of the real tasks."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from service.auth.access import INFER
from service.errors import TritonUnavailable
from service.http.dispatch import dispatch
from service.tasks.contract import (
    Attachment,
    Context,
    Outcome,
    Pipeline,
    Report,
    TaskParameters,
    Upload,
)
from service.triton.cards import Task


class EchoParameters(TaskParameters):
    count: Annotated[int, Field(ge=1, le=100)] = 5
    ratio: float = 0.5
    word: Literal["yes", "no"] = "yes"


class Echo(Pipeline[EchoParameters]):
    """Says what it got, with as many attachments as `count` above 90 says."""

    name = "echo"
    parameters = EchoParameters

    def __init__(self) -> None:
        self.runs = 0

    async def run(
        self, parameters: EchoParameters, upload: Upload | None, context: Context, report: Report
    ) -> Outcome:
        assert upload is not None
        self.runs += 1
        context.timings.add("decode", 0.002)
        document = {
            "type": upload.content_type,
            "name": upload.name,
            "bytes": len(upload.read()),
            "in_memory": isinstance(upload.data, bytes),
            "run": self.runs,
            **parameters.model_dump(),
        }
        extra = max(0, parameters.count - 90)
        return Outcome(
            document,
            tuple(
                Attachment(f"copy-{i}", upload.content_type, upload.read()) for i in range(extra)
            ),
        )


class SleepParameters(TaskParameters):
    seconds: float
    fail: bool = False


class Sleep(Pipeline[SleepParameters]):
    """Sleeps; counts the naps that were disturbed."""

    name = "sleep"
    parameters = SleepParameters
    takes_upload = False

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()

    async def run(
        self, parameters: SleepParameters, upload: Upload | None, context: Context, report: Report
    ) -> Outcome:
        if parameters.fail:
            raise RuntimeError("a fault that nobody foresaw")
        try:
            await asyncio.sleep(parameters.seconds)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return Outcome({"slept": parameters.seconds})


class Resolve(Pipeline[TaskParameters]):
    """Asks Triton for a model."""

    name = "resolve"
    parameters = TaskParameters

    async def check(self, parameters: TaskParameters, context: Context) -> TaskParameters:
        card = await context.triton.resolve(Task.CLASSIFICATION, parameters.model)
        return parameters.model_copy(update={"model": card.id})

    async def run(
        self, parameters: TaskParameters, upload: Upload | None, context: Context, report: Report
    ) -> Outcome:
        raise TritonUnavailable("not reached")


router = APIRouter(dependencies=[INFER])
echo, sleep, resolve = Echo(), Sleep(), Resolve()


@router.post("/v1/echo")
async def post_echo(request: Request) -> Response:
    return await dispatch(request, echo, kinds=("image", "video"))


@router.post("/v1/echo-image")
async def post_echo_image(request: Request) -> Response:
    return await dispatch(request, echo, kinds=("image",))


@router.post("/v1/sleep")
async def post_sleep(request: Request) -> Response:
    return await dispatch(request, sleep)


@router.post("/v1/sleep-job")
async def post_sleep_job(request: Request) -> Response:
    return await dispatch(request, sleep, always_job=True)


@router.post("/v1/resolve")
async def post_resolve(request: Request) -> Response:
    return await dispatch(request, resolve)

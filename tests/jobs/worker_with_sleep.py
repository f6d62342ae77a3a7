"""`python -m tests.jobs.worker_with_sleep`: a real worker with one task that needs no Triton.

`sleep` does `steps` steps of `step_s` seconds and writes, for each start, a line into `journal`.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any, ClassVar, cast

from pydantic import Field

from service.errors import BadInput, TritonUnavailable
from service.jobs.worker import run, work
from service.observability.logs import configure_logging
from service.settings import Settings
from service.tasks.contract import (
    Attachment,
    Context,
    Outcome,
    Pipeline,
    Progress,
    Report,
    TaskParameters,
    Upload,
)
from service.triton.client import Triton


class SleepParameters(TaskParameters):
    steps: int = Field(default=1, ge=1, le=1000)
    step_s: float = 0.01
    journal: Path | None = None
    fail: str | None = None


class Sleep(Pipeline[SleepParameters]):
    name: ClassVar[str] = "sleep"
    parameters = SleepParameters

    async def run(
        self,
        parameters: SleepParameters,
        upload: Upload | None,
        context: Context,
        report: Report,
    ) -> Outcome:
        if parameters.journal is not None:
            with parameters.journal.open("a") as journal:
                journal.write(f"{os.getpid()}\n")
        match parameters.fail:
            case "unavailable":
                raise TritonUnavailable("Triton is down.", retry_after=0.0)
            case "not connected":
                raise TritonUnavailable("Triton is away.", retry_after=0.0, begun=False)
            case "not connected yet" if len((parameters.journal or Path()).read_text().split()) < 5:
                raise TritonUnavailable("Triton is away.", retry_after=0.0, begun=False)
            case "bad":
                raise BadInput("This is no picture.", code="not_an_image")
            case "bug":
                raise RuntimeError("a secret detail")
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "cancelled":
                raise asyncio.CancelledError
        for step in range(parameters.steps):
            await report(Progress(step, parameters.steps, "sleep"))
            await asyncio.sleep(parameters.step_s)
        await report(Progress(parameters.steps, parameters.steps, "sleep"))
        document: dict[str, Any] = {"slept": parameters.steps, "pid": os.getpid()}
        if upload is not None:
            document |= {"type": upload.content_type, "kind": type(upload.data).__name__}
            return Outcome(document, (Attachment("echo.bin", upload.content_type, upload.read()),))
        return Outcome(document)


class AlwaysReady:
    """The one question that the worker itself asks of Triton."""

    async def ready(self) -> bool:
        return True


PIPELINES = {Sleep.name: Sleep()}
TRITON = cast(Triton, AlwaysReady())


if __name__ == "__main__":
    settings = Settings()
    configure_logging(settings, "worker")
    run(work(settings, TRITON, PIPELINES))

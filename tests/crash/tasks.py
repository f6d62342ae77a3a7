"""A task that needs no network: it carries its upload into a result that nothing else could give."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from typing import ClassVar, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from service.auth.access import INFER
from service.errors import BadInput
from service.http.dispatch import dispatch
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


def carried(token: str, upload: bytes) -> bytes:
    """Return the result of a token and an upload: 100 to 165 kB."""
    seed = hashlib.sha256(token.encode() + upload).digest()
    return hashlib.shake_256(seed).digest(100_000 + int.from_bytes(seed[:2]))


class CarryParameters(TaskParameters):
    token: str
    steps: int = Field(default=2, ge=1, le=1000)
    step_s: float = Field(default=0.005, ge=0, le=1)
    end: Literal["well", "bad input", "bug", "poison"] = "well"


class Carry(Pipeline[CarryParameters]):
    """`poison` kills the process that runs it."""

    name: ClassVar[str] = "carry"
    parameters = CarryParameters

    async def run(
        self, parameters: CarryParameters, upload: Upload | None, context: Context, report: Report
    ) -> Outcome:
        assert upload is not None
        for step in range(parameters.steps):
            await report(Progress(step, parameters.steps, "carrying"))
            await asyncio.sleep(parameters.step_s)
        match parameters.end:
            case "bad input":
                raise BadInput("This cannot be carried.", code="not_carried")
            case "bug":
                raise RuntimeError("a fault that nobody foresaw")
            case "poison":
                os.kill(os.getpid(), signal.SIGKILL)
        data = carried(parameters.token, await asyncio.to_thread(upload.read))
        await report(Progress(parameters.steps, parameters.steps, "carrying"))
        file = Attachment("carried.bin", "application/octet-stream", data)
        return Outcome({"token": parameters.token}, (file,))


router = APIRouter(dependencies=[INFER])
_carry = Carry()


@router.post("/v1/carry")
async def post_carry(request: Request) -> Response:
    return await dispatch(request, _carry, kinds=("image", "video"))

"""What every task's pipeline looks like, whether the gateway runs it for an answer or the worker for a job.

A pipeline turns parameters and an upload into an `Outcome`. The gateway awaits it for
`mode=sync`; for `mode=async` the upload goes to object storage, the parameters into the job
record, and the worker runs the same pipeline.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

from service.settings import Settings
from service.storage.store import Store
from service.triton.client import Triton


class TaskParameters(BaseModel):
    """Parameters of a task. Unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = None


@dataclass(frozen=True, slots=True)
class Upload:
    """What the caller sent: a picture in memory, or a video in a file that the pipeline may read.

    `more` holds the others, in order, where an endpoint takes several in one request.
    """

    content_type: str
    data: bytes | Path
    name: str = "upload"
    more: tuple[Upload, ...] = ()

    def read(self) -> bytes:
        return self.data if isinstance(self.data, bytes) else self.data.read_bytes()

    def head(self, count: int) -> bytes:
        """Return the first `count` bytes."""
        if isinstance(self.data, bytes):
            return self.data[:count]
        with self.data.open("rb") as file:
            return file.read(count)


@dataclass(frozen=True, slots=True)
class Attachment:
    """One medium of a result: a picture, a clip, a mask."""

    name: str
    content_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a pipeline gives: the JSON document, and media if there are any.

    `headers` go with an answer given at once: what to know where a medium is sent without the document.
    """

    document: Mapping[str, Any]
    attachments: tuple[Attachment, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a pipeline is. `steps` 0 means unknown."""

    step: int
    steps: int
    stage: str


class Report(Protocol):
    """Takes progress; raises `asyncio.CancelledError` once the caller wants no result any more."""

    async def __call__(self, progress: Progress) -> None: ...


async def unreported(progress: Progress) -> None:
    """The report of a synchronous call, where nobody watches."""


@dataclass(slots=True)
class Timings:
    """Milliseconds by stage, for `Server-Timing` and the metrics: decode, queue, infer, encode."""

    stages: dict[str, float] = field(default_factory=dict)

    def add(self, stage: str, seconds: float) -> None:
        self.stages[stage] = self.stages.get(stage, 0.0) + seconds * 1000.0


@dataclass(frozen=True, slots=True)
class Context:
    """What pipelines work with: for whom, and where what they keep for a caller lies."""

    settings: Settings
    triton: Triton
    timings: Timings = field(default_factory=Timings)
    store: Store | None = None
    tenant: str = "local"


P = TypeVar("P", bound=TaskParameters)


class Pipeline(ABC, Generic[P]):
    """One task. `name` is stored in job records and used in paths and metrics.

    With `answers_with_medium` an answer given at once is its one medium, and JSON where `Accept` names that.
    """

    name: ClassVar[str]
    parameters: type[P]
    takes_upload: ClassVar[bool] = True
    answers_with_medium: ClassVar[bool] = False

    async def check(self, parameters: P, context: Context) -> P:
        """Refuse parameters that the chosen model's card does not allow; return them completed (model, defaults).

        Called before a job is accepted, so that a bad request fails at once and not later in a worker.
        """
        return parameters

    async def look(self, parameters: P, upload: Upload | None, context: Context) -> str | None:
        """Refuse an upload that can be seen to be beyond the limits before any work begins on it.

        Takes checked parameters. Returns why this upload is work for a job only, or None where it may be
        answered at once.
        """
        return None

    @abstractmethod
    async def run(
        self, parameters: P, upload: Upload | None, context: Context, report: Report
    ) -> Outcome:
        """Do the work. Raises VitrineError."""

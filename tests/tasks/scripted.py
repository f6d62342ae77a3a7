"""A Triton whose answers a test writes, for what pipelines do with scores and streams.

What real models answer is tested with a real Triton (`tests/triton`, `tests/e2e`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from service.errors import ModelNotFound
from service.settings import LimitSettings, Settings
from service.tasks.contract import Context, Progress
from service.triton.cards import Card, ImageInput, Licence, Paper, Parameter, Task, WeightsRecord
from service.triton.client import ModelState
from service.triton.tensors import Array

Answer = Callable[[Mapping[str, Array]], Any]


def card(id: str, task: Task, **fields: Any) -> Card:
    """Return a card with what every card must state."""
    return Card(
        id=id,
        task=task,
        title=id,
        paper=Paper(slug=id, title=id, year=2023),
        origin="own",
        architecture=id,
        variant="demo",
        licence=Licence(code="MIT", weights="MIT"),
        weights=fields.pop("weights", WeightsRecord(kind="own")),
        **fields,
    )


CLASSIFIER = card(
    "shapes",
    Task.CLASSIFICATION,
    image=ImageInput(height=8, width=8),
    labels=("circle", "square", "star"),
    default=True,
)
DETECTOR = card("faces", Task.FACE_DETECTION, image=ImageInput(resize="none"), default=True)
JUDGE = card(
    "judge",
    Task.DEEPFAKE,
    image=ImageInput(height=16, width=16),
    members=("ed", "vae"),
    thresholds={"fake": 0.6},
    default=True,
)
PAINTER = card(
    "painter",
    Task.TEXT_TO_IMAGE,
    default=True,
    parameters={
        "prompt": Parameter(type="string", max_length=40),
        "seed": Parameter(type="integer", minimum=0, maximum=2**63 - 1),
        "steps": Parameter(type="integer", default=4, minimum=1, maximum=50),
        "guidance": Parameter(type="number", default=5.0, minimum=0, maximum=20),
        "width": Parameter(type="integer", default=8, choices=(8, 16)),
        "height": Parameter(type="integer", default=8, choices=(8, 16)),
        "n": Parameter(type="integer", default=1, minimum=1, maximum=4),
    },
)


class ScriptedTriton:
    """Answers `infer` and `stream` of each model by the function a test gives."""

    def __init__(self, answers: Mapping[str, Answer], *cards: Card) -> None:
        self._answers = answers
        self._cards = cards
        self.open_streams = 0

    async def models(self, task: Task | None = None) -> list[ModelState]:
        return [ModelState(c, "ready") for c in self._cards if task in (None, c.task)]

    async def resolve(self, task: Task, model: str | None) -> Card:
        for known in self._cards:
            if known.task == task and model in (None, known.id):
                return known
        raise ModelNotFound(f"no model {model!r} for {task}")

    async def load(self, model: str) -> None: ...

    async def unload(self, model: str) -> None: ...

    async def ready(self) -> bool:
        return True

    async def infer(self, model: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        answer: dict[str, Array] = await self._answers[model](inputs)
        return answer

    async def stream(
        self, model: str, inputs: Mapping[str, Array]
    ) -> AsyncIterator[dict[str, Array]]:
        self.open_streams += 1
        try:
            async for response in self._answers[model](inputs):
                yield response
        finally:
            self.open_streams -= 1


class Watcher:
    """A report that keeps what it is told."""

    def __init__(self) -> None:
        self.seen: list[Progress] = []

    async def __call__(self, progress: Progress) -> None:
        self.seen.append(progress)


def context(triton: ScriptedTriton, **limits: Any) -> Context:
    return Context(Settings(limits=LimitSettings(**limits)), triton)

"""The reference is written by the schemas: every field of every task says what it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from service.tasks import PIPELINES
from service.tasks.classify.schemas import Classification
from service.tasks.deepfake.schemas import Deepfake
from service.tasks.detect.schemas import CocoDetections, Detections
from service.tasks.generate.schemas import GeneratedImages
from service.tasks.upscale.schemas import Upscaled
from service.tasks.video_classification.schemas import VideoClassification

ANSWERS = [
    Classification,
    CocoDetections,
    Deepfake,
    Detections,
    GeneratedImages,
    Upscaled,
    VideoClassification,
]
PARAMETERS = [pipeline.parameters for pipeline in PIPELINES.values()]


def undescribed(node: Any, path: str = "") -> Iterator[str]:
    for name, schema in node.get("properties", {}).items():
        # A field that is a model of its own is described there.
        if not schema.get("description") and "$ref" not in schema:
            yield f"{path}.{name}"
    for name, schema in node.get("$defs", {}).items():
        yield from undescribed(schema, name)
        if not schema.get("description"):
            yield name


@pytest.mark.parametrize("model", [*ANSWERS, *PARAMETERS])
def test_every_field_is_described(model: type[BaseModel]) -> None:
    assert list(undescribed(model.model_json_schema(), model.__name__)) == []


def test_every_task_is_listed_by_its_name() -> None:
    assert set(PIPELINES) == {
        "classify",
        "classify-video",
        "deepfake",
        "detect",
        "embed",
        "explain",
        "generate-image",
        "reconstruct",
        "segment",
        "upscale",
    }
    assert all(name == pipeline.name for name, pipeline in PIPELINES.items())

"""The tasks: one package each, with the trio `endpoints.py`, `schemas.py`, `pipeline.py`."""

from __future__ import annotations

from typing import Any

from service.tasks.classify.pipeline import Classify
from service.tasks.contract import Pipeline
from service.tasks.deepfake.pipeline import DetectDeepfake
from service.tasks.detect.pipeline import Detect
from service.tasks.embed.pipeline import Embed
from service.tasks.explain.pipeline import Explain
from service.tasks.generate.pipeline import GenerateImage
from service.tasks.reconstruct.pipeline import Reconstruct
from service.tasks.segment.pipeline import SegmentPicture
from service.tasks.upscale.pipeline import Upscale
from service.tasks.video_classification.pipeline import ClassifyVideo

__all__ = ["PIPELINES"]

PIPELINES: dict[str, Pipeline[Any]] = {
    pipeline.name: pipeline
    for pipeline in (
        Classify(),
        ClassifyVideo(),
        Detect(),
        DetectDeepfake(),
        Embed(),
        Explain(),
        GenerateImage(),
        Reconstruct(),
        SegmentPicture(),
        Upscale(),
    )
}
"""Every task by the name that job records, paths and metrics use."""

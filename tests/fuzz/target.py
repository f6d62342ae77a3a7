"""One file on the way that a request's medium takes, up to the tensors that would go to Triton."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from service.errors import VitrineError
from service.http.spool import Spool
from service.settings import LimitSettings
from service.tasks.classify.pipeline import Classify
from service.tasks.classify.schemas import ClassifyParameters
from service.tasks.contract import unreported
from service.tasks.deepfake.pipeline import DetectDeepfake
from service.tasks.deepfake.schemas import DeepfakeParameters
from service.triton.tensors import Array
from tests.tasks.scripted import CLASSIFIER, DETECTOR, JUDGE, ScriptedTriton, context

LIMITS = LimitSettings(image_pixels=4_000_000, video_pixels=1_000_000)

# A face in the middle and one that reaches beyond the frame's edge.
_BOXES = np.array([[[0.25, 0.25, 0.75, 0.75], [0.5, 0.5, 1.2, 1.1]]], np.float32)


async def outcome(data: bytes) -> str:
    """Return `picture`, `video`, or the code of the refusal.

    Raises whatever a request would answer with 500: any exception but a VitrineError of status 4xx.
    """
    spool = Spool(LIMITS, ("image", "video"))
    try:
        await spool.write(data)
        upload = await spool.finish()
        if upload.content_type.startswith("image/"):
            await Classify().run(ClassifyParameters(), upload, _context(), unreported)
        await DetectDeepfake().run(DeepfakeParameters(frames=5), upload, _context(), unreported)
        return upload.content_type.partition("/")[0].replace("image", "picture")
    except VitrineError as error:
        if not 400 <= error.status < 500:
            raise
        return error.stable_code
    finally:
        spool.close()


def _context() -> Any:
    triton = ScriptedTriton(
        {"shapes": _scores, "faces": _faces, "judge": _judge}, CLASSIFIER, DETECTOR, JUDGE
    )
    return context(triton, **LIMITS.model_dump())


async def _scores(inputs: Mapping[str, Array]) -> dict[str, Array]:
    assert inputs["IMAGE"].shape == (1, 3, 8, 8)
    return {"SCORES": np.array([[0.2, 0.7, 0.1]], np.float32)}


async def _faces(inputs: Mapping[str, Array]) -> dict[str, Array]:
    assert inputs["IMAGE"].ndim == 4
    return {"BOXES": _BOXES, "SCORES": np.array([[0.9, 0.8]], np.float32)}


async def _judge(inputs: Mapping[str, Array]) -> dict[str, Array]:
    assert inputs["FACES"].shape == (1, 3, 16, 16)
    return {
        "SCORES": np.array([[0.4, 0.6]], np.float32),
        "MEMBERS": np.array([[[0.4, 0.6], [0.5, 0.5]]], np.float32),
    }

"""Average precision of detections by pycocotools, for the scores of demo detectors."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

# Boxes [N, 4] x0, y0, x1, y1 in pixels, and the classes [N] of one picture.
Truth = tuple[np.ndarray, np.ndarray]
# The same, with scores [N] at the end.
Found = tuple[np.ndarray, np.ndarray, np.ndarray]


def ap50(truth: Sequence[Truth], found: Sequence[Found]) -> float:
    """Return the mean over the classes of the average precision, a box counting as found from an overlap of 0.5."""
    classes = np.unique(np.concatenate([named for _, named in truth]))
    whole: dict[str, Any] = {
        "images": [{"id": picture} for picture in range(len(truth))],
        "categories": [{"id": int(number)} for number in classes],
        "annotations": [],
    }
    for picture, (boxes, named) in enumerate(truth):
        for row in _rows(picture, boxes, named):
            row |= {"id": len(whole["annotations"]) + 1, "iscrowd": 0}
            whole["annotations"].append(row)
    results = [
        row | {"score": float(score)}
        for picture, (boxes, named, scores) in enumerate(found)
        for row, score in zip(_rows(picture, boxes, named), scores, strict=True)
    ]
    if not results:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        annotations = COCO()
        annotations.dataset = whole
        annotations.createIndex()
        evaluation = COCOeval(annotations, annotations.loadRes(results), "bbox")
        evaluation.params.iouThrs = np.array([0.5])
        evaluation.evaluate()
        evaluation.accumulate()
    # Thresholds, recalls, classes, areas (all of them first), numbers of detections (100 last).
    precision = evaluation.eval["precision"][0, :, :, 0, -1]
    return float(precision[precision > -1].mean())


def _rows(picture: int, boxes: np.ndarray, classes: np.ndarray) -> list[dict[str, Any]]:
    return [
        {
            "image_id": picture,
            "category_id": int(number),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": (x1 - x0) * (y1 - y0),
        }
        for (x0, y0, x1, y1), number in zip(
            np.asarray(boxes, float).reshape(-1, 4).tolist(), classes, strict=True
        )
    ]

"""What panoptic demo models are worth: their answers to held-out scenes beside the truth, by torchmetrics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torchmetrics.functional.classification import multiclass_jaccard_index
from torchmetrics.functional.detection import panoptic_quality

from models.demo import segmented
from models.demo.segmented import CLASSES, Segmented
from models.registry import architecture
from models.serving import Arrays, Device, Predictor
from service.triton.cards import WeightsRecord

HELD_OUT = 200


def measure(
    slug: str, folder: Path, device: str = "cpu", count: int = HELD_OUT
) -> dict[str, float]:
    """Return the scores of the demo weights of `slug` in `folder` on `count` held-out scenes."""
    paper = architecture(slug)
    card = paper.card("demo", weights=WeightsRecord(kind="demo"))
    served = paper.load(card, folder, Device(device))
    assert isinstance(served, Predictor)
    scenes = segmented.drawn(segmented.HELD_OUT, count)
    pixels = np.ascontiguousarray(scenes.pictures.transpose(0, 3, 1, 2))
    answers = [served.predict({"IMAGE": pixels[k : k + 1]}) for k in range(count)]
    return scores([panoptic_map(answer) for answer in answers], scenes)


def panoptic_map(answer: Arrays) -> np.ndarray:
    """Return class and number [H, W, 2] of each pixel of an answer to one picture; background where there is nothing."""
    mask = np.asarray(answer["MASK"][0])
    classes = np.zeros_like(mask)
    for id, index, _ in np.asarray(answer["SEGMENTS"][0]):
        classes[mask == id] = index
    return np.stack([classes, np.where(classes > 0, mask, 0)], -1)


def scores(found: list[np.ndarray], scenes: Segmented) -> dict[str, float]:
    """Return mean intersection over union of the classes, and panoptic quality, of maps [H, W, 2] as `panoptic_map`'s."""
    maps = torch.from_numpy(np.stack(found)).long()
    truth = torch.from_numpy(np.stack([scenes.classes, scenes.numbers], -1)).long()
    overlap = multiclass_jaccard_index(maps[..., 0], truth[..., 0], len(CLASSES))
    quality = panoptic_quality(maps, truth, things=set(range(1, len(CLASSES))), stuffs={0})
    return {"mIoU": float(overlap), "PQ": float(quality)}

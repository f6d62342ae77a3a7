"""MTCNN's cascade: all that lies between its three networks, in NumPy, whatever runs them.

Frames of one size are detected together, and the crops of all of them go through R-Net and O-Net
together. The constants are those of the facenet-pytorch package 2.6.0 (MIT).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.layers.area import AreaTable
from models.serving import Arrays, Predictor
from service.triton.cards import Card

# P-Net's window in its own pixels, and the step between windows.
WINDOW, STRIDE = 12, 2
# The sides of what R-Net and O-Net see.
REFINED, FINAL = 24, 48
# Each level of the pyramid is this much smaller than the one below (half the area).
PYRAMID_FACTOR = 0.709
# Boxes of one picture overlapping more than this are one face: within a level of the pyramid, and afterwards.
LEVEL_OVERLAP, OVERLAP = 0.5, 0.7
# The most windows of a level, and candidates of a picture, that are looked at further, best first; a
# photograph stays far below. Bounds the work that a picture of noise can cause.
MAX_WINDOWS, MAX_CANDIDATES = 8192, 2048
# How many crops go through R-Net or O-Net at a time; bounds memory.
CROPS = 512


@dataclass(frozen=True)
class Faces:
    """The faces of one picture, best first, in its pixels.

    `boxes` [N, 4] are x0, y0, x1, y1 and may reach beyond the picture; `scores` [N] in 0..1; `landmarks`
    [N, 5, 2] are (x, y) of the left and right eye (as seen), the nose, the left and right corner of the mouth.
    """

    boxes: np.ndarray
    scores: np.ndarray
    landmarks: np.ndarray


class FaceDetector(Predictor):
    """IMAGE `uint8` [B, 3, H, W] to BOXES [B, N, 4], SCORES [B, N] and LANDMARKS [B, N, 5, 2], all float32.

    Coordinates are shares of the picture, clipped to 0..1. N is the largest number of faces in a picture of
    the batch, at least 1; rows without a face hold zeros. `networks` are `pnet`, `rnet` and `onet`: from PIXELS
    float32 [N, 3, h, w] in 0..255 to CORRECTIONS, PROBABILITIES and, of the last, POINTS.
    """

    def __init__(self, networks: Mapping[str, Callable[[Arrays], Arrays]], card: Card) -> None:
        self._networks = networks
        self._min_face_size = float(card.parameters["min_face_size"].default or 0)
        self._thresholds = tuple(card.thresholds[name] for name in ("pnet", "rnet", "onet"))

    def predict(self, batch: Arrays) -> Arrays:
        pictures = batch["IMAGE"]
        found = self.detect(pictures, self._min_face_size, self._thresholds)
        size = np.array([pictures.shape[3], pictures.shape[2]], np.float32)
        rows = max(1, *(len(faces.scores) for faces in found))
        boxes = np.zeros((len(found), rows, 4), np.float32)
        scores = np.zeros((len(found), rows), np.float32)
        landmarks = np.zeros((len(found), rows, 5, 2), np.float32)
        for number, faces in enumerate(found):
            count = len(faces.scores)
            boxes[number, :count] = (faces.boxes / np.tile(size, 2)).clip(0, 1)
            scores[number, :count] = faces.scores
            landmarks[number, :count] = (faces.landmarks / size).clip(0, 1)
        return {"BOXES": boxes, "SCORES": scores, "LANDMARKS": landmarks}

    def detect(
        self,
        pictures: np.ndarray,
        min_face_size: float = 40.0,
        thresholds: Sequence[float] = (0.6, 0.7, 0.7),
    ) -> list[Faces]:
        """Return the faces of at least `min_face_size` pixels in each of `pictures` `uint8` [B, 3, H, W].

        `thresholds` are the probabilities that a candidate must pass at P-, R- and O-Net.
        """
        table = AreaTable(pictures)
        candidates = self._propose(table, min_face_size, thresholds[0])
        candidates = self._refine(table, candidates, thresholds[1])
        return self._finish(table, candidates, thresholds[2])

    def _propose(
        self, table: AreaTable, min_face_size: float, threshold: float
    ) -> list[np.ndarray]:
        """Return square candidates [N, 4] of each picture."""
        nothing = np.zeros((0, 9), np.float32)  # Pictures may be too small for a level.
        found = [[nothing] for _ in range(table.batch)]
        for scale in _pyramid(min(table.height, table.width), min_face_size):
            level = table.resized(int(table.height * scale + 1), int(table.width * scale + 1))
            seen = self._networks["pnet"]({"PIXELS": level})
            for windows, *maps in zip(
                found, seen["CORRECTIONS"], seen["PROBABILITIES"], strict=True
            ):
                windows.append(_windows(*maps, scale, threshold))
        candidates = []
        for levels in found:
            windows = np.concatenate(levels)  # N, 9: box, score, correction
            windows = windows[nms(windows[:, :4], windows[:, 4], OVERLAP)[:MAX_CANDIDATES]]
            box = windows[:, :4]
            sides = np.tile(box[:, 2:] - box[:, :2], 2)
            candidates.append(_square(box + windows[:, 5:] * sides))
        return candidates

    def _refine(
        self, table: AreaTable, candidates: list[np.ndarray], threshold: float
    ) -> list[np.ndarray]:
        """Return the candidates that pass R-Net, corrected and square again."""
        passed = []
        for boxes, seen in self._look(table, candidates, "rnet", REFINED):
            boxes, (scores, corrections) = _above(threshold, boxes, seen, "CORRECTIONS")
            kept = nms(boxes, scores, OVERLAP)
            passed.append(_square(_corrected(boxes[kept], corrections[kept])))
        return passed

    def _finish(
        self, table: AreaTable, candidates: list[np.ndarray], threshold: float
    ) -> list[Faces]:
        """Return the candidates that pass O-Net as faces."""
        faces = []
        for boxes, seen in self._look(table, candidates, "onet", FINAL):
            boxes, (scores, corrections, points) = _above(
                threshold, boxes, seen, "CORRECTIONS", "POINTS"
            )
            sides = boxes[:, 2:] - boxes[:, :2] + 1
            # O-Net gives the five x first, then the five y, as shares of the box.
            landmarks = points.reshape(-1, 2, 5).transpose(0, 2, 1)
            landmarks = landmarks * sides[:, None] + boxes[:, None, :2] - 1
            boxes = _corrected(boxes, corrections)
            kept = _nested_nms(boxes, scores, OVERLAP)
            faces.append(Faces(boxes[kept], scores[kept], landmarks[kept]))
        return faces

    def _look(
        self, table: AreaTable, candidates: list[np.ndarray], network: str, size: int
    ) -> list[tuple[np.ndarray, Arrays]]:
        """Run the crops of all pictures through a network and return, by picture, boxes and its outputs.

        Candidates without a pixel inside the picture are left out.
        """
        candidates = [boxes[_inside(boxes, table)] for boxes in candidates]
        counts = [len(boxes) for boxes in candidates]
        boxes = np.concatenate(candidates)
        if not len(boxes):
            return [(none, _NOTHING) for none in candidates]
        picture = np.repeat(np.arange(len(counts)), counts)
        pixels = _pixels(boxes, table)
        runs = [
            self._networks[network](
                {
                    "PIXELS": table.crops(
                        picture[start : start + CROPS], pixels[start : start + CROPS], size
                    )
                }
            )
            for start in range(0, len(boxes), CROPS)
        ]
        ends = np.cumsum(counts)[:-1]
        split = {name: np.split(np.concatenate([r[name] for r in runs]), ends) for name in runs[0]}
        return [
            (boxes, {name: parts[number] for name, parts in split.items()})
            for number, boxes in enumerate(candidates)
        ]


# What R-Net and O-Net say of no crops.
_NOTHING = {
    "CORRECTIONS": np.zeros((0, 4), np.float32),
    "PROBABILITIES": np.zeros(0, np.float32),
    "POINTS": np.zeros((0, 10), np.float32),
}


def nms(boxes: np.ndarray, scores: np.ndarray, overlap: float) -> np.ndarray:
    """Return the indices of the boxes [N, 4] kept, best first: none overlaps a better one by more than
    `overlap`, intersection over union."""
    order = np.argsort(-scores, kind="stable")
    x0, y0, x1, y1 = np.ascontiguousarray(boxes[order].T)
    area = (x1 - x0) * (y1 - y0)
    kept = []
    left = np.arange(len(order))
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        across = np.minimum(x1[best], x1[left]) - np.maximum(x0[best], x0[left])
        down = np.minimum(y1[best], y1[left]) - np.maximum(y0[best], y0[left])
        common = np.maximum(across, 0) * np.maximum(down, 0)
        left = left[common <= overlap * (area[best] + area[left] - common)]
    return order[kept]


def _pyramid(side: int, min_face_size: float) -> list[float]:
    """Return the scales at which faces from `min_face_size` up to the shorter side fill P-Net's window."""
    scales = []
    scale = WINDOW / min_face_size
    while side * scale >= WINDOW:
        scales.append(scale)
        scale *= PYRAMID_FACTOR
    return scales


def _windows(
    correction: np.ndarray, probability: np.ndarray, scale: float, threshold: float
) -> np.ndarray:
    """Return one picture's windows at one scale: [N, 9] of box (pixels of the picture), score and correction."""
    y, x = np.nonzero(probability >= threshold)
    scores = probability[y, x]
    if len(scores) > MAX_WINDOWS:
        best = np.argsort(-scores, kind="stable")[:MAX_WINDOWS]
        scores, y, x = scores[best], y[best], x[best]
    corner = STRIDE * np.stack((x, y), axis=1).astype(np.float32)
    boxes = np.floor(np.concatenate((corner + 1, corner + WINDOW), axis=1) / np.float32(scale))
    windows = np.concatenate((boxes, scores[:, None], correction[:, y, x].T), axis=1)
    return windows[nms(boxes, scores, LEVEL_OVERLAP)]


def _above(
    threshold: float, boxes: np.ndarray, seen: Arrays, *names: str
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return boxes, scores and further outputs of the candidates with a score above the threshold."""
    chosen = seen["PROBABILITIES"] > threshold
    return boxes[chosen], [seen[name][chosen] for name in ("PROBABILITIES", *names)]


def _nested_nms(boxes: np.ndarray, scores: np.ndarray, overlap: float) -> list[int]:
    """Return the indices of the boxes kept, best first; overlap is a share of the smaller box, so nested ones go."""
    order = np.argsort(-scores, kind="stable")
    area = (boxes[:, 2:] - boxes[:, :2] + 1).prod(1)
    corner0 = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    corner1 = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    common = (corner1 - corner0 + 1).clip(0).prod(2)
    same = common / np.minimum(area[:, None], area[None]) > overlap
    kept: list[int] = []
    for candidate in order.tolist():
        if not same[candidate, kept].any():
            kept.append(candidate)
    return kept


def _corrected(boxes: np.ndarray, corrections: np.ndarray) -> np.ndarray:
    return boxes + corrections * np.tile(boxes[:, 2:] - boxes[:, :2] + 1, 2)


def _square(boxes: np.ndarray) -> np.ndarray:
    """Return squares of the longer side around the boxes' centres."""
    sides = boxes[:, 2:] - boxes[:, :2]
    longer = sides.max(1, keepdims=True)
    corner = boxes[:, :2] + sides * 0.5 - longer * 0.5
    return np.concatenate((corner, corner + longer), axis=1)


def _pixels(boxes: np.ndarray, table: AreaTable) -> np.ndarray:
    """Return what the boxes cover inside the picture, int64, last exclusive. The networks count pixels from 1."""
    boxes = np.trunc(boxes).astype(np.int64)
    corner = boxes[:, :2].clip(1) - 1
    end = np.minimum(boxes[:, 2:], [table.width, table.height])
    return np.concatenate((corner, end), axis=1)


def _inside(boxes: np.ndarray, table: AreaTable) -> np.ndarray:
    pixels = _pixels(boxes, table)
    return (pixels[:, 2:] > pixels[:, :2]).all(1)

"""MTCNN: Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks.

https://arxiv.org/abs/1604.02878. Three small networks, each looking closer at what the one before let through:
P-Net slides over a pyramid of the picture, R-Net sees each candidate at 24x24 pixels, O-Net at 48x48 and
also finds five landmarks. The weights ship with this project (`models/demo/weights/mtcnn.safetensors`); they
are those of the facenet-pytorch package 2.6.0 (MIT, see MTCNN-LICENCE.txt beside it), and so are the
constants of the cascade. Frames of one size are detected together, and the crops of all of them go
through R-Net and O-Net together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torchvision.ops import nms

from models.architecture import Architecture, Variant
from models.layers.area import AreaTable
from models.registry import register
from models.serving import Arrays, Device, Predictor
from service.triton.cards import Card, ImageInput, Licence, Paper, Parameter, Task, WeightsRecord

# P-Net's window in its own pixels, and the step between windows.
WINDOW, STRIDE = 12, 2
# Each level of the pyramid is this much smaller than the one below (half the area).
PYRAMID_FACTOR = 0.709
# Boxes of one picture overlapping more than this are one face: within a level of the pyramid, and afterwards.
LEVEL_OVERLAP, OVERLAP = 0.5, 0.7
# The most windows of a level, and candidates of a picture, that are looked at further, best first; a
# photograph stays far below. Bounds the work that a picture of noise can cause.
MAX_WINDOWS, MAX_CANDIDATES = 8192, 2048
# How many crops go through R-Net or O-Net at a time; bounds memory.
CROPS = 512


class ProposalNetwork(nn.Module):
    """P-Net. Maps pictures [B, 3, h, w] in -1..1 to corrections [B, 4, h', w'] and face probabilities [B, h', w'].

    The result at (y, x) is about the 12x12 window whose upper left corner is (2 y, 2 x).
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 10, 3)
        self.prelu1 = nn.PReLU(10)
        self.pool1 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.conv2 = nn.Conv2d(10, 16, 3)
        self.prelu2 = nn.PReLU(16)
        self.conv3 = nn.Conv2d(16, 32, 3)
        self.prelu3 = nn.PReLU(32)
        self.conv4_1 = nn.Conv2d(32, 2, 1)
        self.conv4_2 = nn.Conv2d(32, 4, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.pool1(self.prelu1(self.conv1(x)))
        x = self.prelu3(self.conv3(self.prelu2(self.conv2(x))))
        return self.conv4_2(x), self.conv4_1(x).softmax(1)[:, 1]


class RefinementNetwork(nn.Module):
    """R-Net. Maps crops [N, 3, 24, 24] in -1..1 to corrections [N, 4] and face probabilities [N]."""

    size = 24

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 28, 3)
        self.prelu1 = nn.PReLU(28)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2 = nn.Conv2d(28, 48, 3)
        self.prelu2 = nn.PReLU(48)
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv3 = nn.Conv2d(48, 64, 2)
        self.prelu3 = nn.PReLU(64)
        self.dense4 = nn.Linear(576, 128)
        self.prelu4 = nn.PReLU(128)
        self.dense5_1 = nn.Linear(128, 2)
        self.dense5_2 = nn.Linear(128, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.pool1(self.prelu1(self.conv1(x)))
        x = self.pool2(self.prelu2(self.conv2(x)))
        x = self.prelu3(self.conv3(x))
        x = self.prelu4(self.dense4(_columns(x)))
        return self.dense5_2(x), self.dense5_1(x).softmax(1)[:, 1]


class OutputNetwork(nn.Module):
    """O-Net. Maps crops [N, 3, 48, 48] in -1..1 to corrections [N, 4], probabilities [N] and landmarks [N, 10]."""

    size = 48

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3)
        self.prelu1 = nn.PReLU(32)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.prelu2 = nn.PReLU(64)
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv3 = nn.Conv2d(64, 64, 3)
        self.prelu3 = nn.PReLU(64)
        self.pool3 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.conv4 = nn.Conv2d(64, 128, 2)
        self.prelu4 = nn.PReLU(128)
        self.dense5 = nn.Linear(1152, 256)
        self.prelu5 = nn.PReLU(256)
        self.dense6_1 = nn.Linear(256, 2)
        self.dense6_2 = nn.Linear(256, 4)
        self.dense6_3 = nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = self.pool1(self.prelu1(self.conv1(x)))
        x = self.pool2(self.prelu2(self.conv2(x)))
        x = self.pool3(self.prelu3(self.conv3(x)))
        x = self.prelu4(self.conv4(x))
        x = self.prelu5(self.dense5(_columns(x)))
        return self.dense6_2(x), self.dense6_1(x).softmax(1)[:, 1], self.dense6_3(x)


@dataclass(frozen=True)
class Faces:
    """The faces of one picture, best first, in its pixels.

    `boxes` [N, 4] are x0, y0, x1, y1 and may reach beyond the picture; `scores` [N] in 0..1; `landmarks`
    [N, 5, 2] are (x, y) of the left and right eye (as seen), the nose, the left and right corner of the mouth.
    """

    boxes: torch.Tensor
    scores: torch.Tensor
    landmarks: torch.Tensor


class MTCNN(nn.Module):
    """The cascade. Maps `uint8` pictures [B, 3, H, W] of one size to the faces of each."""

    def __init__(self) -> None:
        super().__init__()
        self.pnet = ProposalNetwork()
        self.rnet = RefinementNetwork()
        self.onet = OutputNetwork()

    @torch.inference_mode()
    def forward(
        self,
        pictures: torch.Tensor,
        min_face_size: float = 40.0,
        thresholds: Sequence[float] = (0.6, 0.7, 0.7),
    ) -> list[Faces]:
        """Detect faces of at least `min_face_size` pixels.

        `thresholds` are the probabilities that a candidate must pass at P-, R- and O-Net.
        """
        table = AreaTable(pictures)
        candidates = self._propose(table, min_face_size, thresholds[0])
        candidates = self._refine(table, candidates, thresholds[1])
        return self._finish(table, candidates, thresholds[2])

    def _propose(
        self, table: AreaTable, min_face_size: float, threshold: float
    ) -> list[torch.Tensor]:
        """Return square candidates [N, 4] of each picture."""
        nothing = torch.zeros((0, 9), device=table.device)  # Pictures may be too small for a level.
        found = [[nothing] for _ in range(table.batch)]
        for scale in _pyramid(min(table.height, table.width), min_face_size):
            level = table.resized(int(table.height * scale + 1), int(table.width * scale + 1))
            corrections, probabilities = self.pnet(_scaled(level))
            for windows, *maps in zip(found, corrections, probabilities, strict=True):
                windows.append(_windows(*maps, scale, threshold))
        candidates = []
        for levels in found:
            windows = torch.cat(levels)  # N, 9: box, score, correction
            windows = windows[nms(windows[:, :4], windows[:, 4], OVERLAP)[:MAX_CANDIDATES]]
            box = windows[:, :4]
            sides = (box[:, 2:] - box[:, :2]).repeat(1, 2)
            candidates.append(_square(box + windows[:, 5:] * sides))
        return candidates

    def _refine(
        self, table: AreaTable, candidates: list[torch.Tensor], threshold: float
    ) -> list[torch.Tensor]:
        """Return the candidates that pass R-Net, corrected and square again."""
        passed = []
        for boxes, (corrections, scores) in self._look(table, candidates, self.rnet):
            chosen = scores > threshold
            boxes, corrections, scores = boxes[chosen], corrections[chosen], scores[chosen]
            kept = nms(boxes, scores, OVERLAP)
            passed.append(_square(_corrected(boxes[kept], corrections[kept])))
        return passed

    def _finish(
        self, table: AreaTable, candidates: list[torch.Tensor], threshold: float
    ) -> list[Faces]:
        """Return the candidates that pass O-Net as faces."""
        faces = []
        for boxes, (corrections, scores, points) in self._look(table, candidates, self.onet):
            chosen = scores > threshold
            boxes, corrections, scores = boxes[chosen], corrections[chosen], scores[chosen]
            sides = boxes[:, 2:] - boxes[:, :2] + 1
            # O-Net gives the five x first, then the five y, as shares of the box.
            landmarks = points[chosen].unflatten(1, (2, 5)).transpose(1, 2)
            landmarks = landmarks * sides[:, None] + boxes[:, None, :2] - 1
            boxes = _corrected(boxes, corrections)
            kept = _nested_nms(boxes, scores, OVERLAP)
            faces.append(Faces(boxes[kept], scores[kept], landmarks[kept]))
        return faces

    def _look(
        self,
        table: AreaTable,
        candidates: list[torch.Tensor],
        network: RefinementNetwork | OutputNetwork,
    ) -> list[tuple[torch.Tensor, tuple[torch.Tensor, ...]]]:
        """Run the crops of all pictures through `network` and return, by picture, boxes and its outputs.

        Candidates without a pixel inside the picture are left out.
        """
        candidates = [boxes[_inside(boxes, table)] for boxes in candidates]
        counts = [len(boxes) for boxes in candidates]
        boxes = torch.cat(candidates)
        picture = torch.repeat_interleave(torch.tensor(counts)).to(boxes.device)
        # A run over no crops gives outputs of the right shapes.
        runs = [
            network(_scaled(table.crops(one, _pixels(some, table), network.size)))
            for one, some in zip(picture.split(CROPS), boxes.split(CROPS), strict=True)
        ]
        outputs = [torch.cat(parts).split(counts) for parts in zip(*runs, strict=True)]
        return list(zip(candidates, zip(*outputs, strict=True), strict=True))


class FaceDetector(Predictor):
    """IMAGE `uint8` [B, 3, H, W] to BOXES [B, N, 4], SCORES [B, N] and LANDMARKS [B, N, 5, 2], all float32.

    Coordinates are shares of the picture, clipped to 0..1. N is the largest number of faces in a picture of
    the batch, at least 1; rows without a face hold zeros. Always computes in float32: the networks
    are small, and boxes suffer from less.
    """

    def __init__(self, network: MTCNN, card: Card, device: Device) -> None:
        self._network = network
        self._device = device.torch
        self._min_face_size = float(card.parameters["min_face_size"].default or 0)
        self._thresholds = tuple(card.thresholds[name] for name in ("pnet", "rnet", "onet"))

    def predict(self, batch: Arrays) -> Arrays:
        # A copy: what Triton hands over is read-only.
        pictures = torch.tensor(batch["IMAGE"]).to(self._device)
        found = self._network(pictures, self._min_face_size, self._thresholds)
        height, width = pictures.shape[2:]
        size = torch.tensor([width, height], dtype=torch.float32)
        rows = max(1, *(len(faces.scores) for faces in found))
        boxes = torch.zeros(len(found), rows, 4)
        scores = torch.zeros(len(found), rows)
        landmarks = torch.zeros(len(found), rows, 5, 2)
        for number, faces in enumerate(found):
            count = len(faces.scores)
            boxes[number, :count] = (faces.boxes.cpu() / size.repeat(2)).clamp(0, 1)
            scores[number, :count] = faces.scores.cpu()
            landmarks[number, :count] = (faces.landmarks.cpu() / size).clamp(0, 1)
        return {
            "BOXES": boxes.numpy(),
            "SCORES": scores.numpy(),
            "LANDMARKS": landmarks.numpy(),
        }


def _pyramid(side: int, min_face_size: float) -> list[float]:
    """Return the scales at which faces from `min_face_size` up to the shorter side fill P-Net's window."""
    scales = []
    scale = WINDOW / min_face_size
    while side * scale >= WINDOW:
        scales.append(scale)
        scale *= PYRAMID_FACTOR
    return scales


def _windows(
    correction: torch.Tensor, probability: torch.Tensor, scale: float, threshold: float
) -> torch.Tensor:
    """Return one picture's windows at one scale: [N, 9] of box (pixels of the picture), score and correction."""
    y, x = (probability >= threshold).nonzero(as_tuple=True)
    scores = probability[y, x]
    if len(scores) > MAX_WINDOWS:
        scores, best = scores.topk(MAX_WINDOWS)
        y, x = y[best], x[best]
    corner = STRIDE * torch.stack((x, y), dim=1)
    boxes = torch.cat(((corner + 1) / scale, (corner + WINDOW) / scale), dim=1).floor()
    windows = torch.cat((boxes, scores[:, None], correction[:, y, x].T), dim=1)
    return windows[nms(boxes, scores, LEVEL_OVERLAP)]


def _nested_nms(boxes: torch.Tensor, scores: torch.Tensor, overlap: float) -> torch.Tensor:
    """Return the indices of the boxes kept, best first; overlap is a share of the smaller box, so nested ones go."""
    order = scores.argsort(descending=True, stable=True)
    area = (boxes[:, 2:] - boxes[:, :2] + 1).prod(1)
    corner0 = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    corner1 = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    common = (corner1 - corner0 + 1).clamp(min=0).prod(2)
    same = (common / torch.minimum(area[:, None], area[None]) > overlap).tolist()
    kept: list[int] = []
    for candidate in order.tolist():
        if not any(same[candidate][better] for better in kept):
            kept.append(candidate)
    return torch.tensor(kept, dtype=torch.int64, device=boxes.device)


def _corrected(boxes: torch.Tensor, corrections: torch.Tensor) -> torch.Tensor:
    return boxes + corrections * (boxes[:, 2:] - boxes[:, :2] + 1).repeat(1, 2)


def _square(boxes: torch.Tensor) -> torch.Tensor:
    """Return squares of the longer side around the boxes' centres."""
    sides = boxes[:, 2:] - boxes[:, :2]
    longer = sides.amax(1, keepdim=True)
    corner = boxes[:, :2] + sides * 0.5 - longer * 0.5
    return torch.cat((corner, corner + longer), dim=1)


def _pixels(boxes: torch.Tensor, table: AreaTable) -> torch.Tensor:
    """Return what the boxes cover inside the picture, int64, last exclusive. The networks count pixels from 1."""
    boxes = boxes.trunc().long()
    corner = boxes[:, :2].clamp(min=1) - 1
    end = boxes[:, 2:].minimum(boxes.new_tensor([table.width, table.height]))
    return torch.cat((corner, end), dim=1)


def _inside(boxes: torch.Tensor, table: AreaTable) -> torch.Tensor:
    pixels = _pixels(boxes, table)
    return (pixels[:, 2:] > pixels[:, :2]).all(1)


def _scaled(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels - 127.5) / 128.0


def _columns(x: torch.Tensor) -> torch.Tensor:
    """Flatten maps column by column, the order in which the weights were trained."""
    return x.permute(0, 3, 2, 1).flatten(1)


@register
class MTCNNArchitecture(Architecture):
    """MTCNN, the detector that finds the faces in what is sent to deepfake detection."""

    slug = "mtcnn"
    title = "MTCNN face detector"
    task = Task.FACE_DETECTION
    paper = Paper(
        slug="mtcnn",
        title="Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks",
        year=2016,
        arxiv="1604.02878",
    )
    origin = "own"
    licence = Licence(code="MIT", weights="MIT")
    max_batch = 8
    preferred_batches = (4, 8)
    variants: ClassVar[Mapping[str, Variant]] = {
        "default": Variant(
            "default",
            config={},
            image=ImageInput(resize="none", mean=(127.5 / 255,) * 3, std=(128.0 / 255,) * 3),
            thresholds={"pnet": 0.6, "rnet": 0.7, "onet": 0.7},
            parameters={
                "min_face_size": Parameter(
                    type="integer",
                    default=40,
                    minimum=20,
                    maximum=1024,
                    description="Side of the smallest face looked for, in pixels of the picture sent.",
                )
            },
            default=True,
        )
    }

    def network(self, config: Mapping[str, Any]) -> MTCNN:
        return MTCNN()

    def serve(self, network: nn.Module, card: Card, device: Device, folder: Path) -> Predictor:
        assert isinstance(network, MTCNN)
        return FaceDetector(network, card, device)

    def card(
        self,
        variant: str,
        *,
        id: str | None = None,
        weights: WeightsRecord,
        labels: tuple[str, ...] | None = None,
        **changes: Any,
    ) -> Card:
        """Return the card; its id is "mtcnn", since there is one variant."""
        return super().card(variant, id=id or self.slug, weights=weights, labels=labels, **changes)

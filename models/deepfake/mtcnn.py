"""MTCNN: Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks.

https://arxiv.org/abs/1604.02878. Three small networks, each looking closer at what the one before let through:
P-Net slides over a pyramid of the picture, R-Net sees each candidate at 24x24 pixels, O-Net at 48x48 and
also finds five landmarks. The weights ship with this project (`models/demo/weights/mtcnn.safetensors`); they
are those of the facenet-pytorch package 2.6.0 (MIT, see MTCNN-LICENCE.txt beside it). What lies between the
networks is in `face_detector.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from models.architecture import Architecture, Variant
from models.deepfake.face_detector import FINAL, REFINED, FaceDetector
from models.layers.graph import Cascade, Graph
from models.registry import register
from models.serving import Device, Predictor
from service.triton.cards import Card, ImageInput, Licence, Paper, Parameter, Task, WeightsRecord


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


class MTCNN(nn.Module):
    """The three networks, each with its own weights."""

    def __init__(self) -> None:
        super().__init__()
        self.pnet = ProposalNetwork()
        self.rnet = RefinementNetwork()
        self.onet = OutputNetwork()


class Stage(Graph):
    """PIXELS float32 [N, 3, h, w] in 0..255 to CORRECTIONS, PROBABILITIES and, of O-Net, POINTS.

    Always in float32: the networks are small, and boxes suffer from less.
    """

    input = "PIXELS"
    exact = True

    def __init__(self, network: nn.Module, side: int, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.network = network
        self.size = (3, side, side)
        self.outputs = outputs

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        answers: tuple[torch.Tensor, ...] = self.network((pixels - 127.5) / 128.0)
        return answers


def stages(network: MTCNN) -> dict[str, Graph]:
    """Return the graphs of the networks, by the names that `FaceDetector` knows them by."""
    first = ("CORRECTIONS", "PROBABILITIES")
    return {
        "pnet": Stage(network.pnet, -1, first),
        "rnet": Stage(network.rnet, REFINED, first),
        "onet": Stage(network.onet, FINAL, (*first, "POINTS")),
    }


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
        return Cascade(stages(network), partial(FaceDetector, card=card), device)

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

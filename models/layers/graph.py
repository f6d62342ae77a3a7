"""Feed-forward networks: all they compute is one graph, from the tensors of their task to its answers."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import nn

from models.serving import Predictor


class Graph(nn.Module):
    """The whole way from a `uint8` tensor named `input` to the tensors named `outputs`, batch first.

    Normalisation and activation are part of it, so that what is exported or compiled needs nothing beside it.
    """

    input: ClassVar[str]
    outputs: ClassVar[tuple[str, ...]]

    def __init__(self) -> None:
        super().__init__()
        self.eval()

    @abstractmethod
    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return one float32 tensor for each of `outputs`."""


class FeedForward(Predictor):
    """A predictor that answers from `graph`, at least requests without optional inputs."""

    graph: Graph

"""Feed-forward networks: all they compute is one graph, or several, from tensors to tensors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import nn

from models.layers.noise import NOISE
from models.serving import Arrays, Device, Predictor

Run = Callable[[Arrays], Arrays]


class Graph(nn.Module):
    """The whole way from a tensor named `input` to the tensors named `outputs`, batch first.

    `input` is a `uint8` tensor of the task, or float32 in 0..255 of the dimensions `size` without the batch
    (-1 varies). Normalisation and activation are part of the graph, so that what is exported or
    compiled needs nothing beside it. A network that draws takes `noise` unit normal values an item as a
    second input, NOISE.
    """

    input: ClassVar[str]
    outputs: tuple[str, ...]
    size: tuple[int, ...] | None = None
    noise: int = 0
    exact: ClassVar[bool] = False
    """Whether it computes in float32 whatever the device or the card says."""

    def __init__(self) -> None:
        super().__init__()
        self.eval()

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input, NOISE) if self.noise else (self.input,)

    @abstractmethod
    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return one float32 tensor for each of `outputs`."""


@torch.inference_mode()
def run_eager(graph: Graph, arrays: Arrays, device: torch.device | None = None) -> Arrays:
    """Return the graph's outputs by name, computed in torch."""
    answers = graph(*(torch.from_numpy(arrays[name]).to(device) for name in graph.inputs))
    return {name: answer.cpu().numpy() for name, answer in zip(graph.outputs, answers, strict=True)}


class FeedForward(Predictor):
    """A predictor that answers from `graph`, at least requests without optional inputs."""

    graph: Graph

    @property
    def graphs(self) -> Mapping[str, Graph]:
        return {"model": self.graph}


class Cascade(Predictor):
    """A predictor of several graphs, by name; `between` makes what lies between them, which needs no torch.

    Served by OpenVINO it is the same, from a list in `models/runtimes/openvino.py`, around the exported graphs.
    """

    def __init__(
        self,
        graphs: Mapping[str, Graph],
        between: Callable[[Mapping[str, Run]], Predictor],
        device: Device,
    ) -> None:
        self.graphs = {name: graph.to(device.torch) for name, graph in graphs.items()}
        runs = {n: partial(run_eager, g, device=device.torch) for n, g in self.graphs.items()}
        self.predictor = between(runs)

    def predict(self, batch: Arrays) -> Arrays:
        return self.predictor.predict(batch)

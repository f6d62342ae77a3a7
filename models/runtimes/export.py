"""From a network in torch to OpenVINO's intermediate representation."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch

from models.layers.graph import Graph
from models.runtimes.openvino import GRAPH, openvino


class NotExportable(Exception):
    """The graph cannot be exported; the message is the first line of what the exporter says."""


def export(graph: Graph, example: torch.Tensor) -> Any:
    """Return `graph` as an OpenVINO model for any number of inputs like `example` [B, ...], B >= 2.

    Raises NotExportable.
    """
    ov = openvino()
    try:
        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # The tracer warns of each size that it takes for fixed.
            quiet, logging.root.manager.disable = logging.root.manager.disable, logging.CRITICAL
            try:
                shape = ov.PartialShape([-1, *example.shape[1:]])
                model = ov.convert_model(graph, example_input=example, input=[(shape, ov.Type.u8)])
            finally:
                logging.root.manager.disable = quiet
    except Exception as error:
        said = " ".join(str(error).split())
        raise NotExportable(f"{type(error).__name__}: {said[:200]}") from error
    model.input(0).get_tensor().set_names({graph.input})
    for port, name in zip(model.outputs, graph.outputs, strict=True):
        port.get_tensor().set_names({name})
    return model


def save(model: Any, folder: Path) -> None:
    """Write the IR into `folder`, weights in float32."""
    openvino().save_model(model, folder / GRAPH, compress_to_fp16=False)

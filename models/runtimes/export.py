"""From a network in torch to OpenVINO's intermediate representation."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch

from models.layers.graph import Graph
from models.runtimes.openvino import openvino
from models.serving import Arrays


class NotExportable(Exception):
    """The graph cannot be exported; the message is the first line of what the exporter says."""


def export(graph: Graph, examples: Arrays) -> Any:
    """Return `graph` as an OpenVINO model for any number of inputs like `examples` [B, ...], B >= 2.

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
                tensors = tuple(torch.from_numpy(examples[name]) for name in graph.inputs)
                model = ov.convert_model(
                    graph,
                    example_input=tensors,
                    input=[_port(graph, name, examples) for name in graph.inputs],
                )
            finally:
                logging.root.manager.disable = quiet
    except Exception as error:
        said = " ".join(str(error).split())
        raise NotExportable(f"{type(error).__name__}: {said[:200]}") from error
    for port, name in zip(model.inputs, graph.inputs, strict=True):
        port.get_tensor().set_names({name})
    for port, name in zip(model.outputs, graph.outputs, strict=True):
        port.get_tensor().set_names({name})
    return model


def _port(graph: Graph, name: str, examples: Arrays) -> tuple[Any, Any]:
    """Return shape and type of an input."""
    ov = openvino()
    size = graph.size if name == graph.input and graph.size else examples[name].shape[1:]
    return ov.PartialShape([-1, *size]), ov.Type(examples[name].dtype)


def save(model: Any, file: Path) -> None:
    """Write the IR, and its weights beside it in float32."""
    openvino().save_model(model, file, compress_to_fp16=False)

"""Serving what was exported to OpenVINO's intermediate representation (IR), without torch.

Of an entry with one graph that is `model.xml` with its weights in `model.bin`; of one with several, such a
pair for each.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from models.layers.noise import NOISE, noises
from models.serving import Arrays, InvalidInput, Predictor
from models.signatures import SIGNATURES
from service.triton.cards import Card
from service.triton.server import cores

# What lies between the graphs of a network that is several: a class without torch, by architecture.
_CASCADES = {"mtcnn": ("models.deepfake.face_detector", "FaceDetector")}


def graph_file(folder: Path, name: str) -> Path:
    """Return where the graph `name` of an entry lies; its weights lie beside it."""
    return folder / f"{name}.xml"


def exported(folder: Path) -> dict[str, Path]:
    """Return the exported graphs of an entry by name."""
    return {file.stem: file for file in sorted(folder.glob("*.xml"))}


def weights_file(graph: Path) -> Path:
    """Return the file with the weights of an exported graph."""
    return graph.with_suffix(".bin")


def is_installed() -> bool:
    """Tell whether the package is there."""
    return importlib.util.find_spec("openvino") is not None


@cache
def openvino() -> Any:
    """Return the package, which must be imported here only: by itself it reports every import to its makers.

    Without `openvino_telemetry` it uses a stub in its place.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


@cache
def _core() -> Any:
    return openvino().Core()


def computes_in_bfloat16() -> bool:
    """Tell whether this CPU has instructions for bfloat16 that OpenVINO uses."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class Compiled:
    """An exported graph, ready to run on this machine's CPU. `model` is a graph in memory or an IR's file.

    One stream over all cores, since the batcher brings one batch at a time. Threads are not bound to
    cores: the processes of all models would be bound to the same ones.
    """

    def __init__(self, model: Any, precision: Literal["float32", "bfloat16"]) -> None:
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": int(os.environ.get("OMP_NUM_THREADS", cores())),
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
        }
        compiled = _core().compile_model(model, "CPU", options)
        self.inputs = {
            port.any_name: [
                None if size.is_dynamic else size.get_length()
                for size in list(port.partial_shape)[1:]
            ]
            for port in compiled.inputs
        }
        self.outputs = tuple(port.any_name for port in compiled.outputs)
        self._request = compiled.create_infer_request()

    def __call__(self, batch: Arrays) -> Arrays:
        """Return every output. Raises InvalidInput where an input is not of the graph's size."""
        for name, sizes in self.inputs.items():
            size = list(batch[name].shape[1:])
            if len(size) != len(sizes) or any(
                want not in (None, have) for want, have in zip(sizes, size, strict=True)
            ):
                raise InvalidInput(f"{name} of shape {size}; this model takes {sizes}")
        given = {name: batch[name] for name in self.inputs}
        results = self._request.infer(given, share_inputs=True)
        return dict(zip(self.outputs, (results[i] for i in range(len(self.outputs))), strict=True))


def load(card: Card, folder: Path) -> Predictor:
    """Load what the card describes from the graphs in `folder`."""
    if card.architecture not in _CASCADES:
        return Exported(card, folder)
    module, name = _CASCADES[card.architecture]
    between = getattr(importlib.import_module(module), name)
    precision = _precision(card)
    graphs = {n: Compiled(file, precision) for n, file in exported(folder).items()}
    served: Predictor = between(graphs, card)
    return served


def _precision(card: Card) -> Literal["float32", "bfloat16"]:
    fast = card.precision == "bfloat16" and computes_in_bfloat16()
    return "bfloat16" if fast else "float32"


class Exported(Predictor):
    """A model from the IR in `folder`; what that does not answer the torch network does, loaded at the first such request.

    What both could answer is always the graph's: a picture has the same scores with an explanation and without.
    A graph's noise comes from the requests' SEED.
    """

    def __init__(self, card: Card, folder: Path) -> None:
        self._card, self._folder = card, folder
        self._graph = Compiled(graph_file(folder, "model"), _precision(card))
        outputs = SIGNATURES[card.task].outputs
        self._asked_by: Mapping[str, str | None] = {spec.name: spec.asked_by for spec in outputs}

    def predict(self, batch: Arrays) -> Arrays:
        if NOISE in self._graph.inputs:
            (size,) = self._graph.inputs[NOISE]
            count = len(next(iter(batch.values())))
            batch = batch | {NOISE: noises(batch.get("SEED"), count, size)}
        wanted = {name for name, by in self._asked_by.items() if by is None or by in batch}
        answer = {name: array for name, array in self._graph(batch).items() if name in wanted}
        if wanted <= answer.keys():
            return answer
        if "CLASS" in batch:
            best = answer["SCORES"].argmax(-1).astype(np.int32)[:, None]
            batch = batch | {"CLASS": np.where(batch["CLASS"] == -1, best, batch["CLASS"])}
        return self._eager.predict(batch) | answer

    @cached_property
    def _eager(self) -> Predictor:
        from models.runtimes.eager import load

        exact = self._card.model_copy(update={"runtime": "torch", "precision": "float32"})
        served, _ = load(exact, self._folder, "CPU", "0")
        assert isinstance(served, Predictor)
        return served

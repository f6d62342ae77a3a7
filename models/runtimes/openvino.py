"""Serving a graph that was exported to OpenVINO's intermediate representation (IR), without torch."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from models.serving import Arrays, InvalidInput, Predictor
from models.signatures import SIGNATURES
from service.triton.cards import Card
from service.triton.server import cores

GRAPH = "model.xml"
WEIGHTS = "model.bin"


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
        (self.input,) = (port.any_name for port in compiled.inputs)
        self.outputs = tuple(port.any_name for port in compiled.outputs)
        sizes = list(compiled.input(0).partial_shape)[1:]
        self._sizes = [None if size.is_dynamic else size.get_length() for size in sizes]
        self._request = compiled.create_infer_request()

    def __call__(self, batch: Arrays) -> Arrays:
        """Return every output. Raises InvalidInput where the input is not of the graph's size."""
        given = batch[self.input]
        size = list(given.shape[1:])
        if len(size) != len(self._sizes) or any(
            want not in (None, have) for want, have in zip(self._sizes, size, strict=True)
        ):
            raise InvalidInput(f"{self.input} of shape {size}; this model takes {self._sizes}")
        results = self._request.infer({0: given}, share_inputs=True)
        return dict(zip(self.outputs, (results[i] for i in range(len(self.outputs))), strict=True))


class Exported(Predictor):
    """A model from the IR in `folder`; what that does not answer the torch network does, loaded at the first such request.

    What both could answer is always the graph's: a picture has the same scores with an explanation and without.
    """

    def __init__(self, card: Card, folder: Path) -> None:
        self._card, self._folder = card, folder
        fast = card.precision == "bfloat16" and computes_in_bfloat16()
        self._graph = Compiled(folder / GRAPH, "bfloat16" if fast else "float32")
        outputs = SIGNATURES[card.task].outputs
        self._asked_by: Mapping[str, str | None] = {spec.name: spec.asked_by for spec in outputs}

    def predict(self, batch: Arrays) -> Arrays:
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

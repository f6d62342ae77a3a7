"""Which runtime serves an entry: chosen when it is built, held against eager float32, written on the card."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from models.layers.graph import Cascade, FeedForward, Graph, Run, run_eager
from models.layers.noise import NOISE, noises
from models.registry import architecture
from models.runtimes import eager, export, openvino
from models.serving import Arrays, Device
from models.signatures import SIGNATURES, dims
from models.weights.errors import NoRuntime
from service.triton.cards import Acceleration, Card

Runtime = Literal["auto", "torch", "compile", "openvino"]
Precision = Literal["auto", "float32", "bfloat16"]
Numbers = Literal["float32", "bfloat16"]

WEIGHTS = "model.safetensors"
# How many inputs a trial batch has. Two sizes, since an exporter may take the first one's for fixed.
_BATCHES = (3, 1)
# The side of a trial input where that varies.
_SIDE = 48
# How far an output may be from eager float32, over the largest magnitude of that output. bfloat16 has 8 bits
# of precision; published networks with random weights were seen to differ by 0.01 to 0.05.
LARGEST_ERROR: Mapping[Numbers, float] = {"float32": 1e-3, "bfloat16": 0.1}


@dataclass(frozen=True)
class Agreement:
    """How close outputs are to eager float32; see `Acceleration`."""

    error: float
    top1: float | None


def accelerate(
    card: Card,
    folder: Path,
    *,
    on_gpu: bool = False,
    runtime: Runtime = "auto",
    precision: Precision = "auto",
) -> Card:
    """Return the card with its runtime on this machine; an exported graph is written into `folder`.

    `folder` holds the entry's parts. `auto` takes what is fastest on the CPU and agrees with eager float32.
    Networks that work in steps, and GPUs, run in torch. Raises NoRuntime if what was
    asked for by name cannot be had.
    """
    for file in openvino.exported(folder).values():
        file.unlink()
        openvino.weights_file(file).unlink(missing_ok=True)
    if on_gpu:
        if runtime == "openvino":
            raise NoRuntime("OpenVINO serves models on CPUs only: say --device cpu")
        kind = "compile" if runtime == "compile" else "torch"
        return card.model_copy(update={"runtime": kind, "precision": precision})

    def in_torch(numbers: Precision, reason: str) -> Card:
        record = Acceleration(asked=runtime, reasons=(reason,), source=source(folder))
        return card.model_copy(
            update={"runtime": "torch", "precision": numbers, "acceleration": record}
        )

    exact = architecture(card.architecture).load(card, folder, Device())
    if not isinstance(exact, FeedForward | Cascade):
        reason = f"{card.title} is not made of graphs: it runs in torch"
        if runtime in ("compile", "openvino"):
            raise NoRuntime(reason)
        return in_torch(precision, reason)
    inputs = {
        name: [trials(card, graph, count) for count in _BATCHES]
        for name, graph in exact.graphs.items()
    }
    truth = {
        name: [run_eager(graph, arrays) for arrays in inputs[name]]
        for name, graph in exact.graphs.items()
    }
    outputs = (each for runs in truth.values() for run in runs for each in run.values())
    if not all(np.isfinite(each).all() for each in outputs):
        reason = "its answers are not finite, so nothing can be held against them"
        return in_torch("float32", reason)
    reasons: list[str] = []
    for kind, numbers in candidates(runtime, precision):
        try:
            runs = prepared(kind, numbers, card, folder, exact)
            found = [
                agreement(
                    truth[name], [run(arrays) for arrays in inputs[name]], LARGEST_ERROR[numbers]
                )
                for name, run in runs.items()
            ]
        except (_Unfit, RuntimeError) as unfit:
            # Exporters and compilers fail in many ways; torch itself is there to be seen failing.
            if kind == "torch" and not isinstance(unfit, _Unfit):
                raise
            reasons.append(f"{kind} in {numbers}: {' '.join(str(unfit).split())[:240]}")
            continue
        record = Acceleration(
            asked=runtime,
            inputs=sum(_BATCHES),
            error=float(f"{max(each.error for each in found):.2g}"),
            top1=next((each.top1 for each in found if each.top1 is not None), None),
            reasons=tuple(reasons),
            source=source(folder),
        )
        return card.model_copy(
            update={"runtime": kind, "precision": numbers, "acceleration": record}
        )
    raise NoRuntime(f"{card.id} cannot run as asked: {'; '.join(reasons)}")


def candidates(
    runtime: Runtime, precision: Precision
) -> Iterator[tuple[Literal["torch", "compile", "openvino"], Numbers]]:
    """Yield what may serve a feed-forward network on this CPU, the fastest first."""
    kinds = ("openvino", "torch") if runtime == "auto" else (runtime,)
    for kind in kinds:
        fast = kind != "openvino" or not openvino.is_installed() or openvino.computes_in_bfloat16()
        for numbers in ("bfloat16", "float32") if precision == "auto" else (precision,):
            if numbers == "float32" or precision != "auto" or fast:
                yield kind, numbers


class _Unfit(Exception):
    """Why a candidate is not taken."""


def prepared(
    kind: str, numbers: Numbers, card: Card, folder: Path, exact: FeedForward | Cascade
) -> dict[str, Run]:
    """Return the graphs of `card` by name, as the runtime computes them. Raises _Unfit."""
    if numbers == "bfloat16" and any(graph.exact for graph in exact.graphs.values()):
        raise _Unfit("it suffers from less than float32")
    if kind == "openvino":
        if not openvino.is_installed():
            raise _Unfit("the package openvino is not installed")
        if numbers == "bfloat16" and not openvino.computes_in_bfloat16():
            raise _Unfit("this CPU does not compute in bfloat16")
        return {
            name: openvino.Compiled(_exported(card, folder, name, graph), numbers)
            for name, graph in exact.graphs.items()
        }
    if numbers == "bfloat16" and not eager.computes_in_bfloat16():
        raise _Unfit("this CPU does not compute in bfloat16")
    if kind == "compile" and isinstance(exact, Cascade):
        raise _Unfit("it would be compiled anew for every size of its inputs")
    wanted = card.model_copy(update={"runtime": kind, "precision": numbers})
    served, _ = eager.load(wanted, folder, "CPU", "0")
    assert isinstance(served, FeedForward | Cascade)
    return {name: partial(run_eager, graph) for name, graph in served.graphs.items()}


def _exported(card: Card, folder: Path, name: str, graph: Graph) -> Path:
    """Return the file of an exported graph, written if it is not there. Raises _Unfit."""
    file = openvino.graph_file(folder, name)
    if not file.exists():
        try:
            model = export.export(graph, trials(card, graph, 2))
        except export.NotExportable as error:
            raise _Unfit(f"the export failed: {error}") from error
        export.save(model, file)
    return file


def agreement(truth: list[Arrays], found: list[Arrays], largest: float) -> Agreement:
    """Compare outputs of the same inputs, batch by batch. Raises _Unfit beyond the error `largest`.

    Scores [B, C] must also have the same best class, or one that is as good but for the error.
    """
    error, same = 0.0, []
    for exact, other in zip(truth, found, strict=True):
        for name, wanted in exact.items():
            got = other[name]
            if got.shape != wanted.shape:
                raise _Unfit(f"{name} has the shape {list(got.shape)}, not {list(wanted.shape)}")
            share = float(np.abs(got - wanted).max() / max(float(np.abs(wanted).max()), 1e-12))
            if not share <= largest:  # NaN is not
                raise _Unfit(f"{name} differs from eager float32 by {share:.2g} of its range")
            error = max(error, share)
        if "SCORES" in exact:
            scores, best = exact["SCORES"], other["SCORES"].argmax(-1)
            same.append(best == scores.argmax(-1))
            picked = np.take_along_axis(scores, best[:, None], -1)[:, 0]
            if (picked < scores.max(-1) * (1 - largest)).any():
                raise _Unfit("another class than that of eager float32 comes first")
    return Agreement(error, float(np.concatenate(same).mean()) if same else None)


def trials(card: Card, graph: Graph, count: int) -> Arrays:
    """Return inputs of `graph` for `count` items, always the same."""
    if graph.size is None:
        arrays = {graph.input: trial(card, graph.input, count)}
    else:
        size = [side if side > 0 else _SIDE for side in graph.size]
        arrays = {graph.input: _patches(count, *size).astype(np.float32)}
    if graph.noise:
        arrays[NOISE] = noises(np.arange(count)[:, None], count, graph.noise)
    return arrays


def trial(card: Card, input: str, count: int) -> np.ndarray:
    """Return `count` inputs of the card's size, uint8: patches of colour with some noise, always the same."""
    (spec,) = (each for each in SIGNATURES[card.task].inputs if each.name == input)
    return _patches(count, *dims(spec, card))


def _patches(count: int, *size: int) -> np.ndarray:
    *front, height, width = size
    stream = np.random.default_rng(count)
    patches = stream.integers(16, 240, (count, *front, 6, 6))
    rows, columns = np.arange(height) * 6 // height, np.arange(width) * 6 // width
    pictures = patches[..., rows[:, None], columns]
    return (pictures + stream.integers(-16, 16, pictures.shape)).astype(np.uint8)


def source(folder: Path) -> str:
    """Return the SHA-256 of the network's weights in `folder`."""
    with (folder / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_current(card: Card, folder: Path) -> bool:
    """Tell whether the runtime on the card was chosen for these weights, and its exported graph is there."""
    if card.runtime == "openvino" and not openvino.exported(folder):
        return False
    return card.acceleration is not None and card.acceleration.source == source(folder)

"""How far a network's outputs are from the recorded ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from tests.fidelity.golden import Golden, Record

TOLERANCE = 1e-3


@dataclass(frozen=True)
class Comparison:
    """The worst relative error over all outputs, and the first output beyond the tolerance."""

    worst: float
    first_difference: str | None

    @property
    def passed(self) -> bool:
        return self.first_difference is None


def compare(golden: Golden, outputs: Mapping[str, torch.Tensor]) -> Comparison:
    """Compare all recorded outputs, in the file's order; extra outputs are ignored.

    An output that is missing, has another shape or holds NaN is infinitely far away.
    """
    errors = {
        name: error(record, outputs[name]) if name in outputs else math.inf
        for name, record in golden.outputs.items()
    }
    return Comparison(
        worst=max(errors.values()),
        first_difference=next((n for n, e in errors.items() if e > TOLERANCE), None),
    )


def error(record: Record, output: torch.Tensor) -> float:
    """Return max |value - recorded| over the sampled positions, relative to the output's recorded std."""
    if tuple(output.shape) != record.shape or bool(output.isnan().any()):
        return math.inf
    values = output.detach().double().reshape(-1)[:: record.stride][: record.sample.size].numpy()
    if values.size != record.sample.size:
        return math.inf
    worst = float(np.abs(values - record.sample).max())
    return math.inf if math.isnan(worst) else worst / max(record.std, 1e-12)
